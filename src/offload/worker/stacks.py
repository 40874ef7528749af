"""Where a thread stands, for log lines about what blocks or does not end."""

from __future__ import annotations

import sys
import traceback


def stack_of(thread: int) -> list[str]:
    """The frames of a thread of this process, outermost first, each as `file:line in function: code`; empty when it has ended."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] - documented; the underscore only warns
    if frame is None:
        return []
    return [f"{each.filename}:{each.lineno} in {each.name}: {each.line}" for each in traceback.extract_stack(frame)]
