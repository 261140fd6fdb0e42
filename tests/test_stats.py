"""Success rates, times and cost, from rows whose figures are known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg_pool import ConnectionPool

from orchestrator.database import pool
from orchestrator.errors import DatabaseUnavailable
from orchestrator.stats import Spread, prometheus, read
from orchestrator.store import Store

Pool = ConnectionPool[Any]

JOB = """
WITH job AS (
    INSERT INTO jobs (id, youtube_url, status, created_at, error_message)
    VALUES (%(id)s, 'https://youtu.be/x', %(status)s, now() - make_interval(mins => %(age)s),
            %(error)s)
    RETURNING id, created_at
)
INSERT INTO lyricpod_jobs (job_id, state, deadline, created_at)
SELECT id, %(state)s, now(), created_at FROM job
"""
ATTEMPT = """
INSERT INTO lyricpod_attempts (job_id, number, endpoint, state, execution_timeout_ms, created_at,
    finished_at, delay_ms, execution_ms, price_usd, cost_usd, error)
SELECT id, %(number)s, %(endpoint)s, %(state)s, 1000, created_at,
    created_at + make_interval(secs => %(seconds)s), 1000 * %(seconds)s / 4, 500 * %(seconds)s,
    %(price)s::float8, %(price)s::float8 * 0.5 * %(seconds)s, %(error)s
FROM jobs WHERE id = %(job)s
"""


@pytest.fixture
def database(database_url: str) -> Iterator[Pool]:
    """The empty tables."""
    with pool(database_url, size=2, name="test") as opened:
        Store(opened).prepare()
        yield opened


def job(database: Pool, name: str, status: str, *, age: int = 10, error: str | None = None) -> None:
    """A row that came in `age` minutes ago."""
    state = {"queued": "waiting", "processing": "active"}.get(status, "done")
    with database.connection() as connection:
        params = {"id": name, "status": status, "age": age, "error": error, "state": state}
        connection.execute(JOB, params)


def attempt(database: Pool, name: str, endpoint: str, state: str, **more: Any) -> None:
    """A sending of it, which took `seconds`: a quarter in the queue, half on the worker."""
    given = {"number": 1, "seconds": 0.0, "price": None, "error": None, **more}
    with database.connection() as connection:
        connection.execute(ATTEMPT, {"job": name, "endpoint": endpoint, "state": state, **given})


def test_figures_are_those_of_the_rows(database: Pool) -> None:
    """Rates, percentiles, cost and reasons by route, of the hours that were asked for only."""
    for number in range(1, 11):
        job(database, f"done-{number}", "completed")
        attempt(database, f"done-{number}", "runpod:a", "completed", seconds=number, price=0.002)
    job(database, "failed", "error", error="the video is private")
    refused = '{"code": "source_blocked"}'
    attempt(database, "failed", "runpod:a", "failed", seconds=4, error=refused)
    attempt(database, "failed", "local", "timed_out", number=2, seconds=4, price=0.0)
    job(database, "cancelled", "error", error="Cancelled")
    job(database, "waiting", "queued", age=5)
    job(database, "old", "completed", age=180)
    attempt(database, "old", "runpod:a", "completed", seconds=99)

    stats = read(database, hours=1)
    assert (stats.completed, stats.failed, stats.cancelled) == (10, 1, 1)
    assert (stats.queued, stats.processing, stats.waiting, stats.replicas) == (1, 0, 1, 0)
    assert stats.success_rate == pytest.approx(10 / 11)
    assert stats.total == Spread(5, 9, 10)
    assert 300 <= stats.oldest_seconds < 3600
    assert stats.errors == (("internal", 1), ("source_blocked", 1))
    assert stats.cost_usd == pytest.approx(0.002 * 0.5 * 55)

    runpod, local = stats.routes
    assert (runpod.endpoint, runpod.attempts, runpod.completed, runpod.failed) == (
        "runpod:a", 11, 10, 1,
    )  # fmt: skip
    assert (runpod.total, runpod.unpriced) == (Spread(5, 9, 10), 1)
    assert runpod.delay.p50 == pytest.approx(1.25)
    assert runpod.execution.p99 == pytest.approx(5)
    assert (local.success_rate, local.cost_usd, local.unpriced) == (0.0, 0.0, 0)


def test_without_rows_nothing_is_made_up(database: Pool) -> None:
    """No rate, no time and no cost where there was nothing to measure."""
    stats = read(database, hours=24)
    assert (stats.success_rate, stats.cost_usd, stats.total) == (None, None, Spread())
    assert (stats.routes, stats.errors, stats.oldest_seconds) == ((), (), 0.0)
    samples = dict(line.split(" ") for line in prometheus(stats).splitlines() if line[0] != "#")
    assert samples["lyricpod_replicas"] == "0"
    assert samples['lyricpod_jobs{status="completed"}'] == "0"
    assert "lyricpod_success_ratio" not in samples


def test_the_tables_of_an_old_backend_are_enough(database_url: str) -> None:
    """The figures need no column that came later, and no attempt of ours."""
    with pool(database_url, size=2, name="test") as opened:
        with opened.connection() as connection:
            connection.execute(
                "CREATE TABLE jobs (id varchar(255) PRIMARY KEY, youtube_url text NOT NULL,"
                " title text, duration integer, status varchar(50) NOT NULL DEFAULT 'queued',"
                " results_url text, srt_url text, error_message text,"
                " created_at timestamptz DEFAULT now())"
            )
            connection.execute(
                "INSERT INTO jobs (id, youtube_url, status) VALUES ('a', 'u', 'done')"
            )
        Store(opened).prepare()
        stats = read(opened, hours=24)
    assert (stats.completed, stats.total) == (1, Spread())


def test_prometheus_can_read_it(database: Pool) -> None:
    """Every line is a type or a sample, and a name with a quote in it breaks none."""
    job(database, "done", "completed")
    attempt(database, "done", 'runpod:"a"', "completed", seconds=8, price=0.001)
    shown = prometheus(read(database, hours=1))
    sample = r'lyricpod_\w+(\{(\w+="([^"\\\n]|\\.)*",?)+\})? [-+.e\d]+'
    for line in shown.splitlines():
        assert re.fullmatch(rf"# TYPE lyricpod_\w+ gauge|{sample}", line), line
    assert 'lyricpod_job_seconds{quantile="0.5"} 8\n' in shown
    assert 'lyricpod_cost_usd{endpoint="runpod:\\"a\\""} 0.004\n' in shown


def test_a_database_that_is_away_is_said() -> None:
    """The caller gets our error, not the pool's."""
    url = "postgresql://127.0.0.1:1/none"
    with (
        ConnectionPool(url, min_size=0, max_size=1, timeout=0.2, open=True) as away,
        pytest.raises(DatabaseUnavailable, match="check DATABASE_URL"),
    ):
        read(away, hours=1)
