"""As much of the protocols of PostgreSQL and Redis as it takes to ask a server whether it is there, so that no driver is needed."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

Reply: TypeAlias = "bytes | int | list[Reply] | None"

PROTOCOL_3 = 196_608
"""Version 3.0 of PostgreSQL's protocol, which all versions since 7.4 speak."""

WITHIN = 20.0
"""Seconds that an answer may take."""
SOON = 3.0
"""Seconds that an answer may take while a server starts: another program may hold its port, and say nothing."""


class Refused(OSError):
    """The server answered with an error."""


def ask_postgres(port: int, statement: str, database: str = "postgres", *, timeout: float = WITHIN) -> list[list[str | None]]:
    """Run one statement and return its rows. Raises OSError, with the server's text where it refused; `timeout` is seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection, connection.makefile("rb") as stream:
        options = b"".join(word.encode() + b"\0" for word in ("user", "postgres", "database", database)) + b"\0"
        connection.sendall(struct.pack("!ii", len(options) + 8, PROTOCOL_3) + options)
        for _ in _until_ready(stream):
            pass
        query = statement.encode() + b"\0"
        connection.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query)
        rows = [_row(body) for kind, body in _until_ready(stream) if kind == b"D"]
        connection.sendall(b"X" + struct.pack("!i", 4))
        return rows


def _until_ready(stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The messages until the server waits for the next statement: (kind, body)."""
    while True:
        kind = _exactly(stream, 1)
        body = _exactly(stream, struct.unpack("!i", _exactly(stream, 4))[0] - 4)
        if kind == b"E":
            fields = {field[:1]: field[1:].decode(errors="replace") for field in body.split(b"\0") if field}
            raise Refused(f"{fields.get(b'M', '')} ({fields.get(b'C', '')})")
        if kind == b"R" and struct.unpack("!i", body[:4])[0] != 0:
            raise Refused("the server asks for a password; it was not started by this program")
        if kind == b"Z":
            return
        yield kind, body


def _row(body: bytes) -> list[str | None]:
    count, place, row = struct.unpack("!h", body[:2])[0], 2, list[str | None]()
    for _ in range(count):
        length = struct.unpack("!i", body[place : place + 4])[0]
        place += 4
        row.append(None if length < 0 else body[place : place + length].decode())
        place += max(length, 0)
    return row


def ask_redis(port: int, *words: str, password: str = "", timeout: float = WITHIN) -> Reply:
    """Send one command and return its reply. Raises OSError, with the server's text where it refused; `timeout` is seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection, connection.makefile("rb") as stream:
        if password:
            _command(connection, stream, "AUTH", password)
        return _command(connection, stream, *words)


def _command(connection: socket.socket, stream: BinaryIO, *words: str) -> Reply:
    encoded = [word.encode() for word in words]
    connection.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
    return _reply(stream)


def _reply(stream: BinaryIO) -> Reply:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the server closed the connection")
    kind, rest = line[:1], line[1:-2]
    match kind:
        case b"-":
            raise Refused(rest.decode(errors="replace"))
        case b":":
            return int(rest)
        case b"$":
            return None if int(rest) < 0 else _exactly(stream, int(rest) + 2)[:-2]
        case b"*":
            return None if int(rest) < 0 else [_reply(stream) for _ in range(int(rest))]
        case _:
            return rest


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise ConnectionResetError("the server closed the connection")
    return data
