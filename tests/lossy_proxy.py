"""A loopback reverse proxy that loses answers, resets connections and refuses, by a seed.

In front of a job API it stands for RunPod on a bad day; in front of the backend's webhook route it
stands for the network between the two, with calls that come twice or late, so out of order.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from jobserver import LoopbackServer, abort

FORWARD_SECONDS = 60.0
NOT_FORWARDED = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding"}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")


@dataclass(frozen=True)
class Odds:
    """The share of calls, 0 to 1, that meets each fate; the rest passes.

    Attributes:
        lost: passed on, then the connection is reset instead of the answer.
        error: 502, not passed on.
        busy: 429, not passed on.
        reset: reset, not passed on.
        twice: passed on, and once more later.
        late: passed on after a while.
        late_seconds: the longest such while.
    """

    lost: float = 0.05
    error: float = 0.05
    busy: float = 0.02
    reset: float = 0.02
    twice: float = 0.0
    late: float = 0.0
    late_seconds: float = 1.0


NONE = Odds(lost=0, error=0, busy=0, reset=0)
FATES = ("lost", "error", "busy", "reset", "twice", "late")


@dataclass(frozen=True)
class Sending:
    """One POST of a job: `runpod_id` and `answer` are what the API said, whoever came to know it.

    `answer` is 0 where it was not passed on; `at` is a monotonic second.
    """

    job_id: str
    runpod_id: str
    fate: str
    answer: int
    at: float


class LossyProxy(LoopbackServer):
    """Passes calls on to `targets` in turn, or does not.

    Args:
        targets: base URLs; one that refuses the connection makes a 502.
        odds: see `Odds`.
        seed: the same calls in the same order meet the same fates.
        expired: share of RunPod's ids whose ended jobs are answered with 404.

    Attributes:
        fates: how many calls met each fate, by `"{method} {operation} {fate}"`.
        sendings: every POST of a job.
        expired_ids: RunPod's ids that were answered with 404 though the job had ended.
    """

    def __init__(
        self, targets: Sequence[str], odds: Odds, *, seed: int = 0, expired: float = 0.0
    ) -> None:
        super().__init__()
        self.targets = list(targets)
        self.odds = odds
        self.fates: Counter[str] = Counter()
        self.sendings: list[Sending] = []
        self.expired_ids: set[str] = set()
        self._seed, self._expired = seed, expired
        self._chance = random.Random(seed)
        self._turn = 0
        self._session: aiohttp.ClientSession | None = None
        self._later: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"LossyProxy({dict(self.fates)})"

    async def _serve(self) -> None:
        timeout = aiohttp.ClientTimeout(total=FORWARD_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, auto_decompress=False
        ) as session:
            self._session = session
            try:
                await super()._serve()
            finally:
                for task in list(self._later):
                    task.cancel()
                await asyncio.gather(*self._later, return_exceptions=True)

    def _routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{path:.*}", self._pass)]

    async def _pass(self, request: web.Request) -> web.Response:
        body = await request.read()
        operation = _operation(request.path)
        with self._changed:
            fate, pause = self._draw()
            self.fates[f"{request.method} {operation} {fate}"] += 1
            self._changed.notify_all()
        if fate in ("error", "busy", "reset"):
            self._record(operation, body, fate, 0, b"")
            return self._instead(request, fate)
        if fate == "late":
            await self._pause(pause)
        # Shielded: a caller that hangs up must not undo what its call has set off.
        answer = await asyncio.shield(self._forwarded(request, body, operation, fate))
        if fate == "twice":
            self._again(request, body, pause)
        return abort(request) if fate == "lost" else answer

    def _draw(self) -> tuple[str, float]:
        """A fate, and the pause that it may need. Always two draws: so the seed decides all."""
        drawn, pause = self._chance.random(), self._chance.random() * self.odds.late_seconds
        for fate in FATES:
            drawn -= getattr(self.odds, fate)
            if drawn < 0:
                return fate, pause
        return "passed", pause

    def _instead(self, request: web.Request, fate: str) -> web.Response:
        if fate == "reset":
            return abort(request)
        return web.Response(status=429 if fate == "busy" else 502)

    async def _forwarded(
        self, request: web.Request, body: bytes, operation: str, fate: str
    ) -> web.Response:
        status, content, kind = await self._send(request, body)
        self._record(operation, body, fate, status, content)
        if operation == "status" and self._has_expired(content):
            return web.Response(status=404, body=b'{"error": "job not found"}')
        return web.Response(status=status, body=content, headers={"Content-Type": kind})

    async def _send(self, request: web.Request, body: bytes) -> tuple[int, bytes, str]:
        if self._session is None:
            raise RuntimeError("the proxy is not running")
        headers = {k: v for k, v in request.headers.items() if k.lower() not in NOT_FORWARDED}
        self._turn += 1
        url = self.targets[self._turn % len(self.targets)] + request.path_qs
        try:
            async with self._session.request(
                request.method, url, data=body or None, headers=headers, allow_redirects=False
            ) as answer:
                kind = answer.headers.get("Content-Type", "application/octet-stream")
                return answer.status, await answer.read(), kind
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 502, b"", "text/plain"

    def _again(self, request: web.Request, body: bytes, pause: float) -> None:
        async def later() -> None:
            await self._pause(pause)
            await self._send(request, body)

        task = asyncio.get_running_loop().create_task(later())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def _record(self, operation: str, body: bytes, fate: str, status: int, content: bytes) -> None:
        if operation != "run":
            return
        job_id = str(json.loads(body)["input"].get("job_id", ""))
        runpod_id = str(json.loads(content).get("id", "")) if status == 200 else ""
        with self._changed:
            self.sendings.append(Sending(job_id, runpod_id, fate, status, time.monotonic()))
            self._changed.notify_all()

    def _has_expired(self, content: bytes) -> bool:
        if not self._expired:
            return False
        try:
            seen = json.loads(content)
            runpod_id, status = str(seen["id"]), seen["status"]
        except (ValueError, KeyError, TypeError):
            return False
        if random.Random(f"{self._seed}/{runpod_id}").random() >= self._expired:
            return False
        if status in ENDED:
            with self._changed:
                self.expired_ids.add(runpod_id)
            return True
        return False


def _operation(path: str) -> str:
    """`run`, `status` or `cancel` of the job API; `webhook` for the backend's route."""
    parts = path.strip("/").split("/")
    if "webhook" in parts:
        return "webhook"
    return next((part for part in parts if part in ("run", "status", "cancel", "health")), "other")
