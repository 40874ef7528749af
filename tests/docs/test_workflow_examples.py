"""The examples of workflows and batches do what they say, run as a reader would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SOAK = bool(os.environ.get("OFFLOAD_SOAK"))

pytestmark = pytest.mark.process


def run(name: str, *arguments: str) -> tuple[str, str]:
    """What an example prints, and what its worker logs."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    environment = {each: value for each, value in os.environ.items() if each not in ("OFFLOAD_URL", "OFFLOAD_APP")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


FFMPEG = shutil.which("ffmpeg") or find_spec("imageio_ffmpeg") or os.environ.get("CI")  # CI must not skip it


@pytest.mark.skipif(not FFMPEG, reason="needs ffmpeg, or the package imageio-ffmpeg")
def test_a_lesson_is_encoded_then_gets_thumbnails_beside_speech_segments_and_is_published(tmp_path: Path) -> None:
    said, logged = run("video_pipeline.py", str(tmp_path))
    assert logged == ""
    order = re.findall(r"^(\w+) +[\d.]+ s  \S+$", said, re.MULTILINE)
    assert sorted(order) == ["encode", "encode", "publish", "still", "subtitles", "thumbnail", "thumbnail", "thumbnail"]
    assert (set(order[:2]), order[-1]) == ({"encode"}, "publish")
    assert order.index("still") < order.index("thumbnail")
    assert "workflow 'lesson fractions' succeeded: 8 succeeded" in said
    manifest = json.loads((tmp_path / "fractions.json").read_text())
    assert manifest["videos"] == ["fractions-360p.mp4", "fractions-180p.mp4"]
    assert all((tmp_path / video).read_bytes()[4:8] == b"ftyp" for video in manifest["videos"])
    sizes = []
    for name in manifest["thumbnails"]:
        with Image.open(tmp_path / name) as picture:
            sizes.append((picture.format, *picture.size))
    assert sizes == [("JPEG", 320, 180), ("JPEG", 160, 90), ("JPEG", 80, 45)]
    text = (tmp_path / manifest["speech_segments"]).read_text()
    assert text.startswith("WEBVTT - speech segments, not a transcript\n\n")
    cues = [seconds(clock) for clock in re.findall(r"\d\d:\d\d:\d\d\.\d{3}", text)]
    assert cues == pytest.approx([0.5, 2, 3, 4.5], abs=0.1)
    assert not list(tmp_path.glob("unfinished-*"))


def test_an_account_is_deleted_whole_and_whoever_asked_is_told_once() -> None:
    said, logged = run("account_deletion.py")
    lines = said.splitlines()
    assert lines[0] == "Ada, before: 3 avatars files, 3 invoices files, 2,500 comments, 3 sessions, 2 orders, 1 users"
    assert lines[1] == "Ada asked twice: 5 jobs"
    assert lines[2] == "Ada has her mail; left of her: nothing; the batch succeeded"
    assert lines[3].startswith("the operators read: account_deletion.delete_folder delete-account-2-invoices: NotADirectoryError: ")
    assert lines[4].endswith("mails to him: 0")
    assert lines[5] == "mended, and Bob has his mail; left of him: nothing; the batch succeeded"
    assert lines[6] == "3 mails; 4 orders are kept, 0 with a buyer, 0 with an address"
    assert "delete-account-2-invoices is dead: retries used up after 4 attempts" in logged


def test_every_user_gets_a_report_a_night_and_the_summary_tells_who_did_not() -> None:
    users = 10_000 if SOAK else 200
    said, _ = run("nightly_reports.py", str(users))
    assert re.search(rf"^reports-\d{{4}}-\d\d-\d\d failed after [\d.]+ s: {users - 1:,} succeeded, 1 dead$", said, re.MULTILINE)
    assert re.search(
        rf"^\d{{4}}-\d\d-\d\d: {users - 1:,} of {users:,} reports are made\nreport-[\d-]+-13: user 13 has no numbers$", said, re.MULTILINE
    )
    assert f"{users - 1:,} PDF files; the clock struck twice, and none was made again" in said
    assert said.endswith("1 batch, 1 summary\n")


def test_every_device_gets_its_push_once_through_a_provider_with_a_quota_and_moods() -> None:
    devices = 1_000 if SOAK else 300
    said, logged = run("push_notifications.py", str(devices))
    assert logged == ""
    assert f"the batch succeeded: {devices:,} succeeded" in said
    answers = {int(status): int(number.replace(",", "")) for status, number in re.findall(r"^  (\d{3}) +([\d,]+)", said, re.MULTILINE)}
    assert answers[200] >= devices
    assert answers[503] > 0 < answers[429]
    assert f"{devices:,} devices got their message, each 1 time" in said
