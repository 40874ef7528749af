"""A visitor without a browser: makes HTTP requests, and times them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from http.client import HTTPConnection
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec


class Answer(NamedTuple):
    """What came back, and after how many milliseconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    milliseconds: float

    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)


class Visitor:
    """Visits one site."""

    def __init__(self, address: str) -> None:
        self._host = urlsplit(address).netloc

    async def get(self, path: str) -> Answer:
        """Ask for a page; redirects are not followed."""
        return await asyncio.to_thread(self._ask, "GET", path, None, {})

    async def post(self, path: str, **form: str) -> Answer:
        """Send a form."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await asyncio.to_thread(self._ask, "POST", path, urlencode(form).encode(), headers)

    async def upload(self, path: str, field: str, name: str, content: bytes) -> Answer:
        """Send a form with one file."""
        boundary = secrets.token_hex(16)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        return await asyncio.to_thread(self._ask, "POST", path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def _ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        connection = HTTPConnection(self._host, timeout=15)
        try:
            began = perf_counter()
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            content = response.read()
            return Answer(response.status, dict(response.getheaders()), content, (perf_counter() - began) * 1000)
        finally:
            connection.close()
