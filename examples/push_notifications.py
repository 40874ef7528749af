"""Pushes a message to many devices through a provider that has a quota, and its moods. Each device gets it once.

    python examples/push_notifications.py [DEVICES]

plays it with 300 devices, or as many as you say, a worker, and a provider that takes 50 messages a second, answers 429 with
Retry-After to what is more, and every now and then 503, half of these after it has taken the message. It knows a repeated request by its
idempotency key, `current.job.id`, as real providers do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from offload import Batch, Offload, Rate, Retry, RetryLater, current

app = Offload()

# --- the task -----------------------------------------------------------------------------------------------------------------------


@app.task(
    name="push",
    limits=Rate("100/s", key="push-provider", burst=20),  # what we believe the quota to be; the provider is stricter
    retry=Retry(max_retries=20, initial=0.5, factor=2, maximum=10, on=(OSError,)),  # urllib's errors, timeouts too, are OSErrors
    timeout=30,
)
def push(device: str, text: str) -> None:
    body = json.dumps({"device": device, "text": text}).encode()
    request = Request(f"{os.environ['PROVIDER_URL']}/push", body, {"Idempotency-Key": current.job.id})
    try:
        urlopen(request, timeout=10).close()
    except HTTPError as error:
        with error:
            if error.code != 429:
                raise
            wait = float(error.headers["Retry-After"])
        raise RetryLater(wait, whole_key=True) from None  # and until then no worker asks the provider for anything


def notify(text: str, devices: Iterator[str], id: str) -> Batch:
    """One job a device. Its id says which message it is for which device, so repeating this sends nothing twice."""
    with app.batch("push", id=id) as batch:
        batch.add_many(push.using(id=f"{id}-{device}").job(device, text) for device in devices)
    return batch


# --- a provider, in small -----------------------------------------------------------------------------------------------------------


class Provider(ThreadingHTTPServer):
    QUOTA = 50
    """Messages in a second of its clock."""
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Pushes)
        self.lock = threading.Lock()
        self.answers = Counter[int]()
        self.repeated = 0
        self.seen = set[str]()
        self.delivered: list[tuple[str, str]] = []
        self.window = (0, 0)

    def push(self, key: str, device: str, text: str) -> int:
        with self.lock:
            second, taken = int(time.monotonic()), self.window[1] + 1
            self.window = (second, taken if second == self.window[0] else 1)
            status = self.answer(key, device, text)
            self.answers[status] += 1
            return status

    def answer(self, key: str, device: str, text: str) -> int:
        if self.window[1] > self.QUOTA:
            return 429
        number = self.answers.total()
        if number % 20 == 10:
            return 503  # and nothing was done
        if key in self.seen:
            self.repeated += 1
        else:
            self.seen.add(key)
            self.delivered.append((device, text))
        return 503 if number % 20 == 0 else 200  # a 503 though it was done


class Pushes(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.push(self.headers["Idempotency-Key"], asked["device"], asked["text"])
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; the play tells what happens."""


# --- the play -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def worker(provider: Provider) -> Iterator[None]:
    command = [sys.executable, "-m", "offload", "worker", "push_notifications:app", "--log-level", "error"]
    here = {
        "OFFLOAD_URL": app.url,
        "PROVIDER_URL": f"http://127.0.0.1:{provider.server_port}",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    process = subprocess.Popen(command, env={**os.environ, **here})
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def play(number: int) -> None:
    provider = Provider()
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    text = "The shop opens at nine"
    batch = notify(text, (f"device-{n}" for n in range(number)), id="opening-2030-01-01")
    with worker(provider):
        began = time.monotonic()
        tally = batch.wait(timeout=600)
        took = time.monotonic() - began
    provider.shutdown()
    provider.server_close()
    print(f"{tally.total:,} devices in {took:.1f} s; the batch {tally.state}: {tally.told}")
    print(f"the provider saw {provider.answers.total():,} requests, and answered")
    for status, what in ((200, "taken"), (503, "sorry, half of them though it was taken"), (429, "too many, come again in 1 s")):
        print(f"  {status}  {provider.answers[status]:5,}  {what}")
    devices = Counter(provider.delivered)
    print(f"{provider.repeated:,} were repeated, and it knew them")
    print(f"{len(devices):,} devices got their message, each {max(devices.values(), default=0)} time")
    met = provider.answers[503] and provider.answers[429]
    if devices != Counter((f"device-{n}", text) for n in range(number)) or (number >= 300 and not met):
        sys.exit("this is not what the example promises")


if __name__ == "__main__":
    with TemporaryDirectory() as folder, app.testing(f"sqlite:///{folder}/offload.db"):  # the play leaves nothing behind
        play(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
