"""HTTP exchanges that a cancel ends at once, even while they wait for their server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import certifi
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from lyricpod.cancel import Cancel

# As many threads as may publish at once; above it connections would be thrown away after one use.
CONNECTIONS = 256


class _Exchange:
    """The connections that one thread uses for one exchange."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[HTTPConnection] = []
        self._hung_up = False

    def take(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._connections.append(connection)
            hung_up = self._hung_up
        if hung_up:  # the cancel came while the connection was being made
            _hang_up(connection)

    def hang_up(self) -> None:
        with self._lock:
            self._hung_up = True
            connections = list(self._connections)
        for connection in connections:
            _hang_up(connection)


def _hang_up(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # not connected yet, or no more
        connection.sock.shutdown(socket.SHUT_RDWR)


_current = threading.local()


@contextmanager
def interruptible(cancel: Cancel) -> Iterator[None]:
    """While the block runs, a cancel hangs up what this thread sends through a `Pool`."""
    exchange = _current.exchange = _Exchange()
    try:
        with cancel.interrupting(exchange.hang_up):
            yield
    finally:
        _current.exchange = None


def _take(connection: HTTPConnection) -> None:
    exchange: _Exchange | None = getattr(_current, "exchange", None)
    if exchange is not None:
        exchange.take(connection)


class _Plain(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _take(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _take(self)  # a connection that is used again connects no more
        super().request(*args, **kwargs)


class _Secure(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _take(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _take(self)
        super().request(*args, **kwargs)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


class Pool(urllib3.PoolManager):
    """Connections for any number of threads, without retries of its own: callers keep deadlines."""

    def __init__(self) -> None:
        super().__init__(
            maxsize=CONNECTIONS,
            cert_reqs="CERT_REQUIRED",
            ca_certs=certifi.where(),
            retries=False,
        )
        self.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
