"""The backend's side of the table jobs: its own rows, and what its frontend sees of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.rows import dict_row

Row = dict[str, Any]

# Tells of each change of a row, and counts the changes after its end.
WATCH = """
CREATE TABLE audit (id text, status text, at timestamptz DEFAULT clock_timestamp());
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit (id, status) VALUES (NEW.id, NEW.status);
    PERFORM pg_notify('rows', NEW.id);
    RETURN NEW;
END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION tell();
"""
ORIGINAL = """
CREATE TABLE jobs (
    id varchar(255) PRIMARY KEY, youtube_url text NOT NULL, title text, duration integer,
    status varchar(50) NOT NULL DEFAULT 'queued', results_url text, srt_url text,
    error_message text, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),
    completed_at timestamptz, openai_model text);
CREATE INDEX ON jobs (status);
CREATE INDEX ON jobs (created_at);
"""
ADDED_LATER = """
ALTER TABLE jobs ADD pct integer DEFAULT 0, ADD status_message text, ADD current_stage text,
    ADD processing_method text, ADD processing_time_seconds real, ADD video_id text,
    ADD progress_log jsonb DEFAULT '[]';
"""


class Rows:
    """A connection of the backend's, in autocommit; `watch` first, then `until`."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.connection.close()

    def watch(self) -> Self:
        """Begin to hear of changes; the table must be there."""
        self.connection.execute(WATCH)
        self.connection.execute("LISTEN rows")
        return self

    def run(self, query: str, *params: Any) -> list[Row]:
        """A query's rows."""
        cursor = self.connection.execute(query, params)
        return cursor.fetchall() if cursor.description else []

    def queue(self, job_id: str, url: str = "https://youtu.be/aaaaaaaaaaa", **more: Any) -> str:
        """A row as the backend queues it."""
        columns = {"id": job_id, "youtube_url": url, **more}
        names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
        self.run(f"INSERT INTO jobs ({names}) VALUES ({places})", *columns.values())
        return job_id

    def get(self, job_id: str) -> Row:
        """A row; empty if it is gone."""
        rows = self.run("SELECT * FROM jobs WHERE id = %s", job_id)
        return rows[0] if rows else {}

    def until(self, job_id: str, holds: Callable[[Row], Any], timeout: float = 30) -> Row:
        """The row as soon as `holds` is true of it."""
        end = time.monotonic() + timeout
        while not holds(row := self.get(job_id)):
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not within {timeout} s; the row is {row}")
            for _ in self.connection.notifies(timeout=min(left, 5.0), stop_after=1):
                pass
        return row

    def ended(self, job_id: str, timeout: float = 30) -> Row:
        """The row once it is over."""
        return self.until(job_id, lambda r: r["status"] in ("completed", "error"), timeout)

    def statuses(self, job_id: str) -> list[str]:
        """Each change's status, in order."""
        query = "SELECT status FROM audit WHERE id = %s ORDER BY at"
        return [row["status"] for row in self.run(query, job_id)]

    def attempts(self, job_id: str) -> list[Row]:
        """Our attempts at a job, oldest first."""
        return self.run("SELECT * FROM lyricpod_attempts WHERE job_id = %s ORDER BY number", job_id)

    def attempt_until(
        self, job_id: str, holds: Callable[[Row], Any], timeout: float = 30, number: int = -1
    ) -> Row:
        """An attempt as soon as `holds` is true of it; the table tells nobody, so it is asked."""
        end = time.monotonic() + timeout
        while True:
            found = self.attempts(job_id)
            if found and holds(found[number]):
                return found[number]
            if time.monotonic() > end:
                raise TimeoutError(f"not within {timeout} s; the attempts are {found}")
            for _ in self.connection.notifies(timeout=0.1, stop_after=1):
                pass


def dump(url: str) -> str:
    """Everything that is in the database, as text."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchall()
        found = {
            table["relname"]: connection.execute(f"SELECT * FROM {table['relname']}").fetchall()
            for table in tables
        }
    return json.dumps(found, default=str)
