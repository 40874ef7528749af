"""The sentences of `offload why` and `offload doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone

import pytest

from offload.diagnosis import Finding, diagnose, p95, why
from offload.job import Draft, Failure, Limit, Parent, RateLimit, Schedule, SlotLimit, State, UniqueKey, WorkerInfo
from offload.presence import counted
from offload.records import Facts, LimitRecord, Record, ScheduleRecord, SessionRecord, Standing, Survey

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def ago(**length: float) -> datetime:
    return NOW - timedelta(**length)


def worker(
    name: str = "web-1",
    *,
    queues: tuple[str, ...] | None = None,
    tasks: tuple[str, ...] = ("mail",),
    running: int = 0,
    beat_at: datetime = NOW,
    version: str = "1.0",
    limits: tuple[Limit, ...] = (),
    started_at: datetime | None = None,
) -> SessionRecord:
    info = WorkerInfo(
        name=name, host="h", pid=1, queues=queues, tasks=dict.fromkeys(tasks, "async"), limits=limits, concurrency=10, version=version
    )
    return SessionRecord(id=f"s-{name}", info=info, beat=1, beat_at=beat_at, started_at=started_at or ago(hours=1), running=running)


@dataclass(frozen=True)
class Case:
    """What is known of a job, and the sentences expected."""

    says: str
    record: Mapping[str, object] = field(default_factory=dict[str, object])
    standing: Mapping[str, object] = field(default_factory=dict[str, object])
    sessions: tuple[SessionRecord, ...] = ()


def asked(delay: object) -> Failure:
    return Failure(attempt=2, at=ago(minutes=1), type="RetryLater", message=str(delay))


FAILED = (Failure(attempt=2, at=ago(minutes=1), type="SMTPError", message="down"),)
RUNNING = "It is running on worker web-1 since 2026-11-21 11:59:00 UTC, attempt 1."
RETRIED = " `offload jobs retry j1` makes it ready again."
CASES = {
    "scheduled": Case(
        "It is scheduled for 2026-11-21 12:05:00 UTC (in 5 min).",
        {"state": State.SCHEDULED, "run_at": NOW + timedelta(minutes=5)},
    ),
    "scheduled in another zone": Case(
        "It is scheduled for 2026-11-21 12:05:00 UTC (in 5 min).",
        {"state": State.SCHEDULED, "run_at": (NOW + timedelta(minutes=5)).astimezone(timezone(timedelta(hours=9)))},
    ),
    "tick": Case(
        "It is the tick of schedule 'nightly' for 2026-11-21 12:00:30 UTC (in 30 s).",
        {"state": State.SCHEDULED, "run_at": NOW + timedelta(seconds=30), "schedule": "nightly"},
    ),
    "retry": Case(
        "Attempt 2 failed with SMTPError: down; it is tried again at 2026-11-21 12:00:30 UTC (in 30 s).",
        {"state": State.SCHEDULED, "run_at": NOW + timedelta(seconds=30), "attempt": 2, "errors": FAILED},
    ),
    "retry that the task asked for": Case(
        "Attempt 2 asked to be run again in 3 s; it is tried again at 2026-11-21 12:00:30 UTC (in 30 s).",
        {"state": State.SCHEDULED, "run_at": NOW + timedelta(seconds=30), "attempt": 2, "errors": (asked(3.0),)},
    ),
    "dead after a retry that the task asked for": Case(
        "It is dead since 2026-11-21 11:59:00 UTC: retries used up, after attempt 2 asked to be run again in 60 min." + RETRIED,
        {"state": State.DEAD, "finished_at": ago(minutes=1), "reason": "retries used up", "errors": (asked(3_600),), "attempt": 2},
    ),
    "retry after an error of that name": Case(
        "Attempt 2 failed with RetryLater: soon; it is tried again at 2026-11-21 12:00:30 UTC (in 30 s).",
        {"state": State.SCHEDULED, "run_at": NOW + timedelta(seconds=30), "attempt": 2, "errors": (asked("soon"),)},
    ),
    "retry in a paused queue": Case(
        "Attempt 2 failed with SMTPError: down; it is tried again at 2026-11-21 12:00:30 UTC (in 30 s). "
        "Queue 'default' is paused; `offload queues resume default` lets it go on.",
        {"state": State.SCHEDULED, "run_at": NOW + timedelta(seconds=30), "attempt": 2, "errors": FAILED},
        {"paused": True},
    ),
    "due and nobody looks": Case(
        "It was due at 2026-11-21 11:59:00 UTC and becomes ready as soon as a worker looks. "
        "No worker is alive; start one with `offload worker`.",
        {"state": State.SCHEDULED, "run_at": ago(minutes=1)},
    ),
    "due and about to be seen": Case(
        "It was due at 2026-11-21 12:00:00 UTC and becomes ready as soon as a worker looks. 1 worker serves queue 'default'.",
        {"state": State.SCHEDULED, "run_at": NOW},
        sessions=(worker(),),
    ),
    "behind a unique key": Case(
        "It waits behind job j0, which holds its unique key 'sync:7'; it takes over when that job ends.",
        {"state": State.WAITING, "unique": UniqueKey("sync:7", on_conflict="keep_last"), "reason": "behind j0"},
        {"waits_for": "j0"},
    ),
    "behind an earlier tick": Case(
        "It waits behind job j0, an earlier tick of schedule 'nightly'; it takes over when that job ends.",
        {"state": State.WAITING, "schedule": "nightly", "reason": "behind j0"},
        {"waits_for": "j0"},
    ),
    "waiting for something else": Case("It waits: behind j0.", {"state": State.WAITING, "reason": "behind j0"}),
    "behind in an order": Case(
        "It waits for its turn of key 'account:7', which job j0 has; it goes on when that job ends. "
        "`offload why j0` tells what that one does.",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="account:7", kind="turn", holders=("j0",), held=1, waiting=1),)},
        sessions=(worker(),),
    ),
    "far behind in an order, and nobody works": Case(
        "It waits for its turn of key 'my account', which job j0 has, and 2 jobs go before it in its line; "
        "it goes on when they have ended. `offload why j0` tells what that one does. No worker is alive; start one with `offload worker`.",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="my account", kind="turn", holders=("j0",), held=1, waiting=3),), "before": 2},
    ),
    "behind a dead job": Case(
        "It waits for its turn of key 'k', which job j0 keeps although it is dead. "
        "`offload jobs retry j0` makes it ready again, `offload jobs delete j0` lets the next one go. "
        "If another job has taken its unique key, cancel that one before you retry.",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="k", kind="turn", holders=("j0",), held=1, dead=True, waiting=1),)},
        sessions=(worker(),),
    ),
    "ready, but its key is paused": Case(
        "The key 'k' is paused; `offload limits resume k` lets it go on.",
        {},
        {"limits": (LimitRecord(key="o", kind="turn", holders=("j1",), held=1), LimitRecord(key="k", kind="slot", n=1, paused=True))},
        sessions=(worker(),),
    ),
    "ready, but its key is held back, and nobody works": Case(
        "The key 'k' is held back until 2026-11-21 12:01:00 UTC (in 60 s), as a task has asked; it goes on by itself then. "
        "No worker is alive; start one with `offload worker`.",
        {},
        {"limits": (LimitRecord(key="k", kind="slot", n=1, shut_until=NOW + timedelta(minutes=1)),)},
    ),
    "ready, and its keys let it start": Case(
        "It is the next in queue 'default', and 1 worker with 0 of 10 slots in use serves it: "
        "it starts within moments, or as soon as a thread or process is free if it needs one.",
        {},
        {"limits": (LimitRecord(key="k", kind="slot", n=1, holders=("j1",), held=1),)},
        sessions=(worker(),),
    ),
    "no slot": Case(
        "It waits for a slot of key 'tenant:7': its 5 slots are held by jobs a, b, c and 2 more. "
        "It goes on when one is free; `offload limits set tenant:7 --concurrency 6` makes one more. "
        "Among jobs that wait for one key priority does not count: first come, first served.",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="tenant:7", kind="slot", n=5, holders=tuple("abcde"), held=5, waiting=1),)},
        sessions=(worker(),),
    ),
    "one slot, in a paused queue": Case(
        "1 job goes before it in its line, the first of which waits for a slot of key 'k': its 1 slot is held by job a. "
        "It goes on when one is free; `offload limits set k --concurrency 2` makes one more. "
        "Among jobs that wait for one key priority does not count: first come, first served. "
        "Queue 'default' is paused; `offload queues resume default` lets it go on.",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="k", kind="slot", n=1, holders=("a",), held=1, waiting=2),), "before": 1, "paused": True},
        sessions=(worker(),),
    ),
    "no token": Case(
        "It waits for a token of key 'mailgun', which allows 5/m, burst 3. The next one is expected at 2026-11-21 12:00:12 UTC (in 12 s).",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="mailgun", kind="token", interval=12_000_000, burst=3, next_at=NOW + timedelta(seconds=12)),)},
        sessions=(worker(),),
    ),
    "a token that is there": Case(
        "It waits for a token of key 'mailgun', which allows 5/m. The next one is there as soon as a worker looks.",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="mailgun", kind="token", interval=12_000_000, burst=1, next_at=ago(seconds=1)),)},
        sessions=(worker(),),
    ),
    "held back": Case(
        "The key 'mailgun' is held back until 2026-11-21 12:05:00 UTC (in 5 min), as a task has asked; it goes on by itself then.",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="mailgun", kind="token", interval=1, burst=1, shut_until=NOW + timedelta(minutes=5)),)},
        sessions=(worker(),),
    ),
    "paused key": Case(
        "The key 'my key' is paused, and 3 jobs go before it in its line; `offload limits resume 'my key'` lets it go on.",
        {"state": State.WAITING},
        {"limits": (LimitRecord(key="my key", kind="slot", n=1, paused=True),), "before": 3},
        sessions=(worker(),),
    ),
    "paused": Case(
        "Queue 'default' is paused; `offload queues resume default` lets it go on.",
        standing={"paused": True},
        sessions=(worker(),),
    ),
    "no worker": Case(
        "No worker is alive; start one with `offload worker`. It must be a worker of the app that defines the task 'mail'.",
    ),
    "no worker, and the last one did not know the task": Case(
        "No worker is alive: the last, web-1, has not been heard of since 2026-11-21 11:50:00 UTC. Start one with `offload worker`. "
        "It must be a worker of the app that defines the task 'mail'.",
        standing={"aside": True},
        sessions=(worker(tasks=("other",), beat_at=ago(minutes=10)),),
    ),
    "only a silent worker": Case(
        "No worker is alive: the last, web-1, has not been heard of since 2026-11-21 11:50:00 UTC. Start one with `offload worker`. "
        "It must be a worker of the app that defines the task 'mail'.",
        sessions=(worker("old", beat_at=ago(hours=2)), worker(beat_at=ago(minutes=10))),
    ),
    "no worker of its queue": Case(
        "No live worker serves queue 'default' (they serve mail, vip); start one with `offload worker -q default`.",
        sessions=(worker(queues=("vip", "mail")),),
    ),
    "set aside": Case(
        "No live worker of queue 'default' knows the task 'mail', so it was set aside until one comes that does. "
        "Start a worker of the version that declares it, or correct the name.",
        standing={"aside": True},
        sessions=(worker(tasks=("other",)),),
    ),
    "not yet set aside": Case(
        "No live worker of queue 'default' knows the task 'mail', so it will be set aside until one comes that does. "
        "Start a worker of the version that declares it, or correct the name.",
        sessions=(worker(tasks=("other",)),),
    ),
    "busy and others first": Case(
        "1,200 jobs go before it in queue 'default', and all 20 slots of its 2 workers are busy. "
        "More workers or a higher concurrency would start it sooner.",
        standing={"ahead": 1_200},
        sessions=(worker(running=10), worker("web-2", running=10)),
    ),
    "one job first": Case(
        "1 job goes before it in queue 'default', and 2 workers with 13 of 20 slots in use serve it: "
        "it starts within moments, or as soon as a thread or process is free if it needs one.",
        standing={"ahead": 1},
        sessions=(worker(running=10), worker("web-2", running=3)),
    ),
    "next": Case(
        "It is the next in queue 'default', and 1 worker with 0 of 10 slots in use serves it: "
        "it starts within moments, or as soon as a thread or process is free if it needs one.",
        sessions=(worker(),),
    ),
    "running": Case(
        "It is running on worker web-1 since 2026-11-21 11:59:00 UTC, attempt 1.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1},
        sessions=(worker(),),
    ),
    "running on a quiet worker": Case(
        f"{RUNNING} Its worker has shown no sign of life for 9 s; after 15 s the job is run again.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1},
        sessions=(worker(beat_at=ago(seconds=9)), worker("web-2")),
    ),
    "running on a quiet worker while the others have just started": Case(
        f"{RUNNING} Its worker has shown no sign of life for 50 s; the job is run again within 20 s of the start of worker web-2, 8 s ago, "
        "for a worker takes over only what it has itself seen silent for 15 s.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1},
        sessions=(
            worker(beat_at=ago(seconds=50)),
            worker("web-2", started_at=ago(seconds=8)),
            worker("web-3", started_at=ago(seconds=2)),
        ),
    ),
    "running on one of several workers that crash over and over": Case(
        f"{RUNNING} Its worker has shown no sign of life for 9 s; "
        "no other worker shows one either: start one with `offload worker`, and 15 s after it came up the job is run again.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1},
        sessions=(worker(beat_at=ago(seconds=9)), worker("web-2", beat_at=ago(seconds=8), started_at=ago(seconds=10))),
    ),
    "running on a silent worker": Case(
        f"{RUNNING} Its worker has shown no sign of life for 50 s; the job is run again within moments.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1},
        sessions=(worker(beat_at=ago(seconds=50)), worker("web-2")),
    ),
    "running on the last worker, which is silent": Case(
        f"{RUNNING} Its worker has shown no sign of life for 50 s; "
        "no other worker shows one either: start one with `offload worker`, and 15 s after it came up the job is run again.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1},
        sessions=(worker(beat_at=ago(seconds=50)),),
    ),
    "asked to stop": Case(
        f"{RUNNING} Its cancellation was asked for; its worker is told with its next heartbeat and stops it.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1, "cancel_asked": True},
        sessions=(worker(),),
    ),
    "running on a lost worker": Case(
        f"{RUNNING} That worker is gone; any live worker hands the job to another.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1},
        sessions=(worker("web-2"),),
    ),
    "running on a lost worker, and nobody works": Case(
        f"{RUNNING} That worker is gone; start one with `offload worker`, which hands the job to another.",
        {"state": State.RUNNING, "worker": "web-1", "started_at": ago(minutes=1), "attempt": 1},
    ),
    "succeeded": Case(
        "It succeeded at 2026-11-21 11:59:00 UTC in attempt 2.",
        {"state": State.SUCCEEDED, "finished_at": ago(minutes=1), "attempt": 2},
    ),
    "dead after errors": Case(
        "It is dead since 2026-11-21 11:59:00 UTC: retries exhausted, after attempt 2 failed with SMTPError: down." + RETRIED,
        {"state": State.DEAD, "finished_at": ago(minutes=1), "reason": "retries exhausted", "errors": FAILED, "attempt": 2},
    ),
    "dead without error": Case(
        "It is dead since 2026-11-21 11:59:00 UTC: no such user." + RETRIED,
        {"state": State.DEAD, "finished_at": ago(minutes=1), "reason": "no such user", "attempt": 1},
    ),
    "dead, and another job may have its unique keys": Case(
        f"It is dead since 2026-11-21 11:59:00 UTC: d.{RETRIED} "
        "If another job has taken its unique key 'schedule:nightly' or 'sync:7', cancel that one first.",
        {
            "unique": UniqueKey("sync:7"),
            "schedule": "nightly",
            "overlap": "skip",
            "state": State.DEAD,
            "finished_at": ago(minutes=1),
            "reason": "d",
        },
    ),
    "dead, and its unique key does not matter any more": Case(
        f"It is dead since 2026-11-21 11:59:00 UTC: d.{RETRIED}",
        {"unique": UniqueKey("sync:7", 60.0), "state": State.DEAD, "finished_at": ago(minutes=1), "reason": "d"},
    ),
    "cancelled": Case(
        "It was cancelled at 2026-11-21 11:59:00 UTC." + RETRIED,
        {"state": State.CANCELLED, "finished_at": ago(minutes=1), "reason": "cancelled"},
    ),
    "cancelled for a reason": Case(
        "It was cancelled at 2026-11-21 11:59:00 UTC: too late, after attempt 2 failed with SMTPError: down." + RETRIED,
        {"state": State.CANCELLED, "finished_at": ago(minutes=1), "reason": "too late", "errors": FAILED},
    ),
    "dead by its payload": Case(
        "It is dead since 2026-11-21 11:59:00 UTC: its arguments do not fit the task that its worker knows, "
        "after attempt 2 failed with SMTPError: down." + RETRIED,
        {"state": State.DEAD, "finished_at": ago(minutes=1), "reason": "payload", "errors": FAILED},
    ),
    "dead by its result": Case(
        "It is dead since 2026-11-21 11:59:00 UTC: its work was done, but what it returned cannot be stored as its result." + RETRIED,
        {"state": State.DEAD, "finished_at": ago(minutes=1), "reason": "result"},
    ),
    "dead by crashes": Case(
        "It is dead since 2026-11-21 11:59:00 UTC: the process that ran it died once more, after 2 crashes of its workers." + RETRIED,
        {"state": State.DEAD, "finished_at": ago(minutes=1), "reason": "crashed", "crashes": 2},
    ),
    "fallen with a parent that was not looked for": Case(
        "It was cancelled at 2026-11-21 11:59:00 UTC: parent a ended DEAD. `offload why a` tells more.",
        {"state": State.CANCELLED, "finished_at": ago(minutes=1), "parents": (Parent("a"),), "reason": "parent a ended DEAD"},
    ),
    "behind a parent": Case(
        "It waits for its parent to end: a. `offload why a` says why that is not done.",
        {"state": State.WAITING, "parents": (Parent("a"),)},
        {"parents": ("a",), "open_parents": 1},
        sessions=(worker(queues=("other",)),),
    ),
    "behind parents, and nobody works": Case(
        "It waits for 1 of its 2 parents to end: b. `offload why b` says why that is not done. "
        "No worker is alive; start one with `offload worker`.",
        {"state": State.WAITING, "parents": (Parent("a"), Parent("b"))},
        {"parents": ("b",), "open_parents": 1},
    ),
    "expired": Case(
        "It expired at 2026-11-21 11:59:00 UTC, for it had not started by 2026-11-21 11:58:00 UTC." + RETRIED,
        {"state": State.EXPIRED, "finished_at": ago(minutes=1), "expires_at": ago(minutes=2)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_why(name: str) -> None:
    case = CASES[name]
    known: dict[str, object] = {"id": "j1", "task": "mail", "enqueued_at": ago(hours=1), "state": State.READY}
    record = Record(**(known | dict(case.record)))  # pyright: ignore[reportArgumentType] - the fields differ from case to case
    standing = Standing(record=record, sessions=case.sessions, now=NOW, **case.standing)  # pyright: ignore[reportArgumentType] - as above
    assert why(standing) == case.says


def holder(queue: str = "reports", **known: object) -> Record:
    fields: dict[str, object] = {"id": "j0", "task": "mail", "queue": queue, "enqueued_at": NOW, "state": State.READY}
    return Record(**(fields | known))  # pyright: ignore[reportArgumentType] - the fields differ from test to test


HELD = LimitRecord(key="k", kind="slot", n=1, holders=("j0",), held=1, waiting=12)


@pytest.mark.parametrize(
    ("paused", "sessions", "where"),
    [
        (True, (worker(tasks=("m",)),), "which is paused"),
        (False, (worker(queues=("default",)),), "which no live worker serves"),
        (False, (worker(tasks=("other",)),), "of which no live worker knows its task 'm'"),
    ],
)
def test_why_names_a_holder_that_nobody_will_start(paused: bool, sessions: tuple[SessionRecord, ...], where: str) -> None:
    said = _why_behind(Standing(record=holder(task="m"), paused=paused, sessions=sessions, now=NOW))
    assert said == f" Job j0 is READY in queue 'reports', {where}, and so keeps it: `offload why j0` tells more."


def test_why_says_nothing_of_a_holder_that_will_be_started() -> None:
    assert _why_behind(Standing(record=holder(task="m"), sessions=(worker(tasks=("m",)),), now=NOW)) == ""
    assert _why_behind(Standing(record=holder(), now=NOW)) == " No worker is alive; start one with `offload worker`."


def _why_behind(holding: Standing) -> str:
    """What is said of the holder of a slot."""
    waiting = Record(id="j1", task="mail", enqueued_at=NOW, state=State.WAITING)
    said = why(Standing(record=waiting, limits=(HELD,), sessions=holding.sessions, now=NOW), holders=(holding,))
    return said.partition("first served.")[2]


def findings(survey: Survey | None = None, **known: object) -> list[Finding]:
    facts: dict[str, object] = {"engine": "sqlite", "version": "3.51", "schema": 1, "newest_schema": 1, "sessions": (worker(),), "now": NOW}
    return diagnose(Facts(**(facts | known)), survey)  # pyright: ignore[reportArgumentType] - the fields differ from test to test


def only(survey: Survey | None = None, **known: object) -> Finding:
    (finding,) = findings(survey, **known)
    return finding


def planned(**known: object) -> ScheduleRecord:
    fields: dict[str, object] = {"next_at": NOW + timedelta(hours=1)}
    schedule = Schedule(name="nightly", draft=Draft(task="clean"), every=3_600)
    return ScheduleRecord(schedule=schedule, **(fields | known))  # pyright: ignore[reportArgumentType] - the fields differ from test to test


class TestDoctor:
    def test_has_nothing_to_say_of_a_healthy_store(self) -> None:
        assert findings(oldest_ready={"default": ago(seconds=1)}, schedules=(planned(),)) == []

    def test_sees_jobs_that_no_worker_will_run(self) -> None:
        assert only(sessions=(), oldest_ready={"mail": NOW, "default": NOW}) == Finding(
            "error", "no worker is alive while jobs are ready", "Jobs are ready in: default, mail.", "Start one with `offload worker`."
        )

    def test_takes_an_idle_store_without_workers_lightly(self) -> None:
        assert only(sessions=()).severity == "info"

    def test_sees_a_queue_that_no_worker_serves(self) -> None:
        finding = only(sessions=(worker(queues=("mail",)),), oldest_ready={"vip": ago(minutes=10)})
        assert finding == Finding(
            "error",
            "no live worker serves queue 'vip'",
            "Its oldest ready job waits for 10 min.",
            "Start one with `offload worker -q vip`, or without -q for all queues.",
        )

    def test_sees_a_queue_that_is_behind(self) -> None:
        finding = only(oldest_ready={"default": ago(minutes=6)})
        assert (finding.severity, finding.title) == ("warning", "queue 'default' is behind")
        assert finding.detail == "Its oldest ready job waits for 6 min."

    def test_blames_the_pause_and_not_the_workers(self) -> None:
        finding = only(paused=("mail",), oldest_ready={"mail": ago(hours=1)})
        assert finding.title == "queue 'mail' is paused"
        assert finding.advice == "`offload queues resume mail` lets it go on."

    def test_counts_the_jobs_of_unknown_tasks(self) -> None:
        assert [finding.title for finding in findings(aside={"old.task": 2_000, "new.task": 1})] == [
            "1 job of task 'new.task' set aside",
            "2,000 jobs of task 'old.task' set aside",
        ]

    def test_counts_the_dead_and_names_the_tasks_of_those_that_it_has_seen(self) -> None:
        finding = only(Survey(dead={"mail": 1_200, "vip": 1}, dead_tasks=("a", "b", "c", "d")))
        assert (finding.severity, finding.title) == ("info", "1,201 jobs are dead")
        assert finding.detail == "By queue: mail (1,200), vip (1). Tasks of the latest 100: a, b, c and 1 more."
        assert only(Survey(dead={"mail": 1}, dead_tasks=("a",))).detail == "By queue: mail (1). Tasks: a."

    def test_sees_an_old_schema(self) -> None:
        assert only(newest_schema=2) == Finding(
            "error",
            "the schema is older than this Offload",
            "The sqlite schema has version 1; this Offload knows 2.",
            "Run `offload migrate`.",
        )

    def test_sees_a_new_schema(self) -> None:
        assert only(schema=2).title == "the schema is newer than this Offload"

    def test_sees_a_silent_worker(self) -> None:
        finding = only(sessions=(worker(), worker("web-2", running=3, beat_at=ago(hours=3))))
        assert (finding.severity, finding.title) == ("warning", "worker web-2 has shown no sign of life for 3 h")
        assert finding.detail == "It holds 3 jobs; they are run again within moments."

    def test_sees_a_worker_fall_silent(self) -> None:
        finding = only(sessions=(worker(running=1, beat_at=ago(seconds=9)), worker("web-2")))
        assert finding.title == "worker web-1 has shown no sign of life for 9 s"
        assert finding.detail == "It holds 1 job; after 15 s it is run again."

    def test_knows_that_nobody_takes_over_from_the_last_worker(self) -> None:
        assert only(sessions=(worker(running=1, beat_at=ago(minutes=1)),)) == Finding(
            "error",
            "no worker is alive while jobs are RUNNING",
            "The last worker, web-1, has shown no sign of life for 60 s, and holds 1 job.",
            "Start one with `offload worker`. 15 s after it came up it runs again what they held. "
            "If one of them lives, correct the clock of its machine.",
        )

    def test_says_once_that_all_workers_are_dead_and_first(self) -> None:
        dead = (worker("a", running=1, beat_at=ago(hours=1)), worker("b", beat_at=ago(minutes=1)))
        listed = "None of the 2 workers listed has shown a sign of life for 60 s; they hold 1 job."
        assert only(sessions=dead).detail == listed
        finding, *_ = findings(sessions=dead, oldest_ready={"mail": NOW}, paused=("vip",))
        assert (finding.title, finding.detail) == ("no worker is alive while jobs are ready", f"Jobs are ready in: mail. {listed}")

    def test_takes_dead_workers_that_hold_nothing_lightly(self) -> None:
        finding = only(sessions=(worker(beat_at=ago(hours=1)),))
        assert (finding.severity, finding.title) == ("warning", "no worker is alive")
        assert finding.detail == ("No job is ready either. The last worker, web-1, has shown no sign of life for 60 min, and holds no job.")
        assert "runs again" not in finding.advice

    def test_sees_mixed_versions(self) -> None:
        finding = only(sessions=(worker(), worker("b", version="1.1"), worker("c", version="1.1")))
        assert finding.detail == "Versions: 1.0 (1), 1.1 (2)."

    def test_sees_a_paused_schedule(self) -> None:
        assert only(schedules=(planned(paused=True, next_at=ago(days=3)),)).title == "schedule 'nightly' is paused"

    def test_sees_a_schedule_that_has_ended(self) -> None:
        assert only(schedules=(planned(next_at=None),)).title == "schedule 'nightly' has no more ticks"

    def test_sees_an_overdue_schedule(self) -> None:
        finding = only(schedules=(planned(next_at=ago(days=3)),))
        assert (finding.severity, finding.title) == ("warning", "schedule 'nightly' is overdue")
        assert finding.detail == "Its tick of 2026-11-18 12:00:00 UTC has not fired for 3 days."

    def test_sees_a_paused_key_once_whatever_its_kinds(self) -> None:
        kinds = (LimitRecord(key="k", kind="slot", n=2, paused=True, waiting=2), LimitRecord(key="k", kind="turn", paused=True, waiting=1))
        assert only(limits=kinds) == Finding(
            "warning", "key 'k' is paused", "None of its jobs starts; 3 jobs wait for it.", "`offload limits resume k` lets it go on."
        )

    def test_sees_a_key_that_is_held_back_for_long(self) -> None:
        def shut(**length: float) -> tuple[LimitRecord, ...]:
            return (LimitRecord(key="api", kind="token", interval=1, burst=1, shut_until=NOW + timedelta(**length), waiting=1),)

        assert findings(limits=shut(minutes=9)) == []
        finding = only(limits=shut(hours=5))
        assert (finding.severity, finding.title) == ("warning", "key 'api' is held back for 5 h")
        assert finding.detail == "A task asked that none of its jobs starts until 2026-11-21 17:00:00 UTC; 1 job waits for it."

    def test_sees_a_line_that_a_dead_job_holds(self) -> None:
        dead = LimitRecord(key="account:7", kind="turn", holders=("j0",), held=1, dead=True, waiting=12)
        assert only(limits=(dead,)) == Finding(
            "warning",
            "the line of key 'account:7' stands still",
            "Its turn is kept by job j0, which is dead; 12 jobs wait for it.",
            "`offload jobs retry j0` makes it ready again, `offload jobs delete j0` lets the next one go. "
            "If another job has taken its unique key, cancel that one before you retry.",
        )

    def test_sees_a_limit_that_workers_declare_in_several_ways(self) -> None:
        def declares(name: str, *limits: Limit, **started: float) -> SessionRecord:
            return worker(name, limits=limits, started_at=ago(**started))

        new, old = SlotLimit("t:{t}", 5, "t:{t}"), SlotLimit("t:{t}", 3, "t:{t}")
        workers = (declares("b", new, minutes=1), declares("a", old, hours=1), declares("c", new, minutes=2))
        finding = only(sessions=workers)
        assert (finding.severity, finding.title) == ("warning", "the limit of key 't:{t}' is declared in several ways")
        assert finding.detail == (
            "Declared: 3 at a time (worker a); 5 at a time (workers c and b). Those of the worker that started last count: 5 at a time."
        )
        assert "finish it" in finding.advice
        assert findings(sessions=(declares("a", new, hours=1), declares("b", new, hours=2))) == []

    def test_sees_a_limit_that_one_program_declares_in_several_ways(self) -> None:
        one, other = RateLimit("api", 10_000, 1, rule="api"), RateLimit("api", 10_000, 20, rule="api")
        assert only(sessions=(worker(limits=(one, other)),)).detail == (
            "Declared: 100/s (worker web-1); 100/s, burst 20 (worker web-1). Those of the worker that started last count: 100/s, burst 20."
        )
        assert findings(sessions=(worker(limits=(one, SlotLimit("api", 3, "api"), one)),)) == []

    def test_sees_a_limit_that_a_worker_declared_that_is_gone(self) -> None:
        new, old = SlotLimit("t:{t}", 5, "t:{t}"), SlotLimit("t:{t}", 3, "t:{t}")
        live = (worker("a", limits=(new,), started_at=ago(hours=1)),)
        assert only(sessions=live, declared=(old,)) == Finding(
            "warning",
            "the limit of key 't:{t}' is not what live workers declare",
            "Declared: 5 at a time (worker a). What counts was declared by a worker that started later: 3 at a time.",
            "Restart one whose limit is right: what a worker declares counts from its start on.",
        )
        both = (*live, worker("b", limits=(old,), started_at=ago(hours=2)))
        assert "is not what live workers declare" in only(sessions=both, declared=(old,)).title
        assert "in several ways" in only(sessions=both, declared=(new,)).title
        assert findings(sessions=live, declared=(new, SlotLimit("gone", 1, "gone"))) == []

    def test_sees_a_key_that_is_held_by_a_job_that_nobody_will_start(self) -> None:
        survey = Survey(limits=(HELD,), holders={"j0": holder()})
        finding = only(survey, sessions=(worker(queues=("default",)),))
        assert finding == Finding(
            "warning",
            "key 'k' is held by a job that nobody will start",
            "Job j0 is READY in queue 'reports', which no live worker serves. 12 jobs wait for the key.",
            "`offload why j0` tells what starts it; `offload jobs cancel j0` gives up what it holds.",
        )
        assert [each.title for each in findings(survey, paused=("reports",))] == ["queue 'reports' is paused", finding.title]
        assert findings(survey) == []
        assert findings(Survey(limits=(HELD,), holders={"j0": holder(state=State.RUNNING)}), sessions=(worker(queues=("default",)),)) == []

    def test_sees_a_limit_that_was_set_and_counts_for_nobody(self) -> None:
        limits = (
            LimitRecord(key="api", kind="slot", n=3, changed=True),
            LimitRecord(key="api", kind="token", interval=12_000_000, burst=1, held=1),
        )
        assert only(Survey(limits=limits)) == Finding(
            "info",
            "what was set for key 'api' counts for nobody now",
            "Set: a concurrency limit (3 at a time). Nobody holds or waits for a concurrency slot of it, and no live worker has a template "
            "for one; known for it: a rate (5/m).",
            "Fine if such jobs are still to come. Else `offload limits reset api` forgets it.",
        )
        declares = (worker(limits=(SlotLimit("tenant:{n}", 2, "tenant:{n}"), RateLimit("m[0] {", 1, 1, rule="m[0] {"))),)
        typo = Survey(limits=(LimitRecord(key="tennant:7", kind="slot", n=3, changed=True),))
        assert findings(typo, sessions=declares) == []  # a function may make it

    def test_takes_an_idle_key_for_no_mistake(self) -> None:
        set_once = Survey(limits=(LimitRecord(key="tenant:7", kind="slot", n=3, changed=True),))
        assert findings(set_once, sessions=(worker(limits=(SlotLimit("tenant:{n}", 2, "tenant:{n}"),)),)) == []
        assert "counts for nobody" not in str(findings(set_once, sessions=()))  # no worker says what is declared
        held = Survey(limits=(LimitRecord(key="k", kind="slot", n=3, changed=True, held=1),))
        assert findings(held) == []

    def test_sees_a_pause_of_a_queue_that_nobody_has(self) -> None:
        nobody = "No job is there, and no worker names it."
        assert only(Survey(queues=frozenset({"mail"})), paused=("mial",)).detail == nobody
        assert only(Survey(queues=frozenset({"mail"})), paused=("mail",)).detail == "None of its jobs starts."

    def test_takes_no_word_of_the_dead_for_what_is_declared(self) -> None:
        gone = worker("gone", limits=(SlotLimit("k", 1, "k"),), beat_at=ago(hours=1))
        assert "declared" not in str(findings(sessions=(worker(limits=(SlotLimit("k", 2, "k"),)), gone)))

    def test_lists_the_five_slowest_tasks(self) -> None:
        runs = [(f"task{number}", float(number)) for number in range(1, 8)] + [("task1", 300.0)]
        assert only(finished=tuple(runs)).detail == (
            "task1: 5 min (2 runs); task7: 7.0 s (1 run); task6: 6.0 s (1 run); task5: 5.0 s (1 run); task4: 4.0 s (1 run)"
        )

    def test_lists_large_payloads(self) -> None:
        finding = only(large=(("j1", "mail", 200 * 1024), ("j2", "report", 17_000)))
        assert finding.detail == "mail j1: 200 KiB; report j2: 17 KiB"
        assert finding.advice.startswith("Pass ids instead of objects")

    def test_passes_on_what_the_engine_knows_worst_first(self) -> None:
        found = findings(notes=(("info", "a", "x"), ("error", "b", "y")), paused=("mail",))
        assert [(finding.severity, finding.title) for finding in found] == [
            ("error", "b"),
            ("warning", "queue 'mail' is paused"),
            ("info", "a"),
        ]
        assert found[0].advice == "y"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], 3.0), ([2.0, 1.0], 2.0), (list(map(float, range(1, 101))), 95.0), (list(map(float, range(1, 21))), 19.0)],
)
def test_p95_is_the_nearest_rank(values: list[float], expected: float) -> None:
    assert p95(values) == expected


def test_how_many_workers_show_no_sign_of_life_is_counted() -> None:
    gone = [worker(name, beat_at=ago(minutes=1)) for name in ("a", "b")]
    assert counted([worker()], NOW) == "1 worker"
    assert counted([worker(), *gone], NOW) == "3 workers, 2 of them without a sign of life,"
    assert counted(gone, NOW) == "2 workers, none of which shows a sign of life,"
    assert counted(gone[:1], NOW) == "1 worker without any sign of life,"
