"""Says what became of attempts: log lines for people, events for observers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, assert_never

import msgspec

from offload.connections.faults import passing
from offload.events import Event, EventName
from offload.gates import held_back_by
from offload.job import Cancelled, Dead, Done, Outcome, Release, Retried, Touched
from offload.producer import enqueued
from offload.wording import error_text
from offload.worker.attempt import LocalAttempt

if TYPE_CHECKING:
    from offload.app import Offload

log = logging.getLogger("offload.worker")

OUTCOMES: tuple[EventName, ...] = ("succeeded", "retrying", "dead", "cancelled", "released")


class News:
    """Costs nothing for what nobody listens to."""

    def __init__(self, app: Offload) -> None:
        self._app = app
        self._told = any(app.observes(name) for name in OUTCOMES)
        self._keyless: set[str] = set()
        """Tasks that asked to hold back a key and have none; that is said once of each."""
        self.tells_starts = app.observes("started") or log.isEnabledFor(logging.DEBUG)

    async def started(self, attempts: Sequence[LocalAttempt]) -> None:
        """Attempts were handed to the executor."""
        if log.isEnabledFor(logging.DEBUG):
            for attempt in attempts:
                log.debug("%s started", title(attempt), extra=fields(attempt))
        if self._app.observes("started"):
            await self._app.emit([self._event("started", attempt) for attempt in attempts])

    async def settled(self, settled: Sequence[tuple[LocalAttempt, Outcome]]) -> None:
        """Outcomes were recorded."""
        chatty = log.isEnabledFor(logging.INFO)
        for attempt, outcome in settled:
            if chatty or isinstance(outcome, Retried | Dead):
                _log(attempt, outcome)
            if isinstance(outcome, Retried) and outcome.whole_key and not held_back_by(attempt.job):
                self._no_key(attempt)
        if self._told:
            await self._app.emit([self._outcome(attempt, outcome) for attempt, outcome in settled])
        if self._app.observes("enqueued"):
            await self._app.emit([enqueued(job) for _, outcome in settled if isinstance(outcome, Done) for job in outcome.added])

    def _no_key(self, attempt: LocalAttempt) -> None:
        if attempt.task.name not in self._keyless:
            self._keyless.add(attempt.task.name)
            log.warning(
                "%s raised RetryLater(whole_key=True), but its job has no order and no limit whose key could be held back: "
                "only this job waits; give the task limits=Rate(...), or leave out whole_key",
                title(attempt), extra=fields(attempt),
            )  # fmt: skip

    def completed(self, attempt: LocalAttempt, committed: Done, outcome: Outcome) -> Done:
        """The outcome that counts of an attempt which had ended its job by a transaction, whatever it did afterwards."""
        if not isinstance(outcome, Done):
            failure = outcome.failure if isinstance(outcome, Retried | Dead) else None
            why = f"failed: {failure.type}: {failure.message}" if failure is not None else f"ended as {type(outcome).__name__}"
            log.warning(
                "%s %s, after the transaction that ended its job was committed; the job has succeeded",
                title(attempt), why, extra=fields(attempt),
            )  # fmt: skip
        return committed

    def lost(self, attempt: LocalAttempt, outcome: Outcome) -> None:
        """An outcome was refused because the job is no longer ours."""
        if attempt.in_doubt:
            log.warning(
                "%s: contact was lost while its transaction was being committed; it was, or else another worker has the job now: "
                "its outcome (%s) was not recorded",
                title(attempt), type(outcome).__name__, extra=fields(attempt),
            )  # fmt: skip
            return
        log.warning(
            "%s: its lease was lost, so its outcome (%s) was not recorded; another worker has the job",
            title(attempt), type(outcome).__name__, extra=fields(attempt),
        )  # fmt: skip

    async def touched(self, touched: Sequence[Touched]) -> None:
        """`maintain` moved jobs."""
        for each in touched:
            log.warning(
                "%s %s %s%s", each.task, each.id, each.event, f": {each.reason}" if each.reason else "",
                extra={"job_id": each.id, "task": each.task, "queue": each.queue},
            )  # fmt: skip
        now = self._app.clock.now()
        events = [
            Event(name=each.event, id=each.id, task=each.task, queue=each.queue, at=now, reason=each.reason or None)
            for each in touched
            if self._app.observes(each.event)
        ]
        if events:
            await self._app.emit(events)

    def _event(
        self,
        name: EventName,
        attempt: LocalAttempt,
        reason: str | None = None,
        delay: float | None = None,
        error: BaseException | None = None,
    ) -> Event:
        return Event(
            name=name,
            id=attempt.job.id,
            task=attempt.task.name,
            queue=attempt.job.queue,
            at=self._app.clock.now(),
            attempt=attempt.number,
            reason=reason,
            seconds=attempt.took or None,
            delay=delay,
            error=error,
        )

    def _outcome(self, attempt: LocalAttempt, outcome: Outcome) -> Event:
        match outcome:
            case Done():
                return self._event("succeeded", attempt)
            case Retried(delay, failure):
                reason = None if failure is None else f"{failure.type}: {failure.message}"
                return self._event("retrying", attempt, reason, delay, attempt.error)
            case Dead(reason, _):
                return self._event("dead", attempt, reason, error=attempt.error)
            case Cancelled(reason):
                return self._event("cancelled", attempt, reason)
            case Release(delay):
                return self._event("released", attempt, _why_released(attempt), delay)
            case _:
                assert_never(outcome)


def _log(attempt: LocalAttempt, outcome: Outcome) -> None:
    spent = attempt.took * 1000
    match outcome:
        case Done():
            log.info("%s succeeded in %.0f ms", title(attempt), spent, extra=fields(attempt))
        case Retried(delay, failure):
            why = "" if failure is None else error_text(failure)
            log.warning("%s failed, attempt %d; again in %.3g s: %s", title(attempt), attempt.number, delay, why, extra=fields(attempt))
        case Dead(reason, failure):
            why = "" if failure is None else f" ({error_text(failure)})"
            log.error("%s is dead: %s%s", title(attempt), reason, why, extra=fields(attempt))
        case Cancelled(reason):
            log.info("%s was cancelled%s", title(attempt), "" if reason == "cancelled" else f": {reason}", extra=fields(attempt))
        case Release(delay):
            wait = f" for {delay:.3g} s" if delay > 0 else ""
            log.info("%s was handed back%s: %s", title(attempt), wait, _why_released(attempt), extra=fields(attempt))
        case _:
            assert_never(outcome)


def _why_released(attempt: LocalAttempt) -> str:
    match attempt.stop_reason:
        case "shutdown":
            return "the worker leaves, and its grace is over"
        case "lost":
            return "the worker lost its session"
        case _ if attempt.returned is not None:
            return attempt.returned
        case _:
            cause = attempt.error.__cause__ if attempt.error is not None else None
            if cause is None:
                return "it raised Snooze"
            return "its transaction met another one" if passing(cause) else "its database was away"


def title(attempt: LocalAttempt) -> str:
    """How log lines name an attempt: task, job id, and the arguments that the task declared with `log=`."""
    shown = arguments([name for name in attempt.task.log if name not in attempt.task.mask], attempt.job.payload)
    return f"{attempt.task.name} {attempt.job.id}{''.join(f' {name}={value!r}' for name, value in shown.items())}"


def arguments(names: Sequence[str], payload: bytes) -> Mapping[str, Any]:
    """Those of the job's arguments; none where the payload cannot be read."""
    if not names:
        return {}
    try:
        given: Any = msgspec.json.decode(payload)
        return {name: given[name] for name in names if name in given}
    except (msgspec.DecodeError, TypeError):  # made by another program; that it does not fit is said where it matters
        return {}


def fields(attempt: LocalAttempt) -> dict[str, Any]:
    """What every log line about an attempt carries besides its text."""
    return {"job_id": attempt.job.id, "task": attempt.task.name, "queue": attempt.job.queue, "attempt": attempt.number}
