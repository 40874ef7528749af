"""Why the script refused jobs, in the words that every engine has for it."""

from __future__ import annotations

from collections.abc import Sequence

from offload.errors import BatchClosed, IdConflict, OffloadError, ParentNotFound, UniqueConflict


def refusal_of(words: Sequence[str]) -> OffloadError:
    """The error that the script tells of by what it is, and whom it is about."""
    match words:
        case ("id", id):
            return IdConflict(id)
        case ("unique", key, holder):
            return UniqueConflict(key, holder)
        case ("parent", child, parent):
            return ParentNotFound(child, parent)
        case ("batch", batch, "none"):
            return BatchClosed(f"there is no batch {batch}: open it first, or it is forgotten")
        case ("batch", batch, _):
            return BatchClosed(f"batch {batch} is sealed and takes no more jobs; add them before its block ends, or from its own jobs")
        case _:
            raise AssertionError(words)
