"""What a URL says: where the database is, and how Offload is to use it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Event
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from offload.errors import BadDeclaration

OPTIONS = ("schema", "migrate", "pgbouncer", "listen", "timeout")
TIMEOUT = 10.0
"""Seconds for which an enqueue is tried again while the server is away."""
USUAL_SCHEMA = "offload"
_SECRET = frozenset({"listen", "scram_client_key", "scram_server_key", "oauth_client_secret"}) | {
    option.keyword.decode() for option in Conninfo.get_defaults() if option.dispchar == b"*"
}
"""The options that may hold secrets, and are never shown: `listen` as an address with a password, and what libpq shows as stars."""
_WORDS = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer", "require"),
}
_NUMBERS = ("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
"""Options that libpq checks only when it connects, and what they may be."""
_SWITCHES = {"true": True, "false": False, "1": True, "0": False, "on": True, "off": False}
_LONGEST_NAME = 63


@dataclass(frozen=True, slots=True)
class Address:
    """One database and one schema in it."""

    dsn: str
    """What libpq connects to."""
    place: str
    """The same without passwords, for people."""
    schema: str = USUAL_SCHEMA
    migrate: bool = True
    """Whether the schema is made, or brought up to date, on first use."""
    pgbouncer: bool = False
    """Whether statements of one connection may reach different servers' sessions, so that none keeps settings or notifications."""
    listen: str | None = None
    """Where to listen for notifications; None: nowhere."""
    timeout: float = TIMEOUT
    seeks: bool = False
    """Whether the driver looks for the primary: among several hosts, or by target_session_attrs."""
    written: Event = field(default_factory=Event, compare=False, repr=False)
    """Set once a client of this process found a server here that takes writes."""

    @property
    def fails_over(self) -> bool:
        """Whether a server here that only reads is a failover, which passes, and no mistake in the URL."""
        return self.seeks or self.written.is_set()


def address(url: str) -> Address:
    """The address that `url` names: libpq's own forms, with options of ours in the query. Raises BadDeclaration."""
    _check_credentials(url)
    try:
        parts = urlsplit(url)
    except ValueError:  # whose words may hold the password
        raise BadDeclaration("the host of this PostgreSQL URL cannot be read; an IPv6 address stands in brackets, as in [::1]") from None
    query = parse_qsl(parts.query, keep_blank_values=True)
    options = {name: value for name, value in query if name in OPTIONS}
    rest = [(name, value) for name, value in query if name not in OPTIONS]
    _check_names(url, [name for name, _ in rest])
    kept = "&".join(f"{quote(name)}={quote(value, safe='/')}" for name, value in rest)
    dsn = urlunsplit(("postgresql", parts.netloc, parts.path, kept, ""))
    if not dsn.startswith("postgresql://"):  # without a host, `urlunsplit` leaves out the slashes
        dsn = dsn.replace("postgresql:", "postgresql://", 1)
    try:
        known = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:  # whose words may hold the password
        raise BadDeclaration(f"{_shown(dsn)!r}: libpq cannot read this URL; check its host, port and options") from None
    _check_values(dsn, known)
    if "listen" in options:
        try:
            _check_values(url, conninfo_to_dict(options["listen"]))
        except psycopg.ProgrammingError:
            raise BadDeclaration(
                f"{_shown(url)!r}: libpq cannot read the address in `listen`; it is a URL of its own, percent-encoded"
            ) from None
    pgbouncer = _switch(url, options, "pgbouncer", default=False)
    schema = options.get("schema", USUAL_SCHEMA)
    if not schema or len(schema.encode()) > _LONGEST_NAME or any(sign in schema for sign in "\0.'%"):
        raise BadDeclaration(f"{_shown(url)!r}: schema={schema!r} must have 1 to {_LONGEST_NAME} bytes without . ' and %")
    return Address(
        dsn=dsn,
        place=_shown(dsn),
        schema=schema,
        migrate=_switch(url, options, "migrate", default=True),
        pgbouncer=pgbouncer,
        listen=options.get("listen", None if pgbouncer else dsn),
        timeout=_seconds(url, options),
        seeks="target_session_attrs" in known or has_several_hosts(known),
    )


def has_several_hosts(known: Mapping[str, Any]) -> bool:
    """Whether libpq's options name more than one server."""
    return any("," in str(known.get(name, "")) for name in ("host", "hostaddr"))


def _check_credentials(url: str) -> None:
    """Refuse a URL whose password would be taken for something else, without showing it."""
    authority = url.partition("://")[2]
    before = authority.partition("?")[0] if "@" not in authority.partition("/")[0] else authority.partition("/")[0]
    credentials = before.rpartition("@")[0]
    if any(sign in credentials for sign in "/?#[] ") or re.search(r"%(?![0-9A-Fa-f]{2})", credentials):
        raise BadDeclaration("the user or password in this PostgreSQL URL holds a sign that must be percent-encoded, such as %23 for '#'")


def _check_names(url: str, names: Iterable[str]) -> None:
    """Refuse options that neither we nor libpq know."""
    known = {"ssl"} | {option.keyword.decode() for option in Conninfo.get_defaults()}  # libpq takes JDBC's `ssl=true` too
    if unknown := sorted(set(names) - known):
        place = _shown(url).partition("?")[0]  # no values, for one whose name is mistyped may be secret
        raise BadDeclaration(f"{place}: unknown option {', '.join(unknown)}; known are {', '.join(sorted(OPTIONS))} and libpq's own")


def _check_values(url: str, known: Mapping[str, Any]) -> None:
    """Refuse what libpq would refuse whenever it connects."""
    for name, value in known.items():
        if name in _WORDS and value not in _WORDS[name]:
            raise BadDeclaration(f"{_shown(url)!r}: {name} is {', '.join(_WORDS[name][:-1])} or {_WORDS[name][-1]}, not {value!r}")
        if name in _NUMBERS and not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", str(value)):
            raise BadDeclaration(f"{_shown(url)!r}: {name} is a whole number, not {value!r}")
        if name == "port":
            for port in str(value).split(","):
                if port and not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65_535):
                    raise BadDeclaration(f"{_shown(url)!r}: a port is a number from 1 to 65535, not {port!r}")


def _switch(url: str, options: dict[str, str], name: str, *, default: bool) -> bool:
    value = options.get(name)
    if value is None:
        return default
    if value.lower() not in _SWITCHES:
        raise BadDeclaration(f"{_shown(url)!r}: {name} is true or false, not {value!r}")
    return _SWITCHES[value.lower()]


def _seconds(url: str, options: dict[str, str]) -> float:
    try:
        seconds = float(options.get("timeout", TIMEOUT))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise BadDeclaration(f"{_shown(url)!r}: timeout is a number of seconds, not {options['timeout']!r}")
    return seconds


def _shown(url: str) -> str:
    """A URL without what is secret in it."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    query = "&".join(pair for pair in parts.query.split("&") if pair and unquote(pair.partition("=")[0]) not in _SECRET)
    return urlunsplit((parts.scheme, f"{user.partition(':')[0]}{at}{host}", parts.path, query, ""))
