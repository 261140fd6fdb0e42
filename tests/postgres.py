"""A real PostgreSQL for tests, which can go away and come back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from orchestrator.postgres import LocalPostgres


class Postgres:
    """One server; each `create()` is an empty database of its own, named by its URL."""

    def __init__(self, folder: Path) -> None:
        self._local = LocalPostgres(folder)
        self._numbers = itertools.count(1)
        self.url = self._local.open()  # of the database `postgres`, for whoever needs no other
        with psycopg.connect(self.url, autocommit=True) as connection:
            # No test pulls the plug; syncing fifty databases at the end would take a minute.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")

    def create(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url.replace("@/postgres?", f"@/{name}?")

    def stop(self) -> None:
        """Cut every connection and refuse new ones, until `start`."""
        self._local.stop()

    def start(self) -> None:
        """Be there again, under the same URLs."""
        self._local.open()


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A server with its data in `folder`, which is made if it isn't there."""
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.stop()
