"""The demo: its tasks with the testing kit, its site by HTTP, and all of it by the real command."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from starlette.testclient import TestClient

from offload import Offload, Record, State
from offload.demo import main, pictures, report, tasks
from offload.demo.client import Visitor
from offload.demo.data import Data
from offload.demo.diary import Diary
from offload.demo.mail import MailServer
from offload.demo.performance import command
from offload.demo.place import FOLDER, Place
from offload.demo.ports import free_port
from offload.demo.site import web_site

PASSWORD = "correct horse"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def offload_app() -> Offload:
    return tasks.app


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path, "http://127.0.0.1:1", free_port())
    place.prepare()
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tasks, "_enqueued", set[str]())
    return place


@pytest.fixture
def data(place: Place) -> Iterator[Data]:
    data = Data(place.database)
    yield data
    data.close()


@pytest.fixture
async def mail_server(place: Place) -> AsyncIterator[MailServer]:
    server = MailServer(place.mails, place.smtp_port, place.diary)
    await server.up()
    yield server
    server.down()


@pytest.fixture
def site(place: Place, data: Data, offload_rehearsal: object) -> Iterator[TestClient]:
    server = MailServer(place.mails, place.smtp_port, place.diary)
    with TestClient(web_site(place, data, server), base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


class TestMail:
    pytestmark = pytest.mark.anyio

    async def test_arrives_by_smtp_with_the_job_in_its_message_id(
        self, data: Data, mail_server: MailServer, place: Place, adrain: Callable[[], Awaitable[int]]
    ) -> None:
        user = data.sign_up("ada@example.org", PASSWORD)
        data.put_token(user.id, "verify", "sesame", 60)
        await tasks.send_verification.using(id="verify-1").aenqueue(user.id)
        assert await adrain() == 1
        [mail] = mail_server.mails
        assert (mail.to, mail.message_id) == ("ada@example.org", "<verify-1@demo.example>")
        assert "http://127.0.0.1:1/verify?token=sesame" in mail.text
        assert (place.mails / "0001.eml").exists()

    async def test_an_earlier_attempt_sent_is_not_sent_again(
        self, data: Data, mail_server: MailServer, adrain: Callable[[], Awaitable[int]]
    ) -> None:
        user = data.sign_up("ada@example.org", PASSWORD)
        data.mark_sent("<welcome-1@demo.example>")
        handle = await tasks.send_welcome.using(id="welcome-1").aenqueue(user.id)
        await adrain()
        assert await handle.aresult(timeout=0) == "<welcome-1@demo.example>"
        assert mail_server.mails == []

    async def test_waits_as_a_job_while_the_server_is_down(
        self, data: Data, mail_server: MailServer, adrain: Callable[[], Awaitable[int]], aadvance: Callable[[float], Awaitable[int]]
    ) -> None:
        mail_server.down()
        handle = await tasks.send_welcome.aenqueue(data.sign_up("ada@example.org", PASSWORD).id)
        await adrain()
        record = await handle.arecord()
        assert (record.state, record.errors[0].type) == (State.SCHEDULED, "ConnectionRefusedError")
        await mail_server.up()
        await aadvance(2)
        assert len(mail_server.mails) == 1

    async def test_of_a_code_that_has_expired_meanwhile_is_cancelled(self, data: Data, adrain: Callable[[], Awaitable[int]]) -> None:
        user = data.sign_up("ada@example.org", PASSWORD)
        data.put_token(user.id, "reset", "123456", lasts=-1)
        handle = await tasks.send_reset_code.aenqueue(user.id)
        await adrain()
        record = await handle.arecord()
        assert (record.state, record.reason) == (State.CANCELLED, "the code has expired")

    async def test_to_somebody_who_is_gone_is_dead_at_once(self, data: Data, adrain: Callable[[], Awaitable[int]]) -> None:
        handle = await tasks.send_welcome.aenqueue(7)
        await adrain()
        record = await handle.arecord()
        assert (record.state, record.reason, record.attempt) == (State.DEAD, "user 7 is gone", 1)

    def test_that_was_kept_is_there_again_after_a_restart(self, place: Place) -> None:
        (place.mails / "0001.eml").write_bytes(b"To: ada@example.org\r\nSubject: Hello\r\nMessage-ID: <1@x>\r\n\r\nText\r\n")
        [mail] = MailServer(place.mails, place.smtp_port, place.diary).mails
        assert (mail.number, mail.to, mail.subject, mail.message_id) == (1, "ada@example.org", "Hello", "<1@x>")


class TestTidying:
    def test_takes_orphans_and_what_expired_and_leaves_the_rest(
        self, data: Data, place: Place, drain: Callable[[], int], enqueued: Callable[..., list[Record]]
    ) -> None:
        user = data.sign_up("ada@example.org", PASSWORD)
        for person in (user.id, 901):
            data.start_session(person)
        data.put_token(user.id, "verify", "good", 60)
        data.put_token(user.id, "reset", "old", lasts=-1)
        tasks.tidy_up.enqueue()
        assert drain() == 1
        assert (data.count("sessions"), data.token(user.id, "verify"), data.count("tokens")) == (1, "good", 1)
        assert [entry.text for entry in place.diary.read()[0]] == ["deleted 1 orphan sessions and 1 expired tokens"]

    def test_is_a_schedule_of_every_five_seconds(self, offload_app: Offload) -> None:
        assert offload_app.declared["tidy_up"].cron == "*/5 * * * * *"


class TestPictures:
    @pytest.fixture
    def picture(self, tmp_path: Path) -> Path:
        path = tmp_path / "picture.png"
        Image.new("RGBA", (2000, 1000), "teal").save(path)
        return path

    @pytest.mark.parametrize(("size", "expected"), [("small", (160, 80)), ("medium", (480, 240)), ("large", (1600, 800))])
    def test_become_thumbnails_of_their_shape(self, picture: Path, size: str, expected: tuple[int, int]) -> None:
        target = picture.with_name("thumbnail.jpg")
        seen = list[float]()
        assert pictures.thumbnail(picture, target, size, lambda fraction, _: seen.append(fraction)) == expected
        with Image.open(target) as thumbnail:
            assert thumbnail.size == expected
        assert all(0 < fraction <= 1 for fraction in seen)
        assert seen == sorted(seen)

    def test_are_never_made_larger(self) -> None:
        assert pictures.fitted((100, 50), 160) == (100, 50)
        assert pictures.fitted((10_000, 1), 160) == (160, 1)

    def test_leave_no_half_thumbnail_when_the_work_is_broken_off(self, picture: Path) -> None:
        def breaks(fraction: float, message: str) -> None:
            raise InterruptedError(message)

        target = picture.with_name("thumbnail.jpg")
        with pytest.raises(InterruptedError):
            pictures.thumbnail(picture, target, "large", breaks)
        assert not target.exists()

    @pytest.mark.process
    def test_are_made_in_child_processes_and_what_is_no_picture_is_dead(
        self, place: Place, picture: Path, drain: Callable[[], int], enqueued: Callable[..., list[Record]]
    ) -> None:
        place.upload(1).write_bytes(picture.read_bytes())
        place.upload(2).write_bytes(b"not a picture")
        good, bad = tasks.make_thumbnail.enqueue(1, "small"), tasks.make_thumbnail.enqueue(2, "small")
        drain()
        assert good.result(timeout=0) == (160, 80)
        assert place.thumbnail(1, "small").exists()
        assert (bad.record().state, bad.record().reason) == (State.DEAD, "this is no picture")


class TestReport:
    def test_has_its_pages_and_tells_how_far_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(report, "PAUSE", 0.0)
        seen = list[float]()
        pages = [report.Page("Title", ["a → b"]), *report.listed("Many", [f"line {number}" for number in range(report.LINES + 1)])]
        report.draw(tmp_path / "report.pdf", pages, lambda fraction, _: seen.append(fraction))
        pdf = (tmp_path / "report.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == len(pages) == 3
        assert seen == [0, 1 / 3, 2 / 3]

    def test_of_nothing_says_so(self) -> None:
        assert [page.lines for page in report.listed("People", [])] == [["(none yet)"]]


class TestSite:
    def sign_up(self, site: TestClient, email: str = "ada@example.org") -> Any:
        return site.post("/signup", data={"email": email, "password": PASSWORD})

    def test_answers_201_while_no_worker_and_no_mail_server_is_there(self, site: TestClient, enqueued: Callable[..., list[Record]]) -> None:
        assert self.sign_up(site).status_code == 201
        [job] = enqueued(tasks.send_verification)
        assert (job.id, job.state) == ("verify-1", State.READY)

    def test_takes_a_form_sent_twice_as_one(self, site: TestClient, data: Data, enqueued: Callable[..., list[Record]]) -> None:
        assert [self.sign_up(site).status_code for _ in range(2)] == [201, 201]
        assert data.count("users") == len(enqueued(tasks.send_verification)) == 1

    def test_welcomes_once_who_follows_the_link_twice(self, site: TestClient, data: Data, enqueued: Callable[..., list[Record]]) -> None:
        self.sign_up(site)
        token = data.token(1, "verify")
        assert [site.get("/verify", params={"token": token}).status_code for _ in range(2)] == [303, 303]
        assert len(enqueued(tasks.send_welcome)) == 1
        assert [user.verified for user in data.users()] == [True]
        assert site.get("/verify?token=guessed").status_code == 400

    def test_says_once_that_a_welcome_was_enqueued(self, site: TestClient, data: Data, place: Place) -> None:
        self.sign_up(site)
        for _ in range(2):
            site.get("/verify", params={"token": data.token(1, "verify")})
        assert [entry.text for entry in place.diary.read()[0]].count("send_welcome welcome-1 enqueued") == 1

    def test_lets_a_code_be_used_once_and_puts_its_mail_first(
        self, site: TestClient, data: Data, enqueued: Callable[..., list[Record]]
    ) -> None:
        self.sign_up(site)
        assert site.post("/reset", data={"email": "ada@example.org"}).status_code == 202
        [job] = enqueued(tasks.send_reset_code)
        assert job.priority == 50
        assert job.expires_at is not None
        form = {"email": "ada@example.org", "code": data.token(1, "reset"), "password": "another one"}
        assert [site.post("/reset/confirm", data=form).status_code for _ in range(2)] == [200, 400]

    def test_tells_nobody_who_signed_up(self, site: TestClient, enqueued: Callable[..., list[Record]]) -> None:
        self.sign_up(site)
        known, unknown = (site.post("/reset", data={"email": f"{name}@example.org"}) for name in ("ada", "nobody"))
        assert (known.status_code, known.text) == (unknown.status_code, unknown.text)
        assert len(enqueued(tasks.send_reset_code)) == 1

    def test_enqueues_three_thumbnails_for_a_picture(self, site: TestClient, place: Place, enqueued: Callable[..., list[Record]]) -> None:
        assert site.post("/pictures", files={"picture": ("../../a.png", b"content")}).status_code == 201
        assert {job.id for job in enqueued()} == {"thumbnail-1-small", "thumbnail-1-medium", "thumbnail-1-large"}
        assert place.upload(1).read_bytes() == b"content"
        assert site.get("/pictures/1/small.jpg").status_code == 404
        assert site.get("/pictures/1/other.jpg").status_code == 404

    def test_answers_202_and_where_to_ask_for_a_report(self, site: TestClient, place: Place) -> None:
        ordered = site.post("/reports")
        assert (ordered.status_code, ordered.headers["location"]) == (202, "/reports/1")
        assert site.get("/reports/1").json() | {"worker": None} == {
            "state": "READY", "progress": 0.0, "message": "", "attempt": 0, "crashes": 0, "worker": None, "pdf": None,
        }  # fmt: skip
        assert site.get("/reports/1.pdf").status_code == 404
        place.report(1).write_bytes(b"%PDF")
        assert site.get(site.get("/reports/1").json()["pdf"]).content == b"%PDF"
        assert site.get("/reports/2").status_code == 404

    @pytest.mark.parametrize(
        ("path", "form", "status", "said"),
        [
            ("/signup", {"email": "nonsense", "password": PASSWORD}, 400, "no mail address"),
            ("/signup", {"email": "a@b.c\nBcc: x@y.z", "password": PASSWORD}, 400, "no mail address"),
            ("/signup", {"email": "a@b.c", "password": "short"}, 400, "at least 8"),
            ("/pictures", {}, 400, "choose a picture"),
            ("/mailserver", {"state": "sideways"}, 400, "up or down"),
            ("/workers/1/kill", {}, 404, "no worker process 1"),
            ("/users/7/delete", {}, 404, "no user 7"),
        ],
    )
    def test_says_what_is_wrong(self, site: TestClient, path: str, form: dict[str, str], status: int, said: str) -> None:
        answer = site.post(path, data=form)
        assert answer.status_code == status
        assert said in answer.json()["error"]

    def test_shows_its_state_and_its_page(self, site: TestClient) -> None:
        self.sign_up(site)
        site.post("/pictures", files={"picture": ("a.png", b"content")})
        state = site.get("/state").json()
        assert [user["email"] for user in state["users"]] == ["ada@example.org"]
        assert [thumbnail["state"] for thumbnail in state["pictures"][0]["thumbnails"]] == ["READY"] * 3
        assert state["queues"]["pictures"] == {"READY": 3}
        assert any("POST /signup: 201" in event["text"] for event in state["events"])
        assert "<title>Offload demo</title>" in site.get("/").text

    def test_answers_to_its_own_name_only(self, site: TestClient) -> None:
        assert site.get("/state", headers={"host": "evil.example"}).status_code == 400


class TestDiary:
    def test_is_read_on_from_where_one_stopped(self, tmp_path: Path) -> None:
        diary = Diary(tmp_path / "diary.jsonl")
        assert diary.read() == ([], 0)
        diary.note("web", "first")
        entries, place = diary.read()
        diary.note("job", "second", bad=True)
        with (tmp_path / "diary.jsonl").open("ab") as file:
            file.write(b'{"at": 1, "half a li')
        [more], _ = diary.read(place)
        assert [entry.text for entry in entries] == ["first"]
        assert (more.kind, more.text, more.bad) == ("job", "second", True)


class TestStarting:
    def test_shows_a_command_that_works_from_here(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
        monkeypatch.chdir(tmp_path)
        assert command() == f"{tmp_path}/.venv/bin/python -m offload"
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/offload").touch()
        assert command() == ".venv/bin/offload"
        monkeypatch.chdir("/")
        assert command().endswith("/.venv/bin/offload")
        monkeypatch.setenv("PATH", f"{tmp_path}/.venv/bin:/bin")
        assert command() == "offload"

    def test_a_used_port_is_explained(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert main(port=port, folder=tmp_path) == 1
        assert f"port {port} cannot be used" in capsys.readouterr().err

    def test_the_account_is_not_mixed_with_an_earlier_demo(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "site.db").touch()
        assert main(once=True, port=0, folder=tmp_path) == 1
        assert "starts from nothing" in capsys.readouterr().err

    def test_missing_packages_are_named_with_the_extra(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("offload.demo.PACKAGES", ("starlette", "no_such_package"))
        assert main() == 1
        assert "(no_such_package)" in (said := capsys.readouterr().err)
        assert "pip install '.[demo]'" in said

    def test_tasks_outside_of_a_demo_say_what_they_need(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(FOLDER, raising=False)
        with pytest.raises(LookupError, match="offload demo"):
            Place.from_environment()


def processes_of(folder: Path) -> list[int]:
    """The processes that found this demo's folder in their environment."""

    def belongs(process: psutil.Process) -> bool:
        try:
            return process.environ().get(FOLDER) == str(folder)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False

    return [process.pid for process in psutil.process_iter() if belongs(process)]


@pytest.mark.process
class TestCommand:
    def test_once_plays_it_all_and_every_check_holds(self, tmp_path: Path) -> None:
        folder = tmp_path / "demo"
        ran = subprocess.run(
            [sys.executable, "-m", "offload", "demo", "--once", "--port", "0", "--folder", folder],
            capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert re.search(r"All \d+ checks hold", ran.stdout)
        assert "✗" not in ran.stdout
        for shown in ("10 mails, 10 Message-IDs, 10 files", "crashes: 1", "large 1600×1200", "8 sessions → 5", "SIGKILL"):
            assert shown in ran.stdout
        assert processes_of(folder) == []

    def test_a_temporary_folder_is_deleted_and_that_is_said(self, tmp_path: Path) -> None:
        demo = subprocess.Popen(
            [sys.executable, "-m", "offload", "demo", "--port", "0"],
            env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert demo.stdout is not None
            assert any("at work" in line for line in demo.stdout)
            demo.send_signal(signal.SIGINT)
            said, _ = demo.communicate(timeout=30)
        finally:
            demo.kill()
            demo.communicate()
        assert demo.returncode == 0
        assert re.search(r"offload-demo-\S+ is deleted with all that was in it", said)
        assert list(tmp_path.glob("offload-demo-*")) == []

    @pytest.mark.anyio
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    async def test_nothing_is_left_behind(self, tmp_path: Path, number: signal.Signals, eventually: Callable[..., Awaitable[Any]]) -> None:
        folder, port = tmp_path / "demo", free_port()
        visitor = Visitor(f"http://127.0.0.1:{port}")
        command = [sys.executable, "-m", "offload", "demo", "--port", str(port), "--folder", str(folder)]
        demo = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)

        async def two_workers() -> bool:
            try:
                return len((await visitor.get("/state")).json()["workers"]) == 2
            except OSError:
                return False

        try:
            await eventually(two_workers, within=30)
            assert len(processes_of(folder)) >= 3
            demo.send_signal(number)
            output, _ = await demo.communicate()
            assert (f"All is kept in {folder}" in output.decode()) == (number == signal.SIGINT)
            assert demo.returncode == (0 if number == signal.SIGINT else -number), output.decode()
            await eventually(lambda: not processes_of(folder), within=20)
            socket.create_server(("127.0.0.1", port)).close()  # raises where somebody still listens
        finally:
            if demo.returncode is None:
                demo.kill()
                await demo.communicate()
