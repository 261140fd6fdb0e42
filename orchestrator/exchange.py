"""One HTTP exchange: a request out, a bounded answer back, or how far it got.

Talks to the adapter of requests directly, with headers made once: a session would prepare
cookies, hooks, proxies and redirects for each call, and none of them is wanted here.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

CONNECT_SECONDS = 5.0  # a host that takes longer to accept is as good as down
POOL_SIZE = 64  # connections kept: above any number of threads that share one client
CHUNK_BYTES = 256 * 1024
ERROR_BYTES = 64 * 1024  # of an error's page: read only so that the connection can be kept


class NotSent(Exception):
    """The request certainly never reached the server.

    `hint` is the remedy where someone must change a setting, else None.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class Unanswered(Exception):
    """The request may have been acted on: the connection stood, and no answer came."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    """A status line's code, its headers and the body; `unread` says why there is no body."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    unread: str | None = None


class Exchange:
    """A pool of connections that sends one kind of header; used by many threads at once.

    No proxies, netrc or certificates from the environment, no redirects, no cookies, no retries.

    Args:
        headers: sent with each request.
        seconds: the deadline of one call: to connect, to wait for the answer's first line, and to
            read it. Each further address that a host name has may add CONNECT_SECONDS.
        limit: the longest body that is read, in bytes after decompression.
    """

    def __init__(self, headers: Mapping[str, str], *, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._limit = limit
        self._headers: CaseInsensitiveDict[str | bytes] = CaseInsensitiveDict(
            {"Accept-Encoding": "identity", **headers}
        )
        connect = min(CONNECT_SECONDS, seconds / 4)
        self._timeout = (connect, seconds - connect)
        self._adapter = HTTPAdapter(pool_connections=1, pool_maxsize=POOL_SIZE)

    def send(self, method: str, url: str, body: bytes | None = None) -> Answer:
        """The server's answer, whatever its status.

        Raises:
            NotSent: no connection could be made.
            Unanswered: it was made and then failed or stayed silent.
        """
        end = time.monotonic() + self._seconds
        try:
            response = self._adapter.send(
                self._prepare(method, url, body), stream=True, timeout=self._timeout, proxies={}
            )
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise self._translate(error) from error
        try:
            ok = 200 <= response.status_code < 300
            data, unread = self._read(response, self._limit if ok else ERROR_BYTES, end)
        finally:
            response.close()  # keeps the connection if the body is at its end, else drops it
        return Answer(response.status_code, response.headers, data, unread)

    def close(self) -> None:
        """Close the idle connections."""
        self._adapter.close()

    def _prepare(self, method: str, url: str, body: bytes | None) -> requests.PreparedRequest:
        request = requests.PreparedRequest()
        request.method, request.url, request.body = method, url, body
        request.headers = self._headers
        if body is not None or method == "POST":
            request.headers = self._headers.copy()
            request.headers["Content-Length"] = str(len(body or b""))
        return request

    def _read(
        self, response: requests.Response, limit: int, end: float
    ) -> tuple[bytes, str | None]:
        """The body, or no bytes and the reason."""
        parts: list[bytes] = []
        size = 0
        try:
            # read1: what is there at once, so that a server that drips can't hold us beyond `end`.
            while _allow(response, end):
                chunk = response.raw.read1(CHUNK_BYTES, decode_content=True)
                if not chunk:
                    return b"".join(parts), None
                parts.append(chunk)
                size += len(chunk)
                if size > limit:
                    return b"", f"its answer is longer than {limit} bytes"
        except ReadTimeoutError:
            pass
        except (HTTPError, OSError, ValueError):
            return b"", "the connection broke in the middle of its answer"
        return b"", f"its answer was not complete within {self._seconds:g} s"

    def _translate(self, error: Exception) -> NotSent | Unanswered:
        """How far a request got, by what requests and urllib3 say of its failure."""
        inner = error.args[0] if error.args else None
        reason = getattr(inner, "reason", None)
        if isinstance(error, requests.ConnectTimeout):
            return NotSent(f"no connection within {self._timeout[0]:g} s")
        if isinstance(reason, NameResolutionError):
            return NotSent("its host name can't be resolved")
        if isinstance(reason, NewConnectionError):
            return NotSent(_no_connection(reason.__cause__))
        if _is_untrusted(reason):
            hint = "check the endpoint's address, this machine's clock and its certificates"
            return NotSent("its certificate is not trusted", hint)
        if isinstance(error, requests.exceptions.InvalidURL | LocationValueError):
            return NotSent("its address is not a valid URL", "check the endpoint's base URL")
        if isinstance(error, requests.Timeout) or isinstance(inner, ReadTimeoutError):
            return Unanswered(f"no answer within {self._timeout[1]:g} s")
        if isinstance(inner, ProtocolError):
            return Unanswered("the connection was closed before an answer came")
        return Unanswered(f"the exchange failed ({type(error).__name__})")


def _allow(response: requests.Response, end: float) -> bool:
    """Give the next read what is left of the time until `end`; False if nothing is left."""
    left = end - time.monotonic()
    sock = getattr(response.raw.connection, "sock", None)  # None once it will not be kept
    if sock is not None and left > 0:
        sock.settimeout(left)
    return left > 0


def _no_connection(cause: BaseException | None) -> str:
    said = cause.strerror if isinstance(cause, OSError) else None
    return f"no connection: {said}" if said else "no connection"


def _is_untrusted(reason: object) -> bool:
    """A refused certificate ends the handshake: nothing was sent. Other TLS errors can be later."""
    cause = reason.args[0] if isinstance(reason, Exception) and reason.args else None
    return isinstance(cause, ssl.SSLCertVerificationError)
