"""How the parts of a worker wait while the broker is away, and what they say of it together."""

from __future__ import annotations

import logging
import random
import threading
from time import monotonic

from offload.errors import BrokerBusy, BrokerUnusable

log = logging.getLogger("offload.worker")

FIRST = 0.2
LONGEST = 3.0
"""Seconds between two tries at most: so long a server that is back may wait to be asked."""
REMIND_EVERY = 60.0
"""Seconds between two lines about an outage that goes on."""
FORGET_AFTER = 30.0
"""Seconds after which a part that has not tried again no longer makes the outage last: it has nothing to ask any more."""


class Outage:
    """What a worker says of a broker that is away: one line when that begins, one each minute, and one when it is over.

    Its parts meet it one after the other, from two threads, and each would say the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: dict[str, float] = {}
        """The parts that do not get through, and when each last tried, in seconds, monotonic."""
        self._tries = 0
        self._busy = False
        """Whether all that failed met no more than other transactions, while the broker answers."""
        self._began = self._told = 0.0

    @property
    def lasts(self) -> bool:
        """Whether some part does not get through."""
        return bool(self._failed)

    def met(self, part: str, error: BaseException) -> None:
        """Note that `part` did not get through."""
        with self._lock:
            now = monotonic()
            self._tries += 1
            busy = isinstance(error, BrokerBusy)
            if not self._failed or (self._busy and not busy):
                self._began = self._told = now
                self._busy = busy
                what = "others hold it up at the broker" if busy else "the broker does not answer"
                log.error("%s: %s (%s); trying until %s", part, what, error, "it gets through" if busy else "it does")
            elif now - self._told >= REMIND_EVERY:
                self._told = now
                what = "others have held it up at the broker" if self._busy else "the broker has not answered"
                log.error("%s: %s for %.0f s (%s); still trying", part, what, now - self._began, error)
            self._failed[part] = now

    def left_to(self, part: str) -> None:
        """Note that the other parts are gone with their session, so that `part` alone is to get through."""
        with self._lock:
            self._failed = {part: monotonic()} if self._failed else {}

    def passed(self, part: str) -> None:
        """Note that `part` got through."""
        with self._lock:
            if not self._failed:
                return
            now = monotonic()
            self._failed = {name: at for name, at in self._failed.items() if name != part and now - at < FORGET_AFTER}
            if not self._failed:
                tries = f"{self._tries:,} {'try' if self._tries == 1 else 'tries'}"
                what = "gets through again" if self._busy else "the broker answers again"
                log.warning("%s: %s, after %s in %.1f s", part, what, tries, now - self._began)
                self._tries = 0


class Patience:
    """The growing, jittered waits of one part; `outage` is what it shares with the others."""

    def __init__(self, part: str, outage: Outage) -> None:
        self._part = part
        self._outage = outage
        self._failures = 0

    @property
    def away(self) -> bool:
        """True after a failure, until the broker answers again."""
        return self._failures > 0

    def failed(self, error: BaseException) -> float:
        """Note a failure. Returns the seconds to wait before the next try; raises `error` itself where no try will ever do better."""
        if isinstance(error, BrokerUnusable):
            raise error
        self._outage.met(self._part, error)
        self._failures += 1
        return min(FIRST * 2 ** min(self._failures - 1, 10), LONGEST) * random.uniform(0.5, 1.0)

    def succeeded(self) -> None:
        """Note that the broker answered."""
        self._failures = 0
        if self._outage.lasts:
            self._outage.passed(self._part)
