"""Finds ports of the loopback interface."""

from __future__ import annotations

import socket

USUAL = 8000


def listen(port: int | None) -> socket.socket:
    """A socket for the web site: on `port`, or where none is given on 8000 if that is free, else on any. Raises OSError."""
    if port is None:
        try:
            return socket.create_server(("127.0.0.1", USUAL))
        except OSError:
            port = 0
    return socket.create_server(("127.0.0.1", port))


def free_port() -> int:
    """A port that nothing uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]
