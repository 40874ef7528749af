"""Jobs in one SQLite file: the default store, durable and without a server."""

from offload.brokers.sqlite.broker import SqliteBroker

__all__ = ["SqliteBroker"]
