"""What can be observed of a sending: one event, from the endpoint, the storage and the row."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lyricpod.errors import ErrorCode, JobError
from lyricpod.progress import Progress, Stage
from lyricpod.result import JobResult, Line
from orchestrator.config import Settings
from orchestrator.endpoint import (
    Accepted,
    EndpointClient,
    Look,
    Misconfigured,
    Missing,
    Phase,
    Refused,
    Rejected,
    Seen,
    Sent,
    Uncertain,
    Unreachable,
)
from orchestrator.fleet import Fleet
from orchestrator.local import LOCAL
from orchestrator.records import Account, Claimed
from orchestrator.results import Publisher, failure, normalise
from orchestrator.states import Event, State

EARLY_SECONDS = 60.0  # a 404 this soon after the sending may be a replica of RunPod's that lags
GIVE_UP_SECONDS = 120.0  # an endpoint that is silent for so long loses its jobs to another
CANCEL_FOR = 3600.0  # seconds for which cancels go on; then the platform's timeout has ended it
DOUBT_SECONDS = 5.0  # between two looks for copies while the storage does not answer
TOKEN_SECONDS = 5.0  # how long a look waits for its share of the rate limit
MAX_TEXT = 500  # characters of a message or a line in a worker's report


@dataclass(frozen=True)
class Observed:
    """An event, and what came with it."""

    event: Event
    error: JobError | None = None
    result: JobResult | None = None
    progress: Progress | None = None
    account: Account = field(default_factory=Account)
    runpod_id: str | None = None  # of a sending that was accepted
    wait: float | None = None  # seconds that the endpoint asked for


class Observer:
    """Observes sendings, any number at once.

    Args:
        usable: the names of endpoints that could take a job now.
    """

    def __init__(
        self,
        fleet: Fleet,
        publisher: Publisher,
        settings: Settings,
        usable: Callable[[], frozenset[str]],
    ) -> None:
        self._fleet = fleet
        self._publisher = publisher
        self._settings = settings
        self._usable = usable
        self._doubt: JobError | None = None  # why nobody knows of copies
        self._doubt_until = 0.0
        self._doubt_lock = threading.Lock()

    def observe(self, attempt: Claimed) -> Observed | None:
        """One look at a due sending; None: its share of the rate limit did not come."""
        active = attempt.state != State.ABANDONED
        if active and attempt.unwanted:
            return Observed(Event.UNWANTED)
        if attempt.instance_gone:
            return Observed(Event.INSTANCE_GONE, error=lost("the replica that ran it is gone"))
        if active and attempt.late:
            return Observed(Event.DEADLINE, error=_too_late(self._settings))
        if attempt.runpod_id is None:
            return self._observe_unknown(attempt)
        client = self._fleet.client(attempt.endpoint)
        if client is None:
            return self._observe_nobody(attempt)
        if not active:
            return self._observe_abandoned(attempt, client)
        limits = self._fleet.limits(attempt.endpoint)
        if limits and not limits.status.take(TOKEN_SECONDS):
            return None
        look = client.status(attempt.runpod_id)
        self._fleet.note(attempt.endpoint, look)
        return self._read(attempt, look)

    def _observe_nobody(self, attempt: Claimed) -> Observed:
        """There is no such endpoint here (any more)."""
        if attempt.endpoint == LOCAL:
            return Observed(Event.MISSING, error=lost("the local endpoint has ended"))
        if attempt.state == State.ABANDONED and _outlived(attempt):
            return Observed(Event.MISSING)
        return self._silent(attempt, "it is not configured here")

    def _observe_unknown(self, attempt: Claimed) -> Observed:
        if attempt.state == State.SUBMITTING:
            return Observed(Event.SENDER_GONE)
        if attempt.state == State.ABANDONED:
            if attempt.age > CANCEL_FOR:
                return Observed(Event.PATIENCE_OVER)
            return Observed(Event.UNREACHABLE)
        copy = self.copy(attempt)
        if isinstance(copy, JobResult):
            return Observed(Event.COPY_FOUND, result=copy)
        if attempt.patience_over:
            return Observed(Event.PATIENCE_OVER, error=lost("nothing was heard of it"))
        return Observed(Event.UNCERTAIN)

    def _observe_abandoned(self, attempt: Claimed, client: EndpointClient) -> Observed | None:
        """Whether it ended by itself; else cancel it again."""
        limits = self._fleet.limits(attempt.endpoint)
        if limits and not limits.status.take(TOKEN_SECONDS):
            return Observed(Event.UNREACHABLE)
        look = client.status(attempt.runpod_id or "")
        self._fleet.note(attempt.endpoint, look)
        observed = self._read(attempt, look)
        ended = observed and observed.event not in (
            Event.SEEN_QUEUED,
            Event.SEEN_RUNNING,
            Event.UNREACHABLE,
            Event.GIVEN_UP,
            Event.MISSING_EARLY,
        )
        if ended or isinstance(look, Unreachable | Misconfigured):
            if not ended and _outlived(attempt):
                return Observed(Event.MISSING)
            return observed
        if limits is None or limits.cancel.take(TOKEN_SECONDS):
            look = client.cancel(attempt.runpod_id or "")
            self._fleet.note(attempt.endpoint, look)
            after = self._read(attempt, look)
            if after and after.event == Event.SEEN_CANCELLED:
                return after
        return observed

    def _read(self, attempt: Claimed, look: Look) -> Observed | None:
        match look:
            case Seen():
                return self._read_seen(attempt, look)
            case Missing():
                early = attempt.endpoint != LOCAL and attempt.age < EARLY_SECONDS
                if early:
                    return Observed(Event.MISSING_EARLY)
                return Observed(Event.MISSING, error=lost("the endpoint does not know it"))
            case Unreachable(reason, retry_after):
                return self._silent(attempt, reason, retry_after)
            case Misconfigured(reason, hint):
                return self._silent(attempt, f"{reason}; {hint}")
        return None

    def _silent(self, attempt: Claimed, reason: str, wait: float | None = None) -> Observed:
        others = self._usable() - {attempt.endpoint} - set(attempt.blocked_on)
        if (attempt.unreachable or 0.0) > GIVE_UP_SECONDS and others:
            return Observed(Event.GIVEN_UP, error=lost(reason))
        return Observed(Event.UNREACHABLE, wait=wait)

    def _read_seen(self, attempt: Claimed, seen: Seen) -> Observed:
        account = _account(seen, attempt.price_usd)
        match seen.phase:
            case Phase.QUEUED:
                return Observed(Event.SEEN_QUEUED, account=account)
            case Phase.RUNNING:
                progress = _progress(seen.output)
                return Observed(Event.SEEN_RUNNING, progress=progress, account=account)
            case Phase.COMPLETED:
                return self._read_output(attempt, seen, account)
            case Phase.CANCELLED:
                error = JobError(
                    ErrorCode.CANCELLED,
                    "it was cancelled at the endpoint, not by this system",
                    hint="`lyricpod retry` sends it again",
                )
                return Observed(Event.SEEN_CANCELLED, error=error, account=account)
            case Phase.TIMED_OUT:
                minutes = attempt.execution_timeout_ms / 60000
                error = JobError(
                    ErrorCode.INTERNAL,
                    f"it ran past its execution timeout of {minutes:.0f} min",
                    hint="set EXECUTION_SECONDS higher, or use a faster GPU",
                )
                return Observed(Event.SEEN_TIMED_OUT, error=error, account=account)
        error = failure(seen.error if seen.error is not None else seen.output)
        return Observed(Event.SEEN_FAILED, error=error, account=account)

    def _read_output(self, attempt: Claimed, seen: Seen, account: Account) -> Observed:
        try:
            result = normalise(seen.output, job_id=attempt.job_id, fingerprint=attempt.fingerprint)
        except JobError as failed:
            return Observed(Event.SEEN_FAILED, error=failed, account=account)
        if result is None:
            copy = self.copy(attempt)
            if isinstance(copy, JobError):  # nobody knows: ask again, RunPod remembers 30 minutes
                return Observed(Event.SEEN_RUNNING, account=account)
            result = copy
        if result is None:
            error = JobError(
                ErrorCode.INTERNAL,
                "the worker ended without words, and no copy of a result is there",
            )
            return Observed(Event.SEEN_FAILED, error=error, account=account)
        return Observed(Event.SEEN_COMPLETED, result=result, account=account)

    def copy(self, attempt: Claimed) -> JobResult | JobError | None:
        """The durable copy; None if there is none; the error if nobody can know.

        While the storage does not answer one look at a time is made, and the others are spared
        it: else they would hold all the threads that look at endpoints.
        """
        now = time.monotonic()
        with self._doubt_lock:
            if self._doubt and now < self._doubt_until:
                return self._doubt
            self._doubt_until = now + self._settings.upload_seconds
        try:
            copy = self._publisher.find(attempt.job_id, attempt.fingerprint)
        except JobError as error:
            with self._doubt_lock:
                if error.code == ErrorCode.NETWORK:
                    self._doubt, self._doubt_until = error, time.monotonic() + DOUBT_SECONDS
            return error
        with self._doubt_lock:
            self._doubt = None
        return copy


def answered(answer: Sent) -> Observed:
    """What the answer to a sending says of it."""
    match answer:
        case Accepted(runpod_id):
            return Observed(Event.ACCEPTED, runpod_id=runpod_id)
        case Refused(reason, retry_after):
            error = JobError(ErrorCode.NETWORK, reason)
            return Observed(Event.REFUSED, error=error, wait=retry_after)
        case Misconfigured(reason, hint):
            return Observed(Event.REFUSED, error=JobError(ErrorCode.NETWORK, reason, hint=hint))
        case Uncertain(reason):
            return Observed(Event.UNCERTAIN, error=JobError(ErrorCode.NETWORK, reason))
        case Rejected(reason):
            error = JobError(ErrorCode.INVALID_INPUT, f"the request was refused: {reason}")
            return Observed(Event.REJECTED, error=error)


def _account(seen: Seen, price: float | None) -> Account:
    cost = None
    if price is not None and seen.execution_ms is not None:
        cost = price * seen.execution_ms / 1000
    return Account(seen.delay_ms, seen.execution_ms, seen.worker_id, cost)


def _progress(output: Any) -> Progress | None:
    """A worker's report; None for anything else (an older worker's may be a text)."""
    if not isinstance(output, dict):
        return None
    try:
        lines = tuple(_line(line) for line in list(output.get("lines") or ())[-20:])
        return Progress(
            stage=Stage(str(output["stage"])),
            pct=max(0, min(99, int(output["pct"]))),
            message=_clean(str(output.get("status") or "")),
            seq=int(output.get("seq") or 0),
            lines=lines,
        )
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _line(item: Any) -> Line:
    """A line as PostgreSQL takes it; raises ValueError for what is none."""
    line = Line.model_validate(item)
    if not (math.isfinite(line.start) and math.isfinite(line.end)):
        raise ValueError("a time is no number")
    return line.model_copy(update={"text": _clean(line.text), "words": ()})


def _clean(text: str) -> str:
    return text[:MAX_TEXT].encode("utf-8", "replace").decode().replace("\x00", "")


def _outlived(attempt: Claimed) -> bool:
    """Whether the platform's own timeout must have ended it by now."""
    return attempt.age > attempt.execution_timeout_ms / 1000 + CANCEL_FOR


def lost(reason: str) -> JobError:
    return JobError(ErrorCode.INTERNAL, f"the sending was lost: {reason}", retryable=True)


def _too_late(settings: Settings) -> JobError:
    return JobError(
        ErrorCode.INTERNAL,
        f"the job was not done within its deadline of {settings.deadline_seconds / 3600:.1f} h",
        hint="`lyricpod doctor` shows what holds jobs up; `lyricpod retry` sends it again",
        retryable=True,
    )
