"""The local route: a RunPod endpoint on this machine, as a child process, started on demand."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping
from importlib.util import find_spec

from orchestrator.endpoint import Endpoint, EndpointClient
from orchestrator.errors import OrchestratorError
from orchestrator.log import get_logger

NEEDED = ("localpod", "handler", "runpod", "faster_whisper", "aiohttp")  # extra `worker`
START_SECONDS = 60.0  # a slow disk imports slowly
STOP_SECONDS = 2.5  # it takes up to 2.1 s with a busy worker
SECRETS = frozenset({"DATABASE_URL", "RUNPOD_API_KEY"})  # no business of a worker's
LOCAL = "local"  # its name among the endpoints

log = get_logger()


class LocalPod:
    """At most one child; begun again if it has ended. Thread-safe.

    Args:
        instance: the replica that it belongs to.
    """

    def __init__(self, instance: uuid.UUID, *, workers: int, price: float, seconds: float) -> None:
        self._instance = instance
        self._workers = workers
        self._price = price
        self._seconds = seconds
        self._lock = threading.Lock()  # guards all below
        self._process: subprocess.Popen[str] | None = None
        self._client: EndpointClient | None = None
        self._closed = False

    @staticmethod
    def missing() -> tuple[str, ...]:
        """The packages that are not there; nothing is imported."""
        return tuple(name for name in NEEDED if find_spec(name) is None)

    @property
    def client(self) -> EndpointClient | None:
        """The running child's API, if one runs."""
        with self._lock:
            return self._client if self._runs() else None

    def start(self) -> EndpointClient:
        """The child's API; starts it if need be, which takes about a second.

        Raises:
            OrchestratorError: it did not start.
        """
        with self._lock:
            if self._closed:
                raise OrchestratorError("the local endpoint is closed")
            if self._client is None or not self._runs():
                self._client = self._start()
            return self._client

    def close(self) -> None:
        """End the child and its workers."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> EndpointClient:
        key = secrets.token_urlsafe(32)
        self._process = subprocess.Popen(
            # It ends by itself when we are gone, however we went.
            [
                *(sys.executable, "-m", "localpod", "--workers", str(self._workers)),
                *("--parent-pid", str(os.getpid())),
            ],
            env=_environment(os.environ, key),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = _first_line(self._process, START_SECONDS)
        log.info("the local endpoint runs", workers=self._workers, pid=self._process.pid)
        return EndpointClient(
            Endpoint(
                name=LOCAL,
                base_url=str(told["url"]),
                endpoint_id=str(told["endpoint_id"]),
                api_key=key,
                price=self._price,
                kind="local",
                instance=str(self._instance),
            ),
            seconds=self._seconds,
        )


def _environment(env: Mapping[str, str], key: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in SECRETS} | {
        "LOCALPOD_KEY": key
    }


def _first_line(process: subprocess.Popen[str], seconds: float) -> dict[str, object]:
    """The line of JSON that the child prints once it listens."""
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline() if process.stdout else ""
    finally:
        watchdog.cancel()
    try:
        told = json.loads(line)
    except ValueError:
        process.kill()
        raise OrchestratorError(
            f"the local endpoint did not start (exit status {process.wait()}); "
            "`python -m localpod` shows why"
        ) from None
    return dict(told)
