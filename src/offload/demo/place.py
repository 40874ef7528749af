"""Where one demo lives: its folder and its addresses. The worker processes learn of it from their environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from offload.demo.diary import Diary

FOLDER, ADDRESS, SMTP_PORT = "OFFLOAD_DEMO_FOLDER", "OFFLOAD_DEMO_ADDRESS", "OFFLOAD_DEMO_SMTP_PORT"


@dataclass(frozen=True, slots=True)
class Place:
    """`folder` holds every file, `address` is the web site's, `smtp_port` the mail server's on the loopback interface."""

    folder: Path
    address: str
    smtp_port: int

    @classmethod
    def from_environment(cls) -> Self:
        """The place of the demo that started this process. Raises LookupError outside of one."""
        try:
            return cls(Path(os.environ[FOLDER]), os.environ[ADDRESS], int(os.environ[SMTP_PORT]))
        except KeyError as missing:
            raise LookupError(f"{missing} is not set: the demo's tasks run inside a demo, so start one with `offload demo`") from None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which other processes find this place; OFFLOAD_URL is the one that every `Offload()` reads."""
        return {
            "OFFLOAD_URL": f"sqlite:///{quote(str(self.folder / 'offload.db'))}",
            FOLDER: str(self.folder),
            ADDRESS: self.address,
            SMTP_PORT: str(self.smtp_port),
        }

    @property
    def database(self) -> Path:
        """The web site's own database. The queue's lies beside it, in a file of its own."""
        return self.folder / "site.db"

    @property
    def mails(self) -> Path:
        """The folder in which the mail server keeps what arrives."""
        return self.folder / "mails"

    @property
    def worker_log(self) -> Path:
        """What the worker processes write to standard error."""
        return self.folder / "worker.log"

    @property
    def diary(self) -> Diary:
        """What happened, told by every process of the demo."""
        return Diary(self.folder / "diary.jsonl")

    def upload(self, picture: int) -> Path:
        """The picture as it was uploaded."""
        return self.folder / "pictures" / f"{picture}.upload"

    def thumbnail(self, picture: int, size: str) -> Path:
        """One thumbnail of it."""
        return self.folder / "pictures" / f"{picture}-{size}.jpg"

    def report(self, report: int) -> Path:
        """A finished report."""
        return self.folder / "reports" / f"{report}.pdf"

    def enter(self) -> None:
        """Let this process find what the workers find: `app` in tasks.py reads OFFLOAD_URL when it is imported."""
        os.environ.update(self.environment)

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.mails, self.folder / "pictures", self.folder / "reports"):
            folder.mkdir(parents=True, exist_ok=True)
