"""Drafts as callers give them: seen to be drafts, and taken a thousand at a time from whatever iterable; and what some may not ask for."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from offload.errors import BadDeclaration
from offload.job import MOST_ATOMIC, Draft

R = TypeVar("R")


def thousands(drafts: Iterable[Draft[R]], method: str) -> Iterator[list[Draft[R]]]:
    """What an iterable gives to `method`, as many at a time as one operation stores, as it comes. Raises BadDeclaration."""
    if isinstance(drafts, Draft):
        raise BadDeclaration(f"{method} takes a list of what task.job(...) gives, and was given one of them alone")
    if not isinstance(drafts, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        raise BadDeclaration(f"{method} takes a list of what task.job(...) gives, not {drafts!r}")
    each = iter(drafts)
    while chunk := list(islice(each, MOST_ATOMIC)):
        yield _checked(chunk, method)


async def athousands(drafts: Iterable[Draft[R]] | AsyncIterable[Draft[R]], method: str) -> AsyncIterable[list[Draft[R]]]:
    """The same of an iterable that may be async."""
    if not isinstance(drafts, AsyncIterable):
        for chunk in thousands(drafts, method):
            yield chunk
        return
    chunk: list[Draft[R]] = []
    async for draft in drafts:
        chunk.append(draft)
        if len(chunk) == MOST_ATOMIC:
            yield _checked(chunk, method)
            chunk = []
    if chunk:
        yield _checked(chunk, method)


def _checked(drafts: list[Draft[R]], method: str) -> list[Draft[R]]:
    for draft in drafts:
        if not isinstance(draft, Draft):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise BadDeclaration(f"{method} takes what task.job(...) gives, not {draft!r}")
    return drafts


def refuse_stand_in(draft: Draft[Any], whole: str) -> None:
    """Raise BadDeclaration for a draft instead of which another job may be kept, of which `whole`, as "the batch", knows nothing."""
    unique = draft.unique
    if unique is not None and unique.on_conflict != "raise":
        raise BadDeclaration(
            f"the job of {draft.task} has a unique key with on_conflict={unique.on_conflict!r}, so that another job might stand for it, of "
            f"which {whole} knows nothing: use .using(unique=Unique(..., on_conflict='raise'))"
        )
