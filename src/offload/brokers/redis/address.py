"""Where a Redis or Valkey server is and how jobs are kept there: what a URL says, checked before anything is connected."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from offload.errors import BadDeclaration

Topology = Literal["server", "sentinel", "cluster"]
TOPOLOGIES: Mapping[str, Topology] = {
    "redis": "server",
    "rediss": "server",
    "valkey": "server",
    "valkeys": "server",
    "redis+sentinel": "sentinel",
    "redis+cluster": "cluster",
}
SECURE = ("rediss", "valkeys")
HOST = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>[^:]*))?")
PORTS: Mapping[Topology, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}


class Durability(msgspec.Struct, frozen=True):
    """What must have a job before `enqueue` returns, besides the memory of the primary."""

    replicas: int = 0
    """Replicas that must have acknowledged it."""
    disk: bool = False
    """Whether the append-only files of the primary, and of those replicas, must hold it on disk."""

    def __bool__(self) -> bool:
        return self.disk or self.replicas > 0


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL says. `str()` of it leaves user names and passwords out."""

    scheme: str
    topology: Topology
    hosts: tuple[tuple[str, int], ...] = ()
    """(host, port) of the server, of the sentinels, or of some nodes of the cluster."""
    socket: str | None = None
    """The path of a unix socket, instead of a host."""
    master: str | None = None
    """The name by which the sentinels know the primary."""
    database: int = 0
    user: str | None = None
    password: str | None = None
    sentinel_user: str | None = None
    sentinel_password: str | None = None
    tls: bool = False
    ssl_cert_reqs: Literal["required", "optional", "none"] = "required"
    ssl_check_hostname: bool = True
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    prefix: str = "offload"
    timeout: float = 10.0
    """Seconds for which a producer keeps trying."""
    durability: Durability = Durability()

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address that `url` names. Does no I/O; raises BadDeclaration when it cannot be understood."""
        try:
            parts = urlsplit(url)
        except ValueError as error:  # such as a bracket that is never closed
            raise BadDeclaration(f"the URL of the Redis server cannot be understood: {error}") from None
        if parts.fragment or ("@" in f"{parts.path}{parts.query}" and "@" not in parts.netloc):
            raise BadDeclaration(  # shown in no part: half of a password may be taken for something else
                "the URL of the Redis server has a sign in its password that must be written otherwise: "
                "# as %23, / as %2F, ? as %3F, @ as %40"
            )
        shown = _shown(parts)
        topology = TOPOLOGIES.get(parts.scheme)
        if topology is None:
            raise BadDeclaration(f"{shown}: no such scheme; known are {', '.join(f'{name}://' for name in TOPOLOGIES)}")
        user, password, hosts = _authority(parts.netloc, shown, PORTS[topology])
        fields: dict[str, Any] = {
            "user": user,
            "password": password,
            "hosts": hosts,
            "tls": parts.scheme in SECURE,
            **_path(parts, topology, hosts, shown),
            **_options(parts, shown),
        }
        address = cls(scheme=parts.scheme, topology=topology, **fields)
        address._check(shown)
        return address

    def _check(self, shown: str) -> None:
        if self.topology != "server" and not self.hosts:
            example = "redis+sentinel://host1:26379,host2:26379/mymaster" if self.topology == "sentinel" else "redis+cluster://host1:6379"
            raise BadDeclaration(f"{shown} names no host; write it as {example}")
        if self.topology == "server" and len(self.hosts) > 1:
            raise BadDeclaration(f"{shown} names several hosts; use redis+sentinel:// or redis+cluster:// for more than one server")
        if self.topology == "sentinel" and not self.master:
            raise BadDeclaration(
                f"{shown} does not say which primary the sentinels should be asked for; "
                "write its name behind the hosts: redis+sentinel://host1:26379,host2:26379/mymaster"
            )
        if self.topology == "cluster" and self.database:
            raise BadDeclaration(f"{shown}: a cluster has database 0 only; keep several apps apart with ?prefix=")
        if self.scheme in SECURE and not self.tls:
            raise BadDeclaration(f"{shown}: {self.scheme}:// is TLS; use redis:// to do without")
        if self.socket is not None and self.tls:
            raise BadDeclaration(f"{shown}: no TLS on a unix socket; use redis://")
        tls_only = (self.ssl_ca_certs, self.ssl_certfile, self.ssl_keyfile)
        if not self.tls and (any(tls_only) or self.ssl_cert_reqs != "required" or not self.ssl_check_hostname):
            raise BadDeclaration(f"{shown}: options of TLS without TLS; use rediss://, or add ?tls=true with sentinels and clusters")

    @property
    def key(self) -> str:
        """How every key begins. The braces keep all keys of an app in one slot of a cluster."""
        return f"{{{self.prefix}}}:"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        if self.socket is not None:
            return f"{self.scheme}://{self.socket}"
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        path = f"/{self.master}" if self.master else ""
        return f"{self.scheme}://{hosts}{path}" + (f"/{self.database}" if self.topology != "cluster" else "")


def _shown(parts: SplitResult) -> str:
    """The URL without user name, password and options, which may hold passwords as well."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _authority(netloc: str, shown: str, standard: int) -> tuple[str | None, str | None, tuple[tuple[str, int], ...]]:
    credentials, _, listed = netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    hosts = tuple(_host(each.strip(), shown, standard) for each in listed.split(",") if each.strip())
    return unquote(user) or None, unquote(password) or None, hosts


def _host(text: str, shown: str, standard: int) -> tuple[str, int]:
    match = HOST.fullmatch(text)
    if match is None:
        raise BadDeclaration(f"{shown}: {text!r} is no host; write host, host:port or [address of IPv6]:port")
    port = match["port"] if match["port"] is not None else str(standard)
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise BadDeclaration(f"{shown}: {port!r} is no port; it is a number from 1 to 65535")
    return unquote(match["six"] or match["name"]), int(port)


def _path(parts: SplitResult, topology: Topology, hosts: tuple[tuple[str, int], ...], shown: str) -> dict[str, Any]:
    path = unquote(parts.path)
    if topology == "sentinel":
        master, _, database = path.removeprefix("/").partition("/")
        return {"master": master or None, "database": _database(database, shown)}
    if topology == "server" and not hosts:
        if path.removeprefix("/") and not path.removeprefix("/").isdecimal():
            return {"socket": path}
        hosts = (("localhost", PORTS["server"]),)
    return {"hosts": hosts, "database": _database(path.removeprefix("/").removesuffix("/"), shown)}


def _database(text: str, shown: str) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise BadDeclaration(
            f"{shown}: {text!r} is no database; it is a number, such as 0 (a unix socket has three slashes: redis:///run/redis.sock)"
        )
    return int(text)


def _options(parts: SplitResult, shown: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        read = OPTIONS.get(name)
        if read is None:
            raise BadDeclaration(f"{shown}: unknown option {name!r}; known are {', '.join(sorted(OPTIONS))}")
        try:
            found[NAMES.get(name, name)] = read(text)
        except ValueError as error:
            raise BadDeclaration(f"{shown}: {name} {error}") from None
    return found


def _prefix(text: str) -> str:
    if not text or not text.isprintable() or any(sign in text for sign in "{} "):
        raise ValueError("is a name without braces and blanks, such as 'shop'")
    return text


def _seconds(text: str) -> float:
    seconds = float(text) if text.replace(".", "", 1).isdecimal() else -1.0
    if not 0 <= seconds <= 3600:
        raise ValueError(f"is a number of seconds from 0 to 3600, not {text!r}")
    return seconds


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"is a number, not {text!r}")
    return int(text)


def _durability(text: str) -> Durability:
    kind, colon, number = text.partition(":")
    replicas = int(number) if number.isdecimal() else (0 if colon else None)
    match kind:
        case "none" if not colon:
            return Durability()
        case "replicated" if replicas is None or replicas > 0:
            return Durability(replicas=replicas or 1)
        case "fsync" if replicas is None or replicas > 0:
            return Durability(replicas=replicas or 0, disk=True)
        case _:
            raise ValueError(f"is none, replicated, replicated:N, fsync or fsync:N (N replicas), not {text!r}")


def _boolean(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise ValueError(f"is true or false, not {text!r}")
    return known[text.lower()]


def _verification(text: str) -> str:
    if text not in ("required", "optional", "none"):
        raise ValueError(f"is required, optional or none, not {text!r}")
    return text


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError(f"names no file: {text!r}")
    return text


OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "db": _number,
    "durability": _durability,
    "prefix": _prefix,
    "sentinel_password": str,
    "sentinel_username": str,
    "ssl_ca_certs": _file,
    "ssl_cert_reqs": _verification,
    "ssl_certfile": _file,
    "ssl_check_hostname": _boolean,
    "ssl_keyfile": _file,
    "timeout": _seconds,
    "tls": _boolean,
}
NAMES: Mapping[str, str] = {"db": "database", "sentinel_username": "sentinel_user"}
"""The options whose fields have other names."""
