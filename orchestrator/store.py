"""All that is read from and written to PostgreSQL."""

from __future__ import annotations

import uuid

from psycopg.rows import scalar_row

from orchestrator.attempts import Attempts
from orchestrator.jobs import Jobs


class Store(Jobs, Attempts):
    """Jobs, attempts and replicas."""

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
