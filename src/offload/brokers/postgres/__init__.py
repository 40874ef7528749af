"""The PostgreSQL store."""

from offload.brokers.postgres.broker import PostgresBroker

__all__ = ["PostgresBroker"]
