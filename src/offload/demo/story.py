"""The demo played by itself: visits the site, switches the mail server off, kills a worker, and checks what came of it."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from offload import OffloadError, Record, State
from offload.demo.client import Answer, Visitor
from offload.demo.mail import Mail
from offload.demo.overview import thumbnail_job
from offload.demo.pictures import LONGEST_SIDE, fitted, resized
from offload.demo.stage import Stage
from offload.demo.tasks import app
from offload.demo.workers import newest_lines

T = TypeVar("T")

EARLY, LATE = ("ada", "grace", "alan"), ("barbara", "edsger")
PEOPLE = len(EARLY) + len(LATE)
PASSWORD = "correct horse"  # noqa: S105 - nobody's
PICTURE = (4000, 3000)
LINK = re.compile(r"http://\S+(/verify\?token=\S+)")
CODE = re.compile(r"\b\d{6}\b")
VERIFY, WELCOME, RESET = "Please verify your address", "Welcome", "Your one-time code"


class Check(NamedTuple):
    """One thing that must hold, and what was observed."""

    what: str
    holds: bool
    observed: str


class NotSeen(Exception):
    """What the story waited for did not come."""


class Story:
    """One telling. The acts build on one another."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._visitor = Visitor(stage.place.address)
        self._expected: Counter[tuple[str, str]] = Counter()
        """How many mails of which subject each address is owed."""

    async def play(self) -> list[Check]:
        """Play all acts. One that fails is a check that does not hold, and the next is played all the same."""
        acts: list[tuple[str, Callable[[], Awaitable[list[Check]]]]] = [
            ("Two worker processes start", self._start),
            ("Three people sign up", self._sign_up),
            ("The mail server is down; two more sign up, one forgot her password", self._mail_server_down),
            ("The links in the mails are followed", self._verify),
            ("A picture is uploaded, and the worker that makes its large thumbnail is killed", self._kill),
            ("A report is ordered", self._report),
            ("The schedule tidies up", self._tidy),
            ("The mails are counted", self._count_mails),
        ]
        checks: list[Check] = []
        for title, act in acts:
            self._stage.terminal.say(f"\n[bold]{title}[/bold]")
            try:
                checks += await act()
            except (NotSeen, OffloadError, OSError) as error:
                checks.append(Check(title, False, f"{type(error).__name__}: {error}"))
        return checks

    # -- acts --------------------------------------------------------------------------------------------------------------

    async def _start(self) -> list[Check]:
        began = monotonic()
        pids = await self._until("two worker processes", self._two_workers)
        return [Check("two worker processes are at work", True, f"processes {_listed(pids)} after {monotonic() - began:.1f} s")]

    async def _sign_up(self) -> list[Check]:
        answers = [await self._signs_up(name) for name in EARLY]
        began = monotonic()
        await self._until("the verification mails", self._all_arrived)
        took = monotonic() - began
        return [
            Check("signing up answers 201 at once", all(answer.status == 201 for answer in answers), _milliseconds(answers)),
            Check("the verification mails arrive", True, f"{len(answers)} mails, the last {took:.2f} s later"),
        ]

    async def _mail_server_down(self) -> list[Check]:
        await self._visitor.post("/mailserver", state="down")
        answers = [await self._signs_up(name) for name in LATE]
        reset = await self._visitor.post("/reset", email=_address(EARLY[0]))
        self._expected[_address(EARLY[0]), RESET] += 1
        waiting = await self._until("three failed attempts to send", self._three_failed)
        before = len(self._stage.mail_server.mails)
        await self._visitor.post("/mailserver", state="up")
        began = monotonic()
        await self._until("the mails that could not be sent", self._all_arrived)
        took = monotonic() - began
        return [
            Check("signing up still answers 201", all(answer.status == 201 for answer in answers), _milliseconds(answers)),
            Check("a password reset answers 202", reset.status == 202, _milliseconds([reset])),
            Check("jobs wait while it is down", before == len(EARLY), f"{len(waiting)} jobs tried, {_errors(waiting)}; no mail arrived"),
            Check("their mails arrive when it is back", True, f"all {len(waiting)} within {took:.1f} s"),
            *await self._use_code(),
        ]

    async def _use_code(self) -> list[Check]:
        found = CODE.search(self._mail(EARLY[0], RESET).text)
        form = {"email": _address(EARLY[0]), "code": found[0] if found else "", "password": "a better password"}
        statuses = [(await self._visitor.post("/reset/confirm", **form)).status for _ in range(2)]
        return [Check("the one-time code works once", statuses == [200, 400], f"first use {statuses[0]}, second use {statuses[1]}")]

    async def _verify(self) -> list[Check]:
        verified = (*EARLY, LATE[0])  # the last one leaves the link alone: a token that must outlive the tidying
        for name in verified:
            found = LINK.search(self._mail(name, VERIFY).text)
            for _ in range(2):  # people click twice
                await self._visitor.get(found[1] if found else "/verify")
            self._expected[_address(name), WELCOME] += 1
        await self._until("the welcome mails", self._all_arrived)
        users = self._stage.data.users()
        marked = [user.email for user in users if user.verified]
        return [
            Check(
                "following the link verifies",
                marked == [_address(name) for name in verified],
                f"the {len(marked)} who followed it, and not the {len(users) - len(marked)} who did not",
            ),
            Check("and sends a welcome, once though it was followed twice", True, f"{len(verified)} welcome mails"),
        ]

    async def _kill(self) -> list[Check]:
        content = await asyncio.to_thread(_picture)
        uploaded = await self._visitor.upload("/pictures", "picture", "fractal.jpg", content)
        id = int(uploaded.json()["id"])
        job = thumbnail_job(id, "large")
        running = await self._until("the large thumbnail in the making", lambda: self._in_the_making(job))
        pid = int((running.worker or "").rpartition(":")[2])
        os.kill(pid, signal.SIGKILL)
        killed = app.clock.now()
        self._stage.place.diary.note("worker", f"worker process {pid}, which runs {job}, was killed with SIGKILL", bad=True)
        replaced = await self._until("a new worker process", lambda: self._two_workers(without=pid))
        for size in LONGEST_SIDE:
            await self._until(f"the {size} thumbnail", lambda size=size: self._succeeded(thumbnail_job(id, size)), 40)
        again = await app.handle(job).arecord()
        idle = ((again.started_at or killed) - killed).total_seconds()
        return [
            Check("an upload answers 201", uploaded.status == 201, f"{len(content) / 2**20:.1f} MiB, {_milliseconds([uploaded])}"),
            Check(
                "the worker of the large thumbnail was killed", pid not in replaced, f"process {pid}, when {_done(running):.0%} was done"
            ),
            Check("it was replaced", pid not in replaced, f"at work: processes {_listed(replaced)}"),
            Check("the killed job ran again", again.crashes == 1, f"crashes: {again.crashes}; started again {idle:.1f} s after the kill"),
            self._thumbnails(id),
        ]

    def _thumbnails(self, id: int) -> Check:
        sizes = dict[str, tuple[int, int]]()
        for size in LONGEST_SIDE:
            with Image.open(self._stage.place.thumbnail(id, size)) as thumbnail:
                thumbnail.load()  # a file that was cut short raises here
                sizes[size] = thumbnail.size
        wanted = {size: fitted(PICTURE, longest) for size, longest in LONGEST_SIDE.items()}
        observed = ", ".join(f"{size} {width}×{height}" for size, (width, height) in sizes.items())
        return Check("the thumbnails exist, in the right sizes", sizes == wanted, observed)

    async def _report(self) -> list[Check]:
        ordered = await self._visitor.post("/reports")
        location = ordered.headers.get("location", "")
        seen = set[float]()

        async def finished() -> dict[str, Any] | None:
            status = (await self._visitor.get(location)).json()
            seen.add(status["progress"])
            return status if status["pdf"] and status["state"] == State.SUCCEEDED else None

        status = await self._until("the report", finished)
        pdf = (await self._visitor.get(status["pdf"])).body
        pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
        between = sorted(round(fraction * 100) for fraction in seen if 0 < fraction < 1)
        return [
            Check(
                "a report answers 202 with an address", ordered.status == 202 and bool(location), f"{location}, {_milliseconds([ordered])}"
            ),
            Check("its progress is shown", bool(between), " % → ".join(map(str, between)) + " %"),
            Check("the PDF is there", pdf.startswith(b"%PDF") and pages > 1, f"{pages} pages, {len(pdf) / 1024:.0f} KiB"),
        ]

    async def _tidy(self) -> list[Check]:
        data = self._stage.data
        sessions, tokens = data.count("sessions"), data.count("tokens")
        for gone in (901, 902, 903):
            data.start_session(gone)
            data.put_token(gone, "reset", "000000", lasts=-1)
        await self._until("the schedule", self._tidied)
        left, good = data.count("sessions"), data.count("tokens")
        return [
            Check("orphan sessions are gone, the others stay", left == sessions == PEOPLE, f"{sessions + 3} sessions → {left}"),
            Check("expired tokens are gone, the others stay", good == tokens > 0, f"{tokens + 3} tokens → {good}"),
        ]

    async def _count_mails(self) -> list[Check]:
        await self._until("an end of all jobs of the queue mail", self._no_mail_left)
        mails = self._stage.mail_server.mails
        got = Counter((mail.to, mail.subject) for mail in mails)
        ids = {mail.message_id for mail in mails}
        files = len(list(self._stage.place.mails.glob("*.eml")))
        wrong = [f"{got[mail]} of {mail}" for mail in {*got, *self._expected} if got[mail] != self._expected[mail]]
        exactly = not wrong and len(ids) == files == len(mails)
        observed = "; ".join(wrong) or f"{len(mails)} mails, {len(ids)} Message-IDs, {files} files"
        return [Check("every mail arrived exactly once", exactly, observed)]

    # -- what is waited for ------------------------------------------------------------------------------------------------

    async def _until(self, what: str, condition: Callable[[], Awaitable[T | None]], seconds: float = 20) -> T:
        """The first answer of `condition` that is not None. Raises NotSeen after `seconds`, or when the worker command has ended."""
        deadline = monotonic() + seconds
        while (answer := await condition()) is None:
            if self._stage.worker.returncode is not None:
                raise NotSeen(f"{what}: the worker command ended with {self._stage.worker.returncode}\n{newest_lines(self._stage.place)}")
            if monotonic() > deadline:
                raise NotSeen(f"{what}: not within {seconds:g} s\n{newest_lines(self._stage.place)}")
            await asyncio.sleep(0.05)
        return answer

    async def _two_workers(self, without: int | None = None) -> list[int] | None:
        pids = [each.info.pid for each in await app.aworkers() if each.info.pid != without]
        return pids if len(pids) == 2 else None

    async def _all_arrived(self) -> int | None:
        return len(self._stage.mail_server.mails) if len(self._stage.mail_server.mails) >= self._expected.total() else None

    async def _three_failed(self) -> list[Record] | None:
        failed = [record for record in await app.afind(queue="mail", state=State.SCHEDULED) if record.errors]
        return failed if len(failed) == len(LATE) + 1 else None

    async def _in_the_making(self, job: str) -> Record | None:
        """The record once the job has told of progress, which travels with its worker's beats."""
        record = await app.handle(job).arecord()
        if record.state.terminal:
            raise NotSeen(f"{job}: it was {record.state} before it could be caught")
        return record if record.state is State.RUNNING and record.progress is not None else None

    async def _succeeded(self, job: str) -> Record | None:
        record = await app.handle(job).arecord()
        if record.state.terminal and record.state is not State.SUCCEEDED:
            raise NotSeen(f"{job}: it ended {record.state} ({record.reason})")
        return record if record.state is State.SUCCEEDED else None

    async def _tidied(self) -> bool | None:
        data = self._stage.data
        return True if data.count("sessions") <= PEOPLE and data.count("tokens") <= PEOPLE else None

    async def _no_mail_left(self) -> bool | None:
        states = (await app.acounts()).get("mail", {})
        return True if all(state.terminal for state in states) else None

    # -- what is done ------------------------------------------------------------------------------------------------------

    async def _signs_up(self, name: str) -> Answer:
        self._expected[_address(name), VERIFY] += 1
        return await self._visitor.post("/signup", email=_address(name), password=PASSWORD)

    def _mail(self, name: str, subject: str) -> Mail:
        found = [mail for mail in self._stage.mail_server.mails if (mail.to, mail.subject) == (_address(name), subject)]
        if not found:
            raise NotSeen(f"{subject!r} for {name}: no such mail")
        return found[0]


def _picture() -> bytes:
    """A real picture of twelve megapixels."""
    fractal = Image.effect_mandelbrot(PICTURE, (-1.6, -1.0, 0.55, 0.6), 60)
    gradient = Image.linear_gradient("L")
    file = io.BytesIO()
    Image.merge("RGB", (fractal, resized(gradient.rotate(90), PICTURE), resized(gradient, PICTURE))).save(file, "JPEG", quality=92)
    return file.getvalue()


def _address(name: str) -> str:
    return f"{name}@example.org"


def _milliseconds(answers: list[Answer]) -> str:
    return ", ".join(f"{answer.status} in {answer.milliseconds:.0f} ms" for answer in answers)


def _errors(records: list[Record]) -> str:
    return " and ".join(sorted({record.errors[-1].type for record in records}))


def _listed(pids: list[int]) -> str:
    return " and ".join(map(str, pids))


def _done(record: Record) -> float:
    return 0.0 if record.progress is None else record.progress.fraction
