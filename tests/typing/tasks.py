"""What type checkers know of tasks, handles and drafts. Never run; `tests/test_typing.py` checks it.

Lines with an ignore comment must be errors of that rule; without the comments exactly those errors must appear.
"""
# pyright: strict

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, assert_type

from offload import AsyncTask, Concurrency, Draft, Handle, Offload, Rate, Retry, Task, Unique, current
from offload.records import LimitRecord

app = Offload("memory://")


@app.task
async def send(user_id: int, name: str = "") -> str:
    return name * user_id


@app.task(queue="mail", retry=Retry(max_retries=3), unique=Unique("digest:{user_id}"), timeout=timedelta(minutes=1))
async def digest(user_id: int) -> list[int]:
    return [user_id]


@app.task
def shrink(path: str, *, width: int) -> bytes:
    return path.encode() * width


@app.cron("0 9 * * *")
@app.task(isolation="process", keep=0)
def clean() -> None: ...


def tenant(tenant_id: str) -> str:
    return tenant_id


@app.task(order_by="tenant:{tenant_id}", on_dead="hold", limits=[Concurrency(3, key=tenant), Rate("100/s", key="api", burst=20, cost=2)])
async def sync_tenant(tenant_id: str) -> int:
    return len(tenant_id)


@app.task(unique=tenant)
def once(tenant_id: str) -> None: ...


@app.task(limits=Rate("5/m", key="api"))
def limited() -> None: ...


async def keys() -> None:
    assert_type(await sync_tenant.using(order_by="t", limits=[Concurrency(1, key="t")]).aenqueue("t"), Handle[int])
    assert_type(limited.using(limits=(), on_dead="continue").enqueue(), Handle[None])
    assert_type(app.limits(), list[LimitRecord])
    assert_type(await app.alimits(), list[LimitRecord])
    app.set_limit("api", concurrency=3, rate="5/m", burst=2, paused=False)
    await app.aset_limit("api", concurrency=None, rate=None, burst=None)
    app.set_limit("api", concurrency="3")  # pyright: ignore[reportArgumentType]
    app.set_limit("api", paused=None)  # pyright: ignore[reportArgumentType]
    sync_tenant.using(order_by=tenant)  # pyright: ignore[reportArgumentType]
    limited.using(on_dead="wait")  # pyright: ignore[reportArgumentType]
    limited.using(limits=["api"])  # pyright: ignore[reportArgumentType]


async def asynchronous() -> None:
    coroutine: Coroutine[Any, Any, str] = send(1)
    assert_type(await coroutine, str)
    assert_type(await send(1), str)
    assert_type(send.enqueue(user_id=1), Handle[str])
    assert_type(await send.aenqueue(1, "x"), Handle[str])
    assert_type(send.enqueue(1).result(timeout=5), str)
    assert_type(await (await send.aenqueue(1)).aresult(), str)
    assert_type(await (await send.using(delay=5).aenqueue(1)).aresult(timeout=1), str)
    assert_type(send.using(priority=3).enqueue(1), Handle[str])
    assert_type(send.job(1), Draft[str])
    assert_type(send.using(id="x").job(user_id=1), Draft[str])
    assert_type(digest.enqueue(1).result(), list[int])
    assert_type(await digest(1), list[int])
    assert_type(app.enqueue_many([send.job(1)]), list[Handle[str]])
    assert_type(await app.aenqueue_many(digest.job(i) for i in range(3)), list[Handle[list[int]]])


def synchronous() -> None:
    assert_type(shrink("a", width=1), bytes)
    assert_type(shrink.enqueue("a", width=1).result(), bytes)
    assert_type(shrink.using(queue="vip").job("a", width=1), Draft[bytes])
    assert_type(clean(), None)
    assert_type(clean.enqueue().result(), None)
    assert_type(app.enqueue("mail.digest", user_id=7), Handle[Any])


async def steps() -> None:
    assert_type(current.step("shrink", shrink, "a", width=1), bytes)
    assert_type(await current.astep("send", send, 1), str)
    assert_type(await current.astep("len", len, "abc"), int)
    current.step("shrink", shrink, "a", width="x")  # pyright: ignore[reportArgumentType]


def takes_any_task(task: Task[..., Any]) -> None: ...


takes_any_task(send)
takes_any_task(shrink)
asynchronous_task: AsyncTask[[int], list[int]] = digest
covariant: Handle[object] = shrink.enqueue("a", width=1)


async def mistakes() -> None:
    send.enqueue(user_id="x")  # pyright: ignore[reportArgumentType]
    await send.aenqueue(user_id="x")  # pyright: ignore[reportArgumentType]
    send.using(delay=1).enqueue("x")  # pyright: ignore[reportArgumentType]
    await send.using(delay=1).aenqueue(user_id="x")  # pyright: ignore[reportArgumentType]
    send.job("x")  # pyright: ignore[reportArgumentType]
    send.enqueue()  # pyright: ignore[reportCallIssue]
    send.enqueue(1, nick="x")  # pyright: ignore[reportCallIssue]
    send("x")  # pyright: ignore[reportArgumentType, reportUnusedCoroutine]
    digest.enqueue(user_id="x")  # pyright: ignore[reportArgumentType]
    shrink.enqueue("a", 5)  # pyright: ignore[reportCallIssue]
    shrink.enqueue("a", width="x")  # pyright: ignore[reportArgumentType]
    await shrink.aenqueue("a", width="x")  # pyright: ignore[reportArgumentType]
    clean.enqueue(1)  # pyright: ignore[reportCallIssue]
    number: int = send.enqueue(1).result()  # pyright: ignore[reportAssignmentType]
    print(number)
    await shrink("a", width=1)  # pyright: ignore[reportGeneralTypeIssues]
    send.using(dealy=5)  # pyright: ignore[reportCallIssue]


@app.task(priority="high")  # pyright: ignore[reportArgumentType]
def wrong_option() -> None: ...


@app.cron("0 9 * * *")  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
def wrong_order() -> None: ...
