"""RunPod's job API over HTTP: run, status, cancel, health, each answer as one of a few objects.

Source of the API's facts: https://docs.runpod.io/serverless/endpoints/job-operations. The local
endpoint speaks the same.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urlsplit

from orchestrator.exchange import Answer, Exchange, NotSent, Unanswered
from orchestrator.limits import Backoff, Bucket, Limits
from orchestrator.log import get_logger

MAX_ANSWER_BYTES = 40_000_000  # RunPod takes results up to 20 MB; escapes can double them
MAX_RUN_BYTES = 10 * 1024 * 1024  # RunPod's limit for the body of /run
RUNPOD_ID = re.compile(r"[A-Za-z0-9_.:~-]{1,200}")

log = get_logger()


class Phase(StrEnum):
    """Where a job is, in RunPod's words made one."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


PHASES = {
    "IN_QUEUE": Phase.QUEUED,
    "IN_PROGRESS": Phase.RUNNING,
    "RUNNING": Phase.RUNNING,
    "COMPLETED": Phase.COMPLETED,
    "FAILED": Phase.FAILED,
    "CANCELLED": Phase.CANCELLED,
    "TIMED_OUT": Phase.TIMED_OUT,
}


@dataclass(frozen=True)
class Endpoint:
    """Where jobs can be sent.

    Args:
        name: how rows and logs call it.
        base_url: ends in `/v2`.
        price: USD per second of a worker; None if unknown.
        instance: the replica that a local endpoint belongs to; None for one that all share.
        max_in_flight: jobs sent and not ended, at most.
    """

    name: str
    base_url: str
    endpoint_id: str
    api_key: str = field(repr=False)
    price: float | None = None
    kind: Literal["runpod", "local"] = "runpod"
    instance: str | None = None
    max_in_flight: int = 10_000


@dataclass(frozen=True)
class Accepted:
    """The endpoint has the job, under this id."""

    runpod_id: str


@dataclass(frozen=True)
class Refused:
    """Certainly not acted on: send it again, after `retry_after` seconds if it says so."""

    reason: str
    retry_after: float | None = None


@dataclass(frozen=True)
class Uncertain:
    """The endpoint may have the job, or not."""

    reason: str


@dataclass(frozen=True)
class Rejected:
    """This body will never be taken."""

    reason: str


@dataclass(frozen=True)
class Misconfigured:
    """Nothing will be taken until somebody follows `hint`."""

    reason: str
    hint: str


@dataclass(frozen=True)
class Seen:
    """A job as the endpoint shows it; `output` as the worker returned it or its newest progress."""

    runpod_id: str
    phase: Phase
    output: Any = None
    error: str | None = None
    delay_ms: int | None = None
    execution_ms: int | None = None
    worker_id: str | None = None
    retries: int = 0


@dataclass(frozen=True)
class Missing:
    """The endpoint doesn't know the job: not yet, no longer, or never."""


@dataclass(frozen=True)
class Unreachable:
    """Nothing was learned: ask again, after `retry_after` seconds if it says so."""

    reason: str
    retry_after: float | None = None


@dataclass(frozen=True)
class Health:
    """Counts by RunPod's names: jobs by state, workers by state."""

    jobs: dict[str, int]
    workers: dict[str, int]


Sent: TypeAlias = Accepted | Refused | Uncertain | Rejected | Misconfigured
Look: TypeAlias = Seen | Missing | Unreachable | Misconfigured


class EndpointClient:
    """One endpoint's job API; thread-safe, one call at a time per thread, never retried here.

    Takes no tokens from `limits`: who calls does. A 429 pauses the bucket it belongs to.

    Args:
        seconds: the deadline of one call, see `Exchange`.

    Raises:
        ValueError: the base URL is none, or the key can't stand in a header; at construction.
    """

    def __init__(
        self, endpoint: Endpoint, *, seconds: float = 20, limits: Limits | None = None
    ) -> None:
        _check(endpoint)
        self.endpoint = endpoint
        self._base = f"{endpoint.base_url.rstrip('/')}/{quote(endpoint.endpoint_id, safe='')}"
        self._exchange = Exchange(
            {
                "Authorization": f"Bearer {endpoint.api_key}",
                "Accept": "application/json",
                "Content-Type": "application/json",
                "User-Agent": "lyricpod",
            },
            seconds=seconds,
            limit=MAX_ANSWER_BYTES,
        )
        self._run = _Gate(limits.run if limits else None)
        self._status = _Gate(limits.status if limits else None)
        self._cancel = _Gate(limits.cancel if limits else None)
        self._health = _Gate(None)
        self._strange: set[str] = set()

    def run(self, body: Mapping[str, Any]) -> Sent:
        """Send a job: `{"input": ..., "webhook": ..., "policy": ...}`."""
        data = json.dumps(body, separators=(",", ":")).encode()
        if len(data) > MAX_RUN_BYTES:
            return Rejected(self._say(f"the request has more than {MAX_RUN_BYTES} bytes"))
        try:
            answer = self._exchange.send("POST", f"{self._base}/run", data)
        except NotSent as error:
            return self._refuse(error)
        except Unanswered as error:
            return Uncertain(self._say(error.reason))
        wait = self._run.settle(answer)
        if 200 <= answer.status < 300:
            return self._accept(answer)
        if wait is not None:
            return Refused(self._say("too many requests (429)"), wait)
        if answer.status in (400, 413, 422):
            return Rejected(self._say(f"it refused the request ({answer.status})"))
        if answer.status >= 500 or answer.status == 408:  # 408 may be a gateway's
            return Uncertain(self._say(f"it answered {answer.status}"))
        return self._misconfigured(answer.status) or Refused(
            self._say(f"it answered {answer.status}")
        )

    def status(self, runpod_id: str) -> Look:
        """Look at a job."""
        return self._look("GET", "status", runpod_id, self._status)

    def cancel(self, runpod_id: str) -> Look:
        """Cancel a job; shows it as it is afterwards."""
        return self._look("POST", "cancel", runpod_id, self._cancel)

    def health(self) -> Health | Unreachable | Misconfigured:
        """The endpoint's own counts of jobs and workers."""
        answer = self._ask("GET", f"{self._base}/health", self._health)
        if not isinstance(answer, Answer):
            return answer
        shown = _json_object(answer)
        jobs, workers = shown.get("jobs"), shown.get("workers")
        if not isinstance(jobs, dict) and not isinstance(workers, dict):
            return Unreachable(self._say(_unreadable(answer)))
        return Health(_counts(jobs), _counts(workers))

    def close(self) -> None:
        """Close the idle connections."""
        self._exchange.close()

    def _refuse(self, error: NotSent) -> Refused | Misconfigured:
        if error.hint:
            return Misconfigured(self._say(error.reason), error.hint)
        return Refused(self._say(error.reason))

    def _accept(self, answer: Answer) -> Accepted | Uncertain:
        runpod_id = _json_object(answer).get("id")
        if isinstance(runpod_id, str) and RUNPOD_ID.fullmatch(runpod_id):
            return Accepted(runpod_id)
        return Uncertain(self._say(_unreadable(answer)))

    def _look(self, method: str, operation: str, runpod_id: str, gate: _Gate) -> Look:
        url = f"{self._base}/{operation}/{quote(runpod_id, safe='')}"
        answer = self._ask(method, url, gate, gone=(404, 410))
        if not isinstance(answer, Answer):
            return answer
        if answer.status in (404, 410):
            return Missing()
        shown = _json_object(answer)
        word = shown.get("status")
        if not isinstance(word, str):
            return Unreachable(self._say(_unreadable(answer)))
        if shown.get("id", runpod_id) != runpod_id:
            return Unreachable(self._say("its answer is about another job"))
        return _seen(runpod_id, self._phase(word), shown)

    def _ask(
        self, method: str, url: str, gate: _Gate, gone: tuple[int, ...] = ()
    ) -> Answer | Unreachable | Misconfigured:
        """An answer with a status of 2xx or one of `gone`, or why there is none."""
        try:
            answer = self._exchange.send(method, url)
        except NotSent as error:
            if error.hint:
                return Misconfigured(self._say(error.reason), error.hint)
            return Unreachable(self._say(error.reason))
        except Unanswered as error:
            return Unreachable(self._say(error.reason))
        wait = gate.settle(answer)
        if 200 <= answer.status < 300 or answer.status in gone:
            return answer
        if wait is not None:
            return Unreachable(self._say("too many requests (429)"), wait)
        return self._misconfigured(answer.status) or Unreachable(
            self._say(f"it answered {answer.status}"), retry_after(answer.headers)
        )

    def _misconfigured(self, status: int) -> Misconfigured | None:
        """What a status says about the settings, if it says that they are wrong."""
        key, where = "RUNPOD_API_KEY", "RUNPOD_ENDPOINT_ID and RUNPOD_ENDPOINT_BASE_URL"
        hints = {
            401: f"check {key}: it is wrong or was revoked",
            402: "check the account's credit",
            403: f"check that {key} may use this endpoint",
            404: f"check {where}: there is no such endpoint",
            405: f"check {where}",
        }
        hint = hints.get(status) or (hints[405] if 300 <= status < 400 else None)
        if hint and self.endpoint.kind == "local":
            hint = "restart this process: another one answers at its local endpoint's address"
        return Misconfigured(self._say(f"it answered {status}"), hint) if hint else None

    def _phase(self, word: str) -> Phase:
        phase = PHASES.get(word) or PHASES.get(word.strip().upper())
        if phase:
            return phase
        word = word[:40]
        if word not in self._strange and len(self._strange) < 100:  # once each: polls are many
            self._strange.add(word)
            log.warning(
                "a status that is not known; the job counts as running",
                endpoint=self.endpoint.name,
                status=word,
            )
        return Phase.RUNNING

    def _say(self, what: str) -> str:
        return f"endpoint {self.endpoint.name}: {what}"


def _check(endpoint: Endpoint) -> None:
    parts = urlsplit(endpoint.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"the base URL of endpoint {endpoint.name} must look like https://host/v2")
    if not (endpoint.api_key.isascii() and endpoint.api_key.isprintable()):
        raise ValueError(
            f"the API key of endpoint {endpoint.name} has characters that no key has: copy it again"
        )


class _Gate:
    """What one operation has learned from its 429s."""

    def __init__(self, bucket: Bucket | None) -> None:
        self._bucket = bucket
        self._backoff = Backoff()

    def settle(self, answer: Answer) -> float | None:
        """Seconds to wait after a 429, with the bucket paused; None for any other answer."""
        if answer.status != 429:
            self._backoff.accepted()
            return None
        wait = self._backoff.refused(retry_after(answer.headers))
        if self._bucket:
            self._bucket.pause(wait)
        return wait


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds a Retry-After asks for (a number or a date); None if it asks for nothing."""
    said = headers.get("Retry-After")
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        seconds = _seconds_until(said, headers.get("Date"))
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _seconds_until(then: str, date: str | None) -> float:
    """From the server's own clock, if it shows it, to `then`; not a number if that is no date."""
    try:
        moment = parsedate_to_datetime(then).timestamp()
    except (ValueError, OverflowError):
        return math.nan
    try:
        return moment - parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        return moment - time.time()


def _json_object(answer: Answer) -> dict[str, Any]:
    """The body as a JSON object; empty for anything else."""
    try:
        shown = json.loads(answer.body)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return {}
    return shown if isinstance(shown, dict) else {}


def _unreadable(answer: Answer) -> str:
    return answer.unread or f"it answered {answer.status} with something else than the API's JSON"


def _seen(runpod_id: str, phase: Phase, shown: dict[str, Any]) -> Seen:
    return Seen(
        runpod_id=runpod_id,
        phase=phase,
        output=shown.get("output"),
        error=_text(shown.get("error")),
        delay_ms=_count(shown.get("delayTime")),
        execution_ms=_count(shown.get("executionTime")),
        worker_id=_text(shown.get("workerId")),
        retries=_count(shown.get("retries")) or 0,
    )


def _text(value: Any) -> str | None:
    """A text that a database takes: no NUL, no half of a surrogate pair; other shapes as JSON."""
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _count(value: Any) -> int | None:
    """A whole number of at least 0 that a bigint holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 2**63 else None


def _counts(shown: Any) -> dict[str, int]:
    if not isinstance(shown, dict):
        return {}
    return {name: n for name, value in shown.items() if (n := _count(value)) is not None}
