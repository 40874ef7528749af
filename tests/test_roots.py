"""Who failed first, and what revives those that fell with it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from offload.diagnosis import why
from offload.job import Failure, Membership, Parent, State
from offload.records import Record, Standing
from offload.roots import MOST_NAMED, MOST_READ, MOST_STEPS, Roots, roots_of

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
BROKE = (Failure(attempt=1, at=NOW, type="ValueError", message="no funds\nat all"),)
pytestmark = pytest.mark.anyio
CANCELLED = "It was cancelled at 2026-11-21 12:00:00 UTC"


def ended(id: str, state: State, *parents: str, reason: str | None = None, **more: object) -> Record:
    known: dict[str, object] = {"id": id, "task": f"do_{id}", "enqueued_at": NOW, "finished_at": NOW, "workflow": Membership("w")}
    given = known | {"state": state, "parents": tuple(Parent(parent) for parent in parents), "reason": reason} | more
    return Record(**given)  # pyright: ignore[reportArgumentType] - the fields differ from job to job


def dead(id: str, *parents: str) -> Record:
    return ended(id, State.DEAD, *parents, attempt=1, errors=BROKE)


def fell(id: str, *parents: str, by: str = "", how: str = "ended CANCELLED") -> Record:
    return ended(id, State.CANCELLED, *parents, reason=f"parent {by or parents[0]} {how}")


class Jobs:
    def __init__(self, *records: Record) -> None:
        self.records = {record.id: record for record in records}
        self.calls = 0

    async def get(self, ids: list[str]) -> dict[str, Record]:
        self.calls += 1
        assert len(ids) <= 500
        return {id: self.records[id] for id in ids if id in self.records}

    async def roots(self, id: str) -> Roots:
        return await roots_of(self.get, self.records[id])

    async def why(self, id: str) -> str:
        return why(Standing(record=self.records[id], now=NOW), await self.roots(id))


async def test_one_that_failed_is_named_though_those_that_fell_with_it_are_too_many_to_read() -> None:
    children = [f"c{n}" for n in range(2 * MOST_READ)]
    jobs = Jobs(dead("a"), *(fell(id, "a", how="ended DEAD") for id in children), fell("join", *children, by=children[-1]))
    roots = await jobs.roots("join")
    assert ([each.id for each in roots.failed], roots.partial) == (["a"], True)
    assert "at least 1 job that failed: a (do_a) ended DEAD: ValueError: no funds" in await jobs.why("join")
    lost = Jobs(*(fell(id, "a", how="ended DEAD") for id in children), fell("join", *children, by=children[-1]))
    assert (await lost.roots("join")).failed == ()


async def test_why_goes_up_to_the_one_that_failed_by_itself() -> None:
    jobs = Jobs(dead("a"), fell("b", "a", how="ended DEAD"), fell("c", "b"), fell("d", "c"))
    for id in ("b", "c", "d"):
        assert await jobs.why(id) == (
            f"{CANCELLED}, for it comes after job a (do_a), which ended DEAD: ValueError: no funds. "
            "`offload jobs retry a` revives it with that one."
        )
    assert await jobs.roots("a") == Roots()


async def test_all_that_failed_are_named_and_those_that_did_not_are_not() -> None:
    jobs = Jobs(
        ended("a", State.EXPIRED, reason=None),
        ended("b", State.CANCELLED, reason="its workflow was cancelled"),
        ended("x", State.SUCCEEDED),
        ended("y", State.READY),
        dead("z"),
        ended("brave", State.SUCCEEDED, "z", if_parent_fails="run"),
        fell("c", "x", "a", "y", by="a"),
        fell("d", "b", "c", "brave"),
    )
    assert await jobs.why("d") == (
        f"{CANCELLED}, for it comes after 2 jobs that failed: "
        "b (do_b) ended CANCELLED: its workflow was cancelled; a (do_a) ended EXPIRED. "
        "`offload jobs retry b a` revives it with those."
    )


async def test_who_runs_though_a_parent_failed_fell_by_itself() -> None:
    jobs = Jobs(
        dead("a"), ended("b", State.DEAD, "a", if_parent_fails="run", attempt=1, reason="crashed"), fell("c", "b", how="ended DEAD")
    )
    assert [record.id for record in (await jobs.roots("c")).failed] == ["b"]
    assert (await jobs.roots("c")).told == "job b (do_b), which ended DEAD: crashed"


@pytest.mark.parametrize("how", ["ended DEAD", "was deleted"])
async def test_who_comes_after_one_that_was_deleted_cannot_be_revived(how: str) -> None:
    jobs = Jobs(fell("b", "a", how=how), dead("x"), fell("c", "x", "b", by="b"))
    for id in ("b", "c"):
        assert await jobs.why(id) == (
            f"{CANCELLED}, for it comes after job a, of which there is no record any more. "
            "It cannot be revived: enqueue it anew, with those that it comes after."
        )


async def test_a_parent_that_succeeded_may_have_been_deleted() -> None:
    jobs = Jobs(dead("a"), fell("c", "deleted", "a", by="a", how="ended DEAD"))
    assert (await jobs.roots("c")).gone == ()


async def test_who_was_cancelled_by_hand_is_retried_with_the_parent_that_failed() -> None:
    jobs = Jobs(dead("a"), ended("b", State.CANCELLED, "a", reason="cancelled"), fell("c", "b"))
    told = "job a (do_a), which ended DEAD: ValueError: no funds"
    assert await jobs.why("b") == f"{CANCELLED}. It comes after {told}. `offload jobs retry a b` revives it with that one."
    assert [record.id for record in (await jobs.roots("c")).failed] == ["b", "a"]
    assert await Jobs(ended("b", State.CANCELLED, reason="cancelled")).why("b") == (
        f"{CANCELLED}. `offload jobs retry b` makes it ready again."
    )


async def test_who_could_not_come_back_with_its_parent_is_the_root_of_those_after_it() -> None:
    jobs = Jobs(ended("a", State.SUCCEEDED), fell("b", "a", how="ended DEAD"), fell("c", "b"))
    assert "`offload jobs retry b` makes it ready again" in await jobs.why("b")
    assert "`offload jobs retry b` revives it with that one." in await jobs.why("c")


async def test_many_roots_are_not_all_named() -> None:
    many = [dead(f"a{number}") for number in range(MOST_NAMED + 3)]
    said = await Jobs(*many, fell("b", *(each.id for each in many))).why("b")
    assert "13 jobs that failed: a0 (do_a0) ended DEAD" in said
    assert f"a{MOST_NAMED} " not in said
    assert said.endswith(" and 3 more. `offload workflows retry w` revives it with all that failed in its workflow.")


async def test_not_more_than_so_many_are_read() -> None:
    deep = Jobs(dead("0"), *(fell(str(number), str(number - 1)) for number in range(1, 2 * MOST_READ)))
    said = await deep.why(str(2 * MOST_READ - 1))
    assert said == (
        f"{CANCELLED}: parent {2 * MOST_READ - 2} ended CANCELLED. "
        "`offload workflows retry w` revives it with all that failed in its workflow."
    )
    assert deep.calls == MOST_READ + MOST_STEPS
    wide = Jobs(dead("last"), fell("b", *(f"fine{number}" for number in range(2 * MOST_READ)), "last", by="last", how="ended DEAD"))
    assert (await wide.roots("b")).told == "at least 1 job that failed: last (do_last) ended DEAD: ValueError: no funds"
