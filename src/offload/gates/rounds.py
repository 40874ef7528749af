"""Turns among the keys of one line."""

from __future__ import annotations


def round_of(serving: int | None, last: int | None) -> int:
    """The round in which a job takes its turn among the keys of its line (start-time fair queueing, Goyal and others 1996).

    Each key gets one job a round. `serving` is the round of whoever stands first, None where nobody takes turns; `last` is the last
    round that was given to the job's key. A newcomer begins with the round after the one that is being served: so it waits for a round at
    most, however many jobs other keys have, and newcomers hold up nobody for ever.
    """
    if serving is None:
        return 1
    return min(max(serving, last or 0) + 1, LAST_ROUND)


LAST_ROUND = 2**24 - 1
"""So many jobs of one key may be ahead of each other; further ones share the last round."""
