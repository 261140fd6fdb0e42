"""Jobs: what was asked, where it stands, what came of it; and the queue they wait in."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MOST_RETRIES = 1  # a job whose worker died is dispatched so many times more


class Status(StrEnum):
    """The platform's words for where a job stands."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


WAITING = frozenset({Status.IN_QUEUE, Status.IN_PROGRESS})


class QueueFull(Exception):
    """No further job is taken until one leaves the queue."""


@dataclass(frozen=True)
class Policy:
    """A job's limits in milliseconds: of one execution, and from its submission to its removal."""

    execution_ms: float = 600_000
    ttl_ms: float = 86_400_000


@dataclass(eq=False)
class Job:
    """One job; `queued_at`, `started_at` and `ended_at` are seconds of the loop's clock."""

    input: Any
    webhook: str | None
    policy: Policy
    queued_at: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: Status = Status.IN_QUEUE
    started_at: float | None = None
    ended_at: float | None = None
    worker_id: str | None = None
    output: Any = None
    error: str | None = None
    retries: int = 0
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)

    @property
    def waiting(self) -> bool:
        """Whether its end is still to come."""
        return self.status in WAITING

    def to_wire(self) -> dict[str, Any]:
        """The object that a status call answers."""
        wire: dict[str, Any] = {"id": self.id, "status": self.status.value}
        if self.started_at is not None:
            wire["delayTime"] = _ms(self.started_at - self.queued_at)
            wire["workerId"] = self.worker_id
            if self.ended_at is not None:
                wire["executionTime"] = _ms(self.ended_at - self.started_at)
        if self.output is not None:
            wire["output"] = self.output
        if self.error is not None:
            wire["error"] = self.error
        if self.retries or self.status is Status.FAILED:
            wire["retries"] = self.retries
        return wire


class Jobs:
    """All jobs that are remembered. Lives in the event loop's thread.

    Args:
        most_queued: jobs that may wait at the same time.
        retention_seconds: how long a job is remembered after its end.

    Attributes:
        queue: the jobs that wait for a worker, the next one first.
        on_queued: called when a job has entered the queue.
        on_ended: each is called with a job that has just ended.
    """

    def __init__(self, *, most_queued: int, retention_seconds: float) -> None:
        self.queue: OrderedDict[str, Job] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self.on_queued: Callable[[], None] = lambda: None
        self.on_ended: list[Callable[[Job], None]] = []
        self._jobs: dict[str, Job] = {}
        self._running = 0
        self._most_queued = most_queued
        self._retention_seconds = retention_seconds
        self._loop = asyncio.get_running_loop()

    def submit(self, input: Any, webhook: str | None, policy: Policy) -> Job:
        """Queue a new job.

        Raises:
            QueueFull: as many jobs as allowed are waiting.
        """
        if len(self.queue) >= self._most_queued:
            raise QueueFull
        job = Job(input, webhook, policy, self._loop.time())
        self._jobs[job.id] = job
        self._after(job, "ttl", policy.ttl_ms / 1000, self._forget)
        self.queue[job.id] = job
        self.on_queued()
        return job

    def find(self, job_id: str) -> Job | None:
        """The job of this id, if it is still remembered."""
        return self._jobs.get(job_id)

    def take(self, worker_id: str) -> Job | None:
        """The next job, now this worker's; its execution time runs from here."""
        if not self.queue:
            return None
        _, job = self.queue.popitem(last=False)
        job.status, job.worker_id = Status.IN_PROGRESS, worker_id
        job.started_at = self._loop.time()
        self._running += 1
        self._after(job, "phase", job.policy.execution_ms / 1000, self._time_out)
        return job

    def progress(self, job: Job, output: Any) -> None:
        """Note a running job's newest progress; after its end there is none."""
        if job.status is Status.IN_PROGRESS:
            job.output = output

    def finish(self, job: Job, output: Any, error: str | None) -> None:
        """End a running job with what its worker answered. A second end changes nothing."""
        status = Status.COMPLETED if error is None else Status.FAILED
        self._end(job, status, output=output, error=error)

    def cancel(self, job: Job) -> None:
        """End a job that has not ended yet, without a result."""
        self._end(job, Status.CANCELLED)

    def lost(self, job: Job, reason: str) -> None:
        """Dispatch a running job once more, as its worker has it no longer; then fail it."""
        if job.status is not Status.IN_PROGRESS:
            return
        if job.retries >= MOST_RETRIES:
            times = job.retries + 1
            self._end(job, Status.FAILED, error=f"{reason}; the job was dispatched {times} times")
            return
        self._running -= 1
        job.timers.pop("phase").cancel()
        job.retries += 1
        self.counts["retried"] += 1
        job.status, job.worker_id, job.output = Status.IN_QUEUE, None, None
        job.started_at, job.queued_at = None, self._loop.time()  # delayTime starts anew
        self.queue[job.id] = job
        self.queue.move_to_end(job.id, last=False)
        self.on_queued()

    def fail_queued(self, reason: str) -> None:
        """Fail every job that waits."""
        for job in tuple(self.queue.values()):
            self._end(job, Status.FAILED, error=reason)

    def health(self) -> dict[str, int]:
        """How many jobs, by state; ended ones since the start."""
        return {
            "completed": self.counts[Status.COMPLETED],
            "failed": self.counts[Status.FAILED] + self.counts[Status.TIMED_OUT],
            "inProgress": self._running,
            "inQueue": len(self.queue),
            "retried": self.counts["retried"],
        }

    def _time_out(self, job: Job) -> None:
        limit = f"the execution timeout of {job.policy.execution_ms:.0f} ms"
        self._end(job, Status.TIMED_OUT, error=f"{limit} has passed; the worker was told to stop")

    def _end(
        self, job: Job, status: Status, *, output: Any = None, error: str | None = None
    ) -> None:
        if not job.waiting:
            return
        self._running -= job.status is Status.IN_PROGRESS
        self.queue.pop(job.id, None)
        job.status, job.output, job.error = status, output, error
        job.ended_at = self._loop.time()
        self.counts[status] += 1
        self._after(job, "phase", self._retention_seconds, self._forget)
        for told in self.on_ended:
            told(job)
        job.input = None  # may be large, and nobody reads it any more

    def _forget(self, job: Job) -> None:
        """Remove a job, even a running one: status calls know it no longer."""
        self._end(job, Status.CANCELLED)
        self._jobs.pop(job.id, None)
        for timer in job.timers.values():
            timer.cancel()
        job.timers.clear()

    def _after(self, job: Job, name: str, seconds: float, then: Callable[[Job], None]) -> None:
        if old := job.timers.get(name):
            old.cancel()
        job.timers[name] = self._loop.call_later(seconds, then, job)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
