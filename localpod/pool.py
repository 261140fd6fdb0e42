"""The worker processes: as many as the queue asks for, and which job each of them has."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory

from localpod.jobs import Job, Jobs
from localpod.worker import Worker

POLL_SECONDS = 20.0  # the platform holds a long poll about this long before its 204
START_SECONDS = 420.0  # a worker that asks for no job by then is unhealthy to the platform too
START_TRIES = 3  # workers that end before their first job, one after the other
LEAST_PAUSE, MOST_PAUSE = 0.5, 30.0  # seconds before the next one is started
STOP_AGAIN_SECONDS = 1.0  # the SDK ignores a stop that comes before it has started the job
SHUTDOWN_SECONDS = 2.0
STOPPED_POLL_SECONDS = 0.5  # a worker that is to end asks again at once if it does not

log = logging.getLogger(__name__)


class Pool:
    """Starts workers when jobs wait, gives them jobs, and ends them.

    Args:
        most: worker processes at the same time.
        command: a command line that starts a worker.
        environment: of that worker.
        idle_seconds: how long a worker without a job is kept.
        stop_seconds: how long one that was told to stop may take before it is killed.
    """

    def __init__(
        self,
        jobs: Jobs,
        *,
        most: int,
        command: Sequence[str],
        environment: Callable[[Worker], Mapping[str, str]],
        idle_seconds: float,
        stop_seconds: float,
    ) -> None:
        self._jobs = jobs
        self._most = most
        self._command = command
        self._environment = environment
        self._idle_seconds = idle_seconds
        self._stop_seconds = stop_seconds
        self._workers: dict[str, Worker] = {}
        self._waiting: dict[asyncio.Future[None], Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._failures = 0
        self._failed_at = float("-inf")
        self._backoff: asyncio.TimerHandle | None = None
        self._closing = False
        jobs.on_queued = self._queued
        jobs.on_ended.append(self._ended)

    def find(self, worker_id: str, token: str) -> Worker | None:
        """The worker of this id, if this is its token."""
        worker = self._workers.get(worker_id)
        if worker and hmac.compare_digest(worker.token.encode(), token.encode(errors="replace")):
            return worker
        return None

    async def take(self, worker: Worker, most: int) -> list[Job]:
        """Jobs for a worker that asks; waits for one, 20 s at most."""
        if not worker.polled:
            worker.polled = True
            log.info("worker %s is ready", worker.id)
            self._freed(worker)
        jobs = self._claim(worker, most)
        if not jobs:
            await self._wait_for_job(worker)
            jobs = self._claim(worker, most)
        return jobs

    async def stops(self, worker: Worker) -> list[str]:
        """Jobs that a worker must stop; waits for one, 20 s at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_poll_seconds(worker)):
                return await worker.stops()
        return []

    def has_none(self, worker: Worker) -> None:
        """A worker says that it has no job: what it was given was stopped, or has been lost.

        Lost is a job that never reached it, or whose result post did not reach us.
        """
        for job_id in tuple(worker.held):
            if job := worker.release(job_id):
                self._jobs.lost(job, f"worker {worker.id} gave no result")
                self._freed(worker)

    def done(self, worker: Worker, job_id: str, *, stop: bool) -> Job | None:
        """The job that the worker ends with a result; `stop`: end the worker with it."""
        job = worker.release(job_id)
        if stop:
            log.info("worker %s ends: its job asked for that", worker.id)
            self._stop(worker)
        self._freed(worker)
        return job

    def health(self) -> dict[str, int]:
        """How many workers, by state."""
        living = [worker for worker in self._workers.values() if not worker.stopping]
        running = sum(bool(worker.held) for worker in living)
        ready = sum(worker.polled and not worker.held for worker in living)
        return {
            "idle": ready,
            "initializing": len(living) - running - ready,
            "ready": ready,
            "running": running,
            "throttled": 0,
            "unhealthy": int(self._failures >= START_TRIES),
        }

    async def close(self) -> None:
        """End all workers: kindly, then after 2 s for good."""
        self._closing = True
        for worker in tuple(self._workers.values()):
            for job_id in worker.held:
                worker.stop_job(job_id)
            self._stop(worker, SHUTDOWN_SECONDS)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _freed(self, worker: Worker) -> None:
        if not worker.held and not worker.stopping:
            worker.after(self._idle_seconds, self._stop_idle)

    def _claim(self, worker: Worker, most: int) -> list[Job]:
        jobs: list[Job] = []
        while len(jobs) < most and not worker.stopping:
            job = self._jobs.take(worker.id)
            if job is None:
                break
            worker.hold(job)
            jobs.append(job)
        if jobs:
            worker.forget_timer()
            self._failures = 0
        return jobs

    async def _wait_for_job(self, worker: Worker) -> None:
        wake: asyncio.Future[None] = self._loop.create_future()
        self._waiting[wake] = worker
        try:
            async with asyncio.timeout(_poll_seconds(worker)):
                await wake
        except TimeoutError:
            pass
        except asyncio.CancelledError:  # its connection is gone: someone else's job, then
            self._waiting.pop(wake, None)
            self._wake_one()
            raise
        finally:
            self._waiting.pop(wake, None)

    def _wake_one(self) -> None:
        while self._jobs.queue and self._waiting:
            wake = next(iter(self._waiting))
            worker = self._waiting.pop(wake)
            if not wake.done():
                wake.set_result(None)
                if not worker.stopping:
                    return

    def _queued(self) -> None:
        self._wake_one()
        self._scale()

    def _scale(self) -> None:
        """Start as many workers as there are jobs that no living worker is free for."""
        if self._closing or self._backoff or not self._jobs.queue:
            return
        free = sum(not (worker.held or worker.stopping) for worker in self._workers.values())
        wanted = min(len(self._jobs.queue) - free, self._most - len(self._workers))
        if self._failures:  # one at a time, until one takes a job
            wanted = min(wanted, 1 - free)
        for _ in range(wanted):
            worker = Worker()
            self._workers[worker.id] = worker
            worker.after(START_SECONDS, self._start_timed_out)
            self._spawn(self._live(worker))

    async def _live(self, worker: Worker) -> None:
        log.info("worker %s starts", worker.id)
        try:
            # A killed worker leaves a job's audio behind: its temporary files go with it.
            with TemporaryDirectory(prefix="localpod-", ignore_cleanup_errors=True) as folder:
                environment = {**self._environment(worker), "TMPDIR": folder}
                reason = await worker.live(self._command, environment)
        except (OSError, ValueError) as error:  # no disk, no memory, no process to be had
            reason = f"could not be started: {error}"
        log.info("worker %s has ended: %s", worker.id, reason)
        del self._workers[worker.id]
        worker.forget_timer()
        for job_id in tuple(worker.held):
            job = worker.release(job_id)
            if job and not self._closing:
                self._jobs.lost(job, f"worker {worker.id} ended in the middle of the job: {reason}")
        if not (worker.took or worker.asked_to_end):
            self._start_failed(worker, reason)
        self._scale()

    def _start_failed(self, worker: Worker, reason: str) -> None:
        if worker.started_at >= self._failed_at:  # those started together count as one
            self._failures += 1
        self._failed_at = self._loop.time()
        if self._backoff:
            self._backoff.cancel()
        pause = min(MOST_PAUSE, LEAST_PAUSE * 2 ** min(self._failures - 1, 10))
        self._backoff = self._loop.call_later(pause, self._try_again)
        usable = any(other.polled and not other.stopping for other in self._workers.values())
        if self._failures >= START_TRIES and not usable:
            self._jobs.fail_queued(
                f"no worker can be started: the last {self._failures} ended before their first "
                f"job ({reason}); see the log of localpod"
            )

    def _try_again(self) -> None:
        self._backoff = None
        self._scale()

    def _start_timed_out(self, worker: Worker) -> None:
        log.warning("worker %s asked for no job in %.0f s", worker.id, START_SECONDS)
        worker.kill()

    def _stop_idle(self, worker: Worker) -> None:
        log.info("worker %s ends: idle", worker.id)
        self._stop(worker)

    def _stop(self, worker: Worker, seconds: float | None = None) -> None:
        """Ask a worker to end, and kill it if it takes too long."""
        worker.terminate()
        worker.release_stop_poll()
        for wake, waiting in tuple(self._waiting.items()):
            if waiting is worker and not wake.done():
                wake.set_result(None)
        worker.after(self._stop_seconds if seconds is None else seconds, Worker.kill)

    def _ended(self, job: Job) -> None:
        worker = self._workers.get(job.worker_id or "")
        if worker and job.id in worker.held:
            self._spawn(self._insist(worker, job.id))

    async def _insist(self, worker: Worker, job_id: str) -> None:
        """Tell a worker to stop a job that has ended without it, and kill it if it does not."""
        held = worker.held[job_id]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stop_seconds):
                while not held.gone.is_set():
                    worker.stop_job(job_id)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(held.gone.wait(), STOP_AGAIN_SECONDS)
        if not held.gone.is_set():
            log.warning("worker %s did not stop job %s: killed", worker.id, job_id)
            worker.kill()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _poll_seconds(worker: Worker) -> float:
    return STOPPED_POLL_SECONDS if worker.stopping else POLL_SECONDS
