"""Every night a report for each user, as a PDF file, and a summary when all are made. One schedule, one batch a night.

    python examples/nightly_reports.py [USERS]

plays a night with 200 users, or as many as you say, in a moment: the schedule is run by hand, and then once more, as if the clock had
struck twice, which makes nothing twice. One user's numbers are broken; the summary says so. It needs reportlab.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

from offload import Discard, Offload, current

app = Offload()

BERLIN = "Europe/Berlin"

# --- tasks --------------------------------------------------------------------------------------------------------------------------


@app.cron("0 2 * * *", timezone=BERLIN)
@app.task(name="nightly", timeout=1800)
def nightly() -> int:
    """Open tonight's batch, and stream the users into it, as the database gives them: reports begin when the first thousand are there.

    Whatever ends an attempt of it (a deployment, a crash, the database), the next one goes on: the ids of batch and jobs say which night
    it is. So it opens and seals by itself. A `with` block would cancel the batch when an attempt fails.
    """
    tonight = (current.job.run_at or current.job.enqueued_at).astimezone(ZoneInfo(BERLIN)).date()
    batch = app.batch("reports", id=f"reports-{tonight}", on_complete=summary.job(tonight)).open()
    handles = batch.add_many(report.using(id=f"report-{tonight}-{id}").job(id, tonight) for id in users())
    batch.seal()
    return len(handles)


@app.task(name="report", isolation="process", timeout=60)
def report(user_id: int, night: date) -> None:
    """Made twice, it is the same file."""
    from reportlab.pdfgen.canvas import Canvas  # here, since only the child processes need it

    name, cents = account(user_id)
    target = reports(night) / f"{user_id}.pdf"
    unfinished = target.with_suffix(f".{os.getpid()}.part")
    page = Canvas(str(unfinished), invariant=True)
    page.drawString(72, 770, f"Report for {name}, {night}")
    for row, amount in enumerate(cents):
        page.drawRightString(200, 740 - 16 * row, f"{amount / 100:,.2f}")
    page.drawRightString(200, 732 - 16 * len(cents), f"Total {sum(cents) / 100:,.2f}")
    page.save()
    unfinished.replace(target)


@app.task(name="summary")
def summary(night: date) -> None:
    """Runs once all have ended, however they did."""
    tally = current.batch.progress()
    dead = app.find(batch=current.batch.id, state="dead", limit=20)
    lines = [f"{night}: {tally.succeeded:,} of {tally.total:,} reports are made", *(f"{job.id}: {job.reason}" for job in dead)]
    (reports(night) / "summary.txt").write_text("\n".join(lines))


# --- the company --------------------------------------------------------------------------------------------------------------------


def place() -> Path:
    return Path(os.environ["COMPANY"])


def reports(night: date) -> Path:
    folder = place() / f"{night}"
    folder.mkdir(exist_ok=True)
    return folder


def database() -> Any:
    return closing(sqlite3.connect(place() / "company.db", timeout=30))


def users() -> Iterator[int]:
    with database() as company:
        for (id,) in company.execute("select id from users order by id"):
            yield id


def account(user_id: int) -> tuple[str, list[int]]:
    with database() as company:
        name, cents = company.execute("select name, cents from users where id = ?", [user_id]).fetchone()
    if not cents:
        raise Discard(f"user {user_id} has no numbers")  # a retry would bring none
    return name, [int(each) for each in cents.split()]


def found(number: int) -> None:
    """A company with so many users, of whom the 13th has no numbers."""
    with database() as company:
        company.execute("create table users (id integer primary key, name text, cents text)")
        rows = ((id, f"user {id}", "" if id == 13 else f"{id * 100} {id * 7}") for id in range(1, number + 1))
        company.executemany("insert into users values (?, ?, ?)", rows)
        company.commit()


# --- the play -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def worker() -> Iterator[None]:
    command = [sys.executable, "-m", "offload", "worker", "nightly_reports:app", "--log-level", "error"]
    here = {"OFFLOAD_URL": app.url, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env={**os.environ, **here})
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def soon(look: Callable[[], Any]) -> Any:
    """What `look` sees, once it sees something."""
    deadline = time.monotonic() + 60
    while not (seen := look()):
        if time.monotonic() > deadline:
            sys.exit("this is not what the example promises")
        time.sleep(0.05)
    return seen


def night() -> int:
    """Run the schedule; gives the number of users that it streamed."""
    soon(lambda: [known for known in app.schedules() if known.schedule.name == "nightly"])  # a worker brings it
    return soon(lambda: app.run_schedule_now("nightly")).result(timeout=600)


def play(number: int) -> None:
    found(number)
    with worker():
        began = time.monotonic()
        streamed = night()
        print(f"the schedule's job has streamed {streamed:,} users into the batch, after {time.monotonic() - began:.1f} s")
        [tally] = app.batches()
        batch = app.batch(id=tally.id)  # found again by its id
        while (tally := batch.progress()).finished_at is None:
            print(f"{batch.id}: {tally.told}")
            time.sleep(1)
        print(f"{batch.id} {tally.state} after {time.monotonic() - began:.1f} s: {tally.told}")
        path = soon(lambda: next(place().glob("*/summary.txt"), None))
        print(soon(path.read_text))

        made = {pdf.name: pdf.stat().st_mtime_ns for pdf in path.parent.glob("*.pdf")}
        night()
        again = {pdf.name: pdf.stat().st_mtime_ns for pdf in path.parent.glob("*.pdf")}
        print(f"{len(made):,} PDF files; the clock struck twice, and {'none' if again == made else 'some'} was made again")
    summaries = len(app.find(task="summary"))
    print(f"{len(app.batches())} batch, {summaries} summary")
    if (len(made), again, summaries, batch.progress().total) != (number - (number >= 13), made, 1, number):
        sys.exit("this is not what the example promises")


if __name__ == "__main__":
    with TemporaryDirectory() as made, app.testing(f"sqlite:///{made}/offload.db"):  # the play leaves nothing behind
        os.environ["COMPANY"] = made
        play(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
