"""What the numbers of a workflow or batch come to."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from offload.counting import LEAST_KEEP, is_complete, is_due, is_over, kept_for, may_be_given_up, still_open, tally_of
from offload.job import KEEP_SUCCEEDED, KEEP_UNSUCCESSFUL, Callback, TallyKind
from offload.testing.clock import START


@dataclass
class Count:
    """Numbers, with flags as SQLite has them."""

    kind: TallyKind = "batch"
    id: str = "b"
    name: str = ""
    total: int = 0
    succeeded: int = 0
    dead: int = 0
    cancelled: int = 0
    expired: int = 0
    size: int = 0
    sealed: int = 0
    stopped: int = 0
    abandoned: int = 0
    keep: float = 0.0
    callbacks: dict[Callback, str] = field(default_factory=dict[Callback, str])


def test_a_batch_is_complete_once_sealed_and_a_workflow_once_all_have_come() -> None:
    assert not is_complete(Count(total=3))
    assert is_complete(Count(total=3, sealed=1))
    assert not is_complete(Count("workflow", total=3, size=4))
    assert is_complete(Count("workflow", total=3, size=3))


def test_it_is_over_when_it_is_complete_and_all_have_ended() -> None:
    assert still_open(Count(total=7, succeeded=1, dead=1, cancelled=1, expired=1)) == 3
    assert not is_over(Count(total=1, succeeded=1))
    assert not is_over(Count(total=2, succeeded=1, sealed=1))
    assert is_over(Count(total=4, succeeded=1, dead=1, cancelled=1, expired=1, sealed=1))
    assert is_over(Count(sealed=1))


@pytest.mark.parametrize(
    ("count", "due"),
    [
        (Count(total=2, succeeded=1, sealed=1), []),
        (Count(total=2, succeeded=2), []),
        (Count(total=2, succeeded=2, sealed=1), ["success", "complete"]),
        (Count(total=3, dead=1), ["failure"]),
        (Count(total=1, expired=1, sealed=1), ["failure", "complete"]),
        (Count(total=1, cancelled=1, sealed=1), ["complete"]),
        (Count(total=1, succeeded=1, sealed=1, abandoned=1), ["failure", "complete"]),
        (Count(sealed=1), ["success", "complete"]),
    ],
)
def test_each_callback_is_due_by_what_it_waits_for(count: Count, due: list[str]) -> None:
    callbacks: tuple[Callback, ...] = ("success", "failure", "complete")
    assert [which for which in callbacks if is_due(count, which)] == due


def test_a_workflow_is_given_up_while_it_lacks_jobs_and_a_batch_only_when_it_has_nothing_to_do() -> None:
    assert may_be_given_up(Count("workflow", total=1, size=2))
    assert not may_be_given_up(Count("workflow", total=2, size=2))
    assert not may_be_given_up(Count(total=1))
    assert may_be_given_up(Count(total=1, succeeded=1))
    assert not may_be_given_up(Count(total=1, succeeded=1, sealed=1))


def test_it_is_kept_by_how_it_went() -> None:
    assert kept_for(Count("workflow", total=1, succeeded=1, keep=500)) == 500
    assert kept_for(Count("workflow", total=1, succeeded=1)) == LEAST_KEEP
    assert kept_for(Count(total=1, succeeded=1, keep=500)) == KEEP_SUCCEEDED
    assert kept_for(Count(total=1, cancelled=1)) == KEEP_UNSUCCESSFUL
    assert kept_for(Count(total=1, succeeded=1, abandoned=1)) == KEEP_UNSUCCESSFUL


def test_people_see_flags_as_flags() -> None:
    tally = tally_of(Count(total=3, succeeded=1, sealed=1, callbacks={"success": "j"}), START, None, 1)
    assert (tally.sealed, tally.stopped, tally.running, tally.waiting, tally.state) == (True, False, 1, 1, "running")
    assert tally.callbacks == (("success", "j"),)
