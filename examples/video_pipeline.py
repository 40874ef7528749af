"""A lesson's way from the camera to the learners: encode it, then thumbnails beside subtitles, then publish. A workflow.

    python examples/video_pipeline.py [FOLDER]

films a short lesson (a test card, and tones for speech), enqueues its workflow and starts two workers for it. All that they make is in
FOLDER, or in a new one whose name is printed. It needs Pillow, and ffmpeg: the system's, or that of `pip install imageio-ffmpeg`.

    encode 360 ─┬─▶ still ─▶ thumbnail 320, 160, 80 ─┐
    encode 180 ─┴─▶ subtitles ───────────────────────┴─▶ publish
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from offload import Offload, Run, Workflow, chain, group, previous

app = Offload()

HEIGHTS = (360, 180)
WIDTHS = (320, 160, 80)

# --- tasks: they keep a processor busy, so each runs in a child process, where it harms nobody and can be killed --------------------
# Arguments and results are names of files and not their content. Each may run twice: it then writes the same file again, whole.


@app.task(isolation="process", timeout=600)
def encode(lesson: str, height: int) -> str:
    return ffmpeg(f"{lesson}-{height}p.mp4", "-i", f"{lesson}.mkv", "-vf", f"scale=-2:{height}", "-movflags", "+faststart")


@app.task(isolation="process", timeout=60)
def still(lesson: str, video: str) -> str:
    return ffmpeg(f"{lesson}-still.png", "-ss", "2", "-i", video, "-frames:v", "1")


@app.task(isolation="process", timeout=60)
def thumbnail(lesson: str, picture: str, width: int) -> str:
    name = f"{lesson}-{width}.jpg"
    with Image.open(folder() / picture) as image:
        smaller = image.convert("RGB").resize((width, image.height * width // image.width), Image.Resampling.LANCZOS)
    with whole(name) as unfinished:
        smaller.save(unfinished)
    return name


@app.task(isolation="process", timeout=600)
def subtitles(lesson: str, video: str) -> str:
    """When somebody speaks, as WebVTT: speech segments, and not a transcript, for nobody listens to what is said (see `words`)."""
    audio = ffmpeg(f"{lesson}.wav", "-i", video, "-vn", "-ac", "1", "-ar", "16000")
    cues = [f"{clock(start)} --> {clock(end)}\n{words(audio, start, end)}\n" for start, end in speech(audio)]
    name = f"{lesson}-speech-segments.vtt"
    with whole(name) as unfinished:
        unfinished.write_text("\n".join(["WEBVTT - speech segments, not a transcript\n", *cues]))
    return name


@app.task
def publish(lesson: str, videos: list[str], thumbnails: list[str], subtitles: str) -> str:
    """The last: once the manifest is there, learners see the lesson."""
    name = f"{lesson}.json"
    with whole(name) as unfinished:
        unfinished.write_text(json.dumps({"videos": videos, "thumbnails": thumbnails, "speech_segments": subtitles}, indent=2))
    return name


# --- the workflow -------------------------------------------------------------------------------------------------------------------


def process(lesson: str) -> Run:
    """An output that stands in arguments makes the order; `after=` does where nothing is handed on."""
    flow = Workflow(f"lesson {lesson}")
    encoded = [flow.add(encode.job(lesson, height)) for height in HEIGHTS]
    large = encoded[0].output
    pictures = flow.add(
        chain(still.job(lesson, large), group(*(thumbnail.job(lesson, previous, width) for width in WIDTHS))), after=encoded
    )
    spoken = flow.add(subtitles.job(lesson, large), after=encoded)
    flow.add(publish.job(lesson, [each.output for each in encoded], pictures.output, spoken.output))
    return flow.enqueue()


# --- PLUG IN A RECOGNISER HERE ------------------------------------------------------------------------------------------------------


def words(audio: str, start: float, end: float) -> str:  # noqa: ARG001 - a recogniser needs all of them
    """What is said in `audio` (a WAV file, 16 kHz, mono) between two seconds; a recogniser would tell."""
    return "[speech]"


# --- ffmpeg and files ---------------------------------------------------------------------------------------------------------------


def speech(audio: str) -> Iterator[tuple[float, float]]:
    """The seconds between silences, each with its start and end."""
    heard = run_ffmpeg("-i", audio, "-af", "silencedetect=noise=-40dB:duration=0.3", "-f", "null", "-")
    length = sum(float(each) * 60**power for power, each in enumerate(reversed(re.findall(r"Duration: (.*?),", heard)[0].split(":"))))
    silences = re.findall(r"silence_start: ([\d.-]+).*?(?:silence_end: ([\d.]+)|\Z)", heard, re.DOTALL)
    start = 0.0
    for silent, spoken in [*silences, (length, "")]:
        if float(silent) - start > 0.1:
            yield start, float(silent)
        start = float(spoken or length)


def clock(seconds: float) -> str:
    """As WebVTT writes times."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


def folder() -> Path:
    return Path(os.environ["LESSONS"])


@contextmanager
def whole(name: str) -> Iterator[Path]:
    """Where to write a file that appears once it is whole, or not at all, also when this process is killed."""
    unfinished = folder() / f"unfinished-{os.getpid()}-{name}"
    yield unfinished
    unfinished.replace(folder() / name)


def ffmpeg(name: str, *arguments: str) -> str:
    """Make a file. Returns its name."""
    with whole(name) as unfinished:
        run_ffmpeg(*arguments, str(unfinished))
    return name


def run_ffmpeg(*arguments: str) -> str:
    """What it says of its work. When the time limit ends the task, it ends ffmpeg as well."""
    command = [program(), "-hide_banner", "-nostdin", "-y", *arguments]
    done = subprocess.run(command, cwd=folder(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ffmpeg ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stderr


def program() -> str:
    if found := shutil.which("ffmpeg"):
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError:
        sys.exit("this example needs ffmpeg: install the system's, or `pip install imageio-ffmpeg`")
    return get_ffmpeg_exe()


# --- the play -----------------------------------------------------------------------------------------------------------------------


def film(lesson: str) -> None:
    """A test card of six seconds, with a tone from 0.5 to 2 and one from 3 to 4.5."""
    picture = "testsrc2=size=640x360:rate=25:duration=6"
    sound = "aevalsrc='0.5*sin(440*2*PI*t)*(between(t,0.5,2)+between(t,3,4.5))':sample_rate=44100:duration=6"
    ffmpeg(f"{lesson}.mkv", "-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound, "-shortest")


@contextmanager
def workers() -> Iterator[None]:
    command = [sys.executable, "-m", "offload", "worker", "video_pipeline:app", "-p", "2", "--log-level", "warning"]
    here = {"OFFLOAD_URL": app.url, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env={**os.environ, **here})
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def play() -> None:
    film("fractions")
    print("filmed fractions.mkv; its workflow is enqueued")
    run = process("fractions")
    with workers():
        tally = run.wait(timeout=300)
    ran = [(job.started_at, job.finished_at, job) for job in run.record().jobs if job.started_at and job.finished_at]
    for started, finished, job in sorted(ran, key=lambda each: each[:2]):
        print(f"{job.task.rpartition('.')[2]:10} {(finished - started).total_seconds():5.2f} s  {job.result}")
    print(f"workflow {tally.name!r} {tally.state}: {tally.told}")
    print(f"all of it is in {folder()}")
    if tally.state != "succeeded":
        sys.exit("this is not what the example promises")


if __name__ == "__main__":
    os.environ["LESSONS"] = str(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="lessons-")).resolve())
    folder().mkdir(parents=True, exist_ok=True)
    with app.testing(f"sqlite:///{folder()}/offload.db"):
        play()
