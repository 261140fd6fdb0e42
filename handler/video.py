"""Every form of a link to one YouTube video -> the video's id."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qs, urlsplit

from lyricpod.errors import ErrorCode, JobError

VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")
SHORT_HOST = "youtu.be"
HOSTS = frozenset({"youtube.com", "youtube-nocookie.com", "youtubekids.com", SHORT_HOST})
SUBDOMAINS = ("www.", "m.", "music.", "gaming.")
IN_PATH = frozenset({"shorts", "live", "embed", "v", "e", "vi", "watch"})
# Eleven letters each, as an id has, but the names of players for lists and channels.
PLAYERS = {"videoseries": "a playlist", "live_stream": "a channel"}
LISTS = frozenset({"playlist", "show", "feed", "hashtag", "results"})
CHANNELS = frozenset({"channel", "c", "user"})


def video_id(url: str) -> str:
    """The video's id; lists, times and tracking in the link are left aside.

    Raises:
        JobError: `invalid_input`, saying what the link leads to instead.
    """
    try:
        parts = urlsplit(url)
        host = _host(parts.hostname or "")
    except ValueError:
        raise _no_video("is not a link") from None
    if parts.scheme not in ("http", "https") or host not in HOSTS:
        raise _no_video("is not a YouTube link")
    found = _candidate(parts, host)
    if found in PLAYERS:
        raise _no_video(f"leads to {PLAYERS[found]}, not to one video")
    if not VIDEO_ID.fullmatch(found):
        raise _no_video(_what_it_is(parts, found))
    return found


def watch_url(name: str) -> str:
    """The one form that yt-dlp is given."""
    return f"https://www.youtube.com/watch?v={name}"


def _host(host: str) -> str:
    host = host.lower().rstrip(".")
    for subdomain in SUBDOMAINS:
        host = host.removeprefix(subdomain)
    return host


def _candidate(parts: SplitResult, host: str) -> str:
    path = [part for part in parts.path.split("/") if part]
    query = parse_qs(parts.query)
    # youtu.be takes the long forms' paths too: youtu.be/shorts/ID, youtu.be/watch?v=ID.
    if host == SHORT_HOST and path and path[0] not in IN_PATH:
        return _id_of(path[0])
    if path[:1] == ["attribution_link"]:  # /attribution_link?a=...&u=/watch?v=ID
        inner = urlsplit(query.get("u", [""])[0])
        return _id_of(parse_qs(inner.query).get("v", [""])[0])
    if path in ([], ["watch"], ["watch_popup"], ["ytscreeningroom"]) and "v" in query:
        return _id_of(query["v"][0])
    if len(path) >= 2 and path[0] in IN_PATH:
        return _id_of(path[1])
    return ""


def _id_of(text: str) -> str:
    """The id without what shared links carry behind it: `ID?si=...`, `ID&t=3`."""
    return re.split(r"[?&#]", text, maxsplit=1)[0].strip()


def _what_it_is(parts: SplitResult, found: str) -> str:
    first = next((part for part in parts.path.split("/") if part), "")
    if first in CHANNELS or first.startswith("@"):
        return "leads to a channel, not to one video"
    if first in LISTS or (not found and "list=" in parts.query):
        return "leads to a playlist or a list of videos, not to one video"
    if first == "clip":
        return "leads to a clip, whose video it doesn't name"
    if found:
        return "holds no video id: one has 11 letters, digits, - or _"
    return "is not a link to one YouTube video"


def _no_video(what: str) -> JobError:
    return JobError(
        ErrorCode.INVALID_INPUT,
        f"youtube_url {what}",
        hint="give a watch, youtu.be or shorts link of one video; other sites go into audio_url",
    )
