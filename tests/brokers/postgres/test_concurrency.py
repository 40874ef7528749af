"""Many clients of one database at once, each in a thread and loop of its own: nothing is lost, doubled, or in two states."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from tests.brokers.postgres.conftest import Ask, Crowd, Opens
from tests.conftest import Eventually

from offload.broker import Statement, Work
from offload.brokers.postgres import PostgresBroker, health, reading, upkeep
from offload.brokers.postgres.migrating import SCHEMA
from offload.brokers.postgres.work import Transaction
from offload.errors import SessionLost, UniqueConflict
from offload.job import Dead, Done, Lease, Progress, Pulse, Release, Retried, State, UniqueKey
from offload.records import Filter
from offload.testing.clock import START, TestClock
from offload.testing.contract.fixtures import claim, claim_one, ids, info, job, rule, tick_job
from offload.testing.servers import PostgresServer

pytestmark = pytest.mark.anyio  # for those that are coroutines
T = TypeVar("T")

IN_ONE_STATE = """
select j.id, array_remove(array[r.line, x.line, s.line, w.line, d.line, a.line], null) as lines from jobs j
left join (select n, 'ready' as line from ready) r on r.n = j.n
left join (select n, 'aside' as line from aside) a on a.n = j.n
left join (select n, 'running' as line from running) x on x.n = j.n
left join (select n, 'scheduled' as line from scheduled) s on s.n = j.n
left join (select n, 'waiting' as line from waiting) w on w.n = j.n
left join (select n, 'done' as line from done) d on d.n = j.n
where cardinality(array_remove(array[r.line, x.line, s.line, w.line, d.line, a.line], null)) <> 1
"""
"""Jobs that stand in no line or in several."""


async def test_no_job_is_claimed_twice(crowd: Crowd, broker: PostgresBroker, clock: TestClock) -> None:
    count = 10_000
    for start in range(0, count, 1_000):
        await broker.enqueue([job(clock, f"{n}", keep=0) for n in range(start, start + 1_000)])
    left = threading.Semaphore(0)

    async def work(broker: PostgresBroker) -> list[str]:
        done: list[str] = []
        async with broker.session(info()) as session:
            while leases := await claim(session, 100):
                assert await session.settle([(lease, Done()) for lease in leases]) == []
                done += ids(leases)
        left.release()
        return done

    shares = crowd.run(*[work] * 4)
    assert Counter(id for share in shares for id in share) == Counter(f"{n}" for n in range(count))
    assert all(shares), "one claimer got nothing"
    assert await broker.counts() == {}


async def test_a_cancel_that_races_with_claims_reaches_every_job(crowd: Crowd, broker: PostgresBroker, clock: TestClock) -> None:
    names = [f"{n}" for n in range(1_000)]
    await broker.enqueue([job(clock, name) for name in names])
    over = threading.Event()

    async def work(broker: PostgresBroker) -> tuple[list[str], list[str]]:
        taken: list[Lease] = []
        async with broker.session(info()) as session:
            while leases := await claim(session, 20):
                taken += leases
            over.wait(60)
            told = [id for id, _ in (await session.beat(Pulse())).stop]
            assert await session.settle([(lease, Release()) for lease in taken]) == []
        return ids(taken), told

    async def cancel(broker: PostgresBroker) -> tuple[list[str], list[str]]:
        asked: set[str] = set()
        for start in range(0, len(names), 50):
            asked |= await broker.cancel(names[::-1][start : start + 50])
        assert asked == set(names)
        over.set()
        return [], []

    shares = crowd.run(work, work, cancel)
    for taken, told in shares:
        assert sorted(taken) == sorted(told)
    assert sum(len(taken) for taken, _ in shares) < len(names), "the cancel came too late to race"
    assert await broker.counts() == {"default": {State.CANCELLED: len(names)}}


@pytest.mark.parametrize(("until", "conflict"), [("started", "replace"), ("started", "debounce"), ("finished", "keep_last")])
async def test_the_payload_that_was_promised_is_the_one_that_runs(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, until: Any, conflict: Any
) -> None:
    over = threading.Event()

    async def enqueue(broker: PostgresBroker) -> dict[str, bytes]:
        promised: dict[str, bytes] = {}
        for n in range(200):
            payload = b'{"n":%d}' % n
            wish = job(clock, f"{n}", payload=payload, unique=UniqueKey("k", until, conflict), delay=0 if conflict == "debounce" else None)
            [id] = await broker.enqueue([wish])
            promised[id] = payload
        over.set()
        return promised

    async def work(broker: PostgresBroker) -> dict[str, bytes]:
        ran: dict[str, bytes] = {}
        async with broker.session(info()) as session:
            while True:
                finished = over.is_set()
                leases = await claim(session)
                for lease in leases:
                    assert lease.job.id not in ran
                    ran[lease.job.id] = lease.job.payload
                assert await session.settle([(lease, Done()) for lease in leases]) == []
                if finished and not leases:
                    return ran

    promised, *shares = crowd.run(enqueue, work, work)
    ran = {id: payload for share in shares for id, payload in share.items()}
    assert ran == promised
    assert sum(map(len, shares)) == len(ran), "a job ran twice"
    assert len(ran) > 1, "nothing raced"


async def test_a_rescue_that_races_with_claims_and_settles_loses_nothing(
    crowd: Crowd, broker: PostgresBroker, clock: TestClock, ask: Ask
) -> None:
    names = [f"{n}" for n in range(12_000)]  # so many that they meet also on a busy machine
    for start in range(0, len(names), 3_000):
        await broker.enqueue([job(clock, name) for name in names[start : start + 3_000]])
    alive: list[str] = []
    raced, over = threading.Event(), threading.Event()

    async def work(broker: PostgresBroker) -> list[str]:
        done: list[str] = []
        while len(done) < 120 or not raced.is_set():
            assert len(done) < len(names) // 2, "nothing raced"
            async with broker.session(info()) as session:
                with suppress(SessionLost):
                    while len(done) < 120 or not raced.is_set():
                        leases = await claim(session, 3)
                        lost = await session.settle([(lease, Done()) for lease in leases])
                        done += ids(lease for lease in leases if lease not in lost)
                        if session.id not in alive:  # not before it has settled: a slow machine would open sessions for ever
                            alive.append(session.id)
                        if len(done) >= len(names) // 2:
                            break
        return done

    async def rescue(broker: PostgresBroker) -> list[str]:
        rescued: set[str] = set()
        while not over.is_set():
            for id in alive[-2:]:
                rescued.update(ids(await broker.opened.run(lambda tx, id=id: upkeep.rescue(tx, id, 0))))
            if len(rescued) > 5:
                raced.set()
            await asyncio.sleep(0.002)
        return []

    async def two(broker: PostgresBroker) -> list[str]:
        done = await work(broker)
        over.set()
        return done

    done = [id for share in crowd.run(two, work, rescue) for id in share]
    assert len(done) == len(set(done)), "a job succeeded twice"
    assert ask("select n from running where session not in (select id from sessions)") == []
    assert ask(IN_ONE_STATE) == []
    counts = (await broker.counts())["default"]
    assert counts == {State.SUCCEEDED: len(done), **({State.READY: left} if (left := len(names) - len(done)) else {})}


async def test_a_tick_fires_once_whatever_the_number_of_workers(opens: Opens, clock: TestClock, ask: Ask) -> None:
    brokers = [await opens() for _ in range(10)]
    await brokers[0].schedule(rule(), START)
    all_know = asyncio.Barrier(len(brokers))

    async def tick(broker: PostgresBroker, number: int) -> bool:
        async with broker.session(info(f"{number}")) as session:
            (due,) = await session.due()
            await all_know.wait()
            return await session.tick(due, START + timedelta(minutes=1), [tick_job(clock, due.schedule, f"tick-{number}")])

    for _ in range(3):
        fired = await asyncio.gather(*(tick(broker, n) for n, broker in enumerate(brokers)))
        assert sorted(fired) == [False] * 9 + [True]
        assert ask("select fired from schedules") == [(1,)]
        assert len(ask("select id from jobs")) == 1
        await brokers[0].unschedule("report")
        await brokers[0].delete([id for (id,) in ask("select id from jobs")])
        await brokers[0].schedule(rule(), START)


async def test_workers_that_start_together_declare_their_schedules_once(opens: Opens, clock: TestClock) -> None:
    declared = [(rule(f"rule-{n}"), START + timedelta(minutes=n)) for n in range(6)]
    brokers = [await opens() for _ in range(10)]

    async def start(broker: PostgresBroker, number: int) -> None:
        mixed = random.Random(number).sample(declared, len(declared))
        async with broker.session(info(f"{number}", schedules=mixed)):
            await asyncio.sleep(0)

    await asyncio.gather(*(start(broker, n) for n, broker in enumerate(brokers)))
    shown = await brokers[0].schedules()
    assert [(each.schedule, each.next_at, each.declared) for each in shown] == [(schedule, at, True) for schedule, at in declared]


async def test_workers_that_promote_together_move_every_job_once(opens: Opens, clock: TestClock, ask: Ask) -> None:
    brokers = [await opens() for _ in range(4)]
    await brokers[0].enqueue([job(clock, f"{n}", delay=1 + n % 7) for n in range(1_000)])
    await brokers[1].enqueue([job(clock, f"x{n}", delay=1 + n % 7) for n in range(1_000)])
    clock.advance(10)

    async def maintain(broker: PostgresBroker) -> None:
        async with broker.session(info()) as session:
            for _ in range(3):
                await session.maintain()

    await asyncio.gather(*map(maintain, brokers))
    assert ask(IN_ONE_STATE) == []
    assert await brokers[0].counts() == {"default": {State.READY: 2_000}}


async def test_workers_that_expire_and_forget_together_do_no_harm(opens: Opens, clock: TestClock, ask: Ask) -> None:
    brokers = [await opens() for _ in range(4)]
    await brokers[0].enqueue([job(clock, f"late-{n}", expires_in=1) for n in range(300)])
    await brokers[0].enqueue([job(clock, f"old-{n}", keep=1) for n in range(300)])
    async with brokers[0].session(info()) as session:
        await session.settle([(lease, Done()) for lease in await claim(session) if lease.job.id.startswith("old")])
        await session.settle([(lease, Release()) for lease in await claim(session) if lease.job.id.startswith("late")])
    await brokers[0].enqueue([job(clock, f"later-{n}", expires_in=1) for n in range(300)])
    clock.advance(1)

    async def maintain(broker: PostgresBroker) -> list[str]:
        async with broker.session(info()) as session:
            return ids((await session.maintain()).touched)

    expired = await asyncio.gather(*map(maintain, brokers))
    assert sorted(id for share in expired for id in share) == sorted(f"later-{n}" for n in range(300))
    assert ask(IN_ONE_STATE) == []
    counts = await brokers[0].counts()
    assert (counts["default"][State.EXPIRED], counts["default"].get(State.SUCCEEDED)) == (300, None)


async def test_a_dead_job_is_revived_once_and_takes_its_key_alone(opens: Opens, clock: TestClock) -> None:
    brokers = [await opens() for _ in range(6)]
    key = UniqueKey("k", on_conflict="raise")
    for turn in range(10):
        id = f"dead-{turn}"
        await brokers[0].enqueue([job(clock, id, unique=key)])
        async with brokers[0].session(info()) as session:
            await session.settle([(await claim_one(session), Dead("d"))])
        rivals = [broker.enqueue([job(clock, f"rival-{turn}-{n}", unique=key)]) for n, broker in enumerate(brokers[3:])]
        answers = await asyncio.gather(*(broker.retry([id]) for broker in brokers[:3]), *rivals, return_exceptions=True)
        won = [answer for answer in answers if answer and not isinstance(answer, UniqueConflict)]
        assert len(won) == 1, answers
        await brokers[0].delete([next(iter(won[0]))])  # type: ignore[arg-type,call-overload]


async def test_a_deadlock_is_solved_by_doing_it_again(
    broker: PostgresBroker, clock: TestClock, server: PostgresServer, schema: str, ask: Ask, eventually: Eventually
) -> None:
    await broker.enqueue([job(clock, "a"), job(clock, "b")])
    lock = "select 1 from ready where n = (select n from jobs where id = %s) for update"
    with psycopg.connect(server.url, options=f"-c search_path={schema} -c deadlock_timeout=1min") as other:
        other.execute(lock, ["b"])
        cancelling = asyncio.ensure_future(broker.cancel(["a", "b"]))
        await eventually(lambda: ask("select 1 from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0"))
        await asyncio.to_thread(other.execute, lock, ["a"])  # the server ends one of the two, and this one is more patient
        assert not cancelling.done()
        other.commit()
        assert await cancelling == {"a", "b"}
    assert await broker.counts() == {"default": {State.CANCELLED: 2}}


async def test_every_job_is_in_one_state_at_every_instant(crowd: Crowd, broker: PostgresBroker, clock: TestClock, ask: Ask) -> None:
    names = [f"{n}" for n in range(60)]
    await broker.enqueue([job(clock, name, unique=UniqueKey(f"k{int(name) // 2}", on_conflict="keep_last")) for name in names])
    over = threading.Event()

    async def work(broker: PostgresBroker) -> None:
        dice = random.Random(threading.get_ident())
        outcomes = [Done(), Retried(0), Retried(0.001), Release(), Dead("d")]
        try:
            for _ in range(4):
                async with broker.session(info()) as session:
                    for _ in range(25):
                        leases = await claim(session, 7)
                        await session.settle([(lease, dice.choice(outcomes)) for lease in leases])
                        clock.advance(0.001)
                        await session.maintain()
        finally:
            over.set()

    async def meddle(broker: PostgresBroker) -> None:
        dice = random.Random(7)
        while not over.is_set():
            await broker.cancel(dice.sample(names, 9))
            await broker.retry(dice.sample(names, 20))
            await broker.delete(dice.sample(names, 1))
            await broker.enqueue([job(clock, dice.choice(names)) for _ in range(2)])

    async def watch(broker: PostgresBroker) -> None:
        looks = 0
        while not over.is_set():
            assert ask(IN_ONE_STATE) == []
            looks += 1
        assert looks > 20

    crowd.run(work, work, meddle, watch)
    assert ask(IN_ONE_STATE) == []
    assert ask("select key from uniques u where not exists (select from jobs j where j.n = u.n)") == []


async def test_what_people_ask_locks_nothing(broker: PostgresBroker, clock: TestClock) -> None:
    await broker.enqueue([job(clock, "a"), job(clock, "b", delay=60)])

    def everything(tx: Transaction) -> Work[set[str]]:
        yield from reading.counts(tx)
        yield from reading.get(tx, ["a", "b"])
        for filter in (Filter(), Filter(state=State.READY), Filter(text="a"), Filter(state=State.DEAD, text="a")):
            yield from reading.find(tx, filter, 10, None)
        yield from reading.standing(tx, "a", clock.now())
        yield from reading.facts(tx, clock.now(), 1)
        yield from health.health(tx, None)
        return {
            mode for (mode,) in (yield Statement("select mode from pg_locks where pid = pg_backend_pid() and locktype <> 'virtualxid'"))
        }

    assert await broker.opened.run(everything) == {"AccessShareLock"}


OPENER = """
import asyncio, sys
from offload.brokers.postgres import PostgresBroker
from offload.clock import SystemClock
from offload.job import Job

async def main(url, name):
    broker = PostgresBroker.connect(url, SystemClock())
    input()
    await broker.open()
    await broker.enqueue([Job(id=name, task="t", enqueued_at=SystemClock().now())])
    await broker.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.process
def test_ten_processes_may_open_an_empty_database_together(server: PostgresServer, fresh_name: str) -> None:
    url = server.database(f"empty_{fresh_name}")
    programs = [
        subprocess.Popen([sys.executable, "-c", OPENER, url, f"{n}"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for n in range(10)
    ]
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    for program in programs:
        _, said = program.communicate(timeout=100)
        assert (program.returncode, said) == (0, ""), said
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from offload.jobs").fetchone() == (10,)
        assert connection.execute("select version from offload.store").fetchall() == [(SCHEMA,)]


@pytest.mark.parametrize("goes", ["upkeep", "leave"])
async def test_progress_that_comes_up_while_the_job_is_forgotten_is_forgotten_too(
    broker: PostgresBroker, clock: TestClock, server: PostgresServer, schema: str, ask: Ask, eventually: Eventually, goes: str
) -> None:
    await broker.enqueue([job(clock, "a", keep=0)])
    async with broker.session(info()) as session:
        lease = await claim_one(session)
        with psycopg.connect(server.url, options=f"-c search_path={schema}") as other:
            other.execute("select from running for share")
            settled = asyncio.ensure_future(session.settle([(lease, Done())]))
            waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like %(tables)s"
            await eventually(lambda: ask(waiting, tables=f'%"{schema}".running%') == [(1,)])
            await session.beat(Pulse(progress=((lease, Progress(0.5)),)))
        assert await settled == []
        assert ask("select count(*) from jobs") == [(0,)]
        assert ask("select count(*) from progress") == [(1,)], "the test shows nothing"
        if goes == "upkeep":
            await session.maintain()
            assert ask("select count(*) from progress") == [(0,)]
    assert ask("select count(*) from progress") == [(0,)]
