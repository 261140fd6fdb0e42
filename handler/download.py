"""A direct http(s) link -> a file on disk, with limits and deadlines."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from handler.addresses import Sockets
from handler.sniff import HEAD_BYTES, no_media
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

MAX_REDIRECTS = 5
CONNECT_SECONDS = 15.0
READ_SECONDS = 30.0  # silence on an open connection
CHUNK = 1 << 16
REDIRECTS = frozenset({301, 302, 303, 307, 308})
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
MAX_STANDSTILLS = 2  # broken connections in a row that brought nothing new
PAUSE = 0.5  # seconds before a broken download goes on; doubles
LONGEST_PAUSE = 8.0

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

    A connection that breaks is taken up again where it stopped, if the server can.

    Args:
        max_bytes: a larger body is refused, by its announced size or as it comes.
        seconds: the deadline for everything, redirects and new tries included.
        private: whether private, loopback and other internal addresses may be reached.

    Raises:
        JobError: `source_not_found`, `source_unavailable`, `source_blocked`,
            `source_too_large`, `source_not_audio`, `network`, `invalid_input`, `cancelled`.
    """
    sockets = Sockets(private)
    work = _Download(url, target, max_bytes, sockets, on_bytes)
    try:
        asyncio.run(_cancellable(work.run(), seconds, cancel))
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
        raise _network(url, _why(error)) from error


async def _cancellable(work: Any, seconds: float, cancel: Cancel) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

    def interrupt() -> None:
        loop.call_soon_threadsafe(task.cancel)

    with cancel.interrupting(interrupt):
        async with asyncio.timeout(seconds):
            await task


@dataclass
class _Download:
    """One download, over as many connections as it takes."""

    url: str
    target: Path
    max_bytes: int
    sockets: Sockets
    on_bytes: OnBytes
    done: int = 0
    total: int | None = None
    validator: str = ""  # the file's ETag or date: only the same file may be gone on with

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
        )
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self.sockets),
            timeout=timeout,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},  # ranges and sizes are those of the file
        ) as session:
            await self._until_whole(session)
        if self.done == 0:
            raise JobError(
                ErrorCode.SOURCE_NOT_AUDIO,
                f"{display(self.url)} is empty",
                hint="check that the link leads to the audio file itself",
            )

    async def _until_whole(self, session: aiohttp.ClientSession) -> None:
        standstills, pause = 0, PAUSE
        while True:
            before = self.done
            try:
                return await self._once(session)
            except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, OSError) as error:
                # A fault before the first byte may be a refused connection: said at once.
                if self.sockets.refused or not (before or self.done) or _is_disk(error):
                    raise
                standstills = 0 if self.done > before else standstills + 1
                if standstills >= MAX_STANDSTILLS:
                    raise aiohttp.ClientError(f"it broke off at {self.done} bytes") from error
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    async def _once(self, session: aiohttp.ClientSession) -> None:
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(
                _checked(url), headers=self._range(), allow_redirects=False
            ) as response:
                if response.status in REDIRECTS and "Location" in response.headers:
                    url = urljoin(url, response.headers["Location"])
                    continue
                if response.status == 416 and self.total in (None, self.done):
                    return  # nothing is missing
                _accept(response.status, url)
                await self._save(response)
                return
        raise _network(self.url, f"more than {MAX_REDIRECTS} redirects")

    def _range(self) -> dict[str, str]:
        if not (self.done and self.validator):
            return {}
        return {"Range": f"bytes={self.done}-", "If-Range": self.validator}

    async def _save(self, response: aiohttp.ClientResponse) -> None:
        self._place(response)
        with self.target.open("r+b" if self.done else "wb") as file:
            file.seek(self.done)
            file.truncate()
            async for chunk in response.content.iter_chunked(CHUNK):
                if self.done < HEAD_BYTES <= self.done + len(chunk):
                    self._sniff(file, chunk)
                self.done += len(chunk)
                if self.done > self.max_bytes:
                    raise too_large(self.max_bytes)
                file.write(chunk)
                self.on_bytes(self.done, self.total)
        if self.done < HEAD_BYTES:
            _refuse_other(self.target.read_bytes(), self.url)

    def _place(self, response: aiohttp.ClientResponse) -> None:
        """Where in the file this answer belongs, and how long the file is."""
        given = RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status == 206 and given and int(given[1]) == self.done:
            self.total = int(given[2]) if given[2].isdigit() else self.total
        else:
            self.done = 0  # the whole file anew
            self.total = response.content_length
        etag = response.headers.get("ETag", "")
        weak = etag.startswith("W/")  # a weak one does not vouch for the bytes
        self.validator = etag if etag and not weak else response.headers.get("Last-Modified", "")
        if self.total is not None and self.total > self.max_bytes:
            raise too_large(self.max_bytes)

    def _sniff(self, file: Any, chunk: bytes) -> None:
        file.flush()
        with self.target.open("rb") as written:
            head = written.read(HEAD_BYTES)
        _refuse_other((head + chunk)[:HEAD_BYTES], self.url)


def _refuse_other(head: bytes, url: str) -> None:
    what = no_media(head)
    if what:
        raise JobError(
            ErrorCode.SOURCE_NOT_AUDIO,
            f"{display(url)} leads to {what}, not to an audio file",
            hint="give the link of the audio file itself; a YouTube page goes into youtube_url",
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
    if status in (200, 206):
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


def display(url: str) -> str:
    """A URL fit for a message: without user, password, query and fragment, and not endless."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "the link"
    shown = f"{parts.scheme}://{host}{parts.path}"[:200]
    return "".join(c if c.isprintable() else "?" for c in shown)


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


def _is_disk(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _why(error: Exception) -> str:
    """The fault without the links that aiohttp's texts hold, whose queries may be secret."""
    text = re.sub(r"\b\w+://\S+", "its link", str(error))
    return text[:200] or type(error).__name__
