"""The side that callers see: RunPod's job API, as far as lyricpod uses it."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from localpod.jobs import Job, Jobs, Policy, QueueFull
from localpod.pool import Pool

MAX_RUN_BYTES = 10_000_000
MOST_MS = 7 * 86_400_000.0  # the platform's longest execution timeout
RETRY_AFTER_SECONDS = 5

Handler = Callable[[web.Request], Awaitable[web.Response]]


class Api:
    """Answers callers.

    Args:
        key: what they must send as a bearer token; empty: nothing, but then no browser is
            answered, as any web page could ask one on this machine to send jobs.
    """

    def __init__(self, jobs: Jobs, pool: Pool, key: str) -> None:
        self._jobs = jobs
        self._pool = pool
        self._key = key

    def routes(self, base: str) -> list[web.RouteDef]:
        """The API's routes under `base`."""
        return [
            web.post(base + "/run", self._guarded(self._run)),
            web.get(base + "/status/{job}", self._guarded(self._status)),
            web.post(base + "/cancel/{job}", self._guarded(self._cancel)),
            web.get(base + "/health", self._guarded(self._health)),
        ]

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.Response:
            given = request.headers.get("Authorization", "").encode(errors="replace")
            if self._key and not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
                return _refused(401, "the Authorization header must be: Bearer <the key>")
            if not self._key and "Origin" in request.headers:
                return _refused(401, "browsers are not answered without a key")
            return await handler(request)

        return guarded

    async def _run(self, request: web.Request) -> web.Response:
        body = await request.read()
        if len(body) > MAX_RUN_BYTES:
            return _refused(413, f"the body has more than {MAX_RUN_BYTES} bytes")
        try:
            job = self._jobs.submit(*_read(body))
        except ValueError as error:
            return _refused(400, str(error))
        except QueueFull:
            answer = _refused(429, "the queue is full: try again later")
            answer.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
            return answer
        return web.json_response({"id": job.id, "status": job.status.value})

    async def _status(self, request: web.Request) -> web.Response:
        job = self._find(request)
        return web.json_response(job.to_wire()) if job else _refused(404, "no such job")

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._find(request)
        if job is None:
            return _refused(404, "no such job")
        self._jobs.cancel(job)
        return web.json_response({"id": job.id, "status": job.status.value})

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"jobs": self._jobs.health(), "workers": self._pool.health()})

    def _find(self, request: web.Request) -> Job | None:
        return self._jobs.find(request.match_info["job"])


def _read(body: bytes) -> tuple[dict[str, Any], str | None, Policy]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):  # the former's text would quote the body
        raise ValueError("the body is not JSON") from None
    if not isinstance(given, dict):
        raise ValueError("the body must be a JSON object")
    if not isinstance(given.get("input"), dict) or not given["input"]:
        raise ValueError("input must be a JSON object that is not empty")
    webhook = given.get("webhook") or None
    if webhook is not None and not _is_url(webhook):
        raise ValueError("webhook must be an http or https URL")
    return given["input"], webhook, _policy(given.get("policy") or {})


def _policy(given: Any) -> Policy:
    if not isinstance(given, dict):
        raise ValueError("policy must be a JSON object")
    execution = _milliseconds(given, "executionTimeout", Policy.execution_ms)
    return Policy(execution, _milliseconds(given, "ttl", Policy.ttl_ms))


def _milliseconds(given: dict[str, Any], name: str, default: float) -> float:
    value = given.get(name)
    if value is None:
        return default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= MOST_MS:
        raise ValueError(f"policy.{name} must be milliseconds, more than 0 and at most 7 days")
    return float(value)


def _is_url(value: Any) -> bool:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
    except ValueError:
        return False
    return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)


def _refused(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)
