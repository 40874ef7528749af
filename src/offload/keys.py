"""Explains in plain sentences what keys have to do with a job's not running (`why`), and what is wrong with them (`doctor`). Pure."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby

from offload.errors import BadDeclaration
from offload.job import Kind, Limit, SlotLimit, State
from offload.limits import fits, spec_of
from offload.presence import live, serves
from offload.records import Facts, LimitRecord, Record, SessionRecord, Standing, Survey
from offload.wording import Finding, moment, number, span

NAMED = 3
"""How many holders of a key, or workers, are named; of the others is said how many there are."""
LONG_SHUT = 600.0
"""Seconds for which a key may be held back before `doctor` speaks of it."""
_NAMES: Mapping[Kind, str] = {"slot": "a concurrency limit", "token": "a rate", "turn": "an order"}
FIRST_SERVED = "Among jobs that wait for one key priority does not count: first come, first served."
WANTED: Mapping[Kind, str] = {"slot": "a concurrency slot", "token": "a token", "turn": "the turn"}
"""What of a key a job holds or waits for."""


def allows(limit: Limit | LimitRecord) -> str:
    """What a limit allows: `3 at a time`, `100/s, burst 20`, `one at a time`; nothing where that is not known."""
    match limit:
        case SlotLimit(n=n):
            return _allowed("slot", n, None, None)
        case LimitRecord(kind=kind, n=n, interval=interval, burst=burst):
            return _allowed(kind, n, interval, burst)
        case _:
            return _allowed("token", None, limit.interval, limit.burst)


def _allowed(kind: Kind, n: int | None, interval: int | None, burst: int | None) -> str:
    if kind == "turn" or n == 1:
        return "one at a time"
    if n is not None:
        return f"{n:,} at a time"
    bursts = f"burst {burst:,}" if burst is not None and burst > 1 else ""
    return ", ".join(part for part in ("" if interval is None else spec_of(interval), bursts) if part)


def known_for(key: str, gates: Iterable[LimitRecord], declared: Iterable[Limit]) -> dict[Kind, str]:
    """What a key is used for, in words: by jobs that hold it or wait for it, or by a limit whose template makes it.

    Of a limit whose key a function makes nobody can say which keys those are.
    """
    made: dict[Kind, str] = {kind_of(limit): described(limit) for limit in declared if _makes(limit.rule, key)}
    had: dict[Kind, str] = {gate.kind: described(gate) for gate in gates if gate.key == key and (gate.held or gate.waiting)}
    return made | had


def _makes(template: str, key: str) -> bool:
    try:
        return fits(key, template)
    except BadDeclaration:  # the name of a function, and no template
        return False


def kind_of(limit: Limit | LimitRecord) -> Kind:
    """At which kind of gate a limit is."""
    if isinstance(limit, LimitRecord):
        return limit.kind
    return "slot" if isinstance(limit, SlotLimit) else "token"


def described(limit: Limit | LimitRecord) -> str:
    """`a rate (5/m)`."""
    name, allowed = _NAMES[kind_of(limit)], allows(limit)
    return f"{name} ({allowed})" if allowed else name


def few(ids: Sequence[str], total: int | None = None) -> str:
    """The first of several, and how many more there are."""
    named = list(ids[:NAMED])
    more = (len(ids) if total is None else total) - len(named)
    return (
        f"{', '.join(named)} and {more:,} more" if more > 0 else " and ".join([", ".join(named[:-1]), *named[-1:]] if named[1:] else named)
    )


def command(verb: str, key: str) -> str:
    """What a person types about a key."""
    dashes = "-- " if key.startswith("-") else ""  # or else it is taken for an option
    return f"`offload limits {verb} {dashes}{shlex.quote(key)}`"


def why_at_gate(standing: Standing) -> str:
    """Why a job waits that waits in a lane: what stops the first of its lane, and what can be done."""
    gate, *_ = standing.limits
    if shut := _why_shut(standing, gate):
        return shut
    match gate.kind:
        case "turn":
            return _why_turn(standing, gate)
        case "slot":
            return _why_slot(standing, gate)
        case "token":
            return _why_token(standing, gate)


def why_shut(standing: Standing) -> str | None:
    """Why a READY job does not start, which has passed its gates: one lets nobody start. None where all let it."""
    return next((shut for gate in standing.limits if (shut := _why_shut(standing, gate))), None)


def _why_shut(standing: Standing, gate: LimitRecord) -> str | None:
    """That a key lets nobody start, and until when; None where it does."""
    if gate.paused:
        return f"The key {gate.key!r} is paused{_behind(standing)}; {command('resume', gate.key)} lets it go on."
    if gate.shut_until is not None:
        until = f"{moment(gate.shut_until)} (in {_left(gate.shut_until, standing.now)})"
        return f"The key {gate.key!r} is held back until {until}, as a task has asked{_behind(standing)}; it goes on by itself then."
    return None


def why_held(standing: Standing, holders: Sequence[Standing]) -> str:
    """Which of those that hold what a job waits for will not run and so keep it, and why; empty where all do what they should."""
    said: list[str] = []
    for holder in holders:
        alive = live(holder.sessions, holder.now)
        if (where := _stuck(holder.record, alive, paused=holder.paused)) is not None:
            told = "" if standing.limits[0].kind == "turn" else f": `offload why {holder.record.id}` tells more"  # there it is said anyway
            said.append(f"Job {holder.record.id} is {where}, and so keeps it{told}.")
    return " ".join(said)


def _stuck(record: Record, alive: Sequence[SessionRecord], *, paused: bool) -> str | None:
    """Where a job is READY, and keeps its keys, and nobody will take it; None where somebody will, or nobody takes any."""
    if record.state is not State.READY:
        return None
    if paused:
        return f"READY in queue {record.queue!r}, which is paused"
    serving = [session for session in alive if serves(session, record.queue)]
    if alive and not serving:
        return f"READY in queue {record.queue!r}, which no live worker serves"
    if serving and not any(record.task in session.info.tasks for session in serving):
        return f"READY in queue {record.queue!r}, of which no live worker knows its task {record.task!r}"
    return None


def _why_turn(standing: Standing, gate: LimitRecord) -> str:
    holder = gate.holders[0] if gate.holders else None
    first = f"It waits for its turn of key {gate.key!r}"
    if holder is None:
        return f"{first}, which is about to be given{_behind(standing)}."
    if gate.dead:
        return f"{first}, which job {holder} keeps although it is dead{_behind(standing)}. {_revival(holder)}"
    after = "that job ends" if standing.before == 0 else "they have ended"
    return f"{first}, which job {holder} has{_behind(standing)}; it goes on when {after}. `offload why {holder}` tells what that one does."


def _why_slot(standing: Standing, gate: LimitRecord) -> str:
    slots = number(gate.n or gate.held, "slot", "slots")
    held = f"its {slots} {'is' if gate.n == 1 else 'are'} held by {_jobs(gate)}" if gate.held else f"it has {slots}"
    wider = f"{command('set', gate.key).removesuffix('`')} --concurrency {(gate.n or gate.held) + 1}`"
    goes_on = f"It goes on when one is free; {wider} makes one more."
    return f"{_waits(standing)} for a slot of key {gate.key!r}: {held}. {goes_on} {FIRST_SERVED}"


def _why_token(standing: Standing, gate: LimitRecord) -> str:
    pace = f", which allows {allows(gate)}" if gate.interval is not None else ""
    if gate.next_at is None or gate.next_at <= standing.now:
        comes = "The next one is there as soon as a worker looks."
    else:
        comes = f"The next one is expected at {moment(gate.next_at)} (in {_left(gate.next_at, standing.now)})."
    return f"{_waits(standing)} for a token of key {gate.key!r}{pace}. {comes}"


def _waits(standing: Standing) -> str:
    if standing.before == 0:
        return "It waits"
    return f"{number(standing.before, 'job goes', 'jobs go')} before it in its line, the first of which waits"


def _behind(standing: Standing) -> str:
    return f", and {number(standing.before, 'job goes', 'jobs go')} before it in its line" if standing.before else ""


def _jobs(gate: LimitRecord) -> str:
    return f"{'job' if gate.held == 1 else 'jobs'} {few(gate.holders, gate.held)}"


def _revival(id: str) -> str:
    return (
        f"`offload jobs retry {id}` makes it ready again, `offload jobs delete {id}` lets the next one go. "
        "If another job has taken its unique key, cancel that one before you retry."
    )


def _left(until: datetime, now: datetime) -> str:
    return span(max((until - now).total_seconds(), 0.0))


def findings(facts: Facts, survey: Survey) -> Iterator[Finding]:
    """What is to be said of keys."""
    alive = live(facts.sessions, facts.now)
    for key, group in groupby(facts.limits, key=lambda limit: limit.key):
        yield from _about_key(key, list(group), facts.now)
    yield from _about_rules(alive, facts.declared)
    yield from _about_useless(survey.limits, list(dict.fromkeys(limit for session in alive for limit in session.info.limits)))
    for gate in survey.limits:
        yield from _about_holders(gate, [survey.holders[id] for id in gate.holders[:NAMED] if id in survey.holders], alive, facts.paused)


def _about_key(key: str, gates: Sequence[LimitRecord], now: datetime) -> Iterator[Finding]:
    waiting = sum(gate.waiting for gate in gates)
    wait = f"{number(waiting, 'job waits', 'jobs wait')} for it." if waiting else "Nobody waits for it."
    if any(gate.paused for gate in gates):
        resumes = f"{command('resume', key)} lets it go on."
        yield Finding("warning", f"key {key!r} is paused", f"None of its jobs starts; {wait}", resumes)
    for gate in gates:
        if gate.shut_until is not None and (gate.shut_until - now).total_seconds() > LONG_SHUT:
            yield Finding(
                "warning",
                f"key {key!r} is held back for {_left(gate.shut_until, now)}",
                f"A task asked that none of its jobs starts until {moment(gate.shut_until)}; {wait}",
                "It goes on by itself. If that is too long, look at what the task makes of the delay that it was told.",
            )
        if gate.dead and gate.holders:
            title = f"the line of key {key!r} stands still"
            yield Finding("warning", title, f"Its turn is kept by job {gate.holders[0]}, which is dead; {wait}", _revival(gate.holders[0]))


def _about_holders(
    gate: LimitRecord, holders: Sequence[Record], alive: Sequence[SessionRecord], paused: Collection[str]
) -> Iterator[Finding]:
    """Jobs that keep what others wait for, perhaps in other queues, and that nobody will take."""
    stuck = [(each.id, where) for each in holders if (where := _stuck(each, alive, paused=each.queue in paused)) is not None]
    if stuck and gate.waiting:
        names, them = [id for id, _ in stuck], "it holds" if len(stuck) == 1 else "they hold"
        yield Finding(
            "warning",
            f"key {gate.key!r} is held by {'a job' if len(stuck) == 1 else 'jobs'} that nobody will start",
            f"{'; '.join(f'Job {id} is {where}' for id, where in stuck)}. {number(gate.waiting, 'job waits', 'jobs wait')} for the key.",
            f"`offload why {names[0]}` tells what starts it; `offload jobs cancel {' '.join(names)}` gives up what {them}.",
        )


def _about_rules(alive: Sequence[SessionRecord], counting: Sequence[Limit]) -> Iterator[Finding]:
    """Limits that are declared in several ways, by several workers or in several places of one program, or by one that is gone."""
    latest_last = sorted(alive, key=lambda session: session.started_at)
    declared: defaultdict[tuple[bool, str], dict[str, list[str]]] = defaultdict(dict)
    for session in latest_last:
        for limit in session.info.limits:
            ways = declared[isinstance(limit, SlotLimit), limit.rule]
            said = allows(limit)
            workers = ways.pop(said, [])  # so that what counts comes last
            ways[said] = workers if session.info.name in workers else [*workers, session.info.name]
    counts = {(isinstance(limit, SlotLimit), limit.rule): allows(limit) for limit in counting}
    for id, ways in sorted(declared.items(), key=lambda item: item[0][1]):
        last = list(ways)[-1]
        if counts.get(id, last) != last:
            yield _about_stale(id[1], ways, counts[id])
        elif len(ways) > 1:
            yield _about_rule(id[1], ways)


def _told(ways: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{said} ({'worker' if len(workers) == 1 else 'workers'} {few(workers)})" for said, workers in ways.items())


def _about_stale(rule: str, ways: Mapping[str, Sequence[str]], counts: str) -> Finding:
    return Finding(
        "warning",
        f"the limit of key {rule!r} is not what live workers declare",
        f"Declared: {_told(ways)}. What counts was declared by a worker that started later: {counts}.",
        "Restart one whose limit is right: what a worker declares counts from its start on.",
    )


def _about_rule(rule: str, ways: Mapping[str, Sequence[str]]) -> Finding:
    return Finding(
        "warning",
        f"the limit of key {rule!r} is declared in several ways",
        f"Declared: {_told(ways)}. Those of the worker that started last count: {list(ways)[-1]}.",
        "Fine during a deployment; finish it. Else declare the limit once, and give all its tasks the same one.",
    )


def _about_useless(gates: Sequence[LimitRecord], declared: Sequence[Limit]) -> Iterator[Finding]:
    """What a person has set that counts for nobody, as the key is limited in another way.

    Of an idle key of which nothing is known nothing can be said: a function may make it.
    """
    for gate in gates:
        if not gate.changed or gate.held or gate.waiting:
            continue
        known = known_for(gate.key, gates, declared)
        if gate.kind in known or not known:
            continue
        yield Finding(
            "info",
            f"what was set for key {gate.key!r} counts for nobody now",
            f"Set: {described(gate)}. Nobody holds or waits for {WANTED[gate.kind]} of it, and no live worker has a template for one; "
            f"known for it: {', '.join(known.values())}.",
            f"Fine if such jobs are still to come. Else {command('reset', gate.key)} forgets it.",
        )
