"""Rows to objects and back: all that is read from and written to PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import psycopg
import stamina
from psycopg.rows import class_row, dict_row, scalar_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool, PoolTimeout

from lyricpod.errors import JobError
from lyricpod.progress import Progress
from lyricpod.result import JobResult
from orchestrator.errors import DatabaseUnavailable, OrchestratorError
from orchestrator.log import get_logger
from orchestrator.queries import fitted, named
from orchestrator.states import State

SCHEMA_LOCK = 0x6C79726963  # "lyric": one process at a time makes the tables
REQUIRED = frozenset({"id", "youtube_url", "status", "results_url", "error_message", "created_at"})
MAX_MESSAGE = 2000  # characters of an error in the backend's row
MAX_INTEGER = 2**31 - 1  # of PostgreSQL: what says more is no reason to lose a result

log = get_logger()

T = TypeVar("T")


@dataclass(frozen=True)
class QueuedRow:
    """A row that the backend queued by itself; `request` is of an earlier round, if any."""

    job_id: str
    youtube_url: str | None
    request: dict[str, Any] | None


@dataclass(frozen=True)
class Waiting:
    """A job that waits to be sent; `status` is None where its row was deleted."""

    job_id: str
    request: dict[str, Any]
    fingerprint: str
    attempts_used: int
    blocked_on: list[str]
    failed_on: list[str]
    remaining: float  # seconds until its deadline
    status: str | None
    duration: int | None = None


@dataclass(frozen=True)
class Intent:
    """A sending that is about to be made."""

    job_id: str
    endpoint: str
    instance: uuid.UUID | None
    timeout_ms: int
    price: float | None
    digest: bytes
    method: str


@dataclass(frozen=True)
class Begun:
    """A committed intent, under this lease."""

    id: int
    job_id: str
    number: int
    lease_token: uuid.UUID


@dataclass(frozen=True)
class Claimed:
    """An attempt that is due, under this lease. Ages in seconds, by the database's clock."""

    id: int
    job_id: str
    number: int
    endpoint: str
    runpod_id: str | None
    state: State
    lease_token: uuid.UUID
    progress: dict[str, Any] | None
    price_usd: float | None
    execution_timeout_ms: int
    job_state: str
    fingerprint: str
    late: bool
    status: str | None
    attempts_used: int
    blocked_on: list[str]
    instance_gone: bool
    age: float
    unreachable: float | None
    patience_over: bool

    @property
    def unwanted(self) -> bool:
        """Whether its job was deleted, or ended otherwise."""
        return self.job_state == "done" or self.status not in ("queued", "processing")


@dataclass(frozen=True)
class Finishing:
    """An attempt whose result is committed and has to be kept."""

    id: int
    job_id: str
    number: int
    endpoint: str
    state: State
    lease_token: uuid.UUID
    result: bytes
    publish_tries: int
    job_state: str
    fingerprint: str
    late: bool
    status: str | None

    @property
    def unwanted(self) -> bool:
        """Whether its job was deleted, or ended otherwise."""
        return self.job_state == "done" or self.status not in ("queued", "processing")


@dataclass(frozen=True)
class JobRow:
    """A row of the backend's table, as its frontend sees it."""

    job_id: str
    status: str
    error_message: str | None
    results_url: str | None
    srt_url: str | None = None
    title: str | None = None
    duration: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    pct: int | None = None
    status_message: str | None = None
    current_stage: str | None = None
    processing_method: str | None = None
    processing_time_seconds: float | None = None


@dataclass(frozen=True)
class Account:
    """What the platform says of a finished sending, in milliseconds and USD."""

    delay_ms: int | None = None
    execution_ms: int | None = None
    worker_id: str | None = None
    cost: float | None = None

    def to_params(self) -> dict[str, Any]:
        return {
            "delay_ms": _integer(self.delay_ms),
            "execution_ms": _integer(self.execution_ms),
            "worker_id": self.worker_id,
            "cost": self.cost,
        }


class Store:
    """The tables. Thread-safe; each method is one transaction.

    Every method raises DatabaseUnavailable if PostgreSQL does not answer: what it was to
    change may then have been changed or not.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._sql: dict[str, bytes] = {}

    def prepare(self) -> None:
        """Make our tables, and `jobs` where there is none; learn its columns. Idempotent.

        Raises:
            OrchestratorError: the table jobs lacks a column that is needed.
        """
        with self._connection() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
            if not connection.execute("SELECT to_regclass('jobs')").fetchone()[0]:  # type: ignore[index]
                connection.execute(named("schema.sql")["jobs"].encode())
            connection.execute(named("schema.sql")["ours"].encode())
            cursor = connection.cursor(row_factory=scalar_row)
            columns = frozenset(
                cursor.execute(
                    "SELECT attname::text FROM pg_attribute WHERE attrelid = 'jobs'::regclass "
                    "AND attnum > 0 AND NOT attisdropped"
                ).fetchall()
            )
        if missing := REQUIRED - columns:
            raise OrchestratorError(
                f"the table jobs has no column {', '.join(sorted(missing))}; it needs at least "
                f"{', '.join(sorted(REQUIRED))}"
            )
        self._sql = fitted("jobs.sql", columns) | fitted("attempts.sql", columns)

    # Jobs.

    def submit(
        self, job_id: str, source: str, request: dict[str, Any], fingerprint: str, deadline: float
    ) -> None:
        """A new job, or the request of a row that is queued already. Idempotent.

        Raises:
            OrchestratorError: there is another job of this id.
        """
        params = {
            "job_id": job_id,
            "source": source,
            "request": Jsonb(request),
            "fingerprint": fingerprint,
            "deadline": deadline,
        }
        with self._connection() as connection, connection.transaction():
            cursor = connection.cursor(row_factory=dict_row)
            row = cursor.execute(self._sql["lock_job"], params).fetchone()
            if row is None:
                cursor.execute(self._sql["insert_row"], params)
                cursor.execute(self._sql["insert_job"], params)
            elif row["state"] is None and row["status"] == "queued":
                cursor.execute(self._sql["insert_job"], params)
            elif row["fingerprint"] != fingerprint:
                raise OrchestratorError(
                    f"job {job_id!r} is there already, with another request; "
                    "give another job_id, or none"
                )
            cursor.execute(self._sql["notify_work"])

    def find_queued(self, limit: int, read: Any, deadline: float) -> int:
        """Take in rows that the backend queued by itself; returns how many.

        Args:
            read: turns a QueuedRow into `(request, fingerprint)`, or raises JobError.
        """
        good: list[tuple[str, Jsonb, str]] = []
        with self._connection() as connection, connection.transaction():
            rows = (
                connection.cursor(row_factory=class_row(QueuedRow))
                .execute(self._sql["find_queued"], {"limit": limit})
                .fetchall()
            )
            for row in rows:
                try:
                    request, fingerprint = read(row)
                except JobError as error:
                    refusal = {"job_id": row.job_id, "message": shown(error)}
                    connection.execute(self._sql["refuse"], refusal)
                    log.warning("a row can't be read as a job", **refusal)
                else:
                    good.append((row.job_id, Jsonb(request), fingerprint))
            if good:
                ids, requests, fingerprints = zip(*good, strict=True)
                connection.execute(
                    self._sql["take_in"],
                    {
                        "job_ids": list(ids),
                        "requests": list(requests),
                        "fingerprints": list(fingerprints),
                        "deadline": deadline,
                    },
                )
        return len(rows)

    @contextmanager
    def waiting(self, limit: int) -> Iterator[tuple[list[Waiting], Batch]]:
        """Jobs to send, locked until the block ends; what the batch is told is then committed."""
        with self._connection() as connection, connection.transaction():
            rows = (
                connection.cursor(row_factory=class_row(Waiting))
                .execute(self._sql["waiting"], {"limit": limit})
                .fetchall()
            )
            yield rows, Batch(connection, self._sql)

    def cancel(self, job_id: str) -> bool:
        """Close the job as cancelled and its attempts as abandoned; False if it had ended."""
        params = {"job_id": job_id}
        # A third look, as the row may have been taken in between the first two.
        queries = ("cancel", "cancel_row", "cancel") if _is_text(job_id) else ()
        return any(self._write(name, params) for name in queries)

    def reopen(self, job_id: str, deadline: float) -> str | None:
        """Queue an ended job again; returns its status before, None if there is no such row.

        A result that could not be kept is kept now, instead of being made again. A job of ours
        whose row someone else has just ended goes on.
        """
        if not _is_text(job_id):
            return None
        params = {"job_id": job_id, "deadline": deadline}
        with self._connection() as connection, connection.transaction():
            cursor = connection.cursor(row_factory=dict_row)
            row = cursor.execute(self._sql["lock_job"], params).fetchone()
            if row is None:
                return None
            ours = row["state"] not in (None, "done")
            if row["status"] not in (("queued", "processing") if ours else ("queued",)):
                cursor.execute(self._sql["reopen_row"], params)
                if not ours:
                    self._count(connection, "resume_kept", params)
                cursor.execute(self._sql["notify_work"])
            return str(row["status"])

    def row(self, job_id: str) -> JobRow | None:
        """The backend's row."""
        found = self._rows(JobRow, "row", {"job_id": job_id}) if _is_text(job_id) else []
        return found[0] if found else None

    def rows(self, limit: int, status: str | None) -> list[JobRow]:
        """The newest rows."""
        return self._rows(JobRow, "rows", {"limit": limit, "status": status})

    def strange(self) -> list[tuple[str, str]]:
        """Ids and states of rows that are shown as worked on, and that nobody of ours knows."""
        with self._connection() as connection:
            return list(connection.execute(self._sql["strange"]).fetchall())

    # Attempts.

    def claim(
        self, limit: int, instance: uuid.UUID, *, lease: float, silence: float
    ) -> list[Claimed]:
        """Attempts that are due, each under a new lease."""
        params = {"limit": limit, "instance": instance, "lease": lease, "silence": silence}
        return self._rows(Claimed, "claim", params)

    def claim_finishing(self, limit: int, *, lease: float) -> list[Finishing]:
        """Results that have to be kept, each under a new lease."""
        return self._rows(Finishing, "claim_finishing", {"limit": limit, "lease": lease})

    def renew(self, leases: Mapping[uuid.UUID, int], lease: float) -> None:
        """Lengthen leases that are still ours; each on the attempt of this id."""
        params = {"leases": list(leases), "ids": list(leases.values()), "lease": lease}
        self._write("renew", params)

    def release(self, leases: Mapping[uuid.UUID, int]) -> None:
        """Give leases back; what they were about is due at once."""
        self._write("release", {"leases": list(leases), "ids": list(leases.values())})

    def sent(self, attempt: Begun, runpod_id: str, delay: float) -> bool:
        """The endpoint took it. False: the lease is gone, and only the id was noted."""
        params = {
            "id": attempt.id,
            "lease": attempt.lease_token,
            "runpod_id": runpod_id,
            "delay": delay,
        }
        if self._write("sent", params):
            return True
        self._write("note_id", params)
        return False

    def uncertain(self, attempt: Begun | Claimed, patience: float, delay: float) -> bool:
        """The sending's answer was lost; it is waited for during `patience` seconds."""
        return self._leased("uncertain", attempt, patience=patience, delay=delay)

    def withdraw(self, attempt: Begun, message: str, pause: float) -> bool:
        """It was certainly not sent: forget it, and send again after `pause` seconds."""
        return self._leased("withdraw", attempt, message=message[:MAX_MESSAGE], pause=pause)

    def patience(self, endpoint: str) -> float | None:
        """What nine of ten of an endpoint's last jobs took from end to end, in seconds."""
        with self._connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            return cursor.execute(self._sql["patience"], {"endpoint": endpoint}).fetchone()

    def watched(
        self, attempt: Claimed, state: State, *, delay: float, reached: bool, worker_id: str | None
    ) -> bool:
        """It was looked at; look again after `delay` seconds."""
        return self._leased(
            "watched", attempt, state=state.value, delay=delay, reached=reached, worker_id=worker_id
        )

    def progressed(
        self, attempt: Claimed, progress: Progress, *, delay: float, worker_id: str | None
    ) -> bool:
        """It is further: in the attempt and in the backend's row."""
        return self._leased(
            "progressed",
            attempt,
            progress=Jsonb(progress.to_wire()),
            pct=progress.pct,
            message=progress.message,
            stage=progress.stage.value,
            delay=delay,
            worker_id=worker_id,
        )

    def finishing(self, attempt: Claimed, result: bytes, account: Account) -> bool:
        """Commit a result that has to be kept yet."""
        return self._leased("finishing", attempt, result=result, **account.to_params())

    def win(self, attempt: Claimed, result: bytes, account: Account) -> bool:
        """The same for an abandoned attempt whose job is open: the other sending goes."""
        params = {"id": attempt.id, "job_id": attempt.job_id}
        more = {"lease": attempt.lease_token, "result": result, **account.to_params()}
        won = False
        with self._connection() as connection, connection.transaction() as transaction:
            connection.execute(self._sql["win"], params)
            if connection.execute(self._sql["reactivate"], params).rowcount:
                won = self._count(connection, "finishing", {**params, **more}) > 0
            if not won:  # then the other sending goes on
                raise psycopg.Rollback(transaction)
        return won

    def unpublished(self, attempt: Finishing, error: JobError, delay: float) -> bool:
        """The result could not be kept; try again after `delay` seconds."""
        return self._leased("unpublished", attempt, error=_json(error), delay=delay)

    def complete(
        self,
        attempt: Claimed | Finishing,
        result: JobResult,
        account: Account,
        *,
        kept_here: bytes | None,
    ) -> bool:
        """Close attempt, job and row as completed. False: they are someone else's, or ended.

        Args:
            kept_here: the compressed result, where it is kept nowhere else.
        """
        return self._leased(
            "complete",
            attempt,
            results_url=result.result_url,
            srt_url=result.srt_url,
            title=result.title,
            duration=_integer(result.duration),
            video_id=result.video_id,
            message="Completed",
            result=kept_here,
            **account.to_params(),
        )

    def end(
        self, attempt: Claimed | Finishing | Begun, state: State, error: JobError, account: Account
    ) -> bool:
        """Close attempt and job as failed; the row says why."""
        return self._leased(
            "end",
            attempt,
            state=state.value,
            error=_json(error),
            message=shown(error),
            **account.to_params(),
        )

    def retry(
        self,
        attempt: Claimed,
        state: State,
        error: JobError,
        account: Account,
        *,
        pause: float,
        message: str,
        blocked: bool,
    ) -> bool:
        """End the attempt; its job is sent again after `pause` seconds."""
        return self._leased(
            "retry",
            attempt,
            state=state.value,
            error=_json(error),
            message=message[:MAX_MESSAGE],
            pause=pause,
            blocked_on=[attempt.endpoint] if blocked else [],
            failed_on=[attempt.endpoint],
            **account.to_params(),
        )

    def abandon(self, attempt: Claimed | Finishing, delay: float) -> bool:
        """Not wanted any more: cancel it at its endpoint."""
        return self._leased("abandon", attempt, delay=delay)

    def orphan(self, job_id: str) -> None:
        """Close our side of a job that was deleted or ended by someone else."""
        self._write("orphan", {"job_id": job_id})

    def settle(
        self,
        attempt: Claimed | Finishing,
        state: State,
        account: Account,
        error: JobError | None = None,
    ) -> bool:
        """Close the attempt alone."""
        return self._leased(
            "settle",
            attempt,
            state=state.value,
            error=_json(error) if error else None,
            **account.to_params(),
        )

    def heard(self, digest: bytes, runpod_id: str | None) -> bool:
        """A webhook of this token came; False if no attempt ever had it."""
        params = {"digest": digest, "runpod_id": runpod_id}
        with self._connection() as connection:
            if self._count(connection, "heard", params):
                return True
            cursor = connection.cursor(row_factory=scalar_row)
            return bool(cursor.execute(self._sql["known_token"], params).fetchone())

    def in_flight(self) -> dict[str, tuple[int, int]]:
        """By endpoint: attempts that have not ended, and how many of them wait in its queue."""
        with self._connection() as connection:
            rows = connection.execute(self._sql["in_flight"]).fetchall()
        return {name: (attempts, queued) for name, attempts, queued in rows}

    def backlog(self) -> int:
        """How many jobs wait to be sent, counted up to 1000."""
        with self._connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            return int(cursor.execute(self._sql["backlog"]).fetchone() or 0)

    def next_due(self) -> float | None:
        """Seconds until something is due; negative if it is overdue."""
        with self._connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            return cursor.execute(self._sql["next_due"]).fetchone()

    def last_attempt(self, job_id: str) -> dict[str, Any] | None:
        """The newest attempt of a job."""
        with self._connection() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            return cursor.execute(self._sql["last_attempt"], {"job_id": job_id}).fetchone()

    def kept_result(self, job_id: str) -> bytes | None:
        """The compressed result that is kept in the database, if one is."""
        with self._connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            if not _is_text(job_id):
                return None
            return cursor.execute(self._sql["kept_result"], {"job_id": job_id}).fetchone()

    # Replicas.

    def beat(self, instance: uuid.UUID) -> None:
        """Say that this replica lives."""
        self._write("beat", {"instance": instance})

    def leave(self, instance: uuid.UUID) -> None:
        """Say that it goes."""
        self._write("leave", {"instance": instance})

    def ping(self) -> None:
        """Raise DatabaseUnavailable if PostgreSQL does not answer."""
        with self._connection() as connection:
            connection.execute("SELECT 1")

    def clock_offset(self, now: float) -> float:
        """Seconds by which the database's clock is ahead of `now` (unix seconds)."""
        with self._connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            query = "SELECT extract(epoch FROM clock_timestamp())::float8"
            return float(cursor.execute(query).fetchone() or now) - now

    # How.

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        try:
            with self._pool.connection() as connection:
                yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            if isinstance(error, (psycopg.errors.DeadlockDetected,)):
                raise
            raise DatabaseUnavailable(
                f"PostgreSQL does not answer ({type(error).__name__}); check DATABASE_URL and "
                "that the server runs"
            ) from error

    def _rows(self, kind: type[T], name: str, params: dict[str, Any]) -> list[T]:
        with self._connection() as connection:
            cursor = connection.cursor(row_factory=class_row(kind))
            return cursor.execute(self._sql[name], params).fetchall()

    def _leased(self, name: str, attempt: Begun | Claimed | Finishing, **params: Any) -> bool:
        lease = {"id": attempt.id, "job_id": attempt.job_id, "lease": attempt.lease_token}
        return self._write(name, {**params, **lease}) > 0

    def _write(self, name: str, params: dict[str, Any]) -> int:
        for attempt in stamina.retry_context(on=psycopg.errors.DeadlockDetected, attempts=5):
            with attempt, self._connection() as connection:
                return self._count(connection, name, params)
        raise AssertionError("unreachable")

    def _count(self, connection: psycopg.Connection[Any], name: str, params: dict[str, Any]) -> int:
        """How many rows a write changed: its own count where it has one."""
        cursor = connection.execute(self._sql[name], params)
        if cursor.description:
            row = cursor.fetchone()
            return int(row[0]) if row else 0
        return cursor.rowcount


class Batch:
    """What is decided about locked waiting jobs."""

    def __init__(self, connection: psycopg.Connection[Any], sql: dict[str, bytes]) -> None:
        self._connection = connection
        self._sql = sql

    def begin(self, intents: Sequence[Intent], lease: float) -> list[Begun]:
        """Commit the intents to send (with the block's end)."""
        columns = {
            "job_ids": [i.job_id for i in intents],
            "endpoints": [i.endpoint for i in intents],
            "instances": [i.instance for i in intents],
            "timeouts": [i.timeout_ms for i in intents],
            "prices": [i.price for i in intents],
            "digests": [i.digest for i in intents],
            "methods": [i.method for i in intents],
        }
        cursor = self._connection.cursor(row_factory=class_row(Begun))
        return cursor.execute(self._sql["begin"], {**columns, "lease": lease}).fetchall()

    def postpone(self, job_ids: Sequence[str], message: str, seconds: float) -> None:
        """Look at these again later; their rows say why."""
        params = {"job_ids": list(job_ids), "seconds": seconds, "message": message[:MAX_MESSAGE]}
        self._connection.execute(self._sql["postpone"], params)

    def end(self, job_id: str, error: JobError) -> None:
        """It is over without (another) attempt."""
        params = {"job_id": job_id, "message": shown(error)}
        self._connection.execute(self._sql["end_waiting"], params)


def shown(error: JobError) -> str:
    """An error as the backend's frontend shows it."""
    text = error.message + (f" ({error.hint})" if error.hint else "")
    return text.replace("\x00", "")[:MAX_MESSAGE]


def _json(error: JobError) -> Jsonb:
    return Jsonb(
        {
            "code": error.code.value,
            "message": error.message.replace("\x00", "")[:MAX_MESSAGE],
            "hint": error.hint,
            "retryable": error.retryable,
            "stage": error.stage,
        }
    )


def _integer(value: float | None) -> int | None:
    """A number as an integer column takes it."""
    return None if value is None else round(max(-MAX_INTEGER, min(MAX_INTEGER, value)))


def _is_text(job_id: str) -> bool:
    """Whether PostgreSQL could hold it, so that a row of this id may be there."""
    try:
        job_id.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in job_id
