"""One worker process, as localpod sees it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from localpod.jobs import Job

NURSE = str(Path(__file__).with_name("nurse.py"))
PING_MS = 10_000  # below 1000 the SDK computes 0 s, and its request timeout of 0 ends the heartbeat
# Of the caller's side of things a worker knows nothing. RUNPOD_* is set anew for each.
WITHHELD = frozenset({"LOCALPOD_KEY", "DATABASE_URL"})


@dataclass
class Held:
    """A job that a worker has; `gone` is set when it has it no longer."""

    job: Job
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Worker:
    """A worker process and its nurse, from its start to the end of its whole process group."""

    def __init__(self) -> None:
        self.id = f"local-{secrets.token_hex(4)}"
        self.token = secrets.token_urlsafe(24)
        self.started_at = asyncio.get_running_loop().time()
        self.held: dict[str, Held] = {}
        self.polled = False  # has asked for a job at least once: it is ready
        self.took = False  # has been given a job at least once
        self.stopping = False  # gets no further job
        self.asked_to_end = False
        self._timer: asyncio.TimerHandle | None = None
        self._killed = False
        self._stops: set[str] = set()
        self._stop_wanted = asyncio.Event()
        self._process: Process | None = None

    async def live(self, command: Sequence[str], env: Mapping[str, str]) -> str:
        """Run the process to its end; returns in words how it ended.

        Raises:
            OSError, ValueError: it can't be started.
        """
        python = [sys.executable, "-I", "-S", NURSE]  # the quickest start: 15 ms
        process = await asyncio.create_subprocess_exec(
            *python, *command, stdin=PIPE, stdout=PIPE, env=env, start_new_session=True
        )
        self._process = process
        if self.stopping:
            self.kill()
        assert process.stdout is not None
        try:
            report = await process.stdout.readline()
        finally:
            killed = self._killed
            self.kill()
        if not report and not killed:  # someone else killed the nurse: do its work
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        return report.decode().strip() or "killed"

    def terminate(self) -> None:
        """Ask the process to end after its job."""
        self.stopping = self.asked_to_end = True
        if self._process and self._process.returncode is None:
            # The nurse leads the group and stays until kill(): the number is nobody else's.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole process group now."""
        self.stopping = self._killed = True
        if self._process and self._process.stdin:
            self._process.stdin.close()

    def hold(self, job: Job) -> None:
        """Note that the worker has been given a job."""
        self.held[job.id] = Held(job)
        self.took = True

    def release(self, job_id: str) -> Job | None:
        """The job that the worker has no longer, if it had it."""
        held = self.held.pop(job_id, None)
        if held is None:
            return None
        self._stops.discard(job_id)
        held.gone.set()
        return held.job

    def stop_job(self, job_id: str) -> None:
        """Answer the worker's stop poll with this job."""
        self._stops.add(job_id)
        self._stop_wanted.set()

    async def stops(self) -> list[str]:
        """Jobs that the worker must stop; waits for one."""
        await self._stop_wanted.wait()
        self._stop_wanted.clear()
        stops, self._stops = sorted(self._stops), set()
        return stops

    def release_stop_poll(self) -> None:
        """Let an open stop poll end with nothing."""
        self._stop_wanted.set()

    def after(self, seconds: float, then: Callable[[Worker], None]) -> None:
        """Call `then` with this worker after so many seconds, unless this is called again."""
        self.forget_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, then, self)

    def forget_timer(self) -> None:
        """Take back what `after` ordered."""
        if self._timer:
            self._timer.cancel()


def environment(
    worker: Worker, url: str, endpoint_id: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """A worker's environment: this process's own, less the caller's secrets, plus the SDK's.

    The token that counts is the one in the URLs: the SDK prefers a key that it finds in
    ~/.runpod/config.toml to RUNPOD_AI_API_KEY.
    """
    base, query = f"{url}/v2/{endpoint_id}", f"?token={worker.token}"
    kept = {
        name: value
        for name, value in inherited.items()
        if name not in WITHHELD and not name.startswith("RUNPOD_")
    }
    return {
        **kept,
        "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID{query}",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID{query}",
        "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID{query}",
        "RUNPOD_PING_INTERVAL": str(PING_MS),
        "RUNPOD_AI_API_KEY": worker.token,
        "RUNPOD_POD_ID": worker.id,
        "RUNPOD_ENDPOINT_ID": endpoint_id,
        "RUNPOD_LOG_LEVEL": "INFO",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
        "RUNPOD_SKIP_GPU_CHECK": "true",
    }
