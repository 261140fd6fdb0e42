"""A loopback double of RunPod's job API, at RunPod's own limits, with jobs that go by script.

In a test: `with RunPodDouble() as runpod:`. As a process of its own, so that its CPU time is not
the test's: `python tests/runpod_double.py --queued 1 --seconds 2,8`, which prints one line of
JSON with its address and ends when its standard input does; `GET /double/report` says what came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias

import aiohttp
from aiohttp import web
from jobserver import CLOSE_SECONDS, Json, LoopbackServer, abort
from scripted_worker import fingerprint, result

ENDPOINT_ID = "endpoint-double"
KEY = "rpa-double-key"
WINDOW_SECONDS = 10.0
MAX_BODY_BYTES = 10 * 1024 * 1024
KEPT_SECONDS = 1800.0  # a result, after its job's end
EXECUTION_MS, TTL_MS = 600_000, 86_400_000  # the policy where a job says none
WEBHOOK_PAUSES = (5.0, 15.0)  # before the second and the third try
WEBHOOK_SECONDS = 30.0
WEBHOOKS_AT_ONCE = 64

Operation: TypeAlias = Literal["run", "status", "cancel", "health"]
LIMITS: dict[str, tuple[int, int]] = {  # calls in 10 s, calls at once
    "run": (1000, 200),
    "status": (2000, 400),
    "cancel": (100, 20),
}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")

Fault: TypeAlias = Literal["lose", "reset", "hang"] | int | tuple[Literal["delay"], float]
"""What happens to one call. `lose`: acted on, then the connection is reset; `reset`: reset without
acting; `hang`: acted on and never answered; a number: that status without acting; `delay`: acted
on, answered after some seconds."""

SCRIPTED = object()  # as an output: the result that the contract asks for


@dataclass(frozen=True)
class Script:
    """How one job goes.

    Attributes:
        queued: seconds in the queue; None until `start`.
        seconds: of its run; None until `finish`.
        progress: what `/status` shows as output in the run, one after another, evenly.
        output: at the end; `SCRIPTED` is a valid result with `words` words.
        error: at the end, with status FAILED.
        status: at the end, where it is not COMPLETED or FAILED.
        retries: how often the platform says it dispatched the job again.
        early_404: so many status calls are answered with 404 first.
        kept: seconds from the end until `/status` answers 404.
    """

    queued: float | None = 0.0
    seconds: float | None = 0.0
    progress: tuple[Json, ...] = ()
    output: Any = SCRIPTED
    words: int = 40
    error: str | None = None
    status: str | None = None
    retries: int = 0
    early_404: int = 0
    kept: float = KEPT_SECONDS


HELD = Script(queued=None, seconds=None)
Decide: TypeAlias = Callable[[Json], Script]


@dataclass(slots=True)
class Job:
    """One accepted submission. Seconds are monotonic, except `ended_wall` (of the epoch)."""

    runpod_id: str
    body: Json
    script: Script
    submitted: float
    early_404: int
    status: str = "IN_QUEUE"
    started: float | None = None
    ended: float | None = None
    ended_wall: float = 0.0
    output: bytes = b""
    error: str | None = None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def job_id(self) -> str:
        """The backend's id, as the request carries it."""
        return str(self.body["input"].get("job_id", ""))

    def shown(self, now: float) -> bytes:
        """The `/status` object."""
        began = self.started or self.ended or now
        head: Json = {"id": self.runpod_id, "status": self.status}
        head["delayTime"] = int(1000 * (began - self.submitted))
        if self.started is not None:
            head["workerId"] = "worker-double"
        if self.started is not None and self.ended is not None:
            head["executionTime"] = int(1000 * (self.ended - self.started))
        if self.script.retries:
            head["retries"] = self.script.retries
        if self.error is not None:
            head["error"] = self.error
        text = json.dumps(head).encode()
        output = self.output or self._progress(now)
        return text[:-1] + b', "output": ' + output + b"}" if output else text

    def _progress(self, now: float) -> bytes:
        reports, length = self.script.progress, self.script.seconds
        if self.status != "IN_PROGRESS" or not reports or self.started is None:
            return b""
        share = (now - self.started) / length if length else 0.0
        return json.dumps(reports[min(len(reports) - 1, int(share * len(reports)))]).encode()


@dataclass(frozen=True)
class Submission:
    """One POST of a job that was read. `runpod_id` is empty where it was not accepted."""

    job_id: str
    runpod_id: str
    at: float
    fault: Fault | None


@dataclass(frozen=True)
class Delivery:
    """One try of a webhook: the status it was answered with, 0 if it was not answered."""

    runpod_id: str
    url: str
    answer: int


class Gate:
    """RunPod's limits on one operation: so many calls in any 10 s, so many at once."""

    def __init__(self, calls: int, at_once: int) -> None:
        self._calls, self._at_once = calls, at_once
        self._seen: deque[float] = deque()
        self.open = 0

    def admits(self, now: float) -> bool:
        """Whether this call is within both limits; one that is not does not count."""
        while self._seen and self._seen[0] <= now - WINDOW_SECONDS:
            self._seen.popleft()
        if len(self._seen) >= self._calls or self.open >= self._at_once:
            return False
        self._seen.append(now)
        return True


class RunPodDouble(LoopbackServer):
    """The job API in memory. State is read under `wait_until`, or when nothing goes on.

    Attributes:
        decide: the script of each accepted job, from its body.
        submissions: every POST of a job that was read, in order.
        jobs: the accepted ones, by RunPod's id.
        calls, refused: how many came and how many of them were answered 429, by operation.
        deliveries: every try of a webhook.
        balance: of the credit, USD; None makes the query fail.
    """

    def __init__(
        self,
        *,
        decide: Decide = lambda body: Script(),
        key: str = KEY,
        endpoint_id: str = ENDPOINT_ID,
        limits: dict[str, tuple[int, int]] | None = None,
        webhook_pauses: tuple[float, ...] = WEBHOOK_PAUSES,
    ) -> None:
        super().__init__()
        self.decide = decide
        self.key, self.endpoint_id = key, endpoint_id
        self.submissions: list[Submission] = []
        self.jobs: dict[str, Job] = {}
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.deliveries: list[Delivery] = []
        self.balance: float | None = 25.0
        self.workers = {"idle": 1, "initializing": 0, "ready": 1, "running": 0}
        self.workers |= {"throttled": 0, "unhealthy": 0}
        self._gates = {name: Gate(*pair) for name, pair in {**LIMITS, **(limits or {})}.items()}
        self._faults: dict[str, deque[Fault]] = {}
        self._always: dict[str, Fault] = {}
        self._webhook_pauses = webhook_pauses
        self._sending: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._turn = asyncio.Semaphore(WEBHOOKS_AT_ONCE)

    def __repr__(self) -> str:
        states = Counter(job.status for job in self.jobs.values())
        return f"RunPodDouble({dict(states)}, calls={dict(self.calls)}, {dict(self.refused)=})"

    @property
    def base_url(self) -> str:
        """What stands in for `https://api.runpod.ai/v2`."""
        return f"{self.url}/v2"

    def env(self) -> dict[str, str]:
        """The environment that sends an orchestrator here, and nowhere else."""
        return {
            "RUNPOD_API_KEY": self.key,
            "RUNPOD_ENDPOINT_ID": self.endpoint_id,
            "RUNPOD_ENDPOINT_BASE_URL": self.base_url,
            "RUNPOD_GRAPHQL_URL": f"{self.url}/graphql",
            "LOCAL_ENDPOINT": "off",
        }

    # What a test does; each call returns when it has happened.

    def fail(self, operation: Operation, *faults: Fault) -> None:
        """The next calls of this operation meet these faults, one each."""
        with self._changed:
            self._faults.setdefault(operation, deque()).extend(faults)

    def fail_always(self, operation: Operation, fault: Fault | None) -> None:
        """Every call of this operation meets the fault; None ends that."""
        with self._changed:
            self._always.pop(operation, None)
            if fault is not None:
                self._always[operation] = fault

    def of(self, job_id: str) -> list[Job]:
        """The accepted submissions of one of the backend's jobs, oldest first."""
        with self._changed:
            return [job for job in self.jobs.values() if job.job_id == job_id]

    def last(self, job_id: str, timeout: float = 30) -> Job:
        """The newest submission of a job, waited for."""
        self.wait_until(lambda: any(j.job_id == job_id for j in self.jobs.values()), timeout)
        return self.of(job_id)[-1]

    def start(self, job_id: str) -> None:
        """Take the job out of the queue."""
        job = self.last(job_id)  # waits, so not in the loop
        self._do(lambda: self._start(job))

    def progress(self, job_id: str, output: Json) -> None:
        """Show this as the output of the running job."""
        job = self.last(job_id)
        self._do(lambda: self._show(job, output))

    def finish(
        self,
        job_id: str,
        *,
        output: Any = SCRIPTED,
        error: str | None = None,
        status: str | None = None,
    ) -> None:
        """End the job: FAILED with an error, otherwise COMPLETED, or as `status` says."""
        job = self.last(job_id)
        self._do(lambda: self._end(job, output, error, status))

    def forget(self, job_id: str) -> None:
        """Answer 404 for every submission of this job from now on."""
        self._do(lambda: [self._forget(job) for job in self.of(job_id)])

    def deliver(self, job_id: str) -> None:
        """Send the webhook of the job's newest submission once more."""
        job = self.last(job_id)
        self._do(lambda: self._call_webhook(job))

    def _do(self, act: Callable[[], Any]) -> None:
        loop = self._loop
        if loop is None:
            raise RuntimeError("the double is not running")

        async def acting() -> None:
            act()

        asyncio.run_coroutine_threadsafe(acting(), loop).result(CLOSE_SECONDS)

    # The server.

    async def _serve(self) -> None:
        timeout = aiohttp.ClientTimeout(total=WEBHOOK_SECONDS)
        connector = aiohttp.TCPConnector(limit=WEBHOOKS_AT_ONCE)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            self._session = session
            try:
                await super()._serve()
            finally:
                for job in self.jobs.values():
                    self._stop_timers(job)
                for task in list(self._sending):
                    task.cancel()
                await asyncio.gather(*self._sending, return_exceptions=True)

    def _routes(self) -> list[web.RouteDef]:
        base = "/v2/{endpoint}"
        return [
            web.post(base + "/run", partial(self._answer, "run", self._submit)),
            web.get(base + "/status/{id}", partial(self._answer, "status", self._status)),
            web.post(base + "/cancel/{id}", partial(self._answer, "cancel", self._cancel)),
            web.get(base + "/health", partial(self._answer, "health", self._health)),
            web.post("/graphql", self._graphql),
            web.get("/double/report", self._report),
        ]

    async def _answer(
        self,
        operation: str,
        act: Callable[[web.Request, Fault | None], Awaitable[web.Response]],
        request: web.Request,
    ) -> web.Response:
        gate = self._gates.get(operation)
        with self._changed:
            self.calls[operation] += 1
            fault = self._next_fault(operation)
            admitted = gate is None or gate.admits(time.monotonic())
            if not admitted:
                self.refused[operation] += 1
            self._changed.notify_all()
        if fault == "reset":
            return abort(request)
        if isinstance(fault, int):
            return _refusal(fault, "a fault on demand")
        if refusal := self._refusal(request, admitted):
            return refusal
        if gate:
            gate.open += 1
        try:
            return await self._afterwards(request, fault, await act(request, fault))
        finally:
            if gate:
                gate.open -= 1

    def _next_fault(self, operation: str) -> Fault | None:
        queued = self._faults.get(operation)
        return queued.popleft() if queued else self._always.get(operation)

    def _refusal(self, request: web.Request, admitted: bool) -> web.Response | None:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return _refusal(401, "unauthorized")
        if request.match_info["endpoint"] != self.endpoint_id:
            return _refusal(404, "endpoint not found")
        return None if admitted else _refusal(429, "too many requests")

    async def _afterwards(
        self, request: web.Request, fault: Fault | None, answer: web.Response
    ) -> web.Response:
        if fault == "lose":
            return abort(request)
        if fault == "hang":
            await self._closing.wait()
            return abort(request)
        if isinstance(fault, tuple):
            await self._pause(fault[1])
        return answer

    async def _submit(self, request: web.Request, fault: Fault | None) -> web.Response:
        data = await request.read()
        if len(data) > MAX_BODY_BYTES:
            return _refusal(413, "the body is larger than 10 MB")
        try:
            body = json.loads(data)
            sent = body["input"]
        except (ValueError, KeyError, TypeError):
            sent = None
        if not isinstance(sent, dict) or not sent:
            return _refusal(400, "input is required")
        job = self._accept(body, fault)
        return _json({"id": job.runpod_id, "status": job.status})

    def _accept(self, body: Json, fault: Fault | None) -> Job:
        now = time.monotonic()
        script = self.decide(body)
        runpod_id = f"{uuid.uuid4()}-u1"
        job = Job(runpod_id, body, script, now, script.early_404)
        with self._changed:
            self.jobs[runpod_id] = job
            self.submissions.append(Submission(job.job_id, runpod_id, now, fault))
            self._changed.notify_all()
        ttl = (body.get("policy") or {}).get("ttl") or TTL_MS
        self._later(job, ttl / 1000, partial(self._forget, job))
        if script.queued is not None:
            self._later(job, script.queued, partial(self._start, job))
        return job

    async def _status(self, request: web.Request, fault: Fault | None) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None or job.early_404 > 0:
            if job is not None:
                job.early_404 -= 1
            return _refusal(404, "job not found")
        return web.Response(body=job.shown(time.monotonic()), content_type="application/json")

    async def _cancel(self, request: web.Request, fault: Fault | None) -> web.Response:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return _refusal(404, "job not found")
        if job.status not in ENDED:
            self._end(job, None, None, "CANCELLED")
        return _json({"id": job.runpod_id, "status": job.status})

    async def _health(self, request: web.Request, fault: Fault | None) -> web.Response:
        states = Counter(job.status for job in self.jobs.values())
        jobs = {
            "completed": states["COMPLETED"],
            "failed": states["FAILED"] + states["TIMED_OUT"],
            "inProgress": states["IN_PROGRESS"],
            "inQueue": states["IN_QUEUE"],
            "retried": 0,
        }
        return _json({"jobs": jobs, "workers": self.workers})

    async def _graphql(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return _refusal(401, "unauthorized")
        if self.balance is None:
            return _refusal(500, "internal error")
        myself = {"clientBalance": self.balance, "currentSpendPerHr": 0.0}
        return _json({"data": {"myself": myself}})

    async def _report(self, request: web.Request) -> web.Response:
        """For the process that started this one; not a part of RunPod."""
        jobs = list(self.jobs.values())
        ended = [job for job in jobs if job.ended is not None]
        counts: Json = {
            "calls": self.calls,
            "refused": self.refused,
            "submitted": len(self.submissions),
            "in_flight": len(jobs) - len(ended),
            "ended": len(ended),
            "webhooks": Counter(str(delivery.answer) for delivery in self.deliveries),
        }
        if "full" in request.query:
            counts["job_ids"] = [sent.job_id for sent in self.submissions]
            counts["ends"] = [[job.job_id, job.status, job.ended_wall] for job in ended]
        return _json(counts)

    # A job's life; all of it in the loop's thread.

    def _later(self, job: Job, seconds: float, act: Callable[[], object]) -> None:
        job.timers.append(asyncio.get_running_loop().call_later(seconds, act))

    def _stop_timers(self, job: Job) -> None:
        for timer in job.timers:
            timer.cancel()
        job.timers.clear()

    def _start(self, job: Job) -> None:
        if job.status != "IN_QUEUE":
            return
        with self._changed:
            job.status, job.started = "IN_PROGRESS", time.monotonic()
            self._changed.notify_all()
        policy = job.body.get("policy") or {}
        limit = (policy.get("executionTimeout") or EXECUTION_MS) / 1000
        script = job.script
        if script.seconds is None or script.seconds > limit:
            error = "job timed out after 1 retries"
            self._later(job, limit, partial(self._end, job, None, error, "TIMED_OUT"))
        else:
            end = partial(self._end, job, script.output, script.error, script.status)
            self._later(job, script.seconds, end)

    def _show(self, job: Job, output: Json) -> None:
        with self._changed:
            job.output = json.dumps(output).encode()
            self._changed.notify_all()

    def _end(self, job: Job, output: Any, error: str | None, status: str | None) -> None:
        if job.status in ENDED:
            return
        self._stop_timers(job)
        with self._changed:
            if job.started is None and status != "CANCELLED":
                job.started = time.monotonic()
            job.status = status or ("FAILED" if error is not None else "COMPLETED")
            job.error = error
            job.output = self._final(job, output) if job.status == "COMPLETED" else b""
            job.ended, job.ended_wall = time.monotonic(), time.time()
            self._changed.notify_all()
        self._later(job, job.script.kept, partial(self._forget, job))
        self._call_webhook(job)

    def _final(self, job: Job, output: Any) -> bytes:
        if output is not SCRIPTED:
            return b"" if output is None else json.dumps(output).encode()
        own = {"job_id": job.job_id, "fingerprint": fingerprint(job.body["input"])}
        return _template(job.script.words)[:-1] + b", " + json.dumps(own).encode()[1:]

    def _forget(self, job: Job) -> None:
        """A hard delete, in the middle of a run too."""
        self._stop_timers(job)
        with self._changed:
            self.jobs.pop(job.runpod_id, None)
            self._changed.notify_all()

    def _call_webhook(self, job: Job) -> None:
        if job.body.get("webhook"):
            task = asyncio.get_running_loop().create_task(self._deliver(job))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _deliver(self, job: Job) -> None:
        url = str(job.body["webhook"])
        more = json.dumps({"input": job.body["input"], "webhook": url}).encode()
        body = job.shown(time.monotonic())[:-1] + b", " + more[1:]
        for pause in (0.0, *self._webhook_pauses):
            if pause:
                await self._pause(pause)
            if self._closing.is_set():
                return
            async with self._turn:
                answer = await self._post(url, body)
            with self._changed:
                self.deliveries.append(Delivery(job.runpod_id, url, answer))
                self._changed.notify_all()
            if answer == 200:
                return

    async def _post(self, url: str, body: bytes) -> int:
        if self._session is None:
            raise RuntimeError("the double is not running")
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(url, data=body, headers=headers) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0


@lru_cache
def _template(words: int) -> bytes:
    """The same words for all jobs, in JSON once: what differs is put behind them."""
    done = result({}, "", words)
    return json.dumps(
        {k: v for k, v in done.items() if k not in ("job_id", "fingerprint")}
    ).encode()


def _json(data: Any) -> web.Response:
    return web.Response(body=json.dumps(data).encode(), content_type="application/json")


def _refusal(status: int, message: str) -> web.Response:
    body = json.dumps({"error": message}).encode()
    return web.Response(status=status, body=body, content_type="application/json")


def _span(text: str) -> tuple[float, float]:
    least, _, most = text.partition(",")
    return float(least), float(most or least)


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--endpoint-id", default=ENDPOINT_ID)
    parser.add_argument("--queued", type=_span, default=(0.0, 0.0), help="SECONDS or LEAST,MOST")
    parser.add_argument("--seconds", type=_span, default=(1.0, 1.0), help="SECONDS or LEAST,MOST")
    parser.add_argument("--words", type=int, default=40, help="of each result")
    parser.add_argument("--webhook-pauses", type=_span, default=WEBHOOK_PAUSES)
    parser.add_argument("--seed", default="0")
    asked = parser.parse_args()

    def decide(body: Json) -> Script:
        chance = random.Random(f"{asked.seed}/{body['input'].get('job_id')}")
        queued, seconds = chance.uniform(*asked.queued), chance.uniform(*asked.seconds)
        return Script(queued=queued, seconds=seconds, words=asked.words)

    double = RunPodDouble(
        decide=decide,
        key=asked.key,
        endpoint_id=asked.endpoint_id,
        webhook_pauses=asked.webhook_pauses,
    )
    with double:
        print(json.dumps({"url": double.url, **double.env()}), flush=True)  # noqa: T201
        sys.stdin.read()


if __name__ == "__main__":
    main()
