"""A job enqueued on a connection of the caller's is part of the caller's transaction, whatever the kind of connection."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.transactions import program
from tests.transactions.conftest import Hand, Shop

from offload import IdConflict, State, UniqueConflict
from offload.brokers.postgres import wake


def test_a_job_runs_once_the_transaction_has_committed(shop: Shop, hand: Hand) -> None:
    hand.insert(7)
    handle = hand.enqueue(7)
    assert shop.jobs() == []
    hand.commit()
    assert shop.marks() == [7]
    assert shop.drain() == 1
    assert program.ran == [7]
    assert handle.record().state is State.SUCCEEDED


def test_a_job_whose_transaction_is_rolled_back_never_was(shop: Shop, hand: Hand) -> None:
    hand.insert(7)
    hand.enqueue(7)
    hand.rollback()
    assert (shop.marks(), shop.jobs(), shop.drain()) == ([], [], 0)


def test_a_connection_can_be_used_for_one_transaction_after_the_other(shop: Shop, hand: Hand) -> None:
    for n, end in ((1, hand.commit), (2, hand.rollback), (3, hand.commit)):
        hand.insert(n)
        hand.enqueue(n)
        end()
        hand.begin()
    assert (shop.marks(), shop.jobs()) == ([1, 3], [1, 3])


def test_many_jobs_are_part_of_one_transaction_beyond_the_thousand_too(shop: Shop, hand: Hand) -> None:
    hand.enqueue_many(range(1_100))
    assert shop.app.counts() == {}
    hand.rollback()
    assert shop.app.counts() == {}
    hand.begin()
    handles = hand.enqueue_many(range(1_100))
    hand.commit()
    assert shop.app.counts() == {"default": {State.READY: 1_100}}
    assert len({handle.id for handle in handles}) == 1_100


def test_a_conflict_stores_nothing_and_leaves_the_transaction_usable(shop: Shop, hand: Hand) -> None:
    program.note.using(id="known", unique="key").enqueue(1)
    hand.insert(2)
    with pytest.raises(IdConflict):
        hand.enqueue(2, id="known")
    with pytest.raises(UniqueConflict):
        hand.enqueue(3, unique=program.Unique("key", on_conflict="raise"))
    hand.insert(4)
    hand.enqueue(4)
    hand.commit()
    assert (shop.marks(), shop.jobs()) == ([2, 4], [1, 4])


def test_the_same_id_twice_is_one_job_and_an_unseen_one_conflicts(shop: Shop, hand: Hand) -> None:
    first, second = hand.enqueue(1, id="one"), hand.enqueue(1, id="one")
    assert first.id == second.id == "one"
    with pytest.raises(IdConflict):
        hand.enqueue(2, id="one")
    hand.commit()
    assert shop.jobs() == [1]


def test_all_options_are_kept(shop: Shop, hand: Hand) -> None:
    handle = hand.enqueue(1, priority=-5, queue="slow", unique="key", delay=3600, expires_in=7200, keep=5, timeout=9)
    other = hand.enqueue(2, unique="key")
    assert other.id == handle.id
    hand.commit()
    record = handle.record()
    assert record.state is State.SCHEDULED
    assert (record.priority, record.queue, record.keep, record.timeout) == (-5, "slow", 5, 9)
    assert record.unique is not None
    assert record.unique.key == "key"
    assert record.run_at is not None
    assert record.expires_at is not None
    assert (record.expires_at - record.run_at).total_seconds() == pytest.approx(3600)


def test_a_sleeping_worker_is_woken_by_the_commit(shop: Shop, hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL", "POLL_DEAF"):  # or on PostgreSQL it would look soon enough by itself
        monkeypatch.setattr(wake, name, 3_600.0)
    with shop.working():
        program.note.enqueue(0).result(timeout=10)
        handle = hand.enqueue(1)
        hand.commit()
        begun = time.monotonic()
        assert handle.result(timeout=10) == 1
        assert time.monotonic() - begun < 2, "a worker that nobody wakes looks every 5 s"


def test_on_a_running_event_loop_a_sync_connection_is_used_there_and_then(shop: Shop, hand: Hand) -> None:
    if hand.kind.is_async or hand.kind.name.startswith("django"):
        pytest.skip("for sync connections; Django refuses to work on an event loop")

    async def main() -> None:
        program.note.using(connection=hand.connection).enqueue(1)
        await program.note.using(connection=hand.connection).aenqueue(2)

    asyncio.run(main())
    hand.commit()
    assert shop.jobs() == [1, 2]
