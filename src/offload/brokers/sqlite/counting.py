"""Looks up how many jobs workflows and batches have, once in an operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from offload.brokers.sqlite.books import Count, Key
from offload.brokers.sqlite.rows import text
from offload.brokers.sqlite.transaction import Transaction
from offload.job import Job

counts_from = msgspec.json.Decoder(list[Count]).decode
count_from = msgspec.json.Decoder(Count).decode


def of(job: Job) -> list[Key]:
    """Where a job is counted."""
    keys: list[Key] = [] if job.workflow is None else [("workflow", job.workflow.id)]
    if job.batch is not None and job.callback is None:
        keys.append(("batch", job.batch))
    return keys


def known(tx: Transaction, keys: Iterable[Key]) -> Mapping[Key, Count | None]:
    """Look up workflows and batches at once, as this operation has left them."""
    counts = tx.books.counts
    if missing := [key for key in dict.fromkeys(keys) if key not in counts]:
        counts |= dict.fromkeys(missing)
        counts |= {count.key: count for count in counts_from(tx.value("tallies", pairs=text(missing)))}
    return counts
