"""A loopback double of the platform's side of the worker protocol of the runpod SDK 1.12.0.

Source: rp_job.py, rp_http.py, rp_ping.py and rp_scale.py in runpod/serverless/modules.
"""

import asyncio
import json
import socket
import struct
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar

from aiohttp import web

POLL_SECONDS = 20.0  # the platform holds a long poll about this long before its 204
CLOSE_SECONDS = 10.0  # a double that takes longer to close than this has a hanging task
MAX_BODY_BYTES = 256 * 1024 * 1024
ENDPOINT_ID = "endpoint-double"
WORKER_ID = "worker-double"
LINGER_ZERO = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close sends RST instead of FIN

Json: TypeAlias = dict[str, Any]
ResultFault: TypeAlias = Literal["reset", "502"] | int | tuple[Literal["delay"], float]
"""What happens to one final result post: no answer, a status, or acceptance after some seconds."""

T = TypeVar("T")


class LoopbackServer(ABC):
    """An aiohttp server on a free port of 127.0.0.1, run by a loop in a thread of its own."""

    def __init__(self) -> None:
        self.url = ""
        self._changed = threading.Condition()  # guards all state; notified on each change of it
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = asyncio.Event()
        self._wake = asyncio.Event()  # replaced at each change: the long polls' signal

    @abstractmethod
    def _routes(self) -> list[web.RouteDef]:
        """What this server answers."""

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_until(lambda: bool(self.url) or self._error is not None, CLOSE_SECONDS)
        if self._error is not None:
            raise RuntimeError("the double did not start") from self._error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the open polls and delays, then the server. A second call does nothing."""
        loop = self._loop
        if loop is not None and self._thread.is_alive():

            def end() -> None:  # one callback: after the first, the loop may be closed already
                self._closing.set()
                self._signal()

            with suppress(RuntimeError):
                loop.call_soon_threadsafe(end)
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                raise RuntimeError("the double did not close: a handler hangs")

    def wait_until(self, predicate: Callable[[], bool], timeout: float = 60) -> None:
        """Wait for `predicate` (called with the state's lock held). Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(predicate, timeout):
                raise TimeoutError(f"not within {timeout} s; {self!r}")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
            with self._changed:
                self._error = error
                self._changed.notify_all()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(self._routes())
        # handler_cancellation: a poll whose worker died must not swallow the next job
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=2.0
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            with self._changed:
                self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
                self._changed.notify_all()
            await self._closing.wait()
        finally:
            await runner.cleanup()

    def _signal(self) -> None:
        """Wake the long polls; in the loop's thread."""
        self._wake.set()
        self._wake = asyncio.Event()

    def _notify_polls(self) -> None:
        """Wake the long polls; from any thread."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._signal)

    async def _pause(self, seconds: float) -> None:
        """Wait `seconds`, less when the server closes."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            pass


def abort(request: web.Request) -> web.Response:
    """Reset the connection (RST) with no answer; the response returned goes nowhere."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
        request.transport.abort()
    return web.Response()


@dataclass(frozen=True)
class Post:
    """One post to the output URL: `at` is the monotonic second it arrived."""

    job_id: str
    body: Json
    at: float
    progress: bool
    accepted: bool


@dataclass(frozen=True)
class Ping:
    """One heartbeat: the ids the worker says it works on, and the monotonic second."""

    job_ids: tuple[str, ...]
    at: float


class JobServer(LoopbackServer):
    """Queues jobs for real SDK workers and records what they post."""

    def __init__(self) -> None:
        super().__init__()
        self.posts: list[Post] = []
        self.taken: list[str] = []
        self.pings: list[Ping] = []
        self.open_polls = 0
        self._jobs: deque[Json] = deque()
        self._stops: list[str] = []
        self._faults: deque[ResultFault] = deque()
        self._progress_delay = 0.0
        self._recording: set[asyncio.Task[web.Response]] = set()

    def __repr__(self) -> str:
        return f"JobServer(taken={self.taken}, queued={len(self._jobs)}, posts={self.posts})"

    def env(self) -> dict[str, str]:
        """The environment a worker process adds to its own."""
        base = f"{self.url}/v2/{ENDPOINT_ID}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=double",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=double",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=double",
            "RUNPOD_AI_API_KEY": "double-api-key",
            "RUNPOD_POD_ID": WORKER_ID,
            "RUNPOD_ENDPOINT_ID": ENDPOINT_ID,
            # Below 1000 ms the SDK computes 0 s, and its request timeout of 0 ends the heartbeat.
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_LOG_LEVEL": "INFO",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def submit(self, input: Json, job_id: str | None = None) -> str:
        """Queue a job; returns its id."""
        job_id = job_id or f"job-{uuid.uuid4().hex}"
        with self._changed:
            self._jobs.append({"id": job_id, "input": input})
        self._notify_polls()
        return job_id

    def stop(self, job_id: str) -> None:
        """Tell the worker, on its stop channel, to stop this job."""
        with self._changed:
            self._stops.append(job_id)
        self._notify_polls()

    def fail_results(self, *faults: ResultFault) -> None:
        """Queue faults: each one is used up by one final result post."""
        with self._changed:
            self._faults.extend(faults)

    def delay_progress(self, seconds: float) -> None:
        """Answer, and record, each progress post only after `seconds`. 0 ends it."""
        with self._changed:
            self._progress_delay = seconds

    def wait_result(self, job_id: str, timeout: float = 60) -> Json:
        """The first accepted final body of a job."""

        def finals() -> list[Post]:
            return [p for p in self._of(job_id) if p.accepted and not p.progress]

        self.wait_until(lambda: bool(finals()), timeout)
        return finals()[0].body

    def wait_progress(
        self, job_id: str, predicate: Callable[[Json], bool], timeout: float = 60
    ) -> Json:
        """The first recorded progress body of a job for which `predicate` holds."""

        def matching() -> list[Post]:
            return [p for p in self._of(job_id) if p.progress and predicate(p.body)]

        self.wait_until(lambda: bool(matching()), timeout)
        return matching()[0].body

    def wait_taken(self, job_id: str, timeout: float = 60) -> None:
        """Wait until a worker has been given the job."""
        self.wait_until(lambda: job_id in self.taken, timeout)

    def _of(self, job_id: str) -> list[Post]:
        return [post for post in self.posts if post.job_id == job_id]

    def _routes(self) -> list[web.RouteDef]:
        base = f"/v2/{ENDPOINT_ID}"
        return [
            web.get(base + "/job-take/{worker}", self._take),
            web.get(base + "/job-take-batch/{worker}", self._take),
            web.get(base + "/job-stop/{worker}", self._stop_poll),
            web.get(base + "/ping/{worker}", self._ping),
            web.post(base + "/job-done/{worker}/{job}", self._done),
        ]

    async def _take(self, request: web.Request) -> web.Response:
        batch = request.query.get("batch_size")
        jobs = await self._poll(lambda: self._pop_jobs(int(batch or 1)))
        if not jobs:
            return web.Response(status=204)
        return web.json_response(jobs if batch else jobs[0])

    def _pop_jobs(self, limit: int) -> list[Json]:
        jobs = [self._jobs.popleft() for _ in range(min(limit, len(self._jobs)))]
        self.taken.extend(job["id"] for job in jobs)
        return jobs

    async def _stop_poll(self, request: web.Request) -> web.Response:
        stops = await self._poll(self._pop_stops)
        return web.json_response({"jobsToStop": stops}) if stops else web.Response(status=204)

    def _pop_stops(self) -> list[str]:
        stops, self._stops = self._stops, []
        return stops

    async def _poll(self, pop: Callable[[], list[T]]) -> list[T]:
        """What `pop` gives, as soon as it gives something; nothing after POLL_SECONDS."""
        self._count_poll(1)
        try:
            async with asyncio.timeout(POLL_SECONDS):
                return await self._wait_for_some(pop)
        except TimeoutError:
            return []
        finally:
            self._count_poll(-1)

    async def _wait_for_some(self, pop: Callable[[], list[T]]) -> list[T]:
        while not self._closing.is_set():
            wake = self._wake  # before the look, so that no signal is missed between the two
            with self._changed:
                found = pop()
                self._changed.notify_all()
            if found:
                return found
            await wake.wait()
        return []

    def _count_poll(self, change: int) -> None:
        with self._changed:
            self.open_polls += change
            self._changed.notify_all()

    async def _ping(self, request: web.Request) -> web.Response:
        ids = request.query.get("job_id", "")
        with self._changed:
            self.pings.append(Ping(tuple(filter(None, ids.split(","))), time.monotonic()))
            self._changed.notify_all()
        return web.Response()

    async def _done(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())  # JSON, although it says form-urlencoded
        progress = body.get("status") == "IN_PROGRESS"
        post = Post(request.match_info["job"], body, time.monotonic(), progress, accepted=False)
        record = self._progress(post) if progress else self._final(request, post)
        # A task of its own: a post that reached the platform counts even if its worker is gone.
        task = asyncio.create_task(record)
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)
        return await asyncio.shield(task)

    async def _progress(self, post: Post) -> web.Response:
        with self._changed:
            delay = self._progress_delay
        if delay:
            await self._pause(delay)
        self._record(replace(post, accepted=True))
        return web.Response()

    async def _final(self, request: web.Request, post: Post) -> web.Response:
        place = self._record(post)
        with self._changed:
            fault = self._faults.popleft() if self._faults else 200
        if fault == "reset":
            return abort(request)
        if isinstance(fault, tuple):
            await self._pause(fault[1])
            fault = 200
        status = int(fault)
        if status < 300:
            self._accept(place)
        return web.Response(status=status)

    def _record(self, post: Post) -> int:
        with self._changed:
            self.posts.append(post)
            self._changed.notify_all()
            return len(self.posts) - 1

    def _accept(self, place: int) -> None:
        with self._changed:
            self.posts[place] = replace(self.posts[place], accepted=True)
            self._changed.notify_all()
