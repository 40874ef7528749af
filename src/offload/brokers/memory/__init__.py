"""Jobs in this process's memory: the reference that every other store must be indistinguishable from.

The state is one object, `Shelf`; each duty is a module of functions on it. Read on in this order:

    line         a job and where it stands; the lines of ready jobs, and those by a moment
    keys         who holds a unique key, and who comes after
    gating       who has passed which gate, and who waits there, as `offload.gates` reads and writes it
    counting     workflows and batches, counted
    undo         how an operation that fails takes back what it has changed
    shelf        all of these together: what the store holds
    moves        into a ready line, into a lane before gates, or until a moment comes
    endings      the end of a job, and who gets its keys
    families     who waits for which parents, and what becomes of it when these have ended
    control      what a person does: cancel, retry, delete
    tallies      who joins a workflow or a batch, when it is finished, which callbacks are due
    enqueueing   a job comes in, or is stood for by another
    claiming     ready jobs are leased to a session
    settling     an attempt has ended, or nobody goes on with it
    upkeep       what comes with time
    reading      what a person sees

    calendar     schedules
    bell         wakes who waits
    session      the seam's `Session`: a worker's fence around claiming and settling
    broker       the seam's `Store`: one lock around it all
"""

from offload.brokers.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
