"""Deletes an account, all of it: rows of several tables and folders of files, as a batch. Who asked for it gets a mail once all is gone.

    python examples/account_deletion.py

plays it with a shop's database, its files, a mail server and a worker. Ada asks twice, for she is impatient, and is deleted once. With
Bob's invoices something is wrong: the shop is alerted, a person mends it and has the dead job tried again, and Bob gets his mail, too.
It needs aiosmtpd.
"""

from __future__ import annotations

import asyncio
import email
import os
import shutil
import smtplib
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from email import policy
from email.message import EmailMessage
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiosmtpd.smtp import SMTP

from offload import Batch, Offload, Retry, current

app = Offload()

TABLES = ("comments", "sessions")
FOLDERS = ("avatars", "invoices")
FILES = Retry(max_retries=3, initial=0.2)  # seconds instead of minutes in both, for somebody is watching
MAIL = Retry(max_retries=20, initial=1, maximum=60, on=(OSError,))

# --- tasks: each may run twice, also when it was killed in the middle ---------------------------------------------------------------


@app.task
def delete_rows(table: str, user_id: int) -> int:
    """A thousand at a time, so that nobody else waits long for the table. The second run deletes what the first one left, or nothing."""
    deleted = 0
    with database() as shop:
        while count := shop.execute(
            f"delete from {table} where rowid in (select rowid from {table} where user_id = ? limit 1000)", [user_id]
        ).rowcount:
            shop.commit()
            deleted += count
    return deleted


@app.task
def forget_buyer(user_id: int) -> None:
    """Orders must be kept for ten years, by law; whose they are need not. It says what should be, so it may be said again."""
    with database() as shop:
        shop.execute("update orders set user_id = null, address = null where user_id = ?", [user_id])
        shop.commit()


@app.task(retry=FILES)
def delete_folder(kind: str, user_id: int) -> None:
    """A folder that is gone is what we want."""
    folder = place() / kind / str(user_id)
    if folder.exists():
        shutil.rmtree(folder)


@app.task(retry=MAIL, timeout=30)
def say_goodbye(user_id: int) -> None:
    """All else is gone. The row that knows the address goes last, after the mail, so that no address has to lie in the queue."""
    with database() as shop:
        for (address,) in shop.execute("select email from users where id = ?", [user_id]).fetchall():
            send(address, "Your account is deleted", "All that we knew of you is gone. Goodbye!")
            shop.execute("delete from users where id = ?", [user_id])
            shop.commit()


@app.task(retry=MAIL, timeout=30)
def alert(user_id: int) -> None:
    """The law gives us a month, so a person must look."""
    dead = app.find(batch=current.batch.id, state="dead")
    said = [f"{job.task} {job.id}: {job.errors[-1].type}: {job.errors[-1].message}" for job in dead]
    send("operators@shop.example", f"Account {user_id} could not be deleted", "\n".join(["Look at, then retry:", *said]))


# --- the batch ----------------------------------------------------------------------------------------------------------------------


def delete_account(user_id: int) -> Batch:
    """Safe to call twice, for all ids are made from the user's: the second time finds all of it there already."""
    with database() as shop:
        shop.execute("update users set closed = true where id = ?", [user_id])  # at once: nobody can sign in, and add more
        shop.commit()
    name = f"delete-account-{user_id}"
    with app.batch(name, id=name, on_success=say_goodbye.job(user_id), on_failure=alert.job(user_id)) as batch:
        for table in TABLES:
            batch.add(delete_rows.using(id=f"{name}-{table}").job(table, user_id))
        for kind in FOLDERS:
            batch.add(delete_folder.using(id=f"{name}-{kind}").job(kind, user_id))
        batch.add(forget_buyer.using(id=f"{name}-orders").job(user_id))
    return batch


# --- the shop -----------------------------------------------------------------------------------------------------------------------


def place() -> Path:
    return Path(os.environ["SHOP"])


def database() -> Any:
    return closing(sqlite3.connect(place() / "shop.db", timeout=30))


def send(to: str, subject: str, text: str) -> None:
    """The Message-ID is the same in every attempt: should a mail go out twice, mail programs can tell."""
    mail = EmailMessage()
    mail["Message-ID"] = f"<{current.job.id}@shop.example>"
    mail["From"], mail["To"], mail["Subject"] = "shop@shop.example", to, subject
    mail.set_content(text)
    with smtplib.SMTP("127.0.0.1", int(os.environ["SMTP_PORT"]), local_hostname="localhost", timeout=10) as server:
        server.send_message(mail)


def stock() -> None:
    """A shop with two customers, who have done a lot."""
    with database() as shop:
        shop.executescript("""
            create table users (id integer primary key, email text, closed boolean default false);
            create table comments (user_id integer, text text);
            create table sessions (user_id integer, token text);
            create table orders (id integer primary key, user_id integer, address text, cents integer);
        """)
        for id, name in enumerate(("ada", "bob"), 1):
            shop.execute("insert into users (id, email) values (?, ?)", [id, f"{name}@example.com"])
            shop.executemany("insert into comments values (?, ?)", [(id, f"comment {n} of {name}") for n in range(2_500)])
            shop.executemany("insert into sessions values (?, ?)", [(id, f"{name}-{n}") for n in range(3)])
            shop.executemany("insert into orders (user_id, address, cents) values (?, ?, ?)", [(id, f"{name}'s street", 4_900)] * 2)
            for kind in FOLDERS:
                folder = place() / kind / str(id)
                folder.mkdir(parents=True)
                for n in range(3):
                    (folder / f"{n}.txt").write_text(f"{kind} of {name}")
        shop.commit()


def left_of(user_id: int) -> str:
    counts = {f"{kind} files": len([*(place() / kind / str(user_id)).glob("*")]) for kind in FOLDERS}
    with database() as shop:
        for table in (*TABLES, "orders", "users"):
            column = "id" if table == "users" else "user_id"
            counts[table] = shop.execute(f"select count(*) from {table} where {column} = ?", [user_id]).fetchone()[0]
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing"


# --- a mail server, in small --------------------------------------------------------------------------------------------------------


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: ARG002, N802 - aiosmtpd's name for the hook
        self.mails.append(email.message_from_bytes(envelope.content, policy=policy.default))
        return "250 OK"

    def awaited(self, to: str, subject: str) -> EmailMessage:
        return soon(lambda: next((mail for mail in self.mails if (mail["To"], mail["Subject"]) == (to, subject)), None))


@contextmanager
def serving(mailbox: Mailbox) -> Iterator[int]:
    """Give the port at which mails arrive."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listening = loop.create_server(lambda: SMTP(mailbox, hostname="localhost", loop=loop), "127.0.0.1", 0)
    server = asyncio.run_coroutine_threadsafe(listening, loop).result()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def soon(look: Callable[[], Any]) -> Any:
    """What `look` sees, once it sees something."""
    deadline = time.monotonic() + 60
    while not (seen := look()):
        if time.monotonic() > deadline:
            sys.exit("this is not what the example promises")
        time.sleep(0.05)
    return seen


# --- the play -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def worker() -> Iterator[None]:
    command = [sys.executable, "-m", "offload", "worker", "account_deletion:app", "--log-level", "error"]
    here = {"OFFLOAD_URL": app.url, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env={**os.environ, **here})
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def play(mailbox: Mailbox) -> None:
    stock()
    print(f"Ada, before: {left_of(1)}")
    first, again = delete_account(1), delete_account(1)
    print(f"Ada asked twice: {again.progress().total} jobs")
    mailbox.awaited("ada@example.com", "Your account is deleted")
    soon(lambda: left_of(1) == "nothing")
    print(f"Ada has her mail; left of her: {left_of(1)}; the batch {first.progress().state}")

    blocked = place() / "invoices" / "2"
    shutil.rmtree(blocked)
    blocked.write_text("somebody has saved a file where the folder should be")
    second = delete_account(2)
    warned = mailbox.awaited("operators@shop.example", "Account 2 could not be deleted")
    print(f"the operators read: {warned.get_content().splitlines()[1]}")
    print(f"left of Bob, while it is so: {soon(lambda: second.progress().dead and left_of(2))}; mails to him: {len(mailbox.mails) - 2}")
    blocked.unlink()
    app.retry([job.id for job in app.find(batch=second.id, state="dead")])
    mailbox.awaited("bob@example.com", "Your account is deleted")
    soon(lambda: left_of(2) == "nothing")
    print(f"mended, and Bob has his mail; left of him: {left_of(2)}; the batch {second.progress().state}")

    with database() as shop:
        orders = shop.execute("select count(*), count(user_id), count(address), sum(cents) from orders").fetchone()
    print(f"{len(mailbox.mails)} mails; {orders[0]} orders are kept, {orders[1]} with a buyer, {orders[2]} with an address")
    if (len(mailbox.mails), *orders) != (3, 4, 0, 0, 4 * 4_900):
        sys.exit("this is not what the example promises")


if __name__ == "__main__":
    box = Mailbox()
    with TemporaryDirectory() as made, serving(box) as port, app.testing(f"sqlite:///{made}/offload.db"):  # it leaves nothing behind
        os.environ |= {"SHOP": made, "SMTP_PORT": str(port)}
        with worker():
            play(box)
