"""A mail server for the demo: real SMTP on the loopback interface, which can be down, and keeps each mail as a file."""

from __future__ import annotations

import asyncio
import email
from email import policy
from pathlib import Path
from typing import NamedTuple, cast

from aiosmtpd.smtp import SMTP, Envelope, Session

from offload.demo.diary import Diary


class Mail(NamedTuple):
    """One mail that arrived. `number` counts from 1."""

    number: int
    to: str
    subject: str
    message_id: str
    text: str


class MailServer:
    """Nothing listens until `up`, and nothing again after `down`: connections are then refused, as by a machine that is off."""

    def __init__(self, folder: Path, port: int, diary: Diary) -> None:
        self.port = port
        self.mails = [_read(number, path.read_bytes()) for number, path in enumerate(sorted(folder.glob("*.eml")), 1)]
        self._folder = folder
        self._diary = diary
        self._server: asyncio.Server | None = None

    @property
    def is_up(self) -> bool:
        """Whether it accepts connections."""
        return self._server is not None

    async def up(self) -> None:
        """Listen. Raises OSError when another program has taken the port meanwhile."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(self._conversation, "127.0.0.1", self.port)
            self._diary.note("mail", f"the mail server is up, port {self.port}")

    def down(self) -> None:
        """Close the socket. Conversations under way may end, so that no mail is half accepted."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._diary.note("mail", "the mail server is down: connections are refused", bad=True)

    def _conversation(self) -> SMTP:
        return SMTP(self, enable_SMTPUTF8=True, hostname="localhost", loop=asyncio.get_running_loop())

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802 - aiosmtpd's name for the hook
        """Keep a mail; what this returns is the server's answer, and from then on the mail is ours."""
        content = cast(bytes, envelope.content)
        mail = _read(len(self.mails) + 1, content)
        self.mails.append(mail)
        await asyncio.to_thread((self._folder / f"{mail.number:04}.eml").write_bytes, content)
        self._diary.note("mail", f"arrived: “{mail.subject}” for {mail.to}")
        return "250 OK"


def _read(number: int, content: bytes) -> Mail:
    message = email.message_from_bytes(content, policy=policy.default)
    return Mail(number, str(message["To"]), str(message["Subject"]), str(message["Message-ID"]), str(message.get_content()))
