"""The loop: takes in, sends, looks, keeps. Any number of replicas run it beside each other."""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import psycopg

from lyricpod.errors import ErrorCode, JobError
from orchestrator import webhooks
from orchestrator.config import Settings
from orchestrator.crew import Crew
from orchestrator.errors import DatabaseUnavailable
from orchestrator.fleet import Fleet
from orchestrator.jobs import Batch
from orchestrator.local import LOCAL
from orchestrator.log import get_logger
from orchestrator.records import Begun, Claimed, Finishing, Intent, QueuedRow, Waiting
from orchestrator.results import Publisher
from orchestrator.router import Choice, Wish, choose
from orchestrator.sending import body, is_file, read_row, timeout_ms
from orchestrator.store import Store
from orchestrator.turn import Turns

BUSY_SECONDS = 0.02  # between two rounds while there is work: claims are made in batches
PAUSE_SECONDS = 0.1  # at least, where a round found nothing to do
IDLE_SECONDS = 1.0  # at most between two looks into the table
TAKE_IN_SECONDS = 0.5  # between two looks for rows that the backend queued by itself
COUNT_SECONDS = 1.0  # for which the numbers of jobs under way are used
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 15.0  # after which a replica, and its local endpoint, is gone
WAIT_SECONDS = 2.0  # before a job that no endpoint can take now is looked at again
OUTAGE_FIRST, OUTAGE_LONGEST = 0.5, 5.0  # seconds between two tries to reach the database
BATCH = 100  # rows in one claim
FINISH_SHARE = 0.6  # of the shutdown's time: for work under way; the rest is for giving it back

Plan = tuple[Intent, dict[str, Any]]  # a sending and its body

log = get_logger()


class Loop:
    """One replica's loop.

    Args:
        instance: the replica's id; a local endpoint's jobs belong to it.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        publisher: Publisher,
        settings: Settings,
        instance: uuid.UUID,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._settings = settings
        self._instance = instance
        self._wake = threading.Event()
        self._turns = Turns(
            store,
            fleet,
            publisher,
            settings,
            load=lambda: self._in_flight_total,
            usable=self._usable,
            kept=self._wake.set,
        )
        half = max(1, settings.http_threads // 2)
        # Apart, so that a slow Cloudinary holds up no look, and no look a sending.
        self._senders = Crew("lyricpod-send", half, self._fault)
        self._lookers = Crew("lyricpod-look", half, self._fault)
        self._keepers = Crew("lyricpod-keep", max(2, half // 4), self._fault)
        self._checkers = Crew("lyricpod-health", 2, self._fault)
        self._held: dict[uuid.UUID, int] = {}  # leases, and the attempts that they are on
        self._dropped: deque[tuple[uuid.UUID, int]] = deque()
        self._held_lock = threading.Lock()
        self._in_flight: dict[str, tuple[int, int]] = {}
        self._in_flight_total = 0
        self._backlog = 0
        self._due: dict[str, float] = {}
        self._pauses: dict[str, float] = {}

    def wake(self) -> None:
        """Something happened: look at once."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then give back what is under way. Survives any outage."""
        pause = OUTAGE_FIRST
        while not stop.is_set():
            try:
                if self._round():
                    stop.wait(BUSY_SECONDS)
                else:
                    self._rest()
                pause = OUTAGE_FIRST
            except Exception as error:  # noqa: BLE001 - the loop's boundary: it outlives any fault
                self._fault(error)
                stop.wait(pause)
                pause = min(OUTAGE_LONGEST, pause * 2)
        self._give_back()

    def _rest(self) -> None:
        due = self._store.next_due()
        # What is overdue and was not claimed is in someone's hands: no reason to spin.
        wait = IDLE_SECONDS if due is None else min(IDLE_SECONDS, max(PAUSE_SECONDS, due))
        # `stop` wakes too: see Orchestrator, whose stop sets both.
        self._wake.wait(wait)
        if self._wake.is_set():
            self._wake.clear()
            self._due.pop("take in", None)

    def _round(self) -> bool:
        """One round; whether there was work."""
        steps = (self._tend, self._take_in, self._send, self._look, self._keep)
        return sum(self._step(step) for step in steps) > 0

    def _step(self, step: Callable[[], int]) -> int:
        """A part of the round. One that fails is left out for a while, and holds up no other."""
        name = step.__name__
        if time.monotonic() < self._due.get(name, 0.0):
            return 0
        try:
            done = step()
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the loop's boundary: it outlives any fault
            self._fault(error)
            pause = min(OUTAGE_LONGEST, 2 * self._pauses.get(name, OUTAGE_FIRST / 2))
            self._pauses[name], self._due[name] = pause, time.monotonic() + pause
            return 0
        self._pauses.pop(name, None)
        return done

    def _tend(self) -> int:
        if self._is_due("beat", BEAT_SECONDS):
            self._store.beat(self._instance)
        while self._dropped:
            self._store.release(dict([self._dropped[0]]))
            self._dropped.popleft()
        if self._is_due("renew", self._settings.lease_seconds / 3):
            self._renew()
        if self._is_due("count", COUNT_SECONDS):
            self._count()
        for name in self._fleet.due():
            self._checkers.do(lambda name=name: self._fleet.look(name))  # type: ignore[misc]
        return 0

    def _take_in(self) -> int:
        if not self._is_due("take in", TAKE_IN_SECONDS):
            return 0
        return self._store.find_queued(BATCH, _read, self._settings.deadline_seconds)

    def _is_due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, float("-inf")):
            return False
        self._due[what] = now + seconds
        return True

    def _renew(self) -> None:
        with self._held_lock:
            held = dict(self._held)
        if held:
            self._store.renew(held, self._settings.lease_seconds)

    def _count(self) -> None:
        self._in_flight = self._store.in_flight()
        self._in_flight_total = sum(attempts for attempts, _ in self._in_flight.values())
        self._backlog = self._store.backlog()

    def _usable(self) -> frozenset[str]:
        candidates = self._fleet.candidates(self._in_flight)
        return frozenset(c.name for c in candidates if c.healthy and c.paused_reason is None)

    # Sending.

    def _send(self) -> int:
        free = min(self._senders.free, BATCH)
        if free <= 0:
            return 0
        with self._store.waiting(free) as (jobs, batch):
            plans = self._plan(jobs, batch)
            intents = [intent for intent, _ in plans.values()]
            begun = batch.begin(intents, self._settings.lease_seconds) if intents else []
        for attempt in begun:
            intent, sent = plans[attempt.job_id]
            self._under_lease(
                self._senders,
                attempt,
                lambda a=attempt, i=intent, s=sent: self._turns.send(a, i.endpoint, s),  # type: ignore[misc]
            )
        return len(begun)

    def _plan(self, jobs: Sequence[Waiting], batch: Batch) -> dict[str, Plan]:
        """What is sent where; the other jobs are ended or looked at again later."""
        plans: dict[str, Plan] = {}
        idle: dict[str, list[str]] = {}
        for job in jobs:
            try:
                choice = self._choose(job)
                if error := _over(job) or _nowhere(choice):
                    batch.end(job.job_id, error)
                elif choice.name is None:
                    idle.setdefault(choice.reason, []).append(job.job_id)
                elif self._has_token(choice.name):
                    plans[job.job_id] = self._intend(job, choice.name)
            except psycopg.Error:
                raise
            except Exception as fault:  # noqa: BLE001 - one job's fault ends with its job
                self._fault(fault)
                batch.end(job.job_id, _unforeseen(fault))
        for reason, job_ids in idle.items():
            batch.postpone(job_ids, f"Waiting: {reason}", WAIT_SECONDS)
        return plans

    def _choose(self, job: Waiting) -> Choice:
        wish = Wish(blocked_on=frozenset(job.blocked_on), failed_on=tuple(job.failed_on))
        candidates = self._fleet.candidates(self._in_flight)
        if is_file(job.request):  # of this machine: RunPod's workers have no such file
            candidates = [c for c in candidates if c.kind == "local"]
            if not candidates:
                return Choice(None, "a file can be read by the local endpoint alone", final=True)
        return choose(candidates, wish)

    def _has_token(self, name: str) -> bool:
        limits = self._fleet.limits(name)
        return limits is None or limits.run.try_take() == 1

    def _intend(self, job: Waiting, name: str) -> Plan:
        kind: Literal["runpod", "local"] = "local" if name == LOCAL else "runpod"
        token, digest = webhooks.new_token()
        public = self._settings.public_url if kind == "runpod" else ""
        intent = Intent(
            job_id=job.job_id,
            endpoint=name,
            instance=self._fleet.instance_of(name),
            timeout_ms=timeout_ms(job.duration, self._settings, kind=kind),
            price=self._fleet.price(name),
            digest=digest,
            method=kind,
        )
        attempts, queued = self._in_flight.get(name, (0, 0))
        self._in_flight[name] = (attempts + 1, queued + 1)
        webhook = webhooks.url(public, token) if public else None
        return intent, body(job, self._settings, kind=kind, webhook=webhook, backlog=self._backlog)

    # Looking and keeping.

    def _look(self) -> int:
        free = min(self._lookers.free, BATCH)
        if free <= 0:
            return 0
        lease = self._settings.lease_seconds
        due = self._store.claim(free, self._instance, lease=lease, silence=SILENCE_SECONDS)
        for attempt in due:
            self._under_lease(
                self._lookers,
                attempt,
                lambda a=attempt: self._turns.look(a),  # type: ignore[misc]
            )
        return len(due)

    def _keep(self) -> int:
        free = self._keepers.free
        if free <= 0:
            return 0
        due = self._store.claim_finishing(free, lease=self._settings.lease_seconds)
        for attempt in due:
            self._under_lease(
                self._keepers,
                attempt,
                lambda a=attempt: self._turns.keep(a),  # type: ignore[misc]
            )
        return len(due)

    def _under_lease(
        self, crew: Crew, attempt: Begun | Claimed | Finishing, work: Callable[[], None]
    ) -> None:
        with self._held_lock:
            self._held[attempt.lease_token] = attempt.id

        def leased() -> None:
            try:
                work()
            except DatabaseUnavailable:
                # Given back when the database is there again.
                self._dropped.append((attempt.lease_token, attempt.id))
                raise
            finally:
                with self._held_lock:
                    self._held.pop(attempt.lease_token, None)

        crew.do(leased)

    def _fault(self, error: BaseException) -> None:
        if isinstance(error, DatabaseUnavailable):
            log.warning("the database is away; trying again", reason=str(error))
        else:
            log.error("a fault that nobody foresaw; going on", exc_info=error)

    # The end.

    def _give_back(self) -> None:
        """What is under way may end in a moment; the rest is due at once for another replica."""
        end = time.monotonic() + self._settings.shutdown_seconds * FINISH_SHARE
        for crew in (self._senders, self._lookers, self._keepers, self._checkers):
            crew.finish(max(0.0, end - time.monotonic()))
        with self._held_lock:
            held = dict(self._held)
        try:
            if held:
                self._store.release(held)
            self._store.leave(self._instance)
        except DatabaseUnavailable:
            log.warning("the leases end by themselves: the database is away", leases=len(held))


def _over(job: Waiting) -> JobError | None:
    """Why a waiting job is not sent at all."""
    if job.status not in ("queued", "processing"):
        return JobError(ErrorCode.CANCELLED, "the row was deleted or ended by someone else")
    if job.remaining <= 0:
        return JobError(
            ErrorCode.INTERNAL,
            "the job could not be done within its deadline",
            hint="`lyricpod doctor` shows what holds jobs up; `lyricpod retry` sends it again",
        )
    return None


def _nowhere(choice: Choice) -> JobError | None:
    """Why no endpoint will ever take it."""
    if not choice.final:
        return None
    return JobError(ErrorCode.SOURCE_BLOCKED, f"no endpoint can fetch the audio: {choice.reason}")


def _read(row: QueuedRow) -> tuple[dict[str, Any], str]:
    """`read_row`, where a row that nobody foresaw fails alone: it must not hold up the others."""
    try:
        return read_row(row)
    except JobError:
        raise
    except Exception as fault:  # one row's fault ends with its row
        log.error("a row can't be read", job_id=row.job_id, exc_info=fault)
        raise _unforeseen(fault) from fault


def _unforeseen(fault: Exception) -> JobError:
    return JobError(
        ErrorCode.INTERNAL,
        f"the job can't be sent: a {type(fault).__name__} that nobody foresaw",
        hint="the orchestrator's log has more",
    )
