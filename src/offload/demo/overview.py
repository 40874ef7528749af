"""What the page shows: the state of the site, its mails, its jobs and its workers, as one JSON document."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from offload import Record, State
from offload.demo.data import Data
from offload.demo.mail import MailServer
from offload.demo.pictures import LONGEST_SIDE
from offload.demo.place import Place
from offload.demo.tasks import app

NEWEST = 60


def thumbnail_job(picture: int, size: str) -> str:
    """The id of the job that makes a thumbnail. Chosen by us, so nothing need be stored to find it again."""
    return f"thumbnail-{picture}-{size}"


def report_job(report: int) -> str:
    """The id of the job that makes a report."""
    return f"report-{report}"


def standing(record: Record | None) -> dict[str, Any]:
    """How far a job is: its state, progress from 0 to 1, a word about it, and the counters of what it went through."""
    if record is None:  # records are kept for a day
        return {"state": "FORGOTTEN", "progress": 0.0, "message": ""}
    fraction, message = record.progress or (0.0, "")
    done = record.state is State.SUCCEEDED
    return {
        "state": record.state.value,
        "progress": 1.0 if done else fraction,
        "message": record.reason or ("" if done else message),
        "attempt": record.attempt,
        "crashes": record.crashes,
        "worker": record.worker,
    }


async def overview(place: Place, data: Data, mail_server: MailServer, killed: Collection[int]) -> dict[str, Any]:
    """Everything, read now. `killed` are the processes that were killed from the page, whose sessions live on for some seconds."""
    pictures, reports = await asyncio.to_thread(data.pictures), await asyncio.to_thread(data.reports)
    ids = [thumbnail_job(id, size) for id, _ in pictures for size in LONGEST_SIDE] + [report_job(id) for id in reports]
    records = await (await app.store()).get(ids)
    events, _ = await asyncio.to_thread(place.diary.read)
    return {
        "folder": str(place.folder),
        "mail_server": {"up": mail_server.is_up, "port": mail_server.port},
        "users": [user._asdict() for user in await asyncio.to_thread(data.users)],
        "sessions": await asyncio.to_thread(data.count, "sessions"),
        "tokens": await asyncio.to_thread(data.count, "tokens"),
        "mails": [mail._asdict() for mail in reversed(mail_server.mails)],
        "pictures": [_picture(place, id, name, records) for id, name in reversed(pictures)],
        "reports": [{"id": id, **report(place, id, records.get(report_job(id)))} for id in reversed(reports)],
        "workers": [
            {"pid": each.info.pid, "running": each.running, "beat": each.beat, "killed": each.info.pid in killed}
            for each in await app.aworkers()
        ],
        "queues": {queue: {state.value: number for state, number in states.items()} for queue, states in (await app.acounts()).items()},
        "events": [{"at": each.at, "kind": each.kind, "text": each.text, "bad": each.bad} for each in reversed(events[-NEWEST:])],
    }


def report(place: Place, id: int, record: Record | None) -> dict[str, Any]:
    """How far a report is, and where its PDF is once it is there."""
    return standing(record) | {"pdf": f"/reports/{id}.pdf" if place.report(id).exists() else None}


def _picture(place: Place, id: int, name: str, records: Mapping[str, Record]) -> dict[str, Any]:
    thumbnails = [
        {
            "size": size,
            "url": f"/pictures/{id}/{size}.jpg" if place.thumbnail(id, size).exists() else None,
            **standing(records.get(thumbnail_job(id, size))),
        }
        for size in LONGEST_SIDE
    ]
    return {"id": id, "name": name, "thumbnails": thumbnails}
