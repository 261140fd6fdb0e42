"""The tables themselves: made, fitted to, reached; errors of PostgreSQL become ours here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
import stamina
from psycopg.rows import class_row, scalar_row
from psycopg_pool import ConnectionPool, PoolTimeout

from orchestrator.errors import DatabaseUnavailable, OrchestratorError
from orchestrator.queries import fitted, named
from orchestrator.records import Begun, Claimed, Finishing

SCHEMA_LOCK = 0x6C79726963  # "lyric": one process at a time makes the tables
REQUIRED = frozenset({"id", "youtube_url", "status", "results_url", "error_message", "created_at"})

T = TypeVar("T")


class Tables:
    """What `Jobs` and `Attempts` stand on. Thread-safe; each method is one transaction.

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


def is_text(job_id: str) -> bool:
    """Whether PostgreSQL could hold it, so that a row of this id may be there."""
    try:
        job_id.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in job_id
