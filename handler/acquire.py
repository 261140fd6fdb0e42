"""A request's source -> an audio file on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from handler.config import Settings
from handler.download import download, too_large
from handler.youtube import fetch
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import JobRequest

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Source:
    """The audio file, and what its site says of it."""

    path: Path
    title: str | None = None
    video_id: str | None = None


def acquire(
    request: JobRequest,
    folder: Path,
    settings: Settings,
    *,
    cancel: Cancel,
    on_bytes: OnBytes = lambda done, total: None,
) -> Source:
    """Get the audio of whichever source the request names, into `folder`.

    Raises:
        JobError: `invalid_input`, `source_*`, `network` or `cancelled`.
    """
    kind, value = request.source
    max_bytes = int(settings.max_audio_mb * 1e6)
    if kind == "audio_base64":
        return _inline(request, folder / "audio", max_bytes)
    if kind == "youtube_url":
        video = fetch(
            value,
            folder,
            max_bytes=max_bytes,
            max_seconds=settings.max_audio_seconds,
            cancel=cancel,
            on_bytes=on_bytes,
        )
        return Source(video.path, video.title, video.video_id)
    if _names_a_file(value):
        return _file(value, settings, max_bytes)
    download(
        value,
        folder / "audio",
        max_bytes=max_bytes,
        seconds=settings.download_seconds,
        private=settings.allow_private_network,
        cancel=cancel,
        on_bytes=on_bytes,
    )
    return Source(folder / "audio")


def _names_a_file(value: str) -> bool:
    try:
        return urlsplit(value).scheme in ("", "file")
    except ValueError:
        return False


def _inline(request: JobRequest, path: Path, max_bytes: int) -> Source:
    # Four characters of base64 are three bytes: refuse before the memory is taken.
    if len(request.audio_base64 or "") * 3 // 4 > max_bytes:
        raise too_large(max_bytes)
    path.write_bytes(request.audio_bytes())
    if path.stat().st_size == 0:
        raise _empty("audio_base64")
    return Source(path)


def _file(value: str, settings: Settings, max_bytes: int) -> Source:
    if not settings.allow_file_sources:
        raise JobError(
            ErrorCode.INVALID_INPUT,
            "audio_url names a file, and this worker takes no files of its own machine",
            hint="give an http or https link; on your own machine set ALLOW_FILE_SOURCES=1",
        )
    path = Path(unquote(urlsplit(value).path) if value.startswith("file:") else value)
    try:
        found = path.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        found = False
    if not found:
        raise JobError(
            ErrorCode.SOURCE_NOT_FOUND, f"there is no file {str(path)[:200]}", hint="check the path"
        )
    if path.stat().st_size > max_bytes:
        raise too_large(max_bytes)
    if path.stat().st_size == 0:
        raise _empty(path.name)
    return Source(path)


def _empty(what: str) -> JobError:
    return JobError(
        ErrorCode.SOURCE_NOT_AUDIO, f"{what} is empty", hint="send the audio file's bytes"
    )
