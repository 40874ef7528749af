"""The app of the demo and its tasks: all that the web site does not do while a visitor waits.

Arguments are ids: what a task needs to know it reads when it runs, so it is never stale, and no secret lies in the queue.
A task may run more than once (its worker may die), so each is written so that a second run does no harm; how is said where it matters.
"""

from __future__ import annotations

import smtplib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from offload import Cancel, Discard, Event, Offload, Retry, current
from offload.demo import letters
from offload.demo.data import Data, User
from offload.demo.letters import Letter
from offload.demo.place import Place


@dataclass(frozen=True, slots=True)
class Site:
    """What tasks share: opened once in each worker process and in each of its child processes."""

    place: Place
    data: Data


async def open_site(app: Offload) -> AsyncGenerator[Site]:  # noqa: ARG001 - what a lifespan is handed
    """The app's lifespan; tasks find what it yields as `current.state`."""
    place = Place.from_environment()
    data = Data(place.database)
    try:
        yield Site(place, data)
    finally:
        data.close()


# The engine comes from OFFLOAD_URL. Somebody is watching, so a worker is held for dead after 6 s instead of 15 s, and its jobs'
# progress, which travels with its heartbeats, comes twice a second.
app = Offload(lifespan=open_site, session_timeout=6, heartbeat=0.5)


def site() -> Site:
    """What the lifespan opened, with its type."""
    return current.state


# -- mail ------------------------------------------------------------------------------------------------------------------

# An OSError is a mail server that is away, slow or refuses (smtplib's own errors are OSErrors): it passes. Anything else is a bug,
# which no retry cures. Seconds instead of the minutes of the default, again because somebody is watching.
UNTIL_MAIL_IS_BACK = Retry(max_retries=50, initial=1, factor=1.5, maximum=5, on=(OSError,))
CODE_LASTS = 120.0


@app.task(name="send_verification", queue="mail", retry=UNTIL_MAIL_IS_BACK, timeout=30)
def send_verification(user_id: int) -> str:
    """Mail the link that proves an address. Returns the Message-ID."""
    user, token = _user(user_id), site().data.token(user_id, "verify")
    if token is None:
        raise Cancel("the link has expired")
    return _send_once(letters.verification(user.email, f"{site().place.address}/verify?token={token}"))


@app.task(name="send_welcome", queue="mail", retry=UNTIL_MAIL_IS_BACK, timeout=30)
def send_welcome(user_id: int) -> str:
    """Mail a welcome. Returns the Message-ID."""
    return _send_once(letters.welcome(_user(user_id).email, site().place.address))


# Somebody sits and waits for this one, so it goes before other mail; and if no worker starts it in time, it is never sent.
@app.task(name="send_reset_code", queue="mail", priority=50, expires_in=CODE_LASTS, retry=UNTIL_MAIL_IS_BACK, timeout=30)
def send_reset_code(user_id: int) -> str:
    """Mail a one-time code. Returns the Message-ID."""
    user, code = _user(user_id), site().data.token(user_id, "reset")
    if code is None:  # `expires_in` bounds the first start; after it retries are on their own
        raise Cancel("the code has expired")
    return _send_once(letters.reset_code(user.email, code, CODE_LASTS))


def _user(id: int) -> User:
    user = site().data.user(id)
    if user is None:
        raise Discard(f"user {id} is gone")  # no retry brings them back
    return user


def _send_once(letter: Letter) -> str:
    """Send a letter, unless an earlier attempt of this job did. Returns its Message-ID.

    Retries, crashes before the sending and crashes after `mark_sent` do not send it twice. What no client of SMTP can rule out, for
    SMTP knows no transactions: this process dies in the microseconds between the server's "250 OK" and `mark_sent`, that answer is
    lost on the way, or this machine stands still for so long that another worker was given the job. Then the mail goes out
    again; to mark it first would lose it instead. The second one can be recognised: its Message-ID is made from the job's id, which
    is the same in every attempt, and many mail servers and programs drop what they have seen.
    """
    message_id = f"<{current.job.id}@demo.example>"
    if not site().data.was_sent(message_id):
        with smtplib.SMTP("127.0.0.1", site().place.smtp_port, local_hostname="localhost", timeout=10) as server:
            server.send_message(letter.message(message_id))
            site().data.mark_sent(message_id)
    return message_id


# -- pictures and reports --------------------------------------------------------------------------------------------------
# Both keep a processor busy. In threads they would hold up every other job of the worker, and nothing could stop them; in
# child processes they use the other processors and can be killed. What only they need is imported there alone.


@app.task(name="make_thumbnail", queue="pictures", isolation="process", timeout=60)
def make_thumbnail(picture_id: int, size: str) -> tuple[int, int]:
    """Make one thumbnail of an uploaded picture. Returns its width and height. A second run writes the same file again."""
    from PIL import UnidentifiedImageError

    from offload.demo.pictures import thumbnail

    place = site().place
    target = place.thumbnail(picture_id, size)
    try:
        width, height = thumbnail(place.upload(picture_id), target, size, current.progress)
    except UnidentifiedImageError:
        raise Discard("this is no picture") from None
    place.diary.note("file", f"thumbnail {target.name}, {width}×{height}")
    return width, height


@app.task(name="build_report", queue="reports", isolation="process", timeout=120)
def build_report(report_id: int) -> int:
    """Make a PDF of what is in the site. Returns how many pages it has."""
    from offload.demo.report import Page, draw, listed

    place, data = site().place, site().data
    events, _ = place.diary.read()
    pages = [
        Page("The demo's report", [f"{data.count(table)} {table}" for table in ("users", "sessions", "pictures", "reports")]),
        *listed("People", [f"{user.id}   {user.email}   {'verified' if user.verified else 'not verified'}" for user in data.users()]),
        *(Page("Picture", [name], _existing(place, id)) for id, name in data.pictures()),
        *listed("What happened", [f"{event.kind}   {event.text}" for event in events[-200:]]),
    ]
    target = place.report(report_id)
    draw(target, pages, current.progress)
    place.diary.note("file", f"report {target.name}, {len(pages)} pages")
    return len(pages)


def _existing(place: Place, picture: int) -> Path | None:
    path = place.thumbnail(picture, "medium")
    return path if path.exists() else None


# -- every five seconds ----------------------------------------------------------------------------------------------------


@app.cron("*/5 * * * * *")  # with a sixth field the first one is seconds
@app.task(name="tidy_up", keep=60)
def tidy_up() -> None:
    """Delete orphan sessions and expired tokens. Whatever the number of workers, each tick runs once."""
    sessions, tokens = site().data.tidy()
    if sessions or tokens:
        site().place.diary.note("tidy", f"deleted {sessions} orphan sessions and {tokens} expired tokens")


# -- what the terminal and the page show -----------------------------------------------------------------------------------

_enqueued = set[str]()


@app.on("enqueued")
@app.on("started")
@app.on("succeeded")
@app.on("retrying")
@app.on("dead")
@app.on("cancelled")
@app.on("expired")
@app.on("rescued")
def tell(event: Event) -> None:
    """Write into the diary what becomes of jobs. "enqueued" is told by the web site's process, the others by the workers'."""
    if event.task == tidy_up.name:
        return  # twelve times a minute, and it tells of itself when it found something
    if event.name == "enqueued":
        if event.id in _enqueued:
            return  # told again when an id is enqueued again, which stores nothing
        _enqueued.add(event.id)
    attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
    match event.name:
        case "succeeded":
            text = f"succeeded in {event.seconds or 0:.2f} s{attempt}"
        case "retrying":
            text = f"failed{attempt}: {event.reason}; again in {event.delay or 0:.1f} s"
        case "rescued":
            text = "rescued: its worker died; ready to run again"
        case name:
            text = f"{name}{attempt}" + (f": {event.reason}" if event.reason else "")
    bad = event.name in {"retrying", "dead", "expired", "rescued"}
    Place.from_environment().diary.note("job", f"{event.task} {event.id} {text}", bad=bad)
