"""What `doctor` says about a Redis or Valkey server: what it would lose, when, and what to set instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from offload.brokers.redis.address import Address
from offload.brokers.redis.connections import Link
from offload.errors import BrokerError

Note: TypeAlias = tuple[Literal["error", "warning", "info"], str, str]

NEARLY_FULL = 0.8
"""The part of `maxmemory` in use from which `doctor` speaks of it."""


async def notes(link: Link) -> tuple[Note, ...]:
    """Findings about memory, persistence, replicas and durability, as (severity, text, advice). Raises BrokerError."""
    facts = await link.facts()
    settings = {name: await _setting(link, name) for name in ("appendfsync", "save")}
    return (*memory(facts), *persistence(facts, settings), *replication(link.address, facts))


async def _setting(link: Link, name: str) -> str | None:
    """A setting of the server; None where it is not told, as managed services may do."""
    try:
        found = await link.command("CONFIG", "GET", name)
    except BrokerError:
        return None
    return found[1].decode() if found else None


def memory(facts: Mapping[str, str]) -> Iterator[Note]:
    """What happens when memory runs short."""
    policy = facts.get("maxmemory_policy", "noeviction")
    most, used = int(facts.get("maxmemory", 0)), int(facts.get("used_memory", 0))
    if policy != "noeviction":
        text = f"maxmemory-policy is {policy}: when memory is short the server throws keys away, jobs among them"
        yield "error" if most else "warning", text, "set maxmemory-policy to noeviction, and use another server for caches"
    if most and used >= NEARLY_FULL * most:
        text = f"{used / 1_048_576:,.0f} of {most / 1_048_576:,.0f} MiB of memory are in use"
        full = used >= most and policy == "noeviction"
        yield (
            "error" if full else "warning",
            text,
            "raise maxmemory, keep results for a shorter time (keep=), or store large data elsewhere; a full server refuses jobs",
        )


def persistence(facts: Mapping[str, str], settings: Mapping[str, str | None]) -> Iterator[Note]:
    """What a crash of the server loses."""
    advice = "set appendonly yes, and appendfsync always where no accepted job may be lost"
    if facts.get("aof_enabled") == "1":
        match settings["appendfsync"]:
            case "always":
                yield "info", "every write is on disk before it is answered (appendfsync always)", ""
            case "no":
                yield "warning", "the system decides when writes reach the disk (appendfsync no): a crash loses up to half a minute", advice
            case "everysec":
                yield (
                    "info",
                    "a crash of the server can lose the last second (appendfsync everysec)",
                    "set appendfsync always to lose nothing",
                )
            case _:
                yield "info", "writes go to an append-only file; how soon they are on disk the server does not tell", ""
    elif settings["save"] is None:
        yield "warning", "the server writes no append-only file: a crash loses every job, or all that came after its last snapshot", advice
    elif settings["save"] == "":
        yield "warning", "the server keeps nothing on disk: a restart loses every job", advice
    else:
        since = f" ({facts['rdb_changes_since_last_save']} changes since)" if "rdb_changes_since_last_save" in facts else ""
        yield "warning", f"the server saves snapshots only: a crash loses all that came after the last{since}", advice
    if "err" in (facts.get("aof_last_write_status"), facts.get("aof_last_bgrewrite_status"), facts.get("rdb_last_bgsave_status")):
        yield "error", "the server's last attempt to save to disk failed", "see its log, and whether the disk is full"


def replication(address: Address, facts: Mapping[str, str]) -> Iterator[Note]:
    """What a failover loses."""
    replicas, wanted = int(facts.get("connected_slaves", 0)), address.durability
    if wanted.replicas > replicas:
        text = f"durability asks for {wanted.replicas} replicas, but {replicas} are connected: every enqueue fails after some seconds"
        yield "error", text, "connect replicas, or ask for fewer"
    elif replicas and not wanted.replicas:
        text = f"{replicas} replicas follow after a moment: a failover can lose jobs that were accepted just before it"
        yield "info", text, "add ?durability=replicated to make enqueue wait for a replica"
    elif not replicas and address.topology != "server":
        yield "warning", "the primary has no replica now: there is nothing to fail over to", "connect a replica"
