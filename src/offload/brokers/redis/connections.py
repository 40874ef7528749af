"""A link to Redis or Valkey: calls the script, finds the primary again after a failover, and says clearly what is wrong.

`Address.parse(url)` says where (`address.py`), `Link(address)` is one event loop's way there. A link has one connection for calls, on
which any number may be under way at once, and one for waiting, made when first needed. Both are made anew when they are gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NoReturn

from offload.brokers.redis.address import Address
from offload.brokers.redis.faults import MOVED, Refusal, fault
from offload.brokers.redis.locating import Locator
from offload.brokers.redis.wire import Cut, Refused, Wire, Word
from offload.errors import BrokerError, BrokerUnusable

__all__ = ["Address", "Link"]

log = logging.getLogger("offload")

OLDEST = (6, 2)
"""The oldest Redis that has what the script uses; every Valkey has it."""
CONFIRM = 3.0
"""Seconds for which replicas and disks are waited for, where `durability` asks for them."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between a patient call's tries, doubling from one to the other, with jitter."""
BELL = 60_000
"""Milliseconds that a member which was put back is kept, as in the script: whoever has not listened for so long never will."""
UNBLOCK_AGAIN = 0.005
"""Seconds after which a waiting connection is interrupted again, when the server had not yet read what it was to wait for."""

CLOSED = "the client is closed; call open() first"

_warned: set[str] = set()


@cache
def script() -> tuple[str, str]:
    """The script and the hash by which servers know it."""
    text = files("offload.brokers.redis").joinpath("queue.lua").read_text("utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Line:
    """A connection to the primary that is made anew when it is gone, once for all who ask at the same time."""

    def __init__(self, locator: Locator) -> None:
        self._locator = locator
        self._making: asyncio.Task[Wire] | None = None
        self._ending: AsyncGenerator[None] | None = None
        self.closed = False
        self.wire: Wire | None = None

    @property
    def open(self) -> bool:
        return self.wire is not None and self.wire.open

    async def made(self) -> Wire:
        """The open connection. Raises Cut, Refusal."""
        wire = self.wire
        if wire is not None and wire.open:
            return wire
        if self.closed:
            raise Cut(CLOSED)
        making = self._making
        if making is None:
            making = self._making = asyncio.create_task(self._make())
            making.add_done_callback(_heard)
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            if self.closed and making.cancelled():  # it was not the caller who was cancelled
                raise Cut(CLOSED) from None
            raise

    async def _make(self) -> Wire:
        try:
            if self._ending is None:
                self._ending = self._until_the_loop_ends()
                await anext(self._ending)
            self.wire = await self._locator.primary()
            return self.wire
        finally:
            self._making = None

    async def _until_the_loop_ends(self) -> AsyncGenerator[None]:
        """Closes the connection when `asyncio.run` ends generators, for it may end without anybody closing the link."""
        try:
            yield
        finally:
            if self.wire is not None:
                self.wire.close()

    async def close(self) -> None:
        """Close what is open or being made."""
        self.closed = True
        if self._making is not None:
            self._making.cancel()
        if self._ending is not None:
            ending, self._ending = self._ending, None
            await ending.aclose()


class Confirmation:
    """A WAIT under way, which serves all whose commands were written before it."""

    def __init__(self, wire: Wire, replies: asyncio.Future[tuple[Any, Any]]) -> None:
        self.wire = wire
        self.replies = replies
        self.covers = wire.sent


class Link:
    """One event loop's way to the server that holds the jobs of `address`. It repeats calls that were cut, but for those made `once`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        locator = Locator(address)
        self._calls = Line(locator)
        self._waits = Line(locator)
        self._confirmation: Confirmation | None = None

    def second(self) -> Link:
        """Another link to the same address, for another loop or to be held up by nothing of this one."""
        return Link(self.address)

    async def open(self, *, patient: bool = False) -> None:
        """Connect and look whether the server will do; `patient` tries for the address's `timeout`.

        Raises BrokerError, and BrokerUnusable for what a person must change: a server too old, a replica, or one that cannot give
        the durability asked for. Warns once where the server may throw jobs away for want of memory.
        """
        self._calls.closed = self._waits.closed = False
        facts = await self.facts(patient=patient)
        _check(self.address, facts)
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and str(self.address) not in _warned:
            _warned.add(str(self.address))
            log.warning("%s: maxmemory-policy is %s, so jobs may be thrown away when memory is short; set noeviction", self.address, policy)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._waits.close()
        await self._calls.close()

    def abandon(self) -> None:
        """Let go of the connections of an event loop that is closed: `asyncio.run` has closed them as it ended."""
        self._waits.wire = self._calls.wire = None

    async def facts(self, *, patient: bool = False) -> Mapping[str, str]:
        """What the server says about itself (INFO)."""
        return _parsed(await self._reached(("INFO",), patient=patient))

    async def call(self, operation: str, *arguments: Word, patient: bool = False, confirm: bool = True, once: bool = False) -> Any:
        """What `operation` of the script answers: KEYS[1] is the address's key prefix, ARGV[1] the operation, the arguments follow.

        With `patient` it is tried again, with jitter, until the address's `timeout` has passed. With `confirm`, and where the address
        asks for durability, returns when replicas and disks have what was written; readers, and what may be lost because it
        would be done again, do without. With `once` it is not sent again where it may have been carried out, for what answers otherwise
        the second time. Raises BrokerError, BrokerUnusable; the operation may have been carried out or not.
        """
        words = ("EVALSHA", script()[1], 1, self.address.key, operation, *arguments)
        return await self._reached(words, patient=patient, confirm=confirm and bool(self.address.durability), once=once)

    async def command(self, *words: Word) -> Any:
        """What the server answers to a command: bytes, integers, lists, None. Raises BrokerError, BrokerUnusable."""
        return await self._reached(words)

    async def pop_marker(self, key: bytes, timeout: float) -> bool:
        """Wait until the sorted set at `key` has a member and take the first; False after `timeout` seconds without one.

        May be cancelled at any time: the server stops waiting, and a member that it has already taken is put back.
        Raises BrokerError, BrokerUnusable.
        """
        known = self._waits.open
        try:
            try:
                return await self._popped(key, timeout)
            except Cut:
                if not known:  # a new connection that is cut is a trouble; an old one may only have been idle for too long
                    raise
            except Refusal as refusal:
                self._moved(self._waits, refusal)
            return await self._popped(key, timeout)
        except (Cut, Refusal) as failure:
            self._fail(failure)

    # --- one call

    async def _reached(self, words: Sequence[Word], *, patient: bool = False, confirm: bool = False, once: bool = False) -> Any:
        """Ask, and again as long as `patient` allows."""
        if not patient:
            try:
                return await self._asked(words, confirm=confirm, once=once)
            except (Cut, Refusal) as failure:
                self._fail(failure)
        limit = self.address.timeout
        tries = 0
        last: BrokerError | None = None
        try:
            async with asyncio.timeout(limit):
                while True:
                    try:
                        return await self._reached(words, confirm=confirm)
                    except BrokerUnusable:
                        raise
                    except BrokerError as error:
                        last = error
                    await asyncio.sleep(random.uniform(SHORTEST_PAUSE, min(LONGEST_PAUSE, 2 * SHORTEST_PAUSE * 2**tries)))
                    tries += 1
        except TimeoutError as error:
            text = str(last) if last is not None else f"{self.address}: no answer"
            raise BrokerError(f"{text} (tried for {limit:g} seconds)") from (last.__cause__ if last is not None else error)

    async def _asked(self, words: Sequence[Word], *, confirm: bool, once: bool = False) -> Any:
        """Ask, and once more at once where the connection was an old one that is gone or the primary is elsewhere now."""
        known = self._calls.open
        if once and known:
            await self._asked(("PING",), confirm=False)  # so that an old connection that is gone is made anew before anything is asked
        try:
            return await self._answered(words, confirm=confirm)
        except Cut:
            if once or not known:
                raise
        except Refusal as refusal:
            self._moved(self._calls, refusal)
        return await self._answered(words, confirm=confirm)

    async def _answered(self, words: Sequence[Word], *, confirm: bool) -> Any:
        wire = self._calls.wire
        if wire is None or not wire.open:
            wire = await self._calls.made()
        try:
            reply = await wire.send(words)
        except Refusal as refusal:
            if refusal.code != "NOSCRIPT":
                raise
            await wire.send(("SCRIPT", "LOAD", script()[0]))
            reply = await wire.send(words)
        if confirm:
            await self._confirmed(wire)
        return reply

    def _moved(self, line: Line, refusal: Refusal) -> None:
        """Give the connection up where the refusal says that the primary is elsewhere. Raises the refusal where it does not."""
        if refusal.code not in MOVED:
            raise refusal
        if line.wire is not None:
            line.wire.abort(f"the primary is elsewhere: {refusal.text}")

    def _fail(self, failure: Cut | Refusal) -> NoReturn:
        if isinstance(failure, Refusal):
            raise fault(self.address, failure) from failure
        advice = "; is the server running? check OFFLOAD_URL" if isinstance(failure, Refused) else ""
        raise BrokerError(f"{self.address}: {failure}{advice}") from failure

    # --- durability

    async def _confirmed(self, wire: Wire) -> None:
        """Wait until all that was written on `wire` so far has the durability asked for. Raises BrokerError when it has not in time."""
        written = wire.sent
        confirmation = self._confirmation
        if confirmation is None or confirmation.wire is not wire or confirmation.covers < written:
            confirmation = self._confirmation = Confirmation(wire, self._wait(wire))
        _, reply = await asyncio.shield(confirmation.replies)
        wanted = self.address.durability
        disk, replicas = reply if wanted.disk else (1, reply)
        if replicas < wanted.replicas or not disk:
            missing = f"{replicas} of {wanted.replicas} replicas" if disk else "no disk of the primary"
            raise BrokerError(
                f"{self.address}: stored on the primary, but {missing} confirmed it within {CONFIRM:g} seconds; it is lost only if "
                "the primary is lost now. To enqueue again is safe with the same id= only"
            )

    def _wait(self, wire: Wire) -> asyncio.Future[tuple[Any, Any]]:
        wanted = self.address.durability
        milliseconds = int(CONFIRM * 1000)
        # WAIT waits for the last write of its own connection, and a repeated enqueue may not have written anything: so write
        trace = wire.send(("SET", f"{self.address.key}confirm", b"", "PX", milliseconds))
        words = ("WAITAOF", 1, wanted.replicas, milliseconds) if wanted.disk else ("WAIT", wanted.replicas, milliseconds)
        replies = asyncio.gather(trace, wire.send(words, blocking=CONFIRM))
        replies.add_done_callback(_heard)
        return replies

    # --- waiting

    async def _popped(self, key: bytes, timeout: float) -> bool:
        wire = await self._waits.made()
        if wire.id is None:
            wire.id = await wire.send(("CLIENT", "ID"))
        marker = wire.send(("BZPOPMIN", key, max(timeout, 0.01)), blocking=timeout)
        try:
            return await asyncio.shield(marker) is not None
        except asyncio.CancelledError:
            marker.add_done_callback(self._put_back)
            self._unblock(wire, marker)
            raise

    def _put_back(self, marker: asyncio.Future[Any]) -> None:
        if marker.cancelled() or marker.exception() is not None or marker.result() is None:
            return
        key, member, score = marker.result()
        if self._calls.wire is not None:
            for words in (("ZADD", key, "NX", score, member), ("PEXPIRE", key, BELL)):
                self._calls.wire.send(words).add_done_callback(_heard)

    def _unblock(self, wire: Wire, marker: asyncio.Future[Any]) -> None:
        """Let the server wait no longer, without waiting for it: the reply to `marker` then comes at once."""
        calls = self._calls.wire
        if marker.done() or not wire.open:
            return
        if wire.id is None or calls is None or not calls.open:
            wire.abort("nobody waits any more")
            return
        unblocked = calls.send(("CLIENT", "UNBLOCK", wire.id))

        def look(reply: asyncio.Future[Any]) -> None:
            if reply.cancelled() or reply.exception() is not None:
                wire.abort("nobody waits any more")
            elif not reply.result() and not marker.done():
                asyncio.get_running_loop().call_later(UNBLOCK_AGAIN, self._unblock, wire, marker)

        unblocked.add_done_callback(look)


def _heard(future: asyncio.Future[Any]) -> None:
    """Take note of an error that nobody may be left to hear of."""
    if not future.cancelled():
        future.exception()


def _parsed(info: bytes) -> Mapping[str, str]:
    lines = info.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _check(address: Address, facts: Mapping[str, str]) -> None:
    """Whether the server will do. Raises BrokerUnusable."""
    version = server_version(facts)
    if "valkey_version" not in facts and tuple(int(part) for part in version[1].split(".")[:2] if part.isdecimal()) < OLDEST:
        raise BrokerUnusable(f"{address}: Redis {version[1]} is too old; Offload needs Redis {OLDEST[0]}.{OLDEST[1]} or newer, or Valkey")
    match facts.get("redis_mode") or facts.get("server_mode"):
        case "sentinel":
            raise BrokerUnusable(f"{address} is a sentinel; use redis+sentinel://host:port/name-of-the-primary")
        case "cluster" if address.topology != "cluster":
            raise BrokerUnusable(f"{address} belongs to a cluster; use redis+cluster://host:port")
        case _:
            pass
    if facts.get("role") == "slave":
        primary = f"{facts.get('master_host')}:{facts.get('master_port')}"
        raise BrokerUnusable(f"{address} is a replica, which takes no writes; use its primary, {primary}, or redis+sentinel://")
    if address.durability.disk:
        if "valkey_version" not in facts and tuple(int(part) for part in version[1].split(".")[:2]) < (7, 2):
            raise BrokerUnusable(f"{address}: durability=fsync needs Redis 7.2 or Valkey (for WAITAOF), not Redis {version[1]}")
        if facts.get("aof_enabled") != "1":
            raise BrokerUnusable(f"{address}: durability=fsync needs a server with `appendonly yes`")


def server_version(facts: Mapping[str, str]) -> tuple[str, str]:
    """Name and version of the server, such as ("Valkey", "9.1.2"); Valkey reports a Redis of old besides its own."""
    if "valkey_version" in facts:
        return "Valkey", facts["valkey_version"]
    return "Redis", facts.get("redis_version", "0")
