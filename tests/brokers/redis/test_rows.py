"""Jobs survive the way to the server and back, and outcomes keep their order where it matters."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from offload.brokers.redis.rows import job_of, leases_of, tail
from offload.brokers.redis.settling import lost_of, words_of
from offload.job import Done, Job, Lease, RateLimit, Release, Retried, SlotLimit, UniqueKey

NOW = datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
HEAD = bytes(19)


def a_job(id: str = "a", **fields: object) -> Job:
    return Job(id=id, task="greet", enqueued_at=NOW, **fields)  # type: ignore[arg-type]  # fields of a Job


@pytest.mark.parametrize(
    "job",
    [
        a_job(),
        a_job(payload=b'{"text":"\xc3\xa4\x00"}', queue="wärme", priority=-100, keep=0.5),
        a_job(priority=100, timeout=2, run_at=datetime(1950, 1, 1, 0, 0, 0, 1, tzinfo=UTC), expires_at=NOW),
        a_job(unique=UniqueKey("k" * 300, until=60), schedule="nightly", overlap="replace"),
        a_job(unique=UniqueKey("", until=0.25, on_conflict="raise")),
        a_job(unique=UniqueKey("k", until="started", on_conflict="debounce"), overlap="skip"),
        a_job(order_by="k", on_dead="hold"),
        a_job(on_dead="hold"),
        a_job(limits=(SlotLimit("k", 2, "of {k}"), RateLimit("k", 86_400_000_000, 5, 2))),
        a_job(fair_by="tenant"),
    ],
    ids=range(10),
)
def test_a_job_comes_back_as_it_was(job: Job) -> None:
    assert job_of(job.id, HEAD + tail(job)) == job


def test_leases_know_their_members() -> None:
    member = b"\0\0\0\0\0\x07a"
    first, again = leases_of(
        [member, HEAD + tail(a_job()), b"\0\0\0\0\0\x08b", HEAD + tail(a_job("b"))], [(2, 3, 2, 1, b"\x81\xa1s\xa11")], []
    )
    assert first == Lease(a_job(), 1, 1, ref=member)
    assert again == Lease(a_job("b"), 3, 2, 1, {"s": b"1"}, b"\0\0\0\0\0\x08b")


def lease(id: str, **fields: object) -> Lease:
    return Lease(a_job(id, **fields), 1, 1, ref=id.encode())


def test_plain_successes_are_told_together_and_all_else_in_order() -> None:
    settlements = [
        (lease("a"), Retried(1.5)),
        (lease("b", keep=0), Done(b"1")),
        (lease("c", unique=UniqueKey("k")), Done()),
        (lease("d", keep=0), Done()),
        (lease("e"), Release()),
    ]
    words, order = words_of(settlements)
    assert words == [
        *("Done", 0, 2, b"b", 1, b"1", b"d", 1, b""),
        *("Retried", b"a", 1, 1_500_000, b""),
        *("Done", 86_400_000_000, 1, b"c", 1, b""),
        *("Release", b"e", 1, 0, b""),
    ]
    assert order == [1, 3, 0, 2, 4]
    assert [each.job.id for each in lost_of(settlements, order, [5, 1, 3])] == ["a", "b", "e"]


def test_successes_that_let_others_pass_gates_are_told_in_order() -> None:
    settlements = [
        (lease("a", order_by="k"), Done()),
        (lease("b"), Done()),
        (lease("c", limits=(RateLimit("k", 1),)), Retried(1.5, whole_key=True)),
        (lease("d", limits=(SlotLimit("k", 1),)), Done()),
        (lease("e", limits=(SlotLimit("l", 1),)), Done(b"5")),
        (lease("f", limits=(SlotLimit("l", 1),), keep=0), Done()),
    ]
    words, order = words_of(settlements)
    assert words == [
        *("Done", 86_400_000_000, 1, b"b", 1, b""),
        *("Done", 86_400_000_000, 1, b"a", 1, b""),
        *("HeldBack", b"c", 1, 1_500_000, b""),
        *("Done", 86_400_000_000, 2, b"d", 1, b"", b"e", 1, b"5"),
        *("Done", 0, 1, b"f", 1, b""),
    ]
    assert order == [1, 0, 2, 3, 4, 5]


def test_a_lease_that_comes_twice_is_told_in_order() -> None:
    words, order = words_of([(lease("a"), Release()), (lease("b"), Done()), (lease("a"), Done())])
    assert words == [*("Release", b"a", 1, 0, b""), *("Done", 86_400_000_000, 2, b"b", 1, b"", b"a", 1, b"")]
    assert order == [0, 1, 2]
