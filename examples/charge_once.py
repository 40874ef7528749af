"""Charges a card once, although the worker dies between the charge and the moment its success is recorded.

    python examples/charge_once.py

plays it: a payment provider is started, a job enqueued, and the worker that runs it killed (SIGKILL) right after the provider took the
money. Another worker finds the job a few seconds later and runs it again. The provider sees two requests with the same idempotency
key, `current.job.id`, and charges once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

from offload import Offload, Retry, current

app = Offload(session_timeout=2, heartbeat=0.5)  # so that the play is short; a real program leaves them as they are

# --- the task -------------------------------------------------------------------------------------------------------------------


@app.task(retry=Retry(max_retries=8, initial=5), timeout=30)
def charge(order: str, cents: int) -> str:
    """The job's id is the same in every attempt, so the provider can tell a repeated request from a new one."""
    receipt = pay(order, cents, key=current.job.id)
    print(f"worker {os.getpid()}: the provider says {receipt}", flush=True)
    time.sleep(float(os.environ.get("DAWDLE", "0")))  # what a real task does next: the moment in which the play kills the worker
    return receipt


def pay(order: str, cents: int, key: str) -> str:
    body = json.dumps({"order": order, "cents": cents}).encode()
    request = Request(f"{os.environ['PROVIDER_URL']}/charges", body, {"Idempotency-Key": key, "Content-Type": "application/json"})
    with urlopen(request, timeout=10) as answer:
        return json.load(answer)["receipt"]


# --- a payment provider, in small --------------------------------------------------------------------------------------------------


class Provider(ThreadingHTTPServer):
    """Charges once per idempotency key. The same key with another body is refused, as real providers do."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Charges)
        self.lock = threading.Lock()
        self.requests: list[str] = []
        self.charged: dict[str, tuple[Any, str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def charge(self, key: str, order: Any) -> tuple[int, dict[str, str]]:
        with self.lock:
            self.requests.append(key)
            known = self.charged.setdefault(key, (order, f"receipt-{uuid4().hex[:8]}"))
        return (201, {"receipt": known[1]}) if known[0] == order else (422, {"error": "this key was used for another charge"})


class Charges(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = self.server.charge(self.headers["Idempotency-Key"], order)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; the play tells what happens."""


# --- the play ----------------------------------------------------------------------------------------------------------------------


def start_worker(provider: Provider, dawdle: float) -> subprocess.Popen[str]:
    here = {"OFFLOAD_URL": app.url, "PROVIDER_URL": provider.url, "DAWDLE": str(dawdle), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "offload", "worker", "charge_once:app", "--log-level", "error"]
    return subprocess.Popen(command, env={**os.environ, **here}, stdout=subprocess.PIPE, text=True)


def said_by(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip() or sys.exit(f"worker {worker.pid} ended with {worker.wait()} before it charged")


def play() -> None:
    provider = Provider()
    threading.Thread(target=provider.serve_forever, daemon=True).start()

    handle = charge.using(id=f"charge-{uuid4().hex[:8]}").enqueue(order="order-1001", cents=4_900)
    print(f"job {handle.id} is enqueued")

    with start_worker(provider, dawdle=60) as first:
        print(said_by(first))
        first.kill()
    print(f"worker {first.pid} was killed after the charge (exit code {first.returncode}); the job is {handle.record().state}")

    with start_worker(provider, dawdle=0) as second:
        print(said_by(second))
        print(f"the job ended with {handle.result(timeout=60)}")
        second.terminate()

    record = handle.record()
    print(f"state {record.state}, crashes {record.crashes}")
    print(f"the provider saw {len(provider.requests)} requests and charged {len(provider.charged)} time")
    if (len(provider.requests), len(provider.charged), record.crashes) != (2, 1, 1):
        sys.exit("this is not what the example promises")


if __name__ == "__main__":
    with TemporaryDirectory() as folder, app.testing(f"sqlite:///{folder}/offload.db"):  # the play leaves nothing behind
        play()
