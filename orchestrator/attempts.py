"""Attempts: one sending of a job each, under leases (sql/attempts.sql)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import dict_row, scalar_row
from psycopg.types.json import Jsonb

from lyricpod.errors import JobError
from lyricpod.progress import Progress
from lyricpod.result import JobResult
from orchestrator.records import (
    MAX_MESSAGE,
    Account,
    Begun,
    Claimed,
    Finishing,
    error_json,
    integer,
    shown,
)
from orchestrator.states import State
from orchestrator.tables import Tables, is_text


class Attempts(Tables):
    """Attempts are claimed, looked at, closed. A write of a lost lease changes nothing: False."""

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
        return self._leased("unpublished", attempt, error=error_json(error), delay=delay)

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
            duration=integer(result.duration),
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
            error=error_json(error),
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
            error=error_json(error),
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
            error=error_json(error) if error else None,
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
            if not is_text(job_id):
                return None
            return cursor.execute(self._sql["kept_result"], {"job_id": job_id}).fetchone()
