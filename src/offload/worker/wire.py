"""What a worker and its child processes say to each other: msgpack messages behind a length, over the child's standard streams."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from offload.job import Cancelled, Dead, Done, Job, Progress, Release, Retried

HEADER = struct.Struct(">I")


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message to a child: where the app is."""

    module: str
    attribute: str
    file: str | None
    path: tuple[str, ...]
    parent: int


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run one attempt."""

    job: Job
    claim: int
    attempt: int
    crashes: int
    steps: Mapping[str, bytes]
    session: str
    homes: tuple[tuple[str, str | None], ...]
    """The modules in which the task may be declared, and of a program its file."""
    ref: Any
    """The broker's own handle, where that is an SQL store, so that the job can be ended in a transaction."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The attempt was asked to stop; `current.cancelled` turns true. Force comes as signals."""

    now: bool = False
    """With a signal: a statement that the task waits for is ended, of which the signal might not be heard."""


class Kept(msgspec.Struct, frozen=True, tag=True):
    """Whether a step's result was stored."""

    stored: bool


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The app is imported and its lifespan open."""


class Unready(msgspec.Struct, frozen=True, tag=True):
    """The child could not start."""

    error: str


class Report(msgspec.Struct, frozen=True, tag=True):
    """Progress of the attempt."""

    progress: Progress


class Keep(msgspec.Struct, frozen=True, tag=True):
    """Store a step's result; answered by `Kept`."""

    step: str
    value: bytes


class Committing(msgspec.Struct, frozen=True, tag=True):
    """The transaction that ends the job is about to be committed."""


class Committed(msgspec.Struct, frozen=True, tag=True):
    """It is; whatever comes later changes nothing."""

    outcome: Done
    settled: bool


class Ended(msgspec.Struct, frozen=True, tag=True):
    """How the attempt ended."""

    outcome: Done | Retried | Dead | Cancelled | Release


ToChild: TypeAlias = Start | Run | Stop | Kept
ToParent: TypeAlias = Ready | Unready | Report | Keep | Committing | Committed | Ended

_encoder = msgspec.msgpack.Encoder()
to_child = msgspec.msgpack.Decoder(ToChild)
to_parent = msgspec.msgpack.Decoder(ToParent)


def frame(message: ToChild | ToParent) -> bytes:
    """A message as it goes over the stream."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
