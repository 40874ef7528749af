"""The Redis broker keeps the contract: on Redis, on Valkey, on a cluster and behind sentinels."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from offload.brokers.redis import RedisBroker
from offload.testing.clock import TestClock
from offload.testing.contract import BrokerContract
from offload.testing.servers import Cluster, RedisServer, Sentinels


class RedisContract(BrokerContract):
    @pytest.fixture
    async def broker(self, clock: TestClock, url: str, fresh_name: str) -> AsyncIterator[RedisBroker]:
        broker = RedisBroker.connect(f"{url}?prefix={fresh_name}", clock)
        await broker.open()
        yield broker
        await broker.close()


class TestRedis(RedisContract):
    @pytest.fixture
    def url(self, shared_redis: RedisServer) -> str:
        return shared_redis.url


class TestValkey(RedisContract):
    @pytest.fixture
    def url(self, shared_valkey: RedisServer) -> str:
        return shared_valkey.url


class TestCluster(RedisContract):
    @pytest.fixture
    def url(self, shared_cluster: Cluster) -> str:
        return shared_cluster.url


class TestSentinel(RedisContract):
    @pytest.fixture
    def url(self, shared_sentinel: Sentinels) -> str:
        return shared_sentinel.url
