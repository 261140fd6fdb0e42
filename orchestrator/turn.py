"""One turn of one sending: what is observed of it, and what is then done."""

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
from orchestrator import policy
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
from orchestrator.errors import DatabaseUnavailable
from orchestrator.fleet import Fleet
from orchestrator.local import LOCAL
from orchestrator.log import get_logger
from orchestrator.pace import next_look
from orchestrator.records import Account, Begun, Claimed, Finishing
from orchestrator.results import Publisher, compress, decompress, failure, normalise
from orchestrator.states import Action, Event, State, Step, decide
from orchestrator.store import Store

EARLY_SECONDS = 60.0  # a 404 this soon after the sending may be a replica of RunPod's that lags
GIVE_UP_SECONDS = 120.0  # an endpoint that is silent for so long loses its jobs to another
RESEND_SECONDS = 1.0  # after a refused connection
CANCEL_SECONDS = 10.0  # between two cancels of an abandoned sending
CANCEL_FOR = 3600.0  # seconds during which they go on; then the platform's timeout has ended it
COPY_SECONDS = 15.0  # between two looks for a durable copy, at most
COPY_FIRST = 1.0  # and at first: the sending may be answered from an earlier copy
DOUBT_SECONDS = 5.0  # between two looks for copies while the storage does not answer
TOKEN_SECONDS = 5.0  # how long a look waits for its share of the rate limit
PUBLISH_FIRST, PUBLISH_LONGEST = 5.0, 300.0  # seconds between two tries to keep a result
MAX_TEXT = 500  # characters of a message or a line in a worker's report
PATIENCE_FRESH = 60.0  # seconds for which an endpoint's usual time is not asked for again

log = get_logger()


@dataclass(frozen=True)
class Observed:
    """An event, and what came with it."""

    event: Event
    error: JobError | None = None
    result: JobResult | None = None
    progress: Progress | None = None
    account: Account = field(default_factory=Account)
    runpod_id: str | None = None
    wait: float | None = None  # seconds that the endpoint asked for


class Turns:
    """Does turns, any number at once in threads of their own.

    Args:
        load: attempts that all replicas look at, and the names of usable endpoints.
        kept: called when a result waits to be kept.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        publisher: Publisher,
        settings: Settings,
        *,
        load: Callable[[], int],
        usable: Callable[[], frozenset[str]],
        kept: Callable[[], None],
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._publisher = publisher
        self._settings = settings
        self._load = load
        self._usable = usable
        self._kept = kept
        self._patience: dict[str, tuple[float, float]] = {}
        self._patience_lock = threading.Lock()
        self._doubt: JobError | None = None  # why nobody knows of copies
        self._doubt_until = 0.0
        self._doubt_lock = threading.Lock()

    # Sending.

    def send(self, attempt: Begun, endpoint: str, body: dict[str, Any]) -> None:
        """Make a sending whose intent is committed, and note what came of it."""
        client = self._fleet.to_send(endpoint)
        if client is None:
            self._store.withdraw(attempt, f"Waiting: {endpoint} can't be used", RESEND_SECONDS)
            return
        answer = client.run(body)
        self._note_contact(endpoint, answer)
        # The answer is in memory alone: an outage of the database must not lose it at once.
        self._insist(lambda: self._note_sending(attempt, endpoint, answer))

    def _note_sending(self, attempt: Begun, endpoint: str, answer: Sent) -> None:
        match answer:
            case Accepted(runpod_id):
                delay = self._delay(State.QUEUED, 0.0)
                ids = {"job_id": attempt.job_id, "runpod_id": runpod_id, "number": attempt.number}
                if self._store.sent(attempt, runpod_id, delay):
                    log.info("job sent", endpoint=endpoint, **ids)
                else:
                    log.warning("job sent, but the lease was gone", endpoint=endpoint, **ids)
            case Refused(reason, retry_after):
                pause = retry_after or RESEND_SECONDS
                self._store.withdraw(attempt, f"Waiting: {reason}", pause)
            case Misconfigured(reason, hint):
                self._store.withdraw(attempt, f"Waiting: {reason}; {hint}", RESEND_SECONDS)
            case Uncertain(reason):
                log.warning("the sending's answer was lost", job_id=attempt.job_id, reason=reason)
                self._store.uncertain(attempt, self._expected(endpoint), COPY_FIRST)
            case Rejected(reason):
                error = JobError(ErrorCode.INVALID_INPUT, f"the request was refused: {reason}")
                self._store.end(attempt, State.FAILED, error, Account())

    def _insist(self, write: Callable[[], None]) -> None:
        # Longer than the lease: an id that is noted late still saves a second sending.
        end = time.monotonic() + self._settings.unknown_seconds
        while True:
            try:
                return write()
            except DatabaseUnavailable:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.5)

    # Looking.

    def look(self, attempt: Claimed) -> None:
        """Observe a due sending and do what follows."""
        observed = self._observe(attempt)
        if observed is None:
            return
        step = decide(attempt.state, observed.event)
        self._do(step, attempt, observed)

    def _observe(self, attempt: Claimed) -> Observed | None:
        active = attempt.state != State.ABANDONED
        if active and attempt.unwanted:
            return Observed(Event.UNWANTED)
        if attempt.instance_gone:
            return Observed(Event.INSTANCE_GONE, error=_lost("the replica that ran it is gone"))
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
            self._watch(attempt, State(attempt.state), 1.0, reached=True)
            return None
        look = client.status(attempt.runpod_id)
        self._note_contact(attempt.endpoint, look)
        return self._read(attempt, look)

    def _observe_nobody(self, attempt: Claimed) -> Observed:
        """There is no such endpoint here (any more)."""
        if attempt.endpoint == LOCAL:
            return Observed(Event.MISSING, error=_lost("the local endpoint has ended"))
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
        copy = self._copy(attempt)
        if isinstance(copy, JobResult):
            return Observed(Event.COPY_FOUND, result=copy)
        if attempt.patience_over:
            return Observed(Event.PATIENCE_OVER, error=_lost("nothing was heard of it"))
        return Observed(Event.UNCERTAIN)

    def _observe_abandoned(self, attempt: Claimed, client: EndpointClient) -> Observed | None:
        """Whether it ended by itself; else cancel it again."""
        limits = self._fleet.limits(attempt.endpoint)
        if limits and not limits.status.take(TOKEN_SECONDS):
            return Observed(Event.UNREACHABLE)
        look = client.status(attempt.runpod_id or "")
        self._note_contact(attempt.endpoint, look)
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
            self._note_contact(attempt.endpoint, look)
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
                return Observed(Event.MISSING, error=_lost("the endpoint does not know it"))
            case Unreachable(reason, retry_after):
                return self._silent(attempt, reason, retry_after)
            case Misconfigured(reason, hint):
                return self._silent(attempt, f"{reason}; {hint}")
        return None

    def _silent(self, attempt: Claimed, reason: str, wait: float | None = None) -> Observed:
        others = self._usable() - {attempt.endpoint} - set(attempt.blocked_on)
        if (attempt.unreachable or 0.0) > GIVE_UP_SECONDS and others:
            return Observed(Event.GIVEN_UP, error=_lost(reason))
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
            copy = self._copy(attempt)
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

    # Doing.

    def _do(self, step: Step, attempt: Claimed, observed: Observed) -> None:
        match step.action:
            case Action.WATCH:
                self._look_again(step.state, attempt, observed)
            case Action.FINISH:
                self._finish(attempt, observed)
            case Action.WIN:
                self._win(attempt, observed)
            case Action.RETRY:
                self._retry(step.state, attempt, observed)
            case Action.END:
                if observed.event == Event.DEADLINE and isinstance(
                    copy := self._copy(attempt), JobResult
                ):  # nobody looked in time, and yet it was done
                    self._finish(attempt, Observed(Event.COPY_FOUND, result=copy))
                    return
                error = observed.error or _lost(observed.event.value)
                self._store.end(attempt, step.state, error, observed.account)
                log.info("job failed", job_id=attempt.job_id, error=error.message)
            case Action.STOP:
                if observed.event in (Event.UNWANTED, Event.DEADLINE):
                    self._store.orphan(attempt.job_id)
                    self._store.abandon(attempt, 0.0)
                else:
                    self._store.abandon(attempt, CANCEL_SECONDS)
            case Action.SETTLE:
                self._store.settle(attempt, step.state, observed.account, observed.error)
            case Action.IGNORE | Action.WITHDRAW | Action.CLOSE:
                # Nothing that a look observes leads here. If it did: not at once again.
                self._watch(attempt, State(attempt.state), COPY_SECONDS, reached=True)

    def _look_again(self, state: State, attempt: Claimed, observed: Observed) -> None:
        if state == State.UNKNOWN:
            patience = self._expected(attempt.endpoint)
            delay = min(COPY_SECONDS, max(COPY_FIRST, attempt.age))
            self._store.uncertain(attempt, patience, delay)
            return
        progress = observed.progress
        delay = max(self._delay(state, attempt.age), observed.wait or 0.0)
        if state == State.ABANDONED:
            delay = max(delay, CANCEL_SECONDS)
        if progress and state == State.RUNNING and progress.to_wire() != attempt.progress:
            worker_id = observed.account.worker_id
            self._store.progressed(attempt, progress, delay=delay, worker_id=worker_id)
        else:
            reached = observed.event != Event.UNREACHABLE
            self._watch(attempt, state, delay, reached=reached, account=observed.account)

    def _watch(
        self,
        attempt: Claimed,
        state: State,
        delay: float,
        *,
        reached: bool,
        account: Account | None = None,
    ) -> None:
        worker_id = account.worker_id if account else None
        self._store.watched(attempt, state, delay=delay, reached=reached, worker_id=worker_id)

    def _finish(self, attempt: Claimed, observed: Observed) -> None:
        result = observed.result
        if result is None:
            raise AssertionError("a finished attempt has a result")
        if result.result_url or not self._publisher.keeps:
            # Nothing outside is left to do, so one transaction closes it all.
            here = None if result.result_url else compress(result)
            if self._store.complete(attempt, result, observed.account, kept_here=here):
                log.info("job completed", job_id=attempt.job_id, endpoint=attempt.endpoint)
            else:
                self._store.release({attempt.lease_token: attempt.id})
            return
        self._store.finishing(attempt, compress(result), observed.account)
        self._kept()

    def _win(self, attempt: Claimed, observed: Observed) -> None:
        result = observed.result
        if (
            result
            and not attempt.unwanted
            and self._store.win(attempt, compress(result), observed.account)
        ):
            log.info("an abandoned sending's result came first", job_id=attempt.job_id)
            self._kept()
            return
        self._store.settle(attempt, State.COMPLETED, observed.account)

    def _retry(self, state: State, attempt: Claimed, observed: Observed) -> None:
        error = observed.error or _lost(observed.event.value)
        copy = self._copy(attempt)
        if isinstance(copy, JobResult):
            found = Observed(Event.COPY_FOUND, result=copy, account=observed.account)
            self._finish(attempt, found)
            return
        if isinstance(copy, JobError) and state == State.LOST:
            # Its result may be kept, and nobody can look: making it anew costs more than waiting.
            self._watch(attempt, State(attempt.state), COPY_SECONDS, reached=True)
            return
        blocked = set(attempt.blocked_on) | {attempt.endpoint}
        plan = policy.again(
            error,
            state,
            attempts_used=attempt.attempts_used,
            max_attempts=self._settings.max_attempts,
            others=[name for name in self._fleet.names if name not in blocked],
            first_pause=self._settings.retry_seconds,
        )
        if plan is None:
            self._store.end(attempt, state, error, observed.account)
            log.info("job failed", job_id=attempt.job_id, error=error.message)
            return
        log.info("sending again", job_id=attempt.job_id, pause=plan.pause, error=error.message)
        self._store.retry(
            attempt,
            state,
            error,
            observed.account,
            pause=plan.pause,
            message=f"Trying again: {error.message}",
            blocked=plan.blocked,
        )

    # Keeping.

    def keep(self, attempt: Finishing) -> None:
        """Upload a committed result, and close its job."""
        if attempt.unwanted:
            self._store.orphan(attempt.job_id)
            self._store.settle(attempt, State.CANCELLED, Account())
            return
        try:
            published = self._publisher.publish(decompress(attempt.result))
        except JobError as error:
            self._not_kept(attempt, error)
            return
        except Exception as fault:  # one job's fault: it is told, and its job must end
            log.error("a result can't be kept", job_id=attempt.job_id, exc_info=fault)
            self._not_kept(attempt, JobError(ErrorCode.INTERNAL, f"a {type(fault).__name__}"))
            return
        here = None if published.result_url else attempt.result
        if self._store.complete(attempt, published, Account(), kept_here=here):
            log.info("job completed", job_id=attempt.job_id, endpoint=attempt.endpoint)

    def _not_kept(self, attempt: Finishing, error: JobError) -> None:
        if attempt.late:
            self._store.end(attempt, State.FAILED, error, Account())
            log.error("the result could not be kept in time", job_id=attempt.job_id)
            return
        delay = min(PUBLISH_LONGEST, PUBLISH_FIRST * 2 ** min(attempt.publish_tries, 10))
        log.warning("the result is not kept yet", job_id=attempt.job_id, error=error.message)
        self._store.unpublished(attempt, error, delay)

    # Facts.

    def _copy(self, attempt: Claimed) -> JobResult | JobError | None:
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

    def _delay(self, state: State, age: float) -> float:
        return next_look(
            state,
            age,
            poll_seconds=self._settings.poll_seconds,
            in_flight=self._load(),
            rate=self._fleet.status_rate,
            webhooks=bool(self._settings.public_url),
        )

    def _expected(self, endpoint: str) -> float:
        """How long a lost sending is waited for: what a job may be expected to take."""
        now = time.monotonic()
        with self._patience_lock:
            seconds, asked = self._patience.get(endpoint, (0.0, float("-inf")))
        if now - asked > PATIENCE_FRESH:
            usual = self._store.patience(endpoint)
            longest = self._settings.unknown_seconds
            seconds = longest if usual is None else min(longest, 2 * usual + 30.0)
            with self._patience_lock:
                self._patience[endpoint] = (seconds, now)
        return seconds

    def _note_contact(self, endpoint: str, answer: Sent | Look) -> None:
        match answer:
            case Misconfigured():
                self._fleet.misconfigured(endpoint, answer)
            case Refused(reason, retry_after) | Unreachable(reason, retry_after):
                if retry_after is None:
                    self._fleet.missed(endpoint, reason)
            case Uncertain():
                pass  # one lost answer is no outage; the next look tells
            case _:
                self._fleet.reached(endpoint)


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


def _lost(reason: str) -> JobError:
    return JobError(ErrorCode.INTERNAL, f"the sending was lost: {reason}", retryable=True)


def _too_late(settings: Settings) -> JobError:
    return JobError(
        ErrorCode.INTERNAL,
        f"the job was not done within its deadline of {settings.deadline_seconds / 3600:.1f} h",
        hint="`lyricpod doctor` shows what holds jobs up; `lyricpod retry` sends it again",
        retryable=True,
    )
