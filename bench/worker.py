"""A worker process against the tests' double of RunPod's side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from jobserver import JobServer, Post  # noqa: E402 - found by the path above

__all__ = ["OURS", "JobServer", "Worker", "accepted"]

OURS = ("handler.py",)


class Worker:
    """A process that starts at once; its group is killed at the end.

    Attributes:
        started: monotonic second just before the start.
        gone: monotonic second at which its wait returned; None while it runs.
    """

    def __init__(self, jobs: JobServer, folder: Path, arguments: tuple[str, ...] = OURS) -> None:
        self.gone: float | None = None
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=_environment(jobs, folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._waiter.join()

    def wait_gone(self, timeout: float) -> float | None:
        """The monotonic second at which it was gone; None if it runs on."""
        self._waiter.join(timeout)
        return self.gone

    def _wait(self) -> None:
        self._process.wait()
        self.gone = time.monotonic()


def accepted(jobs: JobServer, job_id: str) -> Post:
    """The first accepted final post of a job, waited for."""
    jobs.wait_result(job_id)
    return next(p for p in jobs.posts if p.job_id == job_id and p.accepted and not p.progress)


def _environment(jobs: JobServer, folder: Path) -> dict[str, Any]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/tmp"),
        "TMPDIR": str(folder),
        "MODEL": "nano",
        "DEVICE": "cpu",
        "COMPUTE_TYPE": "int8",
        "HF_HUB_OFFLINE": "1",
        "ALLOW_FILE_SOURCES": "1",
        **jobs.env(),
    }
