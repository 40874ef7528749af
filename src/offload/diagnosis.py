"""Explains in plain sentences why a job is not running (`why`) and what is wrong with the whole (`diagnose`). Pure: facts in, text out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import assert_never

from offload import keys
from offload.job import State, keys_of
from offload.presence import age, live, once_up, quiet, serves, takeover, unheard
from offload.records import Facts, Record, ScheduleRecord, SessionRecord, Standing, Survey
from offload.roots import Roots, felled_by
from offload.wording import SEVERITIES, Finding, failed, moment, number, span, whole

_WHEN = {"success": "when all its jobs have succeeded", "failure": "at its first failure", "complete": "when all its jobs have ended"}
OLD_READY = 300.0
"""Seconds that a job may be ready before `diagnose` speaks of it."""
LATE_TICK = 300.0
"""Seconds that a schedule's next tick may be overdue before `diagnose` speaks of it."""
SLOWEST = 5
MOST_DEAD = 100
"""Of so many dead jobs, the latest, the tasks are named."""
CORRECT = "If it lives, correct the clock of its machine."


def why(standing: Standing, roots: Roots | None = None, holders: Sequence[Standing] = ()) -> str:
    """One or two sentences that say why the job is not running; or on which worker it runs, or how it ended.

    `roots`, as `roots_of` finds them, are what keeps a job that has ended from being revived; None where they were not looked for.
    `holders`, as `holders_of` finds them, are those that hold what the job waits for and do not run yet.
    """
    record = standing.record
    match record.state:
        case State.SCHEDULED:
            return _why_scheduled(standing)
        case State.WAITING:
            return _why_waiting(standing, holders)
        case State.READY:
            return _why_ready(standing)
        case State.RUNNING:
            return _why_running(standing)
        case State.SUCCEEDED:
            return f"It succeeded {_at(record.finished_at)} in attempt {record.attempt}."
        case State.DEAD:
            return f"It is dead since {moment(record.finished_at)}: {_ended(standing)}. {_revival(record)}"
        case State.CANCELLED:
            return _why_cancelled(standing, roots)
        case State.EXPIRED:
            expired = f"It expired {_at(record.finished_at)}, for it had not started by {moment(record.expires_at)}."
            return f"{expired} {_way_back(record, roots)}"
        case _:
            assert_never(record.state)


def _ended(standing: Standing) -> str:
    """The reason it ended, with the last error where there is one."""
    record = standing.record
    match record.reason:
        case "payload":
            reason = "its arguments do not fit the task that its worker knows"
        case "result":
            reason = "its work was done, but what it returned cannot be stored as its result"
        case "crashed":
            reason = f"the process that ran it died once more, after {number(record.crashes, 'crash', 'crashes')} of its workers"
        case None:
            reason = "no reason was given"
        case said:
            reason = said
    return f"{reason}{_after_error(standing)}"


def _why_cancelled(standing: Standing, roots: Roots | None) -> str:
    record = standing.record
    ended = f"It was cancelled {_at(record.finished_at)}"
    felled = felled_by(record)
    if felled is not None and roots is None:
        return f"{ended}{_cancelled(standing)}. `offload why {felled}` tells more."
    if felled is not None and roots is not None and roots.told:
        return f"{ended}, for it comes after {roots.told}. {roots.advice(record)}"
    return f"{ended}{_cancelled(standing)}. {_way_back(record, roots)}"


def _way_back(record: Record, roots: Roots | None) -> str:
    """How it is started anew, where others may have to be before."""
    advice = "" if roots is None else roots.advice(record)
    behind = f"It comes after {roots.told}. " if roots is not None and roots.told else ""
    return f"{behind}{advice or _revival(record)}"


def _cancelled(standing: Standing) -> str:
    """The reason it was cancelled where one was given besides, and the last error where there is one."""
    reason = standing.record.reason
    return f"{'' if reason in (None, 'cancelled') else f': {reason}'}{_after_error(standing)}"


def _after_error(standing: Standing) -> str:
    errors = standing.record.errors
    return f", after attempt {errors[-1].attempt} {failed(errors[-1])}" if errors else ""


def _revival(record: Record) -> str:
    """How it is started anew, and what may forbid that."""
    retry = f"`offload jobs retry {record.id}` makes it ready again."
    wanted = " or ".join(repr(unique.key) for unique in keys_of(record) if unique.until in ("finished", "started"))
    return f"{retry} If another job has taken its unique key {wanted}, cancel that one first." if wanted else retry


def _why_scheduled(standing: Standing) -> str:
    record = standing.record
    due = record.run_at
    if due is None or due <= standing.now:
        return f"It was due {_at(due)} and becomes ready as soon as a worker looks. {_workers_sentence(standing)}"
    until = f"{moment(due)} (in {span((due - standing.now).total_seconds())})"
    if record.errors and record.attempt:
        first = f"Attempt {record.attempt} {failed(record.errors[-1])}; it is tried again at {until}."
    elif record.schedule is not None:
        first = f"It is the tick of schedule {record.schedule!r} for {until}."
    else:
        first = f"It is scheduled for {until}."
    return f"{first} {_paused_sentence(record.queue)}" if standing.paused else first


def _why_waiting(standing: Standing, holders: Sequence[Standing]) -> str:
    record = standing.record
    if standing.limits:
        paused = _paused_sentence(record.queue) if standing.paused else ""
        said = (keys.why_at_gate(standing), keys.why_held(standing, holders), paused, unserved(standing) or "")
        return " ".join(sentence for sentence in said if sentence)
    if record.callback is not None and standing.waits_for is None:
        return (
            f"It is called back by batch {record.batch} {_WHEN[record.callback]}. `offload batches show {record.batch}` tells how that is."
        )
    if standing.open_parents:
        return _why_behind_parents(standing)
    if standing.waits_for is None:
        return f"It waits: {record.reason or 'no reason was given'}."
    key = f", which holds its unique key {record.unique.key!r}" if record.unique else ""
    if record.unique is None and record.schedule is not None:
        key = f", an earlier tick of schedule {record.schedule!r}"
    return f"It waits behind job {standing.waits_for}{key}; it takes over when that job ends."


def _why_behind_parents(standing: Standing) -> str:
    """Whom it waits for, of its workflow."""
    several = len(standing.record.parents) > 1
    named = ", ".join(standing.parents)
    more = f" and {standing.open_parents - len(standing.parents):,} more" if standing.open_parents > len(standing.parents) else ""
    of = f" of its {len(standing.record.parents):,} parents" if several else " its parent"
    count = f" {standing.open_parents:,}{of}" if several else of
    first = f"It waits for{count} to end: {named}{more}. `offload why {standing.parents[0]}` says why that is not done."
    return first if live(standing.sessions, standing.now) else f"{first} {_workers_sentence(standing)}"


def _why_ready(standing: Standing) -> str:
    record = standing.record
    alive = live(standing.sessions, standing.now)
    serving = [session for session in alive if serves(session, record.queue)]
    if standing.paused:
        return _paused_sentence(record.queue)
    if shut := keys.why_shut(standing):
        return f"{shut} {unserved(standing) or ''}".rstrip()
    if not alive:
        return f"{_workers_sentence(standing)} It must be a worker of the app that defines the task {record.task!r}."
    if not serving:
        return _workers_sentence(standing)
    knowing = [session for session in serving if record.task in session.info.tasks]
    if not knowing:
        aside = "it was set aside until one comes that does" if standing.aside else "it will be set aside until one comes that does"
        return (
            f"No live worker of queue {record.queue!r} knows the task {record.task!r}, so {aside}. "
            "Start a worker of the version that declares it, or correct the name."
        )
    return _why_in_line(standing, knowing)


def _why_in_line(standing: Standing, serving: Sequence[SessionRecord]) -> str:
    """Workers could take it; they are busy, or others go first."""
    queue = standing.record.queue
    used = sum(session.running for session in serving)
    slots = sum(session.info.concurrency for session in serving)
    ahead = "It is the next" if standing.ahead == 0 else f"{number(standing.ahead, 'job goes', 'jobs go')} before it"
    workers = number(len(serving), "worker", "workers")
    if used >= slots:
        return (
            f"{ahead} in queue {queue!r}, and all {slots} slots of its {workers} are busy. "
            "More workers or a higher concurrency would start it sooner."
        )
    return (
        f"{ahead} in queue {queue!r}, and {workers} with {used} of {slots} slots in use {'serves' if len(serving) == 1 else 'serve'} it: "
        "it starts within moments, or as soon as a thread or process is free if it needs one."
    )


def _why_running(standing: Standing) -> str:
    record = standing.record
    first = f"It is running on worker {record.worker or '(unknown)'} since {moment(record.started_at)}, attempt {record.attempt}."
    if record.cancel_asked:
        first += " Its cancellation was asked for; its worker is told with its next heartbeat and stops it."
    holder = next((session for session in standing.sessions if session.info.name == record.worker), None)
    if holder is None:
        rescuer = "any live worker" if live(standing.sessions, standing.now) else "start one with `offload worker`, which"
        return f"{first} That worker is gone; {rescuer} hands the job to another."
    if not quiet(holder, standing.now):
        return first
    done = "the job is ended" if record.cancel_asked else "the job is run again"
    since = whole(age(holder.beat_at, standing.now))
    return f"{first} Its worker has shown no sign of life for {since}; {takeover(holder, standing.sessions, standing.now, done)}."


def _paused_sentence(queue: str) -> str:
    return f"Queue {queue!r} is paused; `offload queues resume {queue}` lets it go on."


def unserved(standing: Standing) -> str | None:
    """That no live worker serves the job's queue, and what to do; None where one does."""
    served = any(serves(session, standing.record.queue) for session in live(standing.sessions, standing.now))
    return None if served or standing.paused else _workers_sentence(standing)


def _workers_sentence(standing: Standing) -> str:
    """What the workers of the job's queue have to do with its not running."""
    queue = standing.record.queue
    alive = live(standing.sessions, standing.now)
    serving = [session for session in alive if serves(session, queue)]
    if standing.paused:
        return _paused_sentence(queue)
    if serving:
        return f"{number(len(serving), 'worker serves', 'workers serve')} queue {queue!r}."
    if alive:
        names = sorted({name for session in alive for name in session.info.queues or ()})
        return f"No live worker serves queue {queue!r} (they serve {', '.join(names)}); start one with `offload worker -q {queue}`."
    if standing.sessions:
        last = max(standing.sessions, key=lambda session: session.beat_at)
        heard = f"the last, {last.info.name}, has not been heard of since {moment(last.beat_at)}"
        return f"No worker is alive: {heard}. Start one with `offload worker`."
    return "No worker is alive; start one with `offload worker`."


def diagnose(facts: Facts, survey: Survey | None = None) -> list[Finding]:
    """What is wrong, worst first, then what is worth knowing. An empty list: nothing to say.

    `survey` is what was seen besides, as `surveyed` sees it; None where nobody looked.
    """
    survey = Survey() if survey is None else survey
    findings = [
        *_about_schema(facts),
        *_about_dead(survey),
        *(Finding(severity, title, advice=advice) for severity, title, advice in facts.notes),
        *_about_workers(facts),
        *_about_queues(facts, survey),
        *keys.findings(facts, survey),
        *_about_tasks(facts),
        *(finding for record in facts.schedules for finding in _about_schedule(record, facts.now)),
        *_about_payloads(facts),
    ]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _about_schema(facts: Facts) -> Iterator[Finding]:
    versions = f"The {facts.engine} schema has version {facts.schema}; this Offload knows {facts.newest_schema}."
    if facts.schema < facts.newest_schema:
        yield Finding("error", "the schema is older than this Offload", versions, "Run `offload migrate`.")
    if facts.schema > facts.newest_schema:
        yield Finding(
            "error", "the schema is newer than this Offload", versions, "Upgrade the package here to the version that the others run."
        )


def _about_dead(survey: Survey) -> Iterator[Finding]:
    """Dead jobs are no fault of the set-up; somebody is to look at them all the same."""
    if not (total := sum(survey.dead.values())):
        return
    queues = ", ".join(f"{queue} ({count:,})" for queue, count in survey.dead.items())
    yield Finding(
        "info",
        "1 job is dead" if total == 1 else f"{total:,} jobs are dead",
        f"By queue: {queues}. {'Tasks' if total <= MOST_DEAD else f'Tasks of the latest {MOST_DEAD}'}: {keys.few(survey.dead_tasks)}.",
        "`offload jobs list --state DEAD` lists them, `offload dead` counts them by task and error; `offload dead retry` runs them again.",
    )


def _about_workers(facts: Facts) -> Iterator[Finding]:
    alive = live(facts.sessions, facts.now)
    if not facts.durable:
        advice = "Use sqlite:///offload.db to share jobs between processes and to keep them."
        yield Finding("info", "the jobs live in this process only", "No worker elsewhere can see them; they end with it.", advice)
    elif not alive:
        yield _about_nobody(facts)
    if alive:  # else nothing that could be said of each of them helps
        yield from (_about_quiet(session, facts) for session in facts.sessions if quiet(session, facts.now))
    by_version: defaultdict[str, int] = defaultdict(int)
    for session in alive:
        by_version[session.info.version] += 1
    if len(by_version) > 1:
        counted = ", ".join(f"{version or 'unknown'} ({number})" for version, number in sorted(by_version.items()))
        yield Finding(
            "warning", "workers of several Offload versions are alive", f"Versions: {counted}.", "Fine during a deployment; finish it."
        )


def _about_nobody(facts: Facts) -> Finding:
    """Nobody is at work: how much that matters, and what the workers that are listed still hold."""
    listed, held = unheard(facts.sessions, facts.now) if facts.sessions else "", any(session.running for session in facts.sessions)
    again = f" {once_up(facts.sessions[0]).capitalize()} it runs again what they held." if held else ""
    advice = f"Start one with `offload worker`.{again}{' If one of them lives, correct the clock of its machine.' if listed else ''}"
    if facts.oldest_ready:
        ready = f"Jobs are ready in: {', '.join(sorted(facts.oldest_ready))}."
        return Finding("error", "no worker is alive while jobs are ready", f"{ready} {listed}".rstrip(), advice)
    if held:
        return Finding("error", "no worker is alive while jobs are RUNNING", listed, advice)
    if any(record.next_at is not None and not record.paused for record in facts.schedules):
        return Finding("warning", "no worker is alive", f"So no schedule fires. {listed}".rstrip(), advice)
    if listed:
        return Finding("warning", "no worker is alive", f"No job is ready either. {listed}", advice)
    return Finding("info", "no worker is alive", "No job is ready either.", "Start one with `offload worker` before enqueueing.")


def _about_quiet(session: SessionRecord, facts: Facts) -> Finding:
    title = f"worker {session.info.name} has shown no sign of life for {whole(age(session.beat_at, facts.now))}"
    if not session.running:
        return Finding("warning", title, "It holds no job.", CORRECT)
    done = "it is run again" if session.running == 1 else "they are run again"
    holds = f"It holds {number(session.running, 'job', 'jobs')}"
    return Finding("warning", title, f"{holds}; {takeover(session, facts.sessions, facts.now, done)}.", CORRECT)


def _about_queues(facts: Facts, survey: Survey) -> Iterator[Finding]:
    alive = live(facts.sessions, facts.now)
    served = {queue for session in facts.sessions for queue in session.info.queues or ()}
    for queue in sorted(facts.paused):
        known = survey.queues is None or queue in survey.queues | served
        stops = "None of its jobs starts." if known else "No job is there, and no worker names it."
        yield Finding("warning", f"queue {queue!r} is paused", stops, f"`offload queues resume {queue}` lets it go on.")
    for queue, since in sorted(facts.oldest_ready.items()):
        waits = age(since, facts.now)
        served = any(serves(session, queue) for session in alive)
        if alive and not served:
            yield Finding(
                "error",
                f"no live worker serves queue {queue!r}",
                f"Its oldest ready job waits for {span(waits)}.",
                f"Start one with `offload worker -q {queue}`, or without -q for all queues.",
            )
        elif served and waits > OLD_READY and queue not in facts.paused:
            yield Finding(
                "warning",
                f"queue {queue!r} is behind",
                f"Its oldest ready job waits for {span(waits)}.",
                "Start more workers or raise their concurrency; the slowest tasks are listed below.",
            )


def _about_tasks(facts: Facts) -> Iterator[Finding]:
    for task, count in sorted(facts.aside.items()):
        yield Finding(
            "warning",
            f"{number(count, 'job', 'jobs')} of task {task!r} set aside",
            "A worker that does not know the task met them; they wait for one that does, and none is lost.",
            "Start a worker of the version that declares it, or cancel them.",
        )
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for task, duration in facts.finished:
        seconds[task].append(duration)
    slowest = sorted(((p95(durations), task) for task, durations in seconds.items()), reverse=True)[:SLOWEST]
    if slowest:
        yield Finding(
            "info",
            "the slowest tasks",
            "; ".join(f"{task}: {span(duration)} ({number(len(seconds[task]), 'run', 'runs')})" for duration, task in slowest),
            "95 of 100 recent runs took no longer than shown.",
        )


def _about_schedule(record: ScheduleRecord, now: datetime) -> Iterator[Finding]:
    name = record.schedule.name
    if record.paused:
        yield Finding("info", f"schedule {name!r} is paused", "It does not fire.", f"`offload schedules resume {name}` lets it go on.")
    elif record.next_at is None:
        yield Finding(
            "info", f"schedule {name!r} has no more ticks", "Its rule has ended.", f"`offload schedules remove {name}` removes it."
        )
    elif (late := age(record.next_at, now)) > LATE_TICK:
        yield Finding(
            "warning",
            f"schedule {name!r} is overdue",
            f"Its tick of {moment(record.next_at)} has not fired for {span(late)}.",
            "Ticks are fired by workers: see that one is alive.",
        )


def _about_payloads(facts: Facts) -> Iterator[Finding]:
    if facts.large:
        largest = "; ".join(f"{task} {id}: {size / 1024:.0f} KiB" for id, task, size in facts.large)
        yield Finding(
            "info",
            "payloads over 16 KiB",
            largest,
            "Pass ids instead of objects: store the data, and let the task load what it needs, fresh, when it runs.",
        )


def p95(values: Sequence[float]) -> float:
    """The smallest of `values` that 95 in 100 of them do not exceed (nearest rank). `values` is not empty."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _at(at: datetime | None) -> str:
    return f"at {moment(at)}"
