"""Jobs: the backend's rows and ours beside them (sql/jobs.sql)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row, scalar_row
from psycopg.types.json import Jsonb

from lyricpod.errors import JobError
from orchestrator.errors import OrchestratorError
from orchestrator.log import get_logger
from orchestrator.records import (
    MAX_MESSAGE,
    Begun,
    Intent,
    JobRow,
    QueuedRow,
    Waiting,
    shown,
)
from orchestrator.tables import Tables, is_text

log = get_logger()


class Jobs(Tables):
    """Jobs come in, wait, end."""

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
        queries = ("cancel", "cancel_row", "cancel") if is_text(job_id) else ()
        return any(self._write(name, params) for name in queries)

    def reopen(self, job_id: str, deadline: float) -> str | None:
        """Queue an ended job again; returns its status before, None if there is no such row.

        A result that could not be kept is kept now, instead of being made again. A job of ours
        whose row someone else has just ended goes on.
        """
        if not is_text(job_id):
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
        found = self._rows(JobRow, "row", {"job_id": job_id}) if is_text(job_id) else []
        return found[0] if found else None

    def rows(self, limit: int, status: str | None) -> list[JobRow]:
        """The newest rows."""
        return self._rows(JobRow, "rows", {"limit": limit, "status": status})

    def strange(self) -> list[tuple[str, str]]:
        """Ids and states of rows that are shown as worked on, and that nobody of ours knows."""
        with self._connection() as connection:
            return list(connection.execute(self._sql["strange"]).fetchall())

    def backlog(self) -> int:
        """How many jobs wait to be sent, counted up to 1000."""
        with self._connection() as connection:
            cursor = connection.cursor(row_factory=scalar_row)
            return int(cursor.execute(self._sql["backlog"]).fetchone() or 0)


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
