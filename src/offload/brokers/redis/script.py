"""Calls the operations of `queue.lua`, at the time of the store's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offload.brokers.redis.connections import Link
from offload.brokers.redis.refusals import refusal_of
from offload.brokers.redis.rows import moment, stored
from offload.clock import Clock, ServerClock, SystemClock


class Script:
    """What one link can ask. The clock is the server's own, unless a test has another."""

    def __init__(self, link: Link, clock: Clock, server: ServerClock | None = None) -> None:
        self.link = link
        self.clock = server or ServerClock(clock)
        self._given = clock
        self._tells = not isinstance(clock, SystemClock)

    def second(self) -> Script:
        """The same over a link of its own, for another loop or to be held up by nothing of this one."""
        return Script(self.link.second(), self._given, self.clock)

    def key(self, name: str) -> bytes:
        """The key of that name."""
        return f"{self.link.address.key}{name}".encode()

    async def ask(self, operation: str, *words: bytes | str | float, patient: bool = False) -> Any:
        """Ask for what may be done again when it is lost: reads, and what sessions do. Raises BrokerError."""
        return await self.link.call(operation, self._now(), *words, patient=patient, confirm=False)

    async def tell(self, operation: str, *words: bytes | str | float, patient: bool = False, once: bool = False) -> Any:
        """Ask for what must not be lost: returns when it is as durable as the address asks for; see `Link.call`. Raises BrokerError."""
        return await self.link.call(operation, self._now(), *words, patient=patient, once=once)

    def read_clock(self, now: int) -> None:
        """Take note of what the server's clock showed just now."""
        self.clock.read(moment(now))

    def _now(self) -> int | str:
        return stored(self.clock.now()) if self._tells else ""


def refuse(refusal: Sequence[bytes]) -> None:
    """Raise what the script refused jobs for."""
    raise refusal_of([word.decode() for word in refusal])
