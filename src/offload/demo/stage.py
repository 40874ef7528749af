"""Puts everything up, in one folder: the worker, the mail server and the web site; and takes it all down again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette

from offload.demo.console import Terminal
from offload.demo.data import Data
from offload.demo.mail import MailServer
from offload.demo.place import Place
from offload.demo.site import web_site
from offload.demo.tasks import app
from offload.demo.workers import attendance, workers


@dataclass(frozen=True, slots=True)
class Stage:
    """The demo while it runs."""

    place: Place
    data: Data
    mail_server: MailServer
    worker: asyncio.subprocess.Process
    terminal: Terminal


class Server(uvicorn.Server):
    """uvicorn beside other code: signals are the demo's business."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave them alone."""
        yield


@asynccontextmanager
async def stage(place: Place, listening: socket.socket, terminal: Terminal) -> AsyncGenerator[Stage]:
    """Everything, running. What is opened first is closed last; afterwards no process and no socket is left."""
    data = Data(place.database)
    mail_server = MailServer(place.mails, place.smtp_port, place.diary)
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(terminal.following())
            worker = await stack.enter_async_context(workers(place))
            await stack.enter_async_context(app)
            await stack.enter_async_context(attendance(app, place.diary))
            await stack.enter_async_context(_serving(web_site(place, data, mail_server), listening))
            await mail_server.up()
            stack.callback(mail_server.down)
            yield Stage(place, data, mail_server, worker, terminal)
    finally:
        data.close()


@asynccontextmanager
async def _serving(site: Starlette, listening: socket.socket) -> AsyncGenerator[None]:
    server = Server(uvicorn.Config(site, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
