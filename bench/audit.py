"""The backend's table with a trigger on it that notes each change of a job and when it was seen."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

CHANNEL = "bench_ended"
LOOK_SECONDS = 1.0  # how long one wait for notifications may last before the end is looked at
ENDED = "('completed', 'error', 'done')"

# The table as the backend made it, with the columns it added later.
JOBS = """
CREATE TABLE jobs (
    id varchar(255) PRIMARY KEY,
    youtube_url text NOT NULL,
    title text,
    duration integer,
    status varchar(50) NOT NULL DEFAULT 'queued',
    results_url text,
    srt_url text,
    error_message text,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    completed_at timestamptz,
    openai_model text,
    pct integer DEFAULT 0,
    status_message text,
    current_stage text,
    processing_method text,
    processing_time_seconds real,
    video_id text,
    progress_log jsonb DEFAULT '[]'
);
CREATE INDEX jobs_status ON jobs (status);
CREATE INDEX jobs_created_at ON jobs (created_at);
"""

AUDIT = f"""
CREATE TABLE bench_audit (
    job_id text NOT NULL,
    was text NOT NULL,
    became text,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION bench_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A change of status, or any touch of a row that had ended.
    IF TG_OP = 'DELETE' OR NEW.status IS DISTINCT FROM OLD.status OR OLD.status IN {ENDED} THEN
        INSERT INTO bench_audit (job_id, was, became)
        VALUES (OLD.id, OLD.status, CASE WHEN TG_OP = 'DELETE' THEN NULL ELSE NEW.status END);
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.status IN {ENDED} AND OLD.status NOT IN {ENDED} THEN
        PERFORM pg_notify('{CHANNEL}', NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER bench_audit AFTER UPDATE OR DELETE ON jobs
    FOR EACH ROW EXECUTE FUNCTION bench_audit();
"""


@dataclass(frozen=True)
class Verdict:
    """What the audit says in the end.

    Attributes:
        statuses: rows by status.
        more_than_once: jobs that came into an end more than once.
        touched: touches of rows that had ended.
        errors: the error rows, id and message.
    """

    statuses: dict[str, int]
    more_than_once: list[str]
    touched: list[str]
    errors: list[tuple[str, str]]


class Audit:
    """Listens for ends, in a thread of its own.

    Attributes:
        seen: the second of the epoch at which the end of each job was visible here.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.seen: dict[str, float] = {}
        self._came = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="audit", daemon=True)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(JOBS)
            connection.execute(AUDIT)

    def __enter__(self) -> Self:
        listening = threading.Event()
        self._listening = listening
        self._thread.start()
        if not listening.wait(30):
            raise RuntimeError("the audit can't listen to the database")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()

    def insert(self, ids: Iterable[str]) -> None:
        """Queue rows as the backend does."""
        with (
            psycopg.connect(self._url) as connection,
            connection.cursor() as cursor,
            cursor.copy("COPY jobs (id, youtube_url) FROM STDIN") as copy,
        ):
            for job_id in ids:
                video = hashlib.sha256(job_id.encode()).hexdigest()[:11]
                copy.write_row((job_id, f"https://www.youtube.com/watch?v={video}"))

    def wait(self, count: int, seconds: float) -> bool:
        """Wait until `count` jobs have ended; False if they have not after `seconds`."""
        with self._came:
            return self._came.wait_for(lambda: len(self.seen) >= count, seconds)

    def count(self) -> int:
        """How many jobs have ended."""
        with self._came:
            return len(self.seen)

    def verdict(self) -> Verdict:
        """What the database says now."""
        with psycopg.connect(self._url) as connection:
            return Verdict(
                dict(_all(connection, "SELECT status, count(*) FROM jobs GROUP BY 1")),
                [
                    str(row[0])
                    for row in _all(
                        connection,
                        f"""SELECT job_id FROM bench_audit
                            WHERE became IN {ENDED} AND was NOT IN {ENDED}
                            GROUP BY 1 HAVING count(*) > 1""",
                    )
                ],
                [
                    f"{row[0]}: {row[1]} -> {row[2]}"
                    for row in _all(
                        connection,
                        f"SELECT job_id, was, became FROM bench_audit WHERE was IN {ENDED}",
                    )
                ],
                [
                    (str(row[0]), str(row[1]))
                    for row in _all(
                        connection, "SELECT id, error_message FROM jobs WHERE status = 'error'"
                    )
                ],
            )

    def open(self) -> list[str]:
        """The jobs that have not ended, each with all that the tables say about it."""
        query = f"""
            SELECT j.id, j.status, j.updated_at, to_jsonb(o) - 'request', jsonb_agg(
                to_jsonb(a) - '{{result,webhook_digest,progress}}'::text[] ORDER BY a.id)
            FROM jobs j LEFT JOIN lyricpod_jobs o ON o.job_id = j.id
            LEFT JOIN lyricpod_attempts a ON a.job_id = j.id
            WHERE j.status NOT IN {ENDED} GROUP BY 1, 2, 3, 4"""
        with psycopg.connect(self._url) as connection:
            return [" ".join(map(str, row)) for row in _all(connection, query)]

    def postmaster(self) -> int:
        """The process id of PostgreSQL, by its data folder."""
        with psycopg.connect(self._url) as connection:
            folder = _all(connection, "SHOW data_directory")[0][0]
        return int((Path(folder) / "postmaster.pid").read_text().split()[0])

    def attempts(self) -> dict[str, int]:
        """The orchestrator's own attempts by state."""
        with psycopg.connect(self._url) as connection:
            found = _all(connection, "SELECT state, count(*) FROM lyricpod_attempts GROUP BY 1")
        return {str(state): int(count) for state, count in found}

    def _listen(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            self._listening.set()
            while not self._closing.is_set():
                for notice in connection.notifies(timeout=LOOK_SECONDS, stop_after=1):
                    with self._came:
                        self.seen.setdefault(notice.payload, time.time())
                        self._came.notify_all()


def _all(connection: psycopg.Connection[Any], query: str) -> Sequence[tuple[Any, ...]]:
    return connection.execute(query).fetchall()  # type: ignore[call-overload]
