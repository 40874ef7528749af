"""Takes back what an operation has changed before it failed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager


class Undo:
    """The steps back. Kept only inside an operation that is to be done whole or not at all."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] | None = None

    @contextmanager
    def on_error(self) -> Generator[None]:
        """Do the block, or, where it raises, nothing of it."""
        steps = self._steps = []
        try:
            yield
        except Exception:
            for step in reversed(steps):
                step()
            raise
        finally:
            self._steps = None

    @property
    def kept(self) -> bool:
        """Whether steps are kept now."""
        return self._steps is not None

    def by(self, step: Callable[[], None]) -> None:
        """Note how what was just changed, or is about to be, is put back."""
        if self._steps is not None:
            self._steps.append(step)
