"""Programs that end, or drop their app, without closing it: they do so in silence, and a fork leaves its parent's connections alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, gc, os, sys
from offload import Offload, Worker, current
from offload.brokers.postgres import PostgresBroker
from offload.clock import SystemClock

def of_an_app():
    app = Offload(sys.argv[1])

    @app.task
    async def coroutine():
        async with current.atransaction() as connection:
            await connection.execute("select 1")

    @app.task
    def thread():
        with current.transaction() as connection:
            connection.execute("select 1")

    async def main():
        await coroutine.aenqueue()
        await thread.aenqueue()
        print(await Worker(app).drain(), flush=True)

    asyncio.run(main())
    return app

async def of_a_broker():
    broker = PostgresBroker.connect(sys.argv[1], SystemClock())
    await broker.open()
    async with broker.atransaction() as connection:
        await connection.execute("select 1")
    with broker.transaction() as connection:
        connection.execute("select 1")
    return broker

match sys.argv[2]:
    case "app kept":
        kept = of_an_app()
    case "app dropped":
        of_an_app()
        gc.collect()
    case "broker kept":
        kept = asyncio.run(of_a_broker())
    case "broker dropped":
        asyncio.run(of_a_broker())
        gc.collect()
    case "fork":
        kept = asyncio.run(of_a_broker())
        with kept.transaction() as connection:
            before = connection.pgconn.backend_pid
        if os.fork() == 0:
            del kept
            gc.collect()
            sys.exit()
        os.wait()
        with kept.transaction() as connection:
            print(connection.pgconn.backend_pid == before)
"""


def ran(url: str, how: str, *options: str) -> tuple[int, str, str]:
    """How the program ended, and what it said."""
    program = subprocess.run([sys.executable, *options, "-c", PROGRAM, url, how], capture_output=True, text=True, timeout=60, check=False)
    return program.returncode, program.stdout.strip(), program.stderr


@pytest.mark.process
@pytest.mark.parametrize(("how", "said"), [("app kept", "2"), ("app dropped", "2"), ("broker kept", ""), ("broker dropped", "")])
def test_a_program_that_closes_nothing_ends_in_silence(url: str, how: str, said: str) -> None:
    assert ran(url, how, "-W", "error") == (0, said, "")


@pytest.mark.process
def test_a_forked_child_that_ends_leaves_its_parents_connections_open(url: str) -> None:
    assert ran(url, "fork") == (0, "True", "")
