"""PostgreSQL: DATABASE_URL, or one from a wheel, kept in a local folder; and the pool onto it."""

from __future__ import annotations

import math
import re
import select
import time
import weakref
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from orchestrator.errors import OrchestratorError

POOL_SECONDS = 10.0  # how long a caller waits for a connection
CONNECT_SECONDS = 5
# Tries to connect are further and further apart, and a pool that gave up starts anew with its next
# caller: giving up soon means that the end of an outage is noticed soon.
RECONNECT_SECONDS = 5.0
RESTED_SECONDS = 2.0  # a connection that was lent later than that is taken to work still
IDLE_SECONDS = 300.0  # connections above the first are closed after so long without use
LIFE_SECONDS = 1800.0  # proxies between a cloud's machines drop older ones silently
STATEMENT_SECONDS, TRANSACTION_SECONDS = 30, 60
SETTINGS: dict[str, Any] = {
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "lyricpod",
    # After 30 s of silence three lost probes, 10 s apart: a dead peer is noticed in a minute,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # ms, and so is one that dies while a query is on its way
}

_SCHEME = re.compile(r"postgres(ql)?://")


def resolve(database_url: str, state_dir: Path) -> str:
    """The URL to connect to: the one given, or that of a PostgreSQL in `state_dir`, started now.

    The local one belongs to all processes that resolved it; the last one to end stops it. After a
    kill -9 it stays, and the next process takes it over, or starts it again on the same folder.

    Raises:
        OrchestratorError: the URL can't be read, or the local PostgreSQL can't be started.
    """
    if not database_url:
        from orchestrator.postgres import LocalPostgres

        return LocalPostgres(state_dir).open()
    _read(database_url)
    return database_url


def stop_local(state_dir: Path) -> None:
    """Stop the PostgreSQL in `state_dir`, whoever uses it; nothing happens if none runs.

    Raises:
        OrchestratorError: it doesn't stop.
    """
    if (state_dir / "postgres").exists():
        from orchestrator.postgres import LocalPostgres

        LocalPostgres(state_dir).stop()


def pool(url: str, *, size: int, name: str) -> ConnectionPool[psycopg.Connection]:
    """At most `size` connections, the first made in the background; close it when done.

    Each that rested is checked before it is lent; each is in autocommit (so a transaction is `with
    connection.transaction()`), speaks UTC, and ends a statement after 30 s. An unreachable
    database raises `psycopg_pool.PoolTimeout` after 10 s; each caller has it tried again.

    Raises:
        OrchestratorError: the URL can't be read.
    """
    given = _read(url)
    settings = {name: value for name, value in SETTINGS.items() if name not in given}
    return ConnectionPool(
        url,
        min_size=1,
        max_size=size,
        name=name,
        timeout=POOL_SECONDS,
        reconnect_timeout=RECONNECT_SECONDS,
        max_idle=IDLE_SECONDS,
        max_lifetime=LIFE_SECONDS,
        check=_check_rested,
        configure=_configure,
        kwargs={**settings, "autocommit": True},
        open=True,
    )


# When each connection was last lent, in monotonic seconds.
_lent: weakref.WeakKeyDictionary[psycopg.Connection[Any], float] = weakref.WeakKeyDictionary()


def _check_rested(connection: psycopg.Connection[Any]) -> None:
    """Check a connection that rested, or whose server says something, which may be its end.

    One that was just used and is silent need not cost another round trip.
    """
    now = time.monotonic()
    rested = now - _lent.get(connection, -math.inf) > RESTED_SECONDS
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if rested or poll.poll(0):
        ConnectionPool.check_connection(connection)
    _lent[connection] = now


def _configure(connection: psycopg.Connection) -> None:
    # Not by the start-up parameter `options`: PgBouncer refuses a connection that has it.
    connection.execute(
        f"SET statement_timeout = '{STATEMENT_SECONDS}s';"
        f"SET idle_in_transaction_session_timeout = '{TRANSACTION_SECONDS}s';"
        "SET TIME ZONE 'UTC'"
    )


def _read(url: str) -> dict[str, Any]:
    """The URL's parameters; what is wrong with it in our words, as libpq's quote the password."""
    try:
        given = conninfo_to_dict(url)
        ports = re.fullmatch(r"[\d,]*", str(given.get("port") or ""))
        if not ports or not (_SCHEME.match(url) or "=" in url):
            raise ValueError
    except (psycopg.Error, ValueError):
        raise OrchestratorError(
            "DATABASE_URL can't be read: it must look like "
            "postgresql://user:password@host:5432/name, with special characters of the password "
            "percent-encoded and no parameters but libpq's"
        ) from None
    return given
