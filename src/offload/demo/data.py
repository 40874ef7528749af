"""The web site's own database, beside the queue's: people, their sessions and tokens, and which mails were sent."""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import threading
from pathlib import Path
from time import time
from typing import Any, Literal, NamedTuple, TypeAlias

SCHEMA = """
create table if not exists users (id integer primary key autoincrement, email text not null unique, password blob, verified_at real);
create table if not exists sessions (id text primary key, user_id integer not null, started_at real not null);
create table if not exists tokens (
    user_id integer not null, purpose text not null, value text not null, expires_at real not null, primary key (user_id, purpose)
);
create table if not exists sent (message_id text primary key, at real not null);
create table if not exists pictures (id integer primary key autoincrement, name text not null);
create table if not exists reports (id integer primary key autoincrement, asked_at real not null);
"""

Purpose: TypeAlias = Literal["verify", "reset"]


class User(NamedTuple):
    """A person who signed up."""

    id: int
    email: str
    verified: bool


class Tidied(NamedTuple):
    """How many rows `tidy` deleted."""

    sessions: int
    tokens: int


class Data:
    """One connection, used by any thread of this process, one at a time. Every statement is a transaction of its own."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._connection.execute("pragma journal_mode=wal")  # readers and the writer do not wait for each other
        self._connection.execute("pragma synchronous=normal")
        self._connection.executescript(SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    # -- people ------------------------------------------------------------------------------------------------------------

    def sign_up(self, email: str, password: str) -> User:
        """The person of that address, new or, where a form is sent twice, the same as before."""
        self._rows("insert into users (email, password) values (?, ?) on conflict do nothing", email, _hashed(password))
        [user] = self._users("where email = ?", email)
        return user

    def user(self, id: int) -> User | None:
        """The person of that id, None once they are gone."""
        return next(iter(self._users("where id = ?", id)), None)

    def user_of(self, email: str) -> User | None:
        """The person of that address."""
        return next(iter(self._users("where email = ?", email)), None)

    def users(self) -> list[User]:
        """Everyone, in the order in which they came."""
        return self._users("order by id")

    def delete_user(self, id: int) -> bool:
        """Delete a person. What hangs on them is left for `tidy`: not every path out of a real site cleans up behind itself."""
        return bool(self._rows("delete from users where id = ? returning id", id))

    def set_password(self, id: int, password: str) -> None:
        """Give a person a new password."""
        self._rows("update users set password = ? where id = ?", _hashed(password), id)

    def verify(self, token: str) -> User | None:
        """Mark the person verified whose token this is; again when the link is followed again. None for an unknown token."""
        rows = self._rows("select user_id from tokens where purpose = 'verify' and value = ? and expires_at > ?", token, time())
        if not rows:
            return None
        self._rows("update users set verified_at = coalesce(verified_at, ?) where id = ?", time(), rows[0][0])
        return self.user(rows[0][0])

    def _users(self, which: str, *values: object) -> list[User]:
        rows = self._rows(f"select id, email, verified_at is not null from users {which}", *values)  # noqa: S608 - `which` is ours
        return [User(id, email, bool(verified)) for id, email, verified in rows]

    # -- tokens and sessions -----------------------------------------------------------------------------------------------

    def put_token(self, user: int, purpose: Purpose, value: str, lasts: float) -> None:
        """Give a person a token that is good for `lasts` seconds, in place of the one before."""
        self._rows("insert or replace into tokens values (?, ?, ?, ?)", user, purpose, value, time() + lasts)

    def keep_token(self, user: int, purpose: Purpose, value: str, lasts: float) -> None:
        """The same, unless they have one."""
        self._rows("insert or ignore into tokens values (?, ?, ?, ?)", user, purpose, value, time() + lasts)

    def token(self, user: int, purpose: Purpose) -> str | None:
        """A person's token, None when there is none or it is too old."""
        rows = self._rows("select value from tokens where user_id = ? and purpose = ? and expires_at > ?", user, purpose, time())
        return rows[0][0] if rows else None

    def use_token(self, user: int, purpose: Purpose, value: str) -> bool:
        """Take a token away. True for the one caller who held it."""
        taken = "delete from tokens where user_id = ? and purpose = ? and value = ? and expires_at > ? returning 1"
        return bool(self._rows(taken, user, purpose, value, time()))

    def start_session(self, user: int) -> str:
        """A new session of a person; its secret goes into a cookie."""
        session = secrets.token_urlsafe(16)
        self._rows("insert into sessions (id, user_id, started_at) values (?, ?, ?)", session, user, time())
        return session

    def tidy(self) -> Tidied:
        """Delete the sessions of people who are gone, and tokens that are too old."""
        sessions = self._rows("delete from sessions where user_id not in (select id from users) returning id")
        tokens = self._rows("delete from tokens where expires_at <= ? returning user_id", time())
        return Tidied(len(sessions), len(tokens))

    def count(self, table: Literal["users", "sessions", "tokens", "sent", "pictures", "reports"]) -> int:
        """How many rows a table has."""
        return self._rows(f"select count(*) from {table}")[0][0]  # noqa: S608 - one of the names above

    # -- mails, pictures, reports ------------------------------------------------------------------------------------------

    def was_sent(self, message_id: str) -> bool:
        """Whether the mail server is known to have taken this mail."""
        return bool(self._rows("select 1 from sent where message_id = ?", message_id))

    def mark_sent(self, message_id: str) -> None:
        """Remember that the mail server took this mail."""
        self._rows("insert into sent (message_id, at) values (?, ?) on conflict do nothing", message_id, time())

    def add_picture(self, name: str) -> int:
        """The id of a new picture."""
        return self._rows("insert into pictures (name) values (?) returning id", name)[0][0]

    def pictures(self) -> list[tuple[int, str]]:
        """Id and name of every picture."""
        return self._rows("select id, name from pictures order by id")

    def add_report(self) -> int:
        """The id of a new report."""
        return self._rows("insert into reports (asked_at) values (?) returning id", time())[0][0]

    def reports(self) -> list[int]:
        """The ids of all reports."""
        return [id for (id,) in self._rows("select id from reports order by id")]

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()


def _hashed(password: str) -> bytes:
    salt = os.urandom(16)
    return salt + hashlib.scrypt(password.encode(), salt=salt, n=2**12, r=8, p=1)
