"""A YouTube link -> its audio on disk. The only import of yt-dlp; its errors become ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")
HOSTS = frozenset({"youtube.com", "youtube-nocookie.com", "youtu.be"})
PREFIXES = ("www.", "m.", "music.")
SOCKET_SECONDS = 20.0

# What YouTube's refusals mean, by what yt-dlp reports of them. The bot check comes
# first: its text ("Sign in to confirm you're not a bot") resembles the age gate's.
REFUSALS: tuple[tuple[str, ErrorCode], ...] = (
    (r"not a bot|HTTP Error 429|HTTP Error 403|rate.?limit", ErrorCode.SOURCE_BLOCKED),
    (
        r"private|unavailable|removed|terminated|members|\bage\b|country|\blive\b|premiere|copyright",
        ErrorCode.SOURCE_UNAVAILABLE,
    ),
    (r"HTTP Error 404|does not exist|Incomplete YouTube ID", ErrorCode.SOURCE_NOT_FOUND),
)
HINTS = {
    ErrorCode.SOURCE_BLOCKED: "give the worker cookies or another route; asking again won't help",
    ErrorCode.SOURCE_UNAVAILABLE: "the video can't be had without signing in; use another one",
    ErrorCode.SOURCE_NOT_FOUND: "check the link",
    ErrorCode.NETWORK: "try again later",
}


@dataclass(frozen=True)
class Video:
    """What was downloaded: where it is, and what YouTube says of it."""

    path: Path
    video_id: str
    title: str | None


def video_id(url: str) -> str:
    """The video's id, out of every form a YouTube link has.

    Raises:
        JobError: `invalid_input`, if it is no link to one video.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    for prefix in PREFIXES:
        host = host.removeprefix(prefix)
    path = [part for part in parts.path.split("/") if part]
    if host == "youtu.be":
        candidate = path[0] if path else ""
    elif path[:1] == ["watch"]:
        candidate = parse_qs(parts.query).get("v", [""])[0]
    elif len(path) >= 2 and path[0] in ("shorts", "live", "embed", "v"):
        candidate = path[1]
    else:
        candidate = ""
    if host not in HOSTS or not VIDEO_ID.fullmatch(candidate):
        raise JobError(
            ErrorCode.INVALID_INPUT,
            "youtube_url is not a link to one YouTube video",
            hint="give a watch, youtu.be or shorts link; other sites go into audio_url",
        )
    return candidate


def fetch(
    url: str,
    folder: Path,
    *,
    max_bytes: int,
    max_seconds: float,
    cancel: Cancel,
    on_bytes: Callable[[int, int | None], None] = lambda done, total: None,
) -> Video:
    """Download the best audio of a video as it comes, unconverted.

    Raises:
        JobError: `invalid_input`, `source_*`, `network`, `cancelled`.
    """
    import yt_dlp

    name = video_id(url)

    def hook(report: dict[str, Any]) -> None:
        cancel.check()
        on_bytes(report.get("downloaded_bytes") or 0, report.get("total_bytes"))

    options = {
        "format": "bestaudio/best",
        "outtmpl": str(folder / "video.%(ext)s"),
        "max_filesize": max_bytes,
        "noplaylist": True,
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "cachedir": False,
        "socket_timeout": SOCKET_SECONDS,
        "allowed_extractors": ["youtube"],
        "progress_hooks": [hook],
        "match_filter": _not_too_long(max_seconds),
    }
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            info = downloader.extract_info(f"https://www.youtube.com/watch?v={name}")
    except yt_dlp.utils.DownloadError as error:
        cancel.check()
        raise _refused(name, str(error.msg or error)) from error
    path = next((p for p in folder.glob("video.*") if p.suffix != ".part"), None)
    if path is None:
        raise JobError(ErrorCode.NETWORK, f"YouTube video {name} gave no file", hint="try again")
    return Video(path, name, (info or {}).get("title"))


def _not_too_long(max_seconds: float) -> Callable[..., str | None]:
    def refuse(info: dict[str, Any], *, incomplete: bool = False) -> str | None:
        seconds = info.get("duration")
        if seconds and seconds > max_seconds:
            raise JobError(
                ErrorCode.SOURCE_TOO_LONG,
                f"the video is {seconds:.0f} s long; at most {max_seconds:.0f} s are taken",
                hint="use a shorter video, or raise MAX_AUDIO_SECONDS on the worker",
            )
        return None

    return refuse


def _refused(name: str, text: str) -> JobError:
    reason = re.sub(r"\x1b\[[0-9;]*m|^ERROR:\s*|\[youtube\]\s*\S+:\s*", "", text).split("\n")[0]
    code = next(
        (code for pattern, code in REFUSALS if re.search(pattern, reason, re.I)), ErrorCode.NETWORK
    )
    return JobError(code, f"YouTube video {name}: {reason[:200]}", hint=HINTS[code])
