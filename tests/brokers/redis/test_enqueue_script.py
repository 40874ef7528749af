"""The script for other languages stores a job exactly as `enqueue` does, refuses what cannot work, and is run by a real Node.js."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from offload import Offload
from offload.brokers.redis import RedisBroker
from offload.brokers.redis.connections import Link
from offload.clock import SystemClock
from offload.errors import BrokerError
from offload.job import Isolation, Job, Membership, State, WorkerInfo
from offload.records import Filter
from offload.testing.clock import TestClock
from offload.testing.servers import RedisServer
from offload.worker import Worker

ROOT = Path(__file__).parent.parent.parent.parent
SCRIPT = files("offload.brokers.redis").joinpath("enqueue.lua").read_text("utf-8")
CLIENT = "redis@6.3.1"
"""The package of npm with which the example runs."""

pytestmark = pytest.mark.anyio


@pytest.fixture
async def broker(server: RedisServer) -> AsyncIterator[RedisBroker]:
    broker = RedisBroker.connect(server.url, SystemClock())
    await broker.open()
    yield broker
    await broker.close()


async def enqueue(link: Link, *words: str, prefix: str = "offload") -> int:
    return await link.command("EVAL", SCRIPT, 1, f"{{{prefix}}}:", *words)


async def contents(link: Link, prefix: str) -> dict[bytes, Any]:
    """All that lies under a prefix."""
    key = f"{{{prefix}}}:"
    found: dict[bytes, Any] = {}
    for name in await link.command("KEYS", f"{key}*"):
        match await link.command("TYPE", name):
            case b"hash":
                words = await link.command("HGETALL", name)
                value: Any = dict(zip(words[::2], words[1::2], strict=True))
            case b"zset":
                value = await link.command("ZRANGE", name, 0, -1, "WITHSCORES")
            case b"set":
                value = set(await link.command("SMEMBERS", name))
            case _:
                value = await link.command("GET", name)
        found[name.removeprefix(key.encode())] = value
    return found


KINDS: list[tuple[dict[str, str], dict[str, Any]]] = [
    ({}, {}),
    ({"queue": "vip"}, {"queue": "vip"}),
    ({"priority": "-100"}, {"priority": -100}),
    ({"priority": "100", "keep": "0.5"}, {"priority": 100, "keep": 0.5}),
    ({"delay": "90.25"}, {"run_at": timedelta(seconds=90.25)}),
    ({"delay": "0"}, {"run_at": timedelta()}),
    (
        {"delay": "3600", "queue": "mail", "priority": "7", "keep": "0"},
        {"run_at": timedelta(hours=1), "queue": "mail", "priority": 7, "keep": 0.0},
    ),
]


@pytest.mark.parametrize(("options", "fields"), KINDS, ids=[json.dumps(options) for options, _ in KINDS])
@pytest.mark.parametrize("payload", ['{"user_id":7,"name":"Zoë"}', json.dumps({"text": "x" * 20_000})], ids=["small", "large"])
async def test_it_stores_what_enqueue_stores_byte_for_byte(
    broker: RedisBroker, link: Link, server: RedisServer, payload: str, options: dict[str, str], fields: dict[str, Any]
) -> None:
    words = [word for option in options.items() for word in option]
    assert await enqueue(link, "first", "shop.welcome", '{"a":[]}') == 1
    assert await enqueue(link, "welcome-7", "shop.welcome", payload, *words) == 1
    records = await broker.get(["first", "welcome-7"])
    clock = TestClock(records["first"].enqueued_at)
    twin = RedisBroker.connect(f"{server.url}?prefix=twin", clock)
    await twin.open()
    await twin.enqueue([Job(id="first", task="shop.welcome", payload=b'{"a":[]}', enqueued_at=clock.now())])
    clock.advance((records["welcome-7"].enqueued_at - clock.now()).total_seconds())
    now = clock.now()
    if "run_at" in fields:
        fields = {**fields, "run_at": now + fields["run_at"]}
    job = Job(id="welcome-7", task="shop.welcome", payload=payload.encode(), enqueued_at=now, **fields)
    await twin.enqueue([job])
    assert records == await twin.get(["first", "welcome-7"])
    assert await contents(link, "offload") == await contents(link, "twin")
    await twin.close()


async def test_the_same_job_twice_is_stored_once_and_another_under_its_id_is_refused(broker: RedisBroker, link: Link) -> None:
    assert await enqueue(link, "a", "shop.welcome", '{"user_id": 7}') == 1
    assert await enqueue(link, "a", "shop.welcome", '{"user_id": 7}', "delay", "60") == 0
    for task, payload in (("shop.remind", '{"user_id": 7}'), ("shop.welcome", '{"user_id": 8}')):
        with pytest.raises(BrokerError, match="OFFLOADID the id a was already used"):
            await enqueue(link, "a", task, payload)
    assert (await broker.get(["a"]))["a"].state is State.READY
    assert await broker.counts() == {"default": {State.READY: 1}}


async def test_ids_of_other_producers_count(broker: RedisBroker, link: Link) -> None:
    now = SystemClock().now()
    await broker.enqueue([Job(id="a", task="shop.welcome", payload=b"{}", enqueued_at=now, run_at=now + timedelta(hours=1))])
    assert await enqueue(link, "a", "shop.welcome", "{}") == 0
    with pytest.raises(BrokerError, match="OFFLOADID"):
        await enqueue(link, "a", "shop.welcome", '{"user_id": 7}')


async def test_a_job_of_a_workflow_or_a_batch_is_none_of_its_own(broker: RedisBroker, link: Link) -> None:
    now = SystemClock().now()
    await broker.open_batch("b", "", [])
    await broker.enqueue([Job(id="a", task="shop.welcome", payload=b"{}", enqueued_at=now, batch="b")])
    await broker.enqueue([Job(id="c", task="shop.welcome", payload=b"{}", enqueued_at=now, workflow=Membership("w"))])
    for id in ("a", "c"):
        with pytest.raises(BrokerError, match=f"OFFLOADID the id {id} was already used by a job of a workflow or a batch"):
            await enqueue(link, id, "shop.welcome", "{}")


async def test_a_store_of_another_version_is_refused_and_left_alone(broker: RedisBroker, link: Link, server: RedisServer) -> None:
    server.ask("SET", "{offload}:version", "2")
    before = await contents(link, "offload")
    with pytest.raises(BrokerError, match=r"OFFLOADVERSION this script is for version 1, but the jobs at \{offload\}: have version 2"):
        await enqueue(link, "a", "shop.welcome", "{}")
    assert await contents(link, "offload") == before


async def test_nothing_is_stored_where_a_key_is_spoiled(broker: RedisBroker, link: Link, server: RedisServer) -> None:
    server.ask("SET", "{offload}:ready:spoiled", "something else")
    before = await contents(link, "offload")
    with pytest.raises(BrokerError, match="not Offload's"):
        await enqueue(link, "a", "shop.welcome", "{}", "queue", "spoiled")
    assert await contents(link, "offload") == before


async def test_its_version_is_that_of_the_engine(broker: RedisBroker) -> None:
    assert f"local VERSION = {(await broker.inspect()).schema}\n" in SCRIPT


async def test_an_app_that_has_never_been_opened_can_be_enqueued_to(link: Link, server: RedisServer) -> None:
    assert await enqueue(link, "a", "shop.welcome", "{}", prefix="new") == 1
    broker = RedisBroker.connect(f"{server.url}?prefix=new", SystemClock())
    await broker.open()
    assert [record.id for record in await broker.find(Filter(), 10)] == ["a"]
    await broker.close()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "the arguments are id, task, payload"),
        (["a", "task"], "the arguments are id, task, payload"),
        (["a", "task", "{}", "queue"], "options with a value each"),
        (["", "task", "{}"], "the id is empty"),
        (["a", "", "{}"], "the task is a name of 1 to 65535 bytes"),
        (["a", "task", "[1]"], "the payload is a JSON object"),
        (["a", "task", "{"], "the payload is a JSON object"),
        (["a", "task", "7"], "the payload is a JSON object"),
        (["a", "task", json.dumps({"x": "y" * 262_144})], "the most are 262144"),
        (["a", "task", "{}", "retries", "3"], "no option retries; known are queue, priority, delay, keep"),
        (["a", "task", "{}", "queue", ""], "queue is a name without white space"),
        (["a", "task", "{}", "queue", "a b"], "queue is a name without white space"),
        (["a", "task", "{}", "queue", "a:b"], "queue is a name without white space"),
        (["a", "task", "{}", "priority", "high"], "priority is a whole number from -100 to 100, not high"),
        (["a", "task", "{}", "priority", "101"], "priority is a whole number"),
        (["a", "task", "{}", "priority", "1.5"], "priority is a whole number"),
        (["a", "task", "{}", "priority", "nan"], "priority is a whole number"),
        (["a", "task", "{}", "delay", "-1"], "delay is a number of seconds, not -1"),
        (["a", "task", "{}", "delay", "nan"], "delay is a number of seconds, not nan"),
        (["a", "task", "{}", "keep", "inf"], "keep is a number of seconds, not inf"),
    ],
)
async def test_what_cannot_work_is_refused_and_nothing_written(
    link: Link, server: RedisServer, words: Sequence[str], complaint: str
) -> None:
    with pytest.raises(BrokerError, match="OFFLOADARGUMENT") as refused:
        await enqueue(link, *words)
    assert complaint in str(refused.value)
    assert server.ask("DBSIZE") == 0


async def test_a_prefix_without_braces_is_refused(link: Link, server: RedisServer) -> None:
    with pytest.raises(BrokerError, match=r"there is one key, the prefix, such as \{offload\}:"):
        await link.command("EVAL", SCRIPT, 1, "offload", "a", "task", "{}")
    assert server.ask("DBSIZE") == 0


@pytest.mark.parametrize("options", [[], ["delay", "0.05"], ["queue", "vip"]])
async def test_a_sleeping_worker_is_woken(broker: RedisBroker, link: Link, server: RedisServer, options: list[str]) -> None:
    info = WorkerInfo(name="w", host="h", pid=1, tasks={"shop.welcome": "async"})
    room: dict[Isolation, int] = {"async": 10, "thread": 10, "process": 10}
    async with broker.session(info) as session:
        assert await session.fetch(None, 10, room) == []
        assert server.ask("EXISTS", f"{{offload}}:bell:{session.id}") == 0
        await enqueue(link, "a", "shop.welcome", "{}", *options)
        assert server.ask("EXISTS", f"{{offload}}:bell:{session.id}") == 1
        await session.wait(30)
        leases = await session.fetch(None, 10, room)
        async with asyncio.timeout(20):
            while not leases:  # it was woken to see when the job is due
                await session.maintain()
                leases = await session.fetch(None, 10, room)
        assert [lease.job.id for lease in leases] == ["a"]


async def test_hundreds_who_serve_other_queues_hide_no_sleeper(broker: RedisBroker, link: Link, server: RedisServer) -> None:
    server.ask("ZADD", "{offload}:asleep", *[word for number in range(250) for word in ("0", f"other{number}\nother\n")])
    async with broker.session(WorkerInfo(name="w", host="h", pid=1, tasks={"shop.welcome": "async"}, queues=("mail",))) as session:
        await enqueue(link, "a", "shop.welcome", "{}", "queue", "mail")
        assert server.ask("EXISTS", f"{{offload}}:bell:{session.id}") == 1


# --- Node.js


@pytest.fixture(scope="session")
def modules() -> Path:
    """A folder of node modules with the client, installed once a machine."""
    folder = Path(tempfile.gettempdir()) / f"offload-tests-{os.getuid()}" / CLIENT
    if not (folder / "node_modules").is_dir():
        node, npm = shutil.which("node"), shutil.which("npm")
        missing = "node and npm" if node is None or npm is None else None
        if npm is not None and missing is None:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=folder.parent))
            install = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(made), CLIENT]
            done = subprocess.run(install, capture_output=True, text=True, timeout=100, check=False)
            missing = None if done.returncode == 0 else f"{CLIENT} from npm: {done.stderr[-500:]}"
            if missing is None and not folder.exists():
                made.rename(folder)
        if missing is not None and os.environ.get("CI"):
            pytest.fail(f"CI must not skip what needs {missing}")
        if missing is not None:
            pytest.skip(f"needs {missing}")
    return folder / "node_modules"


@pytest.mark.process
async def test_node_enqueues_and_a_python_worker_runs(server: RedisServer, modules: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples/enqueue.mjs", tmp_path)
    (tmp_path / "enqueue.lua").write_text(SCRIPT)
    (tmp_path / "node_modules").symlink_to(modules)
    environment = {**os.environ, "OFFLOAD_URL": server.url}
    run = partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    said = await asyncio.to_thread(run, ["node", "enqueue.mjs"])
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["welcome-7", "welcome-7", "welcome-8", "remind-7"]
    app = Offload(server.url)

    @app.task(name="shop.welcome")
    async def welcome(user_id: int, name: str) -> str:
        return f"{name}, number {user_id}"

    assert await Worker(app).drain() == 2
    assert await app.handle("welcome-7").aresult() == "Zoë, number 7"
    assert await app.handle("welcome-8").aresult() == "Ada, number 8"
    record = await app.handle("remind-7").arecord()
    assert record.state is State.SCHEDULED
    assert record.run_at is not None
    assert record.run_at - record.enqueued_at == timedelta(hours=1)
    await app.aclose()


def test_the_guide_shows_the_example_that_is_run_here() -> None:
    example = (ROOT / "examples/enqueue.mjs").read_text()
    assert f"```js\n{example}```" in (ROOT / "docs/guides/redis-from-other-languages.md").read_text()
