"""What a worker says of itself once it has its session: what it serves, where, and which tasks it knows."""

from __future__ import annotations

from collections.abc import Collection

MOST_NAMES = 8


def greeting(name: str, queues: str, app: str, place: str, tasks: Collection[str]) -> str:
    """One line. `app` and `place`, its broker, are named as people may see them."""
    known = f"{len(tasks):,} task{'' if len(tasks) == 1 else 's'}: {some(sorted(tasks))}" if tasks else "no task: nothing will run"
    return f"worker {name} serves {queues} of {app} on {place}; it knows {known}"


def some(names: Collection[str]) -> str:
    """The names, and of very many the first and how many more there are."""
    first, more = list(names)[:MOST_NAMES], len(names) - MOST_NAMES
    return ", ".join(first) if more <= 0 else f"{', '.join(first)} and {more} more"
