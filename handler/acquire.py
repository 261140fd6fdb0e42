"""A request's source -> an audio file on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from handler.cache import AudioCache, Cached
from handler.config import Settings
from handler.download import download, too_large
from handler.video import video_id
from handler.youtube import Exits, Video, fetch
from handler.ytdlp import YtDlp
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import JobRequest
from lyricpod.result import Origin

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Source:
    """The audio file, and what its site says of it."""

    path: Path
    title: str | None = None
    video_id: str | None = None
    artist: str | None = None
    track: str | None = None
    origin: Origin | None = None


def acquire(
    request: JobRequest,
    folder: Path,
    settings: Settings,
    *,
    cancel: Cancel,
    on_bytes: OnBytes = lambda done, total: None,
    cache: AudioCache | None = None,
    exits: Exits | None = None,
) -> Source:
    """Get the audio of whichever source the request names, into `folder`.

    Args:
        cache: where the sound of YouTube's videos is looked for first, and kept.
        exits: the ways to YouTube, which remember blocks from job to job.

    Raises:
        JobError: `invalid_input`, `source_*`, `network` or `cancelled`.
    """
    kind, value = request.source
    max_bytes = int(settings.max_audio_mb * 1e6)
    if kind == "audio_base64":
        return _inline(request, folder / "audio", max_bytes)
    if kind == "youtube_url":
        return _youtube(value, folder, settings, cancel, on_bytes, cache, exits)
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
    return Source(folder / "audio", origin=Origin(kind="url"))


def _youtube(
    url: str,
    folder: Path,
    settings: Settings,
    cancel: Cancel,
    on_bytes: OnBytes,
    cache: AudioCache | None,
    exits: Exits | None,
) -> Source:
    name = video_id(url)
    if cache is None:
        return _of(fetch(url, folder, settings, cancel=cancel, on_bytes=on_bytes, exits=exits))
    # yt-dlp takes its time to start: meanwhile the cache is looked through.
    with YtDlp(settings.ssl_cert_file) as process:
        cached = cache.fetch(
            name,
            folder / "audio",
            max_bytes=int(settings.max_audio_mb * 1e6),
            seconds=settings.download_seconds,
            cancel=cancel,
            on_bytes=on_bytes,
        )
        if cached:
            return _of_cache(name, cached)
        video = fetch(
            url,
            folder,
            settings,
            cancel=cancel,
            on_bytes=on_bytes,
            process=process,
            exits=exits,
        )
    names = {"title": video.title, "artist": video.artist, "track": video.track}
    cache.keep(name, video.path, {**names, "language": video.language})
    return _of(video)


def _of(video: Video) -> Source:
    origin = Origin(
        kind="youtube",
        language=video.language,
        duration=video.duration,
        format=video.format,
        yt_dlp=video.version,
        js_runtime=video.runtime,
    )
    return Source(video.path, video.title, video.video_id, video.artist, video.track, origin=origin)


def _of_cache(name: str, cached: Cached) -> Source:
    names = cached.names
    return Source(
        cached.path,
        names.get("title"),
        name,
        names.get("artist"),
        names.get("track"),
        origin=Origin(kind="cache", language=names.get("language")),
    )


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
    return Source(path, origin=Origin(kind="inline"))


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
            ErrorCode.SOURCE_NOT_FOUND, f"there is no file {_shown(path)}", hint="check the path"
        )
    if path.stat().st_size > max_bytes:
        raise too_large(max_bytes)
    if path.stat().st_size == 0:
        raise _empty(_shown(Path(path.name)))
    return Source(path, origin=Origin(kind="file"))


def _shown(path: Path) -> str:
    # A link's %0A or a control character must not begin a line of somebody's log.
    return "".join(c if c.isprintable() else "?" for c in str(path))[:200]


def _empty(what: str) -> JobError:
    return JobError(
        ErrorCode.SOURCE_NOT_AUDIO, f"{what} is empty", hint="send the audio file's bytes"
    )
