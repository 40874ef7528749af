"""URLs of Redis: what they say, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from offload.brokers.redis.address import Address, Durability
from offload.errors import BadDeclaration


def test_a_server() -> None:
    address = Address.parse("redis://maria:p%40ss%2Fword@cache.example:6380/3")
    assert address.hosts == (("cache.example", 6380),)
    assert (address.user, address.password, address.database, address.tls) == ("maria", "p@ss/word", 3, False)
    assert (address.prefix, address.timeout, address.durability) == ("offload", 10.0, Durability())
    assert address.key == "{offload}:"


@pytest.mark.parametrize(
    ("url", "host", "database"),
    [
        ("redis://", ("localhost", 6379), 0),
        ("redis:///2", ("localhost", 6379), 2),
        ("valkey://cache", ("cache", 6379), 0),
        ("redis://cache/1/", ("cache", 6379), 1),
        ("redis://cache?db=4", ("cache", 6379), 4),
        ("redis://[2001:db8::7]:7000/1", ("2001:db8::7", 7000), 1),
        ("redis://[::1]", ("::1", 6379), 0),
    ],
)
def test_what_is_left_out_has_the_usual_value(url: str, host: tuple[str, int], database: int) -> None:
    address = Address.parse(url)
    assert (address.hosts, address.database) == ((host,), database)


def test_a_unix_socket() -> None:
    address = Address.parse("redis://:secret@/run/redis/redis.sock?db=2")
    assert (address.socket, address.hosts, address.password, address.database) == ("/run/redis/redis.sock", (), "secret", 2)


def test_sentinels() -> None:
    address = Address.parse("redis+sentinel://user:pw@one,two:26380/mymaster/1?sentinel_username=watch&sentinel_password=man")
    assert address.hosts == (("one", 26379), ("two", 26380))
    assert (address.master, address.database, address.user, address.password) == ("mymaster", 1, "user", "pw")
    assert (address.sentinel_user, address.sentinel_password) == ("watch", "man")


def test_a_cluster() -> None:
    address = Address.parse("redis+cluster://:pw@one:7000,two?tls=true&ssl_cert_reqs=none&prefix=shop")
    assert address.hosts == (("one", 7000), ("two", 6379))
    assert (address.tls, address.ssl_cert_reqs, address.key) == (True, "none", "{shop}:")


def test_tls(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("")
    address = Address.parse(f"rediss://cache?ssl_ca_certs={authority}&ssl_check_hostname=false")
    assert (address.tls, address.ssl_cert_reqs, address.ssl_ca_certs, address.ssl_check_hostname) == (
        True,
        "required",
        str(authority),
        False,
    )


@pytest.mark.parametrize(
    ("text", "durability"),
    [
        ("none", Durability()),
        ("replicated", Durability(replicas=1)),
        ("replicated:2", Durability(replicas=2)),
        ("fsync", Durability(disk=True)),
        ("fsync:1", Durability(replicas=1, disk=True)),
    ],
)
def test_durability(text: str, durability: Durability) -> None:
    assert Address.parse(f"redis://cache?durability={text}").durability == durability


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://cache?retries=3", "unknown option 'retries'; known are db, durability, prefix,"),
        ("redis://cache:port", "'port' is no port"),
        ("redis://cache:0", "'0' is no port"),
        ("redis://cache:70000", "'70000' is no port"),
        ("redis://:6379", "':6379' is no host"),
        ("redis://[::1", "cannot be understood"),
        ("redis://2001:db8::7", "is no host"),
        ("redis://cache/jobs", "'jobs' is no database"),
        ("redis://cache?db=-1", "db is a number, not '-1'"),
        ("redis://one,two", "several hosts; use redis+sentinel:// or redis+cluster://"),
        ("redis+sentinel://one:26379", "does not say which primary"),
        ("redis+sentinel:///mymaster", "names no host"),
        ("redis+sentinel://one/mymaster/jobs", "'jobs' is no database"),
        ("redis+cluster://", "names no host"),
        ("redis+cluster://one/3", "a cluster has database 0 only"),
        ("redis://cache?prefix={a}", "prefix is a name without braces"),
        ("redis://cache?prefix=", "prefix is a name without braces"),
        ("redis://cache?timeout=soon", "timeout is a number of seconds"),
        ("redis://cache?timeout=-1", "timeout is a number of seconds"),
        ("redis://cache?timeout=nan", "timeout is a number of seconds"),
        ("redis://cache?durability=forever", "durability is none, replicated"),
        ("redis://cache?durability=replicated:0", "durability is none, replicated"),
        ("redis://cache?durability=replicated:", "durability is none, replicated"),
        ("redis://cache?durability=none:1", "durability is none, replicated"),
        ("redis://cache?ssl_cert_reqs=none", "options of TLS without TLS; use rediss://"),
        ("rediss://cache?ssl_cert_reqs=maybe", "ssl_cert_reqs is required, optional or none"),
        ("rediss://cache?ssl_ca_certs=/no/such/file", "ssl_ca_certs names no file"),
        ("rediss://cache?tls=false", "rediss:// is TLS"),
        ("rediss:///run/redis.sock", "no TLS on a unix socket"),
        ("redis://cache?tls=perhaps", "tls is true or false"),
        ("rabbit://cache", "no such scheme"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(url: str, complaint: str) -> None:
    with pytest.raises(BadDeclaration) as refused:
        Address.parse(url)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("sign", ["#", "/", "?"])
def test_a_password_with_a_sign_that_ends_it_is_refused_and_not_shown(sign: str) -> None:
    with pytest.raises(BadDeclaration, match="in its password that must be written otherwise") as refused:
        Address.parse(f"redis://:half{sign}secret@cache:6379/0")
    assert "secret" not in str(refused.value)
    assert "half" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://maria:secret@cache:6380/3",
        "redis+sentinel://maria:secret@one,two/mymaster?sentinel_password=secret",
        "redis+cluster://maria:secret@one,two",
        "redis://maria:secret@/run/redis.sock",
    ],
)
def test_neither_text_nor_complaint_shows_the_password(url: str) -> None:
    address = Address.parse(url)
    assert "secret" not in str(address)
    assert "secret" not in repr(address)
    assert "maria" not in str(address)
    with pytest.raises(BadDeclaration) as refused:
        Address.parse(f"{url}{'&' if '?' in url else '?'}retries=3")
    assert "secret" not in str(refused.value)


def test_the_text_tells_servers_apart() -> None:
    assert str(Address.parse("redis://maria:secret@cache:6380/3?prefix=shop")) == "redis://cache:6380/3"
    assert str(Address.parse("redis+sentinel://one,two:7/mymaster/2")) == "redis+sentinel://one:26379,two:7/mymaster/2"
    assert str(Address.parse("redis+cluster://one,two:7")) == "redis+cluster://one:6379,two:7"
