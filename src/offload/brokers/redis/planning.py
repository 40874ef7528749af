"""Schedules as the script stores them and tells of them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from offload.brokers.redis.rows import moment
from offload.job import Schedule
from offload.records import ScheduleRecord

_encode = msgspec.json.Encoder().encode
rule_of = msgspec.json.Decoder(Schedule).decode
"""The rule of a text."""


def text_of(schedule: Schedule) -> bytes:
    """The text of a rule: equal rules have equal texts, for the script compares them."""
    return _encode(rule_of(_encode(schedule)))


def record_of(row: Sequence[bytes]) -> ScheduleRecord:
    """The schedule that a row of the script's answer tells of."""
    rule, next_at, last_at, last_job, paused, declared, fired, skipped = row
    return ScheduleRecord(
        schedule=rule_of(rule),
        next_at=moment(int(next_at)) if next_at else None,
        last_at=moment(int(last_at)) if last_at else None,
        last_job=last_job.decode() if last_job else None,
        paused=paused == b"1",
        declared=declared == b"1",
        fired=int(fired),
        skipped=int(skipped),
    )
