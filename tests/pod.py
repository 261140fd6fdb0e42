"""What the tests of localpod share: localpod as a process, and an ear for what it says."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict, deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

ROOT = Path(__file__).resolve().parent.parent
WORKER = (sys.executable, "-I", "-S", str(ROOT / "tests" / "pod_worker.py"))
KEY = "localpod-test-key"
WAIT = 40.0

Json = dict[str, Any]


class Ear:
    """An HTTP server that hears webhooks and what the scripted workers tell."""

    def __init__(self) -> None:
        self._heard: defaultdict[str, deque[Json]] = defaultdict(deque)
        self._changed = threading.Condition()
        self.answers: defaultdict[str, deque[int]] = defaultdict(deque)
        ear = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answers = ear.answers[self.path]
                self.send_response(answers.popleft() if answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                with ear._changed:
                    ear._heard[self.path].append(body)
                    ear._changed.notify_all()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def hear(self, path: str) -> Json:
        """The next body posted to a path."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._heard[path], WAIT):
                raise TimeoutError(f"nothing came to {path}")
            return self._heard[path].popleft()

    def silent(self, path: str) -> bool:
        """Whether nothing waits to be heard there."""
        with self._changed:
            return not self._heard[path]


class Pod:
    """`python -m localpod`, started as the orchestrator starts it."""

    def __init__(
        self,
        ear: Ear,
        log: Path,
        *options: str,
        worker: tuple[str, ...] = WORKER,
        env: dict[str, str] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "localpod", *options]
        if worker:
            command += ["--worker-command", *worker]
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "LOCALPOD_KEY": KEY, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert self.process.stdout is not None
        self.adopt(ear, log, self.process.stdout.readline())

    def adopt(self, ear: Ear, log: Path, line: bytes) -> None:
        """Speak to the localpod that said this line."""
        self.ear = ear
        self.log_path = log
        said = json.loads(line) if line else {"url": "", "endpoint_id": ""}
        self.base = said["url"]
        self.url = f"{said['url']}/{said['endpoint_id']}"
        self.headers = {"Authorization": f"Bearer {KEY}"}
        self._names: dict[str, str] = {}  # of jobs, in the ear's paths

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT)
        assert self.process.stdout is not None
        self.process.stdout.close()
        if kind is None:
            assert code in (0, -signal.SIGKILL)

    def heard_all(self, job_id: str) -> bool:
        """Whether the job's webhook was called no more often than it was heard."""
        return self.ear.silent(f"/{self._names[job_id]}/hook")

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        options = {"json": body, "headers": self.headers, "timeout": WAIT, **more}
        return requests.request(method, self.url + path, **options)

    def run(self, input: Json, policy: Json | None = None) -> str:
        """Submit a job whose worker and webhook speak to `/<id>/tell` and `/<id>/hook`."""
        name = uuid.uuid4().hex
        body = {
            "input": {**input, "tell": f"{self.ear.url}/{name}/tell"},
            "webhook": f"{self.ear.url}/{name}/hook",
            "policy": policy or {},
        }
        answer = self.call("POST", "/run", body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "IN_QUEUE"
        job_id: str = answer.json()["id"]
        self._names[job_id] = name
        return job_id

    def told(self, job_id: str, event: str) -> Json:
        """What the worker tells next of this job, which must be this event."""
        heard = self.ear.hear(f"/{self._names[job_id]}/tell")
        assert heard["event"] == event
        return heard

    def hook(self, job_id: str) -> Json:
        """The next call of the job's webhook."""
        return self.ear.hear(f"/{self._names[job_id]}/hook")

    def status(self, job_id: str) -> Json:
        answer = self.call("GET", f"/status/{job_id}")
        assert answer.status_code == 200, answer.text
        wire: Json = answer.json()
        return wire

    def cancel(self, job_id: str) -> Json:
        wire: Json = self.call("POST", f"/cancel/{job_id}").json()
        return wire

    def health(self) -> Json:
        wire: Json = self.call("GET", "/health").json()
        return wire


class Watched:
    """Processes, watched from while they live, so that a number used again deceives nobody."""

    def __init__(self, *pids: int) -> None:
        self._open = {os.pidfd_open(pid): pid for pid in pids}

    def wait_until_gone(self) -> None:
        """Wait for the end of each. Raises TimeoutError."""
        deadline = time.monotonic() + WAIT
        for descriptor, pid in self._open.items():
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(f"process {pid} lives on")
            os.close(descriptor)


def parent_of(pid: int) -> int:
    """The parent's process number."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
