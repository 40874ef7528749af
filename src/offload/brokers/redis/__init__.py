"""The store in Redis or Valkey."""

from offload.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
