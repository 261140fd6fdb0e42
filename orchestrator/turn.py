"""One turn of one sending: it is sent, looked at, or its result is kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from lyricpod.errors import ErrorCode, JobError
from lyricpod.result import JobResult
from orchestrator import policy
from orchestrator.config import Settings
from orchestrator.errors import DatabaseUnavailable
from orchestrator.fleet import Fleet
from orchestrator.log import get_logger
from orchestrator.observe import Observed, Observer, answered, lost
from orchestrator.pace import next_look
from orchestrator.records import Account, Begun, Claimed, Finishing, shown
from orchestrator.results import Publisher, compress, decompress
from orchestrator.states import Action, Event, State, Step, decide
from orchestrator.store import Store

TOKEN_PAUSE = 1.0  # after a look that got no share of the rate limit
RESEND_SECONDS = 1.0  # after a refused connection
CANCEL_SECONDS = 10.0  # between two cancels of an abandoned sending
COPY_SECONDS = 15.0  # between two looks for a durable copy, at most
COPY_FIRST = 1.0  # and at first: the sending may be answered from an earlier copy
PUBLISH_FIRST, PUBLISH_LONGEST = 5.0, 300.0  # seconds between two tries to keep a result
PATIENCE_FRESH = 60.0  # seconds for which an endpoint's usual time is not asked for again

log = get_logger()


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
        self._observer = Observer(fleet, publisher, settings, usable)
        self._kept = kept
        self._patience: dict[str, tuple[float, float]] = {}
        self._patience_lock = threading.Lock()

    # Sending.

    def send(self, attempt: Begun, endpoint: str, body: dict[str, Any]) -> None:
        """Make a sending whose intent is committed, and note what came of it."""
        client = self._fleet.to_send(endpoint)
        if client is None:
            self._store.withdraw(attempt, f"Waiting: {endpoint} can't be used", RESEND_SECONDS)
            return
        answer = client.run(body)
        self._fleet.note(endpoint, answer)
        observed = answered(answer)
        # The answer is in memory alone: an outage of the database must not lose it at once.
        self._insist(lambda: self._note_sending(attempt, endpoint, observed))

    def _note_sending(self, attempt: Begun, endpoint: str, observed: Observed) -> None:
        step = decide(State.SUBMITTING, observed.event)
        error = observed.error or lost(observed.event.value)
        match step.action:
            case Action.WATCH if observed.runpod_id:
                self._note_id(attempt, endpoint, observed.runpod_id)
            case Action.WATCH:
                log.warning(
                    "the sending's answer was lost", job_id=attempt.job_id, reason=error.message
                )
                self._store.uncertain(attempt, self._expected(endpoint), COPY_FIRST)
            case Action.WITHDRAW:
                pause = observed.wait or RESEND_SECONDS
                self._store.withdraw(attempt, f"Waiting: {shown(error)}", pause)
            case Action.END:
                self._store.end(attempt, step.state, error, Account())
            case _:
                raise AssertionError(f"no answer of a sending leads to {step}")

    def _note_id(self, attempt: Begun, endpoint: str, runpod_id: str) -> None:
        ids = {"job_id": attempt.job_id, "runpod_id": runpod_id, "number": attempt.number}
        if self._store.sent(attempt, runpod_id, self._delay(State.QUEUED, 0.0)):
            log.info("job sent", endpoint=endpoint, **ids)
        else:
            log.warning("job sent, but the lease was gone", endpoint=endpoint, **ids)

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
        observed = self._observer.observe(attempt)
        if observed is None:
            self._watch(attempt, State(attempt.state), TOKEN_PAUSE, reached=True)
            return
        step = decide(attempt.state, observed.event)
        self._do(step, attempt, observed)

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
                    copy := self._observer.copy(attempt), JobResult
                ):  # nobody looked in time, and yet it was done
                    self._finish(attempt, Observed(Event.COPY_FOUND, result=copy))
                    return
                error = observed.error or lost(observed.event.value)
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
        error = observed.error or lost(observed.event.value)
        copy = self._observer.copy(attempt)
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
        observed = self._publish(attempt)
        step = decide(State.FINISHING, observed.event)
        error = observed.error or lost(observed.event.value)
        match step.action:
            case Action.CLOSE if observed.result:
                here = None if observed.result.result_url else attempt.result
                if self._store.complete(attempt, observed.result, Account(), kept_here=here):
                    log.info("job completed", job_id=attempt.job_id, endpoint=attempt.endpoint)
            case Action.WATCH:
                delay = min(PUBLISH_LONGEST, PUBLISH_FIRST * 2 ** min(attempt.publish_tries, 10))
                log.warning(
                    "the result is not kept yet", job_id=attempt.job_id, error=error.message
                )
                self._store.unpublished(attempt, error, delay)
            case Action.END:
                self._store.end(attempt, step.state, error, Account())
                log.error("the result could not be kept in time", job_id=attempt.job_id)
            case Action.SETTLE:
                self._store.orphan(attempt.job_id)
                self._store.settle(attempt, step.state, Account())
            case _:
                raise AssertionError(f"no try to keep a result leads to {step}")

    def _publish(self, attempt: Finishing) -> Observed:
        if attempt.unwanted:
            return Observed(Event.UNWANTED)
        try:
            published = self._publisher.publish(decompress(attempt.result))
        except JobError as failed:
            error = failed
        except Exception as fault:  # one job's fault: it is told, and its job must end
            log.error("a result can't be kept", job_id=attempt.job_id, exc_info=fault)
            error = JobError(ErrorCode.INTERNAL, f"a {type(fault).__name__}")
        else:
            return Observed(Event.PUBLISHED, result=published)
        return Observed(Event.DEADLINE if attempt.late else Event.UNPUBLISHED, error=error)

    # Facts.

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
