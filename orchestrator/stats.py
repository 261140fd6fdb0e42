"""Success rates, times and cost of the last hours, from the tables; as text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from orchestrator.errors import DatabaseUnavailable
from orchestrator.queries import named

Sample: TypeAlias = tuple[dict[str, str], float | None]  # labels and value

SILENCE_SECONDS = 15.0  # after which a replica counts as gone; it says every 5 s that it lives


@dataclass(frozen=True)
class Spread:
    """Seconds that half, nine of ten and 99 of 100 took at most; None: nothing was measured."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Route:
    """The sendings to one endpoint.

    Attributes:
        total: from the sending to the result.
        delay, execution: in the platform's queue and on a worker, as the platform says.
        cost_usd: the sum of what is known; None where nothing is.
        unpriced: sendings that ran and whose price is not known (RUNPOD_PRICE).
    """

    endpoint: str
    attempts: int
    completed: int
    failed: int
    cancelled: int
    open: int
    total: Spread
    delay: Spread
    execution: Spread
    cost_usd: float | None
    unpriced: int

    @property
    def success_rate(self) -> float | None:
        """Completed among completed and failed, 0 to 1."""
        return _rate(self.completed, self.failed)


@dataclass(frozen=True)
class Stats:
    """The jobs that arrived in the last hours, and where they were sent.

    Attributes:
        total: from a job's arrival to its result.
        errors: why sendings failed, by code, the most frequent first.
        replicas: how many processes run the loop now.
        waiting: jobs that wait to be sent now.
        oldest_seconds: for how long the oldest queued row has been waiting.
    """

    hours: float
    queued: int
    processing: int
    completed: int
    failed: int
    cancelled: int
    total: Spread
    routes: tuple[Route, ...]
    errors: tuple[tuple[str, int], ...]
    replicas: int
    waiting: int
    oldest_seconds: float

    @property
    def success_rate(self) -> float | None:
        """Completed among completed and failed, 0 to 1; None before the first has ended."""
        return _rate(self.completed, self.failed)

    @property
    def cost_usd(self) -> float | None:
        """What is known of the cost of all routes."""
        known = [route.cost_usd for route in self.routes if route.cost_usd is not None]
        return sum(known) if known else None


def read(pool: ConnectionPool[Any], hours: float) -> Stats:
    """The figures of the last `hours`.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
    """
    try:
        with pool.connection() as connection, connection.transaction():
            return _read(connection, hours)
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        raise DatabaseUnavailable(
            f"PostgreSQL does not answer ({type(error).__name__}); check DATABASE_URL and that "
            "the server runs"
        ) from error


def _read(connection: psycopg.Connection[Any], hours: float) -> Stats:
    cursor = connection.cursor(row_factory=dict_row)
    queries = named("stats.sql")
    params = {"seconds": hours * 3600, "silence": SILENCE_SECONDS}

    def rows(name: str) -> list[DictRow]:
        return cursor.execute(queries[name].encode(), params).fetchall()

    jobs, loop = rows("jobs")[0], rows("loop")[0]
    return Stats(
        hours=hours,
        routes=tuple(_route(row) for row in rows("routes")),
        errors=tuple((row["code"], row["count"]) for row in rows("errors")),
        **{**jobs, "total": _spread(jobs["total"])},
        **loop,
    )


def _route(row: DictRow) -> Route:
    spreads = {name: _spread(row[name]) for name in ("total", "delay", "execution")}
    return Route(**{**row, **spreads})


def _spread(values: list[float] | None) -> Spread:
    return Spread(*values) if values else Spread()


def _rate(completed: int, failed: int) -> float | None:
    ended = completed + failed
    return completed / ended if ended else None


def prometheus(stats: Stats) -> str:
    """The figures in Prometheus's text format, for the backend's /metrics route.

    All are gauges over the hours that `stats` is of. Source of the format:
    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    return "".join(f"{line}\n" for line in _exposition(stats))


def _exposition(stats: Stats) -> Iterator[str]:
    sent: list[Sample] = []
    delays: list[Sample] = []
    executions: list[Sample] = []
    states = ("queued", "processing", "completed", "failed", "cancelled")
    yield from _gauge("jobs", [({"status": name}, getattr(stats, name)) for name in states])
    yield from _gauge("jobs_waiting", [({}, stats.waiting)])
    yield from _gauge("oldest_queued_seconds", [({}, stats.oldest_seconds)])
    yield from _gauge("replicas", [({}, stats.replicas)])
    yield from _gauge("success_ratio", [({}, stats.success_rate)])
    yield from _gauge("job_seconds", _quantiles({}, stats.total))
    for route in stats.routes:
        ends = ("completed", "failed", "cancelled", "open")
        sent.extend(
            ({"endpoint": route.endpoint, "state": end}, getattr(route, end)) for end in ends
        )
        delays.extend(_quantiles({"endpoint": route.endpoint}, route.delay))
        executions.extend(_quantiles({"endpoint": route.endpoint}, route.execution))
    yield from _gauge("attempts", sent)
    yield from _gauge("delay_seconds", delays)
    yield from _gauge("execution_seconds", executions)
    yield from _gauge("cost_usd", [({"endpoint": r.endpoint}, r.cost_usd) for r in stats.routes])
    yield from _gauge("errors", [({"code": code}, count) for code, count in stats.errors])


def _quantiles(labels: dict[str, str], spread: Spread) -> list[Sample]:
    values = {"0.5": spread.p50, "0.9": spread.p90, "0.99": spread.p99}
    return [({**labels, "quantile": name}, value) for name, value in values.items()]


def _gauge(name: str, samples: Iterable[Sample]) -> Iterator[str]:
    known = [(labels, value) for labels, value in samples if value is not None]
    if known:
        yield f"# TYPE lyricpod_{name} gauge"
    for labels, value in known:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"lyricpod_{name}{{{inside}}} {value:g}" if inside else f"lyricpod_{name} {value:g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
