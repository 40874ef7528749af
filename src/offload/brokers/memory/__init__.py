"""Jobs in this process's memory: the reference that every other store must be indistinguishable from."""

from offload.brokers.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
