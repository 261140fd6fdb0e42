"""Hears PostgreSQL's NOTIFY on a connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

AGAIN_SECONDS = 2.0  # after a lost connection
TURN_SECONDS = 1.0  # between two looks at whether to end


class Listener:
    """Listens in a thread while its block runs; a lost connection is made anew.

    Nothing may depend on hearing all: a notification in an outage is never heard.

    Args:
        heard: called in the listener's thread at each notification.
    """

    def __init__(
        self, url: str, channels: tuple[str, ...], heard: Callable[[], None] | None = None
    ) -> None:
        self._url = url
        self._channels = channels
        self._heard = heard
        self._event = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lyricpod-listen", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()

    def wait(self, seconds: float) -> None:
        """Return at the next notification, after `seconds` at most."""
        self._event.wait(seconds)
        self._event.clear()

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(psycopg.Error, OSError):
                self._listen()
            self._stop.wait(AGAIN_SECONDS)

    def _listen(self) -> None:
        with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
            for channel in self._channels:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
            self._tell()  # what was said before is not heard
            while not self._stop.is_set():
                for _ in _notifies(connection):
                    self._tell()

    def _tell(self) -> None:
        self._event.set()
        if self._heard:
            self._heard()


def _notifies(connection: psycopg.Connection[Any]) -> Any:
    return connection.notifies(timeout=TURN_SECONDS, stop_after=1)
