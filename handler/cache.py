"""The audio cache: a video's sound on Cloudinary, so that YouTube is asked for it once.

It is the running system's: the video asset `audio/{videoId}/bestaudio_mp3`. The name says
mp3, Cloudinary makes one of whatever was uploaded where `.mp3` is asked for; here the
original is fetched. Every fault means "not cached": the cache saves work, no job needs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from handler.config import Settings
from handler.download import OnBytes, download
from handler.video import VIDEO_ID
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.storage import account

LOOKUP_SECONDS = 5.0  # what a look that finds nothing may cost a job
UPLOAD_SECONDS = 120.0  # one file, all tries together
TRIES = 3
PAUSE = 1.0  # seconds before the next try; doubles
NAMES = ("title", "artist", "track", "language")  # kept with the file
MAX_NAME = 200  # characters; Cloudinary's context is not for novels

log = structlog.get_logger()


@dataclass(frozen=True)
class Cached:
    """A video's sound from the cache, with what was kept of its names."""

    path: Path
    names: dict[str, str]


class AudioCache:
    """The cache, for one worker.

    Args:
        url: `cloudinary://key:secret@cloud?option=value`.
        max_bytes: larger files are not kept.

    Raises:
        ConfigError: the URL can't be used.
    """

    def __init__(self, url: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._options: dict[str, Any] = {**account(url), "resource_type": "video"}
        self._changed = threading.Condition()
        self._pending = 0

    def fetch(
        self,
        name: str,
        target: Path,
        *,
        max_bytes: int,
        seconds: float,
        cancel: Cancel,
        on_bytes: OnBytes,
    ) -> Cached | None:
        """The sound of video `name`, if it is there and whole.

        Raises:
            JobError: `cancelled`, `source_too_large`.
        """
        asset = _run(self._call("explicit", {"public_id": public_id(name)}, None), cancel)
        if asset is None:
            return None
        try:
            download(
                str(asset["secure_url"]),
                target,
                max_bytes=max_bytes,
                seconds=seconds,
                private="upload_prefix" in self._options,  # a Cloudinary of the operator's own
                cancel=cancel,
                on_bytes=on_bytes,
            )
        except JobError as error:
            if error.code in (ErrorCode.CANCELLED, ErrorCode.SOURCE_TOO_LARGE):
                raise
            log.warning("cached audio can't be fetched", video=name, error=str(error))
            return None
        log.info("audio from the cache", video=name, bytes=target.stat().st_size)
        return Cached(target, _names(asset))

    def keep(self, name: str, path: Path, names: dict[str, str | None]) -> None:
        """Put a copy into the cache in the background; the file may go meanwhile."""
        size = path.stat().st_size
        if size > self._max_bytes:
            log.info("audio too large for the cache", video=name, bytes=size)
            return
        spool = Path(tempfile.mkdtemp(prefix="lyricpod-cache-"))
        try:
            os.link(path, spool / "audio")  # no second copy, and it stays when the job's goes
        except OSError as error:
            log.warning("audio can't be kept for the cache", error=error.strerror)
            spool.rmdir()
            return
        with self._changed:
            self._pending += 1
        given = {key: value[:MAX_NAME] for key, value in names.items() if value}
        threading.Thread(
            target=self._keep, args=(name, spool, given), name="audio-cache", daemon=True
        ).start()

    def settle(self, seconds: float) -> bool:
        """Wait until nothing is being kept any more, at most so long; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._pending == 0, seconds)

    def _keep(self, name: str, spool: Path, names: dict[str, str]) -> None:
        started = time.monotonic()
        try:
            kept = asyncio.run(self._upload(name, spool / "audio", names))
            seconds = round(time.monotonic() - started, 2)
            log.info("audio kept in the cache" if kept else "audio not kept", video=name, s=seconds)
        except (OSError, TimeoutError) as error:
            log.warning("audio not kept in the cache", video=name, error=type(error).__name__)
        finally:
            with suppress(OSError):
                (spool / "audio").unlink()
                spool.rmdir()
            with self._changed:
                self._pending -= 1
                self._changed.notify_all()

    async def _upload(self, name: str, path: Path, names: dict[str, str]) -> bool:
        from cloudinary.utils import encode_context

        params = {
            "public_id": public_id(name),
            "overwrite": "1",
            "invalidate": "1",
            "tags": "lyricpod,audio",
            "context": encode_context(names),
        }
        async with asyncio.timeout(UPLOAD_SECONDS):
            for number in range(TRIES):
                if await self._call("upload", params, path):
                    return True
                await asyncio.sleep(PAUSE * 2**number)
        return False

    async def _call(
        self, action: str, params: dict[str, str], file: Path | None
    ) -> dict[str, Any] | None:
        """One call of the upload API, which no admin limit counts; None unless it worked."""
        from cloudinary import utils

        url = utils.cloudinary_api_url(action, **self._options)
        stamped = {**params, "type": "upload", "timestamp": str(int(time.time()))}
        signed = utils.sign_request(stamped, self._options)
        total = UPLOAD_SECONDS if file else LOOKUP_SECONDS
        try:
            async with aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=total), trust_env=False
            ) as session:
                with _Form(signed, file) as form:
                    proxy = self._options.get("api_proxy")
                    async with session.post(url, data=form, proxy=proxy) as response:
                        body = await response.content.read(1 << 20)
                        return _asset(response.status, body, action)
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            log.warning("the audio cache is out of reach", error=type(error).__name__)
            return None


class _Form:
    """A call's fields; the file is streamed from disk."""

    def __init__(self, params: dict[str, Any], file: Path | None) -> None:
        self._form = aiohttp.FormData()
        for name, value in params.items():
            self._form.add_field(name, str(value))
        self._file = file.open("rb") if file else None
        if self._file:
            self._form.add_field(
                "file", self._file, filename="audio", content_type="application/octet-stream"
            )

    def __enter__(self) -> aiohttp.FormData:
        return self._form

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def audio_cache(settings: Settings) -> AudioCache | None:
    """The cache that the settings name; None without Cloudinary, or with AUDIO_CACHE=off."""
    if not (settings.audio_cache and settings.cloudinary_url):
        return None
    return AudioCache(settings.cloudinary_url, int(settings.audio_cache_mb * 1e6))


def public_id(name: str) -> str:
    """The id of a video's sound, as the running system knows it."""
    if not VIDEO_ID.fullmatch(name):
        raise ValueError("not a video's id")
    return f"audio/{name}/bestaudio_mp3"


def _run(call: Any, cancel: Cancel) -> dict[str, Any] | None:
    """Wait for one call; a cancel ends it at once."""

    async def interruptible() -> dict[str, Any] | None:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(call)

        def stop() -> None:
            loop.call_soon_threadsafe(task.cancel)

        with cancel.interrupting(stop):
            result: dict[str, Any] | None = await task
            return result

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        cancel.check()
        raise


def _asset(status: int, body: bytes, action: str) -> dict[str, Any] | None:
    try:
        asset = json.loads(body)
    except ValueError:
        asset = None
    if status == 200 and isinstance(asset, dict) and asset.get("secure_url"):
        return asset
    if status != 404:  # "Resource not found": the ordinary answer to a first look
        log.warning("the audio cache refused a call", action=action, status=status)
    return None


def _names(asset: dict[str, Any]) -> dict[str, str]:
    context = asset.get("context")
    custom = context.get("custom") if isinstance(context, dict) else None
    given = custom if isinstance(custom, dict) else {}
    return {key: _line(str(given[key])) for key in NAMES if given.get(key)}


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_NAME].strip()
