"""A direct http(s) link -> a file on disk, with limits and deadlines."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

MAX_REDIRECTS = 5
CONNECT_SECONDS = 15.0
READ_SECONDS = 30.0  # silence on an open connection
CHUNK = 1 << 16
REDIRECTS = frozenset({301, 302, 303, 307, 308})

OnBytes = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


def download(
    url: str,
    target: Path,
    *,
    max_bytes: int,
    seconds: float,
    private: bool,
    cancel: Cancel,
    on_bytes: OnBytes = lambda done, total: None,
) -> None:
    """Stream `url` into `target`; a cancel ends it at once, wherever it waits.

    Args:
        max_bytes: a larger body is refused, by its announced size or as it comes.
        seconds: the deadline for everything, redirects included.
        private: whether private, loopback and other internal addresses may be reached.

    Raises:
        JobError: `source_not_found`, `source_unavailable`, `source_blocked`,
            `source_too_large`, `network`, `invalid_input`, `cancelled`.
    """
    sockets = _Sockets(private)
    try:
        asyncio.run(
            _cancellable(_stream(url, target, max_bytes, sockets, on_bytes), seconds, cancel)
        )
    except asyncio.CancelledError:
        cancel.check()
        raise
    except TimeoutError as error:
        raise _network(url, f"no answer, or no end of it, within {seconds:.0f} s") from error
    except (aiohttp.InvalidURL, ValueError) as error:
        # The cause's text is the whole link, a redirect's too: it may hold a token.
        raise JobError(
            ErrorCode.INVALID_INPUT,
            f"{display(url)} is, or leads to, a link that can't be read",
            hint="check the link",
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        if sockets.refused:
            raise _internal(url) from error
        raise _network(url, str(error) or type(error).__name__) from error


async def _cancellable(work: Any, seconds: float, cancel: Cancel) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def interrupt() -> None:
        loop.call_soon_threadsafe(task.cancel)

    with cancel.interrupting(interrupt):
        async with asyncio.timeout(seconds):
            await task


async def _stream(
    url: str, target: Path, max_bytes: int, sockets: _Sockets, on_bytes: OnBytes
) -> None:
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
    )
    connector = aiohttp.TCPConnector(socket_factory=sockets)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(_checked(url), allow_redirects=False) as response:
                if response.status in REDIRECTS and "Location" in response.headers:
                    url = urljoin(url, response.headers["Location"])
                    continue
                _accept(response.status, url)
                await _save(response, target, max_bytes, on_bytes)
                return
    raise _network(url, f"more than {MAX_REDIRECTS} redirects")


async def _save(
    response: aiohttp.ClientResponse, target: Path, max_bytes: int, on_bytes: OnBytes
) -> None:
    total = response.content_length
    if total is not None and total > max_bytes:
        raise too_large(max_bytes)
    done = 0
    with target.open("wb") as file:
        async for chunk in response.content.iter_chunked(CHUNK):
            done += len(chunk)
            if done > max_bytes:
                raise too_large(max_bytes)
            file.write(chunk)
            on_bytes(done, total)
    if done == 0:
        raise JobError(
            ErrorCode.SOURCE_NOT_AUDIO,
            f"{display(str(response.url))} is empty",
            hint="check that the link leads to the audio file itself",
        )


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise JobError(
            ErrorCode.INVALID_INPUT,
            f"{display(url)} is not an http or https link",
            hint="give a direct link to the audio file",
        )
    return url


def _accept(status: int, url: str) -> None:
    if status == 200:
        return
    what = f"{display(url)} answered {status}"
    if status in (404, 410):
        raise JobError(ErrorCode.SOURCE_NOT_FOUND, what, hint="check the link")
    if status == 429:
        raise JobError(ErrorCode.SOURCE_BLOCKED, what, hint="the site limits requests; try later")
    if status >= 500:
        raise JobError(ErrorCode.NETWORK, what, hint="the site has a fault; try later")
    raise JobError(
        ErrorCode.SOURCE_UNAVAILABLE, what, hint="the link must be readable without signing in"
    )


class _Sockets:
    """Makes the sockets of a download: the one place that every connection passes.

    Names, redirects, odd spellings and names that resolve differently the second time all
    end in the address that is connected to, and that is what is looked at here.
    """

    def __init__(self, private: bool) -> None:
        self._private = private
        self.refused = False

    def __call__(self, address: Any) -> socket.socket:
        family, kind, protocol, _, where = address
        if not (self._private or is_public(where[0])):
            self.refused = True
            raise OSError("an internal address")
        return socket.socket(family, kind, protocol)


def is_public(host: str) -> bool:
    """Whether an IP address is one of the public internet's."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        low = int(ip) & 0xFFFFFFFF
        if ip.ipv4_mapped or int(ip) >> 32 in (0, 0x0064FF9B << 64):  # mapped, compatible, NAT64
            return is_public(str(ipaddress.IPv4Address(low)))
        if ip.sixtofour or ip.teredo or ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def display(url: str) -> str:
    """A URL fit for a message: without user, password, query and fragment, and not endless."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "the link"
    return f"{parts.scheme}://{host}{parts.path}"[:200]


def too_large(max_bytes: int) -> JobError:
    """The contract's `source_too_large`."""
    return JobError(
        ErrorCode.SOURCE_TOO_LARGE,
        f"the source is larger than {max_bytes / 1e6:g} MB",
        hint="send a compressed file (mp3, m4a, opus), or raise MAX_AUDIO_MB on the worker",
    )


def _internal(url: str) -> JobError:
    return JobError(
        ErrorCode.INVALID_INPUT,
        f"{display(url)} leads to an internal address, which this worker may not reach",
        hint="give a public link; on your own machine set ALLOW_PRIVATE_NETWORK=1",
    )


def _network(url: str, why: str) -> JobError:
    return JobError(
        ErrorCode.NETWORK, f"{display(url)} can't be downloaded: {why}", hint="try again later"
    )
