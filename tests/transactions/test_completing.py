"""A block of `current.transaction()`: the user's rows, the end of the job and the jobs enqueued inside commit together, or not at all."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from tests.transactions import program
from tests.transactions.conftest import Shop
from tests.transactions.kinds import Kind

from offload import Offload, Retry, State, Unsupported, Worker, current
from offload.portal import portal

FORMS = [program.in_thread, program.in_coroutine, program.in_process, program.in_coroutine_of_process]
HERE = FORMS[:2]
every_form = pytest.mark.parametrize("task", FORMS, ids=lambda task: task.name.rpartition(".")[2])
every_form_here = pytest.mark.parametrize("task", HERE, ids=lambda task: task.name.rpartition(".")[2])


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Child processes import the program by its name."""
    assert program.__name__ in sys.modules
    yield
    program.gate.clear()
    program.entered.clear()


@every_form
def test_the_rows_the_success_and_the_jobs_inside_commit_together(shop: Shop, task: Any) -> None:
    record = shop.ran(task.enqueue(7))
    assert (record.state, record.result, record.attempt) == (State.SUCCEEDED, 14, 1)
    assert (shop.marks(), shop.jobs()) == ([7], [7])
    assert program.ran == [7]


@every_form
def test_an_exception_in_the_block_rolls_all_of_it_back_and_is_the_outcome(shop: Shop, task: Any) -> None:
    record = shop.ran(task.enqueue(7, "raise"))
    assert (record.state, record.result) == (State.DEAD, None)
    assert record.errors[0].message == "wrong"
    assert (shop.marks(), shop.jobs()) == ([], [])


@every_form_here
def test_a_directive_in_the_block_rolls_back_and_is_followed(shop: Shop, task: Any) -> None:
    record = shop.ran(task.enqueue(7, "discard"))
    assert (record.state, record.reason) == (State.DEAD, "no such user")
    assert (shop.marks(), shop.jobs()) == ([], [])


@every_form
def test_an_error_after_the_block_changes_nothing_and_is_logged(shop: Shop, task: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "offload.worker"):
        record = shop.ran(task.enqueue(7, "fail afterwards"))
    assert (record.state, record.result, record.errors) == (State.SUCCEEDED, 14, ())
    assert (shop.marks(), shop.jobs()) == ([7], [7])
    assert "ValueError: too late, after the transaction that ended its job was committed" in caplog.text


@every_form
def test_a_second_transaction_is_refused(shop: Shop, task: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "offload.worker"):
        record = shop.ran(task.enqueue(7, "twice"))
    assert record.state is State.SUCCEEDED
    assert "has ended by its transaction already" in caplog.text


@every_form_here
def test_a_transaction_inside_the_transaction_is_refused(shop: Shop, task: Any) -> None:
    record = shop.ran(task.enqueue(7, "nested"))
    assert record.state is State.DEAD
    assert "has a transaction open already" in record.errors[0].message
    assert (shop.marks(), shop.jobs()) == ([], [])


def test_after_a_rollback_another_try_may_be_made(shop: Shop) -> None:
    record = shop.ran(program.again_after_rollback.enqueue(7))
    assert (record.state, record.result) == (State.SUCCEEDED, 14)
    assert (shop.marks(), shop.jobs()) == ([7], [7])


@every_form_here
def test_a_step_inside_is_refused(shop: Shop, task: Any) -> None:
    record = shop.ran(task.enqueue(7, "step"))
    assert "a step inside current.transaction()" in record.errors[0].message
    assert (shop.marks(), record.steps) == ([], {})


@every_form_here
def test_to_commit_is_the_blocks_own_business(shop: Shop, task: Any) -> None:
    record = shop.ran(task.enqueue(7, "commit"))
    assert record.state is State.DEAD
    assert (shop.marks(), shop.jobs()) == ([], [])


@every_form
def test_what_it_adds_to_its_batch_is_part_of_it(shop: Shop, task: Any) -> None:
    with shop.app.batch() as batch:
        added = batch.add(task.job(7, "add"))
    record = shop.ran(added)
    assert record.state is State.SUCCEEDED
    assert (shop.marks(), shop.jobs()) == ([7], [7, 7])
    assert batch.progress().total == 2


@every_form
def test_where_what_it_adds_is_refused_all_of_it_is_rolled_back(shop: Shop, task: Any) -> None:
    program.note.using(id="added", delay=60).enqueue(1)
    with shop.app.batch() as batch:
        added = batch.add(task.job(7, "add"))
    record = shop.ran(added)
    assert record.state is State.DEAD
    assert record.errors[0].type == "offload.errors.IdConflict"
    assert (shop.marks(), shop.jobs()) == ([], [1])
    assert batch.progress().total == 1


def test_what_is_added_comes_to_nothing_with_the_block(shop: Shop) -> None:
    with shop.app.batch() as batch:
        added = batch.add(program.adds_though_its_block_fails.job(7))
    assert shop.ran(added).state is State.SUCCEEDED
    assert (shop.marks(), shop.jobs()) == ([], [])


def test_to_add_after_the_end_is_refused(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "offload.worker"), shop.app.batch() as batch:
        added = batch.add(program.in_thread.job(7, "add afterwards"))
        assert shop.ran(added).state is State.SUCCEEDED
    assert "has ended by its transaction already: add inside of it" in caplog.text
    assert shop.jobs() == [7]


def test_an_error_of_the_database_is_the_tasks_own(shop: Shop) -> None:
    record = shop.ran(program.in_thread.enqueue(7, "conflict"))
    assert record.state is State.DEAD
    assert record.errors[0].type in ("sqlite3.IntegrityError", "psycopg.errors.UniqueViolation")
    assert (shop.marks(), shop.jobs()) == ([], [])


def test_the_sync_form_in_a_coroutine_names_the_async_one(shop: Shop) -> None:
    record = shop.ran(program.sync_in_coroutine.enqueue())
    assert "use: async with current.atransaction()" in record.errors[0].message


def test_a_result_can_be_set_inside_only(shop: Shop) -> None:
    record = shop.ran(program.complete_outside.enqueue())
    assert "belongs into a block of current.transaction()" in record.errors[0].message


def test_a_child_process_that_dies_after_its_commit_has_succeeded(shop: Shop) -> None:
    record = shop.ran(program.dies_after_commit.enqueue(7))
    assert (record.state, record.result, record.crashes) == (State.SUCCEEDED, 7, 0)
    assert shop.marks() == [7]


@every_form
def test_events_tell_the_success_once_and_the_jobs_inside_after_the_commit(shop: Shop, task: Any) -> None:
    told: list[tuple[str, str]] = []
    observers = shop.app.producer.observers
    before = dict(observers._observers)
    try:
        for name in ("enqueued", "succeeded", "dead", "retrying"):
            shop.app.on(name)(lambda event: told.append((event.name, event.task)))
        shop.ran(task.enqueue(7, "fail afterwards"))
        shop.ran(task.enqueue(8, "raise"))
    finally:
        observers._observers = before
    of_note = [name for name, of in told if of == "program.note"]
    if "process" not in task.name:  # the news of a child process stays in that process
        assert of_note == ["enqueued", "succeeded"]
    assert [name for name, of in told if of == task.name] == ["enqueued", "succeeded", "enqueued", "dead"]


def test_with_a_lost_lease_nothing_commits(shop: Shop) -> None:
    """The job is given to another worker while the block is open."""
    if shop.url.startswith("sqlite"):
        pytest.skip("an open block on SQLite keeps others from writing, and so from taking the job")
    handle = program.waits_inside.enqueue(7)
    with shop.working():
        assert program.entered.wait(20)
        program.sql(shop.url, "update offload.running set claim = claim + 1")  # what a rescue and a new claim come to
        program.gate.set()
    record = handle.record()
    assert (record.state, record.result) == (State.READY, None), "released by the session that left, not ended by the block"
    assert shop.marks() == []


def test_cancelling_a_job_whose_block_is_open_comes_too_late_once_it_commits(shop: Shop) -> None:
    if shop.url.startswith("sqlite"):
        pytest.skip("an open block on SQLite keeps others from writing, and so from asking to cancel")
    handle = program.waits_inside.enqueue(7)
    with shop.working():
        assert program.entered.wait(20)
        assert handle.cancel()
        program.gate.set()
        assert handle.result(timeout=20) is None
    assert handle.record().state is State.SUCCEEDED
    assert shop.marks() == [7]


@every_form_here
def test_a_commit_whose_answer_never_came_is_not_done_again(
    shop: Shop, task: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lose_answers(type(shop.app.broker), monkeypatch)
    with caplog.at_level(logging.WARNING, "offload.worker"):
        record = shop.ran(task.enqueue(7))
    assert (record.state, record.result, record.errors) == (State.SUCCEEDED, 14, ())
    assert (shop.marks(), shop.jobs()) == ([7], [7])
    assert "contact was lost while its transaction was being committed" in caplog.text


def lose_answers(broker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transactions commit, and the connection break before that is known."""
    transaction, atransaction = broker.transaction, broker.atransaction

    @contextmanager
    def cut(self: Any) -> Iterator[Any]:
        with transaction(self) as connection:
            yield connection
        raise OSError("the connection broke")

    @asynccontextmanager
    async def acut(self: Any) -> AsyncIterator[Any]:
        async with atransaction(self) as connection:
            yield connection
        raise OSError("the connection broke")

    monkeypatch.setattr(broker, "transaction", cut)
    monkeypatch.setattr(broker, "atransaction", acut)


def test_transactions_that_meet_hand_the_job_back_and_it_runs_again(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    handles = program.collide(shop.url)
    with caplog.at_level(logging.WARNING, "offload.worker"), shop.working():
        for handle in handles:
            handle.result(timeout=30)
    assert [(handle.record().state, handle.record().attempt, handle.record().errors) for handle in handles] == [
        (State.SUCCEEDED, 1, ()) for _ in handles
    ]
    assert "is handed back: its transaction met another one" in caplog.text


def test_other_brokers_name_what_to_use() -> None:
    app = Offload("memory://")

    @app.task(retry=Retry(max_retries=0))
    def sync() -> None:
        with current.transaction():
            pass

    @app.task(retry=Retry(max_retries=0))
    async def coroutine() -> None:
        async with current.atransaction():
            pass

    async def main() -> list[str]:
        handles = [await sync.aenqueue(), await coroutine.aenqueue()]
        await Worker(app).drain()
        records = [await handle.arecord() for handle in handles]
        await app.aclose()
        return [record.errors[0].message for record in records]

    for message in portal.run(main):
        assert "use PostgreSQL or SQLite" in message

    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(Unsupported, match="use PostgreSQL or SQLite"):
        sync.using(connection=connection).enqueue()


class Given:
    """Tasks that end their job in a transaction of a connection of `kind`."""

    def __init__(self, kind: Kind, url: str) -> None:
        self.kind, self.url = kind, url

    def sync(self, n: int, *, wrong: bool) -> None:
        with self.kind.opened(self.url) as connection:
            self.kind.insert(connection, n) if not self.kind.name.startswith("django") else None
            with current.transaction(connection) as same:
                assert same is connection
                self.kind.insert(connection, n + 1)
                program.note.enqueue(n)
                if wrong:
                    raise ValueError("wrong")
                current.complete(n)

    async def coroutine(self, n: int, *, wrong: bool) -> None:
        async with self.kind.opened(self.url) as connection:
            await self.kind.insert(connection, n)
            async with current.atransaction(connection) as same:
                assert same is connection
                await self.kind.insert(connection, n + 1)
                await program.note.aenqueue(n)
                if wrong:
                    raise ValueError("wrong")
                current.complete(n)


def test_a_connection_of_the_tasks_own_of_any_kind_ends_the_job_too(shop: Shop, kind: Kind) -> None:
    given = Given(kind, shop.url)

    async def coroutine(n: int, wrong: bool) -> None:
        await given.coroutine(n, wrong=wrong)

    def sync(n: int, wrong: bool) -> None:
        given.sync(n, wrong=wrong)

    task = shop.app.task(name="given", retry=Retry(max_retries=0))(coroutine if kind.is_async else sync)
    try:
        assert shop.ran(task.enqueue(1, wrong=True)).state is State.DEAD
        assert (shop.marks(), shop.jobs()) == ([], [])
        record = shop.ran(task.enqueue(1, wrong=False))
        assert (record.state, record.result, record.errors) == (State.SUCCEEDED, 1, ())
        assert shop.jobs() == [1]
        assert shop.marks() == ([2] if kind.name.startswith("django") else [1, 2])
    finally:
        del shop.app.tasks[task.name]
