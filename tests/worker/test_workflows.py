"""Workflows and batches from end to end: tasks, results that are passed on, what jobs add, callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.conftest import Eventually
from tests.worker import program as tasks
from tests.worker.running import ended

from offload import (
    BadDeclaration,
    BatchClosed,
    Concurrency,
    IdConflict,
    JobCancelled,
    JobFailed,
    JobNotFound,
    Offload,
    ResultTimeout,
    Retry,
    State,
    Unique,
    Worker,
    Workflow,
    chain,
    current,
    group,
    previous,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def shop(app: Offload) -> Any:
    """Tasks to make workflows of."""

    class Shop:
        def __init__(self) -> None:
            self.app = app
            self.ran: list[Any] = []

            @app.task(name="plus")
            async def plus(n: int, more: int = 1) -> int:
                self.ran.append(n)
                return n + more

            @app.task(name="total")
            def total(numbers: list[int]) -> int:
                return sum(numbers)

            @app.task(name="fail", retry=False)
            async def fail(n: int = 0) -> int:
                raise ValueError(n)

            @app.task(name="see")
            async def see(value: int | None = None) -> str:
                return f"saw {value}"

            @app.task(name="note")
            async def note(word: str) -> None:
                self.ran.append(word)

            self.plus, self.total, self.fail, self.see, self.note = plus, total, fail, see, note

    return Shop()


async def test_a_chain_passes_each_result_on(shop: Any) -> None:
    async with Worker(shop.app):
        handle = await chain(shop.plus.job(1), shop.plus.job(previous), shop.plus.job(previous, more=10)).aenqueue()
        assert await handle.aresult(20) == 13
    assert shop.ran == [1, 2, 3]


async def test_parallel_branches_are_joined_in_order(shop: Any) -> None:
    async with Worker(shop.app):
        handle = await chain(
            shop.plus.job(1), group(shop.plus.job(previous), shop.plus.job(10), chain(shop.plus.job(100))), shop.total.job(previous)
        ).aenqueue()
        assert await handle.aresult(20) == 3 + 11 + 101


async def test_a_group_gives_its_results_in_order(shop: Any) -> None:
    async with Worker(shop.app):
        results = await group(shop.plus.job(1), group(shop.plus.job(2), shop.plus.job(3))).aenqueue()
        assert await results.aresult(20) == [2, [3, 4]]
        assert await (await group().aenqueue()).aresult(1) == []
        assert await (await chain().aenqueue()).aresult(1) == []


async def test_a_graph_runs_each_job_when_its_parents_have_ended(shop: Any) -> None:
    flow = Workflow("graph")
    first = flow.add(shop.plus.job(1))
    left, right = flow.add(shop.plus.job(first.output)), flow.add(shop.plus.job(first.output, more=5))
    last = flow.add(shop.total.job([left.output, right.output]))
    flow.add(shop.see.job(), after=[last])
    async with Worker(shop.app):
        run = await flow.aenqueue()
        tally = await run.await_(20)
        assert (tally.state, tally.total, tally.succeeded, tally.name) == ("succeeded", 5, 5, "graph")
        assert await run.handle(last).aresult(1) == 3 + 7
    record = await run.arecord()
    assert {job.task for job in record.jobs} == {"plus", "total", "see"}
    assert record.state == "succeeded"
    assert [tally.id for tally in await shop.app.aworkflows()] == [run.id]
    assert await shop.app.workflow(run.id).await_(1) == await run.aprogress() == tally


async def test_who_fails_cancels_those_after_it_and_others_run(shop: Any) -> None:
    flow = Workflow()
    broken = flow.add(shop.fail.job())
    after = flow.add(shop.see.job(broken.output))
    brave = flow.add(shop.see.job(broken.output), if_parent_fails="run")
    beside = flow.add(shop.plus.job(1))
    async with Worker(shop.app):
        run = await flow.aenqueue()
        assert (await run.await_(20)).state == "failed"
        with pytest.raises(JobFailed):
            await run.handle(broken).aresult(1)
        with pytest.raises(JobCancelled, match="ended DEAD"):
            await run.handle(after).aresult(1)
        assert await run.handle(brave).aresult(1) == "saw None"
        assert await run.handle(beside).aresult(1) == 2


async def test_a_retry_goes_on_where_it_broke(shop: Any) -> None:
    broken = True

    @shop.app.task(name="mended", retry=False)
    async def mended(n: int) -> int:
        if broken:
            raise ValueError
        return n

    async with Worker(shop.app):
        handle = await chain(shop.plus.job(1), mended.job(previous), shop.plus.job(previous)).aenqueue()
        assert (await ended(handle)).state is State.CANCELLED
        broken = False
        assert len(await shop.app.aretry([record.id for record in await shop.app.afind(state="dead")])) == 1
        assert await handle.aresult(20) == 3
    assert shop.ran == [1, 2]


async def test_enqueueing_a_workflow_again_repeats_it_and_a_chain_makes_another(shop: Any) -> None:
    flow = Workflow("once")
    node = flow.add(shop.plus.job(1))
    first, second = await flow.aenqueue(), await flow.aenqueue()
    assert (first.id, first.handle(node)) == (second.id, second.handle(node))
    with pytest.raises(BadDeclaration, match="was enqueued already"):
        flow.add(shop.plus.job(2))
    made = chain(shop.plus.job(5))
    assert await made.aenqueue() != await made.aenqueue()
    assert len(await shop.app.aworkflows()) == 3


async def test_a_workflow_with_an_id_is_the_same_whoever_builds_it(shop: Any) -> None:
    def built(n: int, *, other: int = 10) -> Workflow:
        flow = Workflow("once", id="order-7")
        flow.add(chain(group(shop.plus.job(n), shop.plus.job(other)), shop.total.job(previous)))
        return flow

    first, again = await built(1).aenqueue(), await built(1).aenqueue()
    assert first.id == again.id == shop.app.workflow("order-7").id == "order-7"
    await Worker(shop.app).drain()
    assert (await (await built(1).aenqueue()).await_(1)).succeeded == 3
    with pytest.raises(IdConflict, match="workflow 'order-7' was enqueued before"):
        await built(1, other=11).aenqueue()
    assert shop.ran == [1, 10]
    another = Workflow(id="order-8")
    another.add(shop.plus.using(id="order-7:000000").job(1))
    with pytest.raises(IdConflict):
        await another.aenqueue()
    assert [tally.total for tally in await shop.app.aworkflows()] == [3]


async def test_a_workflow_can_be_cancelled_as_a_whole(shop: Any) -> None:
    started = asyncio.Event()

    @shop.app.task(name="slow")
    async def slow() -> None:
        started.set()
        await asyncio.sleep(60)

    flow = Workflow()
    running = flow.add(slow.job())
    waiting = flow.add(shop.see.job(), after=[running])
    async with Worker(shop.app):
        run = await flow.aenqueue()
        await started.wait()
        with pytest.raises(ResultTimeout, match="1 running, 1 waiting"):
            await run.await_(0.01)
        assert await run.acancel()
        assert (await run.await_(20)).state == "cancelled"
        with pytest.raises(JobCancelled, match=r"for it comes after job .* \(slow\), which ended CANCELLED"):
            await run.handle(waiting).aresult(1)
        assert not await run.acancel()


async def test_a_job_adds_to_its_workflow_by_its_success(shop: Any) -> None:
    source = "the source of it"

    @shop.app.task(name="split")
    async def split(n: int) -> None:
        parts = [current.workflow.add(shop.plus.job(each)) for each in range(n)]
        join = current.workflow.add(shop.total.job([part.output for part in parts]))
        current.workflow.add(shop.see.job(current.workflow.node(source).output), after=[join, source])

    flow = Workflow()
    first = flow.add(shop.plus.using(id=source).job(41))
    flow.add(split.job(3), after=[first])
    async with Worker(shop.app):
        run = await flow.aenqueue()
        assert (await run.await_(20)).total == 2 + 5
        results = {record.task: record.result for record in (await run.arecord()).jobs if record.task != "plus"}
    assert results == {"split": None, "total": 1 + 2 + 3, "see": "saw 42"}


async def test_an_attempt_that_fails_adds_nothing(shop: Any) -> None:
    @shop.app.task(name="tries", retry=Retry(max_retries=1, initial=0))
    async def tries() -> None:
        current.workflow.add(shop.note.job(f"attempt {current.attempt}"))
        if current.attempt == 1:
            raise ValueError

    flow = Workflow()
    flow.add(tries.job())
    run = await flow.aenqueue()
    await Worker(shop.app).drain()
    assert shop.ran == ["attempt 2"]
    assert (await run.arecord()).total == 2


async def test_outside_of_a_workflow_there_is_none_to_add_to(shop: Any) -> None:
    @shop.app.task(name="lonely", retry=False)
    async def lonely(which: str) -> None:
        getattr(current, which).add(shop.note.job("no"))

    async with Worker(shop.app):
        for which, message in (("workflow", "belongs to no workflow"), ("batch", "belongs to no batch")):
            with pytest.raises(JobFailed, match=message):
                await (await lonely.aenqueue(which)).aresult(20)


async def test_too_many_additions_are_refused_in_the_task(shop: Any) -> None:
    @shop.app.task(name="greedy", retry=False)
    async def greedy() -> None:
        current.workflow.add(group(*(shop.note.job("no") for _ in range(1_001))))

    async with Worker(shop.app):
        with pytest.raises(JobFailed, match="adds at most 1,000 jobs"):
            await (await chain(greedy.job()).aenqueue()).aresult(20)


async def test_who_adds_what_is_refused_is_told_of_as_dead(shop: Any) -> None:
    news: list[tuple[str, str | None]] = []
    for name in ("succeeded", "dead"):
        shop.app.on(name)(lambda event: news.append((event.name, event.reason)))

    @shop.app.task(name="adds")
    async def adds() -> None:
        current.workflow.add(shop.note.using(id="taken").job("again"))

    await shop.note.using(id="taken", delay=60).aenqueue("first")
    handle = await chain(adds.job()).aenqueue()
    await Worker(shop.app).drain()
    assert (await handle.arecord()).state is State.DEAD
    assert news == [("dead", f"the jobs that it added were refused: {IdConflict('taken')}")]


async def test_what_cannot_be_added_is_refused_in_the_task(shop: Any) -> None:
    other = Offload("memory://")

    @other.task(name="stranger")
    def stranger() -> None: ...

    @shop.app.task(name="once", unique=Unique("key", on_conflict="skip"))
    def once() -> None: ...

    refused: list[str] = []

    def tries(*adds: Callable[[], Any]) -> None:
        for add in adds:
            with pytest.raises(BadDeclaration) as error:
                add()
            refused.append(str(error.value))

    @shop.app.task(name="to workflow")
    async def to_workflow() -> None:
        tries(lambda: current.workflow.add(stranger.job()))

    @shop.app.task(name="to batch")
    async def to_batch() -> None:
        tries(
            lambda: current.batch.add(stranger.job()),
            lambda: current.batch.add(shop.see.job(previous)),
            lambda: current.batch.add(once.job()),
            lambda: current.batch.add_many(shop.see.job()),
            lambda: current.batch.add_many([shop.see]),
        )

    await chain(to_workflow.job()).aenqueue()
    async with shop.app.batch() as batch:
        await batch.aadd(to_batch.job())
    await Worker(shop.app).drain()
    expected = ["another app", "another app", "output of another one", "on_conflict='skip'", "takes a list of", "takes what task.job"]
    assert len(refused) == len(expected)
    assert all(part in told for part, told in zip(expected, refused, strict=True)), refused


async def test_what_it_adds_last_is_all_of_what_it_adds_where_it_is_called_again(shop: Any) -> None:
    @shop.app.middleware
    async def again(job: Any, call_next: Any) -> Any:
        try:
            return await call_next()
        except ValueError:
            return await call_next()

    tried: list[int] = []

    @shop.app.task(name="tries")
    async def tries() -> None:
        tried.append(1)
        current.workflow.add(shop.note.job(f"try {len(tried)}"))
        if len(tried) == 1:
            raise ValueError

    run = await chain(tries.job()).aenqueue()
    await Worker(shop.app).drain()
    assert (await run.arecord()).state is State.SUCCEEDED
    assert shop.ran == ["try 2"]


async def test_what_is_refused_leaves_nothing_behind(shop: Any) -> None:
    @shop.app.task(name="adds")
    async def adds() -> None:
        with pytest.raises(BadDeclaration, match="at most 1,000"):
            current.workflow.add(group(*(shop.note.job("no") for _ in range(1_001))))
        with pytest.raises(BadDeclaration, match="two jobs of the workflow"):
            current.workflow.add(shop.note.using(id="self").job("no"), after=["self"])
        with pytest.raises(BadDeclaration, match="takes a list"):
            current.workflow.add(shop.note.job("no"), after=current.job.id)
        current.workflow.add(shop.note.job("yes"), after=[current.job.id])

    handle = await chain(adds.job()).aenqueue()
    await Worker(shop.app).drain()
    assert (await handle.arecord()).reason is None
    assert shop.ran == ["yes"]


async def test_observers_are_told_of_jobs_that_others_add(shop: Any) -> None:
    told: list[str] = []
    shop.app.on("enqueued")(lambda event: told.append(event.task))

    @shop.app.task(name="adds")
    async def adds() -> None:
        current.workflow.add(shop.note.job("added"))

    await chain(adds.job()).aenqueue()
    await Worker(shop.app).drain()
    assert told == ["adds", "note"]


async def test_who_waits_in_vain_is_told_that_no_worker_is_alive(shop: Any) -> None:
    run = Workflow()
    run.add(shop.note.job("never"))
    async with shop.app.batch() as batch:
        await batch.aadd(shop.note.job("never"))
    for waiting in (await run.aenqueue(), batch):
        with pytest.raises(ResultTimeout, match=r"it goes on: 1 waiting\. Job .* of it is READY: No worker is alive"):
            await waiting.await_(0.01)


async def test_an_empty_workflow_has_ended_well(shop: Any) -> None:
    run = await Workflow("nothing").aenqueue()
    assert ((await run.await_(1)).state, (await run.arecord()).jobs, await run.acancel()) == ("succeeded", (), False)


async def test_a_run_gives_handles_of_its_own_jobs_alone(shop: Any) -> None:
    inner, outer, other = Workflow("inner"), Workflow("outer"), Workflow("other")
    nested, foreign = inner.add(shop.plus.job(1)), other.add(shop.plus.job(2))
    whole = outer.add(inner)
    with pytest.raises(BadDeclaration, match="add all its jobs before"):
        inner.add(shop.plus.job(2))
    run, _ = await outer.aenqueue(), await other.aenqueue()
    await Worker(shop.app).drain()
    assert await run.handle(whole).aresult(1) == 2
    wrong: Any
    for wrong, message in ((nested, "is no part of workflow"), (foreign, "is no part of workflow"), ("node", "takes what add")):
        with pytest.raises(BadDeclaration, match=message):
            run.handle(wrong)


@pytest.mark.parametrize("blocking", [False, True])
async def test_of_a_wide_workflow_that_is_refused_in_the_end_nothing_goes_on(shop: Any, *, blocking: bool) -> None:
    await shop.note.using(id="taken", delay=60).aenqueue("first")
    flow = Workflow()
    flow.add(shop.note.using(id="taken").job("second"))
    flow.add(group(*(shop.note.job("no") for _ in range(1_500))))
    jobs = flow.graph.leaves
    jobs.append(jobs.pop(0))
    with pytest.raises(IdConflict):
        await (asyncio.to_thread(flow.enqueue) if blocking else flow.aenqueue())
    [tally] = await shop.app.aworkflows()
    assert (tally.stopped, tally.cancelled, tally.state) == (True, 1_000, "cancelled")
    await Worker(shop.app).drain()
    assert shop.ran == []


async def test_child_processes_take_part(program: Offload) -> None:
    async with Worker(program, processes=1):
        handle = await chain(tasks.double_process.job(4), tasks.double_process.job(previous)).aenqueue()
        assert await handle.aresult(30) == 16
        flow = Workflow()
        flow.add(tasks.grow_process.job(5))
        run = await flow.aenqueue()
        assert (await run.await_(30)).total == 2
        async with program.batch() as batch:
            await batch.aadd(tasks.grow_process.job(6))
        assert (await batch.await_(30)).total == 2
        assert sorted(record.result for record in await program.afind(task="process.double")) == [8, 10, 12, 16]


async def test_middlewares_see_the_whole_arguments_and_additions_pass_them(shop: Any) -> None:
    seen: list[bytes] = []

    @shop.app.middleware
    async def watch(job: Any, call_next: Any) -> Any:
        seen.append(job.payload)
        return await call_next()

    @shop.app.task(name="grows")
    def grows(n: int) -> None:
        current.workflow.add(shop.note.job("grown"))

    flow = Workflow()
    flow.add(grows.job(flow.add(shop.plus.job(1)).output))
    async with Worker(shop.app):
        assert (await (await flow.aenqueue()).await_(20)).state == "succeeded"
    assert seen == [b'{"n":1}', b'{"n":2}', b'{"word":"grown"}']


# -- batches -------------------------------------------------------------------------------------------------------------------


async def test_a_batch_streams_in_and_calls_back(shop: Any, eventually: Eventually) -> None:
    async def users() -> AsyncIterator[Any]:
        for n in range(1_200):
            yield shop.plus.job(n)

    app = shop.app
    async with Worker(app):
        async with app.batch(
            "reports", on_success=shop.note.job("success"), on_failure=shop.note.job("failure"), on_complete=shop.note.job("complete")
        ) as batch:
            handles = await batch.aadd_many(users())
            handles.append(await batch.aadd(shop.plus.job(7)))
        tally = await batch.await_(60)
        assert (tally.total, tally.succeeded, tally.state, tally.name) == (1_201, 1_201, "succeeded", "reports")
        assert await handles[3].aresult(1) == 4
        await eventually(lambda: len(shop.ran) == 1_203)
    assert sorted(word for word in shop.ran if isinstance(word, str)) == ["complete", "success"]
    assert [each.id for each in await app.abatches()] == [batch.id]


async def test_a_batch_with_a_failure_calls_that_back(shop: Any, eventually: Eventually) -> None:
    async with Worker(shop.app):
        async with shop.app.batch(on_success=shop.note.job("success"), on_failure=shop.note.job("failure")) as batch:
            await batch.aadd_many([shop.fail.job(1), shop.plus.job(1), shop.fail.job(2)])
        tally = await batch.await_(20)
        assert (tally.state, tally.dead, tally.succeeded) == ("failed", 2, 1)
        await eventually(lambda: "failure" in shop.ran)
    assert shop.ran.count("failure") == 1
    assert "success" not in shop.ran


async def test_an_empty_batch_completes_at_once(shop: Any) -> None:
    async with shop.app.batch(on_success=shop.note.job("success"), on_complete=shop.note.job("complete")) as batch:
        pass
    assert (await batch.await_(1)).total == 0
    await Worker(shop.app).drain()
    assert shop.ran == ["success", "complete"]


async def test_an_exception_in_the_block_cancels_the_batch(shop: Any) -> None:
    batch = shop.app.batch(on_complete=shop.note.job("complete"))
    with pytest.raises(RuntimeError, match="the list broke off"):
        async with batch:
            await batch.aadd(shop.plus.job(1))
            raise RuntimeError("the list broke off")
    tally = await batch.await_(1)
    assert (tally.state, tally.cancelled, tally.stopped) == ("cancelled", 1, True)
    await Worker(shop.app).drain()
    assert shop.ran == ["complete"]


async def test_who_comes_late_to_a_sealed_batch_cancels_nothing_of_it(shop: Any) -> None:
    async def repeated(*words: str) -> None:
        async with shop.app.batch(id="nightly") as batch:
            await batch.aadd_many(shop.note.using(id=word).job(word) for word in words)

    def repeated_by_sync_code() -> None:
        with shop.app.batch(id="nightly") as batch:
            batch.add(shop.note.job("three"))

    await repeated("one", "two")
    await repeated("one", "two")
    with pytest.raises(BatchClosed, match="sealed"):
        await repeated("one", "two", "three")
    with pytest.raises(BatchClosed, match="sealed"):
        await asyncio.to_thread(repeated_by_sync_code)
    await Worker(shop.app).drain()
    assert shop.ran == ["one", "two"]
    assert (await shop.app.batch(id="nightly").await_(1)).state == "succeeded"


async def test_a_block_that_meets_another_batch_closed_cancels_its_own(shop: Any) -> None:
    async with shop.app.batch(id="closed") as closed:
        pass
    with pytest.raises(BatchClosed):
        async with shop.app.batch(id="mine") as mine:
            await mine.aadd(shop.note.job("no"))
            await closed.aadd(shop.note.job("no"))
    assert (await mine.await_(1)).state == "cancelled"


async def test_a_sealed_batch_takes_jobs_from_its_own_alone(shop: Any) -> None:
    @shop.app.task(name="adds")
    async def adds() -> None:
        current.batch.add_many([shop.note.job("added"), shop.note.job("added too")])
        assert (await current.batch.aprogress()).total == 1

    async with shop.app.batch() as batch:
        await batch.aadd(adds.job())
    with pytest.raises(BatchClosed, match="sealed"):
        await batch.aadd(shop.note.job("late"))
    await Worker(shop.app).drain()
    assert shop.ran == ["added", "added too"]
    assert (await batch.aprogress()).total == 3


async def test_a_callback_knows_its_batch_and_adds_nothing_to_it(shop: Any) -> None:
    @shop.app.task(name="tell", retry=False)
    async def tell() -> int:
        return (await current.batch.aprogress()).succeeded

    @shop.app.task(name="adder", retry=False)
    async def adder() -> None:
        current.batch.add(shop.note.job("no"))

    async with shop.app.batch(on_success=tell.job(), on_complete=adder.job()) as batch:
        await batch.aadd_many([shop.plus.job(n) for n in range(3)])
    await Worker(shop.app).drain()
    [told] = await shop.app.afind(task="tell")
    [refused] = await shop.app.afind(task="adder")
    assert told.result == 3
    assert "is a callback of its batch" in refused.errors[0].message


async def test_a_batch_is_found_again_by_its_id_and_opened_once(shop: Any) -> None:
    app = shop.app
    batch = await app.batch("nightly", id="nightly-2030-01-01", on_complete=shop.note.job("complete")).aopen()
    again = await app.batch("nightly", id="nightly-2030-01-01", on_complete=shop.note.job("complete")).aopen()
    await again.aadd(shop.note.job("one"))
    assert (await batch.aprogress()).total == 1
    assert await app.batch(id="nightly-2030-01-01").aseal()
    assert not await batch.aseal()
    await Worker(app).drain()
    assert shop.ran == ["one", "complete"]
    with pytest.raises(JobNotFound, match="no batch other"):
        await app.batch(id="other").aprogress()


async def test_what_cannot_be_a_batch_is_refused(shop: Any) -> None:
    other = Offload("memory://")

    @other.task(name="stranger")
    def stranger() -> None: ...

    for make, message in (
        (lambda: shop.app.batch(3), "takes a name"),
        (lambda: shop.app.batch(on_success=shop.note), "takes what task.job"),
        (lambda: shop.app.batch(on_success=stranger.job()), "belongs to another"),
        (lambda: shop.app.batch(on_failure=shop.see.job(previous)), "takes the output of another one"),
        (lambda: shop.app.batch(on_failure=shop.see.using(delay=5).job()), "is due when its batch says so"),
        (lambda: shop.app.batch(id=""), "a text that is not empty"),
        (
            lambda: shop.app.batch(on_complete=shop.see.using(unique=Unique("k", on_conflict="skip")).job()),
            "another job might stand for it",
        ),
        (lambda: shop.app.batch(on_success=shop.see.using(id="x").job(), on_failure=shop.see.using(id="x").job()), "two callbacks have"),
    ):
        with pytest.raises(BadDeclaration, match=message):
            make()
    async with shop.app.batch() as batch:
        once = shop.see.using(unique=Unique("k", on_conflict="skip")).job()
        for given, message in (
            (shop.see.job(), "add_many takes a list"),
            (None, "add_many takes a list"),
            ([shop.see], "takes what task.job"),
            ([once], "on_conflict='skip'"),
        ):
            with pytest.raises(BadDeclaration, match=message):
                await batch.aadd_many(given)


def test_all_of_it_from_sync_code(url: str) -> None:
    app = Offload(url)

    @app.task(name="plus", limits=[Concurrency(5, key="k")])
    def plus(n: int) -> int:
        return n + 1

    def drain() -> None:
        asyncio.run(Worker(app).drain())

    try:
        handle = chain(plus.job(1), plus.job(previous)).enqueue()
        results = group(plus.job(1), plus.job(2)).enqueue()
        flow = Workflow("sync")
        node = flow.add(plus.job(1))
        run = flow.enqueue()
        with app.batch("sync") as batch:
            batch.add(plus.job(1))
            batch.add_many(plus.job(n) for n in range(3))
        drain()
        assert (handle.result(5), results.result(5), run.handle(node).result(5)) == (3, [2, 3], 2)
        assert (run.wait(5).state, run.record().succeeded, batch.wait(5).succeeded, batch.progress().total) == ("succeeded", 1, 4, 4)
        assert (run.cancel(), batch.cancel()) == (False, False)
        assert (len(app.workflows()), len(app.batches())) == (3, 1)
    finally:
        app.close()
