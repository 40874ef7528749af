"""The web site: takes a form, enqueues what is slow, answers at once."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from time import perf_counter

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from offload import JobNotFound
from offload.demo.data import Data
from offload.demo.mail import MailServer
from offload.demo.overview import overview, report, report_job, thumbnail_job
from offload.demo.pictures import LONGEST_SIDE
from offload.demo.place import Place
from offload.demo.tasks import CODE_LASTS, app, build_report, make_thumbnail, send_reset_code, send_verification, send_welcome

LINK_LASTS = 86_400.0
MOST_PICTURE_BYTES = 20 * 2**20
ADDRESS = re.compile(r"[^@\s<>,;:\"\\]{1,64}@[A-Za-z0-9.-]{1,190}")


def web_site(place: Place, data: Data, mail_server: MailServer) -> Starlette:
    """The site as an ASGI application."""
    pages = Pages(place, data, mail_server)
    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "/", pages.index),
        ("GET", "/state", pages.state),
        ("POST", "/signup", pages.sign_up),
        ("GET", "/verify", pages.verify),
        ("POST", "/reset", pages.reset),
        ("POST", "/reset/confirm", pages.confirm_reset),
        ("POST", "/users/{id:int}/delete", pages.delete_user),
        ("POST", "/pictures", pages.upload),
        ("GET", "/pictures/{id:int}/{size}.jpg", pages.thumbnail),
        ("POST", "/reports", pages.order_report),
        ("GET", "/reports/{id:int}.pdf", pages.report_pdf),
        ("GET", "/reports/{id:int}", pages.report),
        ("GET", "/mails/{number:int}", pages.mail),
        ("POST", "/mailserver", pages.switch_mail_server),
        ("POST", "/workers/{pid:int}/kill", pages.kill_worker),
    ]
    return Starlette(
        routes=[Route(path, endpoint, methods=[method]) for method, path, endpoint in routes],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]), Middleware(Timed, place=place)],
        exception_handlers={HTTPException: _problem},
    )


class Pages:
    """One method an address."""

    def __init__(self, place: Place, data: Data, mail_server: MailServer) -> None:
        self._place = place
        self._data = data
        self._mail_server = mail_server
        self._html = files("offload.demo").joinpath("page.html").read_text(encoding="utf-8")
        self._killed: set[int] = set()

    async def index(self, request: Request) -> Response:  # noqa: ARG002
        """The page."""
        return HTMLResponse(self._html)

    async def state(self, request: Request) -> Response:  # noqa: ARG002
        """What the page asks for again and again."""
        return JSONResponse(await overview(self._place, self._data, self._mail_server, self._killed))

    # -- people ------------------------------------------------------------------------------------------------------------

    async def sign_up(self, request: Request) -> Response:
        """201 at once, whether or not the mail server is up: the mail is a job.

        Two databases share no transaction, so the person is stored first. Should this process die before the job is enqueued, the
        visitor sends the form again, and nothing is done twice: the job's id is made from the person's.
        """
        form = await request.form()
        user = await asyncio.to_thread(self._data.sign_up, _address(form.get("email")), _password(form.get("password")))
        await asyncio.to_thread(self._data.keep_token, user.id, "verify", secrets.token_urlsafe(24), LINK_LASTS)
        await send_verification.using(id=f"verify-{user.id}").aenqueue(user.id)
        session = await asyncio.to_thread(self._data.start_session, user.id)
        answer = JSONResponse({"id": user.id, "email": user.email}, status_code=201)
        answer.set_cookie("session", session, httponly=True, samesite="lax")
        return answer

    async def verify(self, request: Request) -> Response:
        """Where the link in the mail leads. Followed twice, it welcomes once."""
        user = await asyncio.to_thread(self._data.verify, request.query_params.get("token", ""))
        if user is None:
            raise HTTPException(400, "this link is unknown or too old; sign up again to get a new one")
        await send_welcome.using(id=f"welcome-{user.id}").aenqueue(user.id)
        return RedirectResponse("/", status_code=303)

    async def reset(self, request: Request) -> Response:
        """The answer is the same for addresses that nobody signed up with, so that it tells nothing about people."""
        form = await request.form()
        user = await asyncio.to_thread(self._data.user_of, _address(form.get("email")))
        if user is not None:
            await asyncio.to_thread(self._data.put_token, user.id, "reset", f"{secrets.randbelow(10**6):06}", CODE_LASTS)
            await send_reset_code.aenqueue(user.id)
        return JSONResponse({"message": "if somebody signed up with this address, a code is on its way"}, status_code=202)

    async def confirm_reset(self, request: Request) -> Response:
        """A code works once."""
        form = await request.form()
        password = _password(form.get("password"))
        user = await asyncio.to_thread(self._data.user_of, _address(form.get("email")))
        if user is None or not await asyncio.to_thread(self._data.use_token, user.id, "reset", str(form.get("code", "")).strip()):
            raise HTTPException(400, "this code is unknown, used or too old; ask for another one")
        await asyncio.to_thread(self._data.set_password, user.id, password)
        return JSONResponse({"message": "the new password is set"})

    async def delete_user(self, request: Request) -> Response:
        """Leaves the person's sessions and tokens behind, for the schedule to find."""
        if not await asyncio.to_thread(self._data.delete_user, request.path_params["id"]):
            raise HTTPException(404, f"there is no user {request.path_params['id']}")
        return JSONResponse({"message": "deleted; the schedule removes what is left of them within 5 s"})

    # -- pictures and reports ----------------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        """The file is stored, and one batch of three jobs makes its thumbnails: all three are enqueued or none."""
        async with request.form(max_files=1) as form:
            file = form.get("picture")
            if not isinstance(file, UploadFile) or not file.size:
                raise HTTPException(400, "choose a picture to upload (a multipart form with a file named `picture`)")
            if file.size > MOST_PICTURE_BYTES:
                raise HTTPException(413, f"the picture has {file.size / 2**20:.0f} MiB; at most {MOST_PICTURE_BYTES >> 20} are taken")
            id = await asyncio.to_thread(self._data.add_picture, Path(file.filename or "picture").name)
            await asyncio.to_thread(_store, file, self._place.upload(id))
        await app.aenqueue_many(make_thumbnail.using(id=thumbnail_job(id, size)).job(id, size) for size in LONGEST_SIDE)
        return JSONResponse({"id": id}, status_code=201)

    async def thumbnail(self, request: Request) -> Response:
        """A thumbnail, once it is there."""
        size = request.path_params["size"]
        return _file(self._place.thumbnail(request.path_params["id"], size) if size in LONGEST_SIDE else None)

    async def order_report(self, request: Request) -> Response:  # noqa: ARG002
        """202 with the address at which to ask how far it is: the usual way for work that takes a while."""
        id = await asyncio.to_thread(self._data.add_report)
        await build_report.using(id=report_job(id)).aenqueue(id)
        return JSONResponse({"id": id}, status_code=202, headers={"Location": f"/reports/{id}"})

    async def report(self, request: Request) -> Response:
        """How far a report is."""
        id = request.path_params["id"]
        try:
            record = await app.handle(report_job(id)).arecord()
        except JobNotFound:
            if not self._place.report(id).exists():
                raise HTTPException(404, f"there is no report {id}") from None
            record = None
        return JSONResponse(report(self._place, id, record))

    async def report_pdf(self, request: Request) -> Response:
        """The report, once it is there."""
        return _file(self._place.report(request.path_params["id"]))

    # -- what a real site would not have -----------------------------------------------------------------------------------

    async def mail(self, request: Request) -> Response:
        """A mail that arrived, as it was written."""
        number = request.path_params["number"]
        if not 1 <= number <= len(self._mail_server.mails):
            raise HTTPException(404, f"there is no mail {number}")
        return PlainTextResponse(await asyncio.to_thread((self._place.mails / f"{number:04}.eml").read_bytes))

    async def switch_mail_server(self, request: Request) -> Response:
        """Down with `state=down`, up again with `state=up`."""
        match (await request.form()).get("state"):
            case "up":
                await self._mail_server.up()
            case "down":
                self._mail_server.down()
            case other:
                raise HTTPException(400, f"state must be up or down, not {other!r}")
        return JSONResponse({"up": self._mail_server.is_up})

    async def kill_worker(self, request: Request) -> Response:
        """SIGKILL to a worker process, as the machine does when memory runs out. Only to one that is alive and ours."""
        pid = request.path_params["pid"]
        if pid in self._killed or pid not in {each.info.pid for each in await app.aworkers()}:
            raise HTTPException(404, f"no worker process {pid} is alive")
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)
        self._place.diary.note("worker", f"worker process {pid} was killed with SIGKILL", bad=True)
        return JSONResponse({"message": f"process {pid} is killed; its jobs run again within 10 s"})


class Timed:
    """ASGI middleware that notes requests in the diary, with how long they took. Not the page's own polling."""

    def __init__(self, app: ASGIApp, place: Place) -> None:
        self._app = app
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or (scope["method"] == "GET" and scope["path"] != "/verify"):
            await self._app(scope, receive, send)
            return
        began = perf_counter()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = (perf_counter() - began) * 1000
                status = message["status"]
                self._place.diary.note("web", f"{scope['method']} {scope['path']}: {status} in {took:.0f} ms", bad=status >= 400)
            await send(message)

        await self._app(scope, receive, noting)


def _problem(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


def _address(given: object) -> str:
    if not isinstance(given, str) or not ADDRESS.fullmatch(given.strip()):
        raise HTTPException(400, f"{given!r} is no mail address; one looks like ada@example.org")
    return given.strip().lower()


def _password(given: object) -> str:
    if not isinstance(given, str) or len(given) < 8:
        raise HTTPException(400, "a password has at least 8 characters")
    return given


def _store(file: UploadFile, path: Path) -> None:
    with path.open("wb") as stored:
        shutil.copyfileobj(file.file, stored)


def _file(path: Path | None) -> Response:
    if path is None or not path.exists():
        raise HTTPException(404, "not there, or not there yet")
    return FileResponse(path)
