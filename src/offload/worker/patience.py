"""How a part of the worker waits while the broker is away."""

from __future__ import annotations

import logging
import random

from offload.errors import BrokerUnusable

log = logging.getLogger("offload.worker")

FIRST = 0.2
LONGEST = 10.0


class Patience:
    """Growing, jittered waits; says once that the broker is away and once that it is back."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._failures = 0

    @property
    def away(self) -> bool:
        """True after a failure, until the broker answers again."""
        return self._failures > 0

    def failed(self, error: BaseException) -> float:
        """Note a failure. Returns the seconds to wait before the next try; raises `error` itself where no try will ever do better."""
        if isinstance(error, BrokerUnusable):
            raise error
        if self._failures == 0:
            log.error("%s: the broker does not answer (%s); trying until it does", self._part, error)
        self._failures += 1
        return min(FIRST * 2 ** min(self._failures - 1, 10), LONGEST) * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Note that the broker answered."""
        if self._failures:
            log.warning("%s: the broker answers again, after %d tries", self._part, self._failures)
            self._failures = 0
