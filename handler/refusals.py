"""What yt-dlp says when it gives up -> the contract's error, with the remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from handler.cookies import CookieState
from lyricpod.errors import ErrorCode, JobError

MAX_TEXT = 300  # characters of YouTube's own words in a message


class Kind(StrEnum):
    """Why YouTube gave no audio."""

    BOT_CHECK = "asks this worker's exit to prove that it is no bot"
    RATE_LIMIT = "limits the requests of this worker's exit"
    MEDIA_REFUSED = "gave the video's page but refused its sound (403)"
    FORBIDDEN = "refused this worker's exit (403)"
    NO_FORMATS = "gave this worker no sound that it can fetch"
    AGE = "is age-restricted"
    MEMBERS = "is for the channel's members only"
    PAID = "must be paid for"
    PRIVATE = "is private"
    GEO = "is not available in this worker's country"
    UPCOMING = "has not begun yet"
    LIVE = "is live"
    DRM = "is protected by DRM"
    COPYRIGHT = "was taken down for copyright"
    TERMINATED = "is gone with its account"
    REMOVED = "was removed"
    SIGN_IN = "can't be seen without signing in"
    UNAVAILABLE = "is not available"
    NOT_FOUND = "does not exist"
    INTERNAL_ADDRESS = "resolves to an internal address"
    TOO_LARGE = "is larger than this worker takes"
    PROXY = "can't be reached through the proxy"
    NETWORK = "can't be reached"
    ELSEWHERE = "sent this worker to another site"
    DISK = "could not be stored: this worker's disk gave up"
    BROKEN = "answered in a way that this yt-dlp can't read"


@dataclass(frozen=True)
class Exit:
    """What a request to YouTube went out with, as far as it explains a refusal."""

    cookies: CookieState = CookieState.MISSING
    runtime: str | None = None  # the JavaScript runtime
    proxied: bool = False


CODES = {
    Kind.BOT_CHECK: ErrorCode.SOURCE_BLOCKED,
    Kind.RATE_LIMIT: ErrorCode.SOURCE_BLOCKED,
    Kind.MEDIA_REFUSED: ErrorCode.SOURCE_BLOCKED,
    Kind.FORBIDDEN: ErrorCode.SOURCE_BLOCKED,
    Kind.NO_FORMATS: ErrorCode.SOURCE_BLOCKED,
    Kind.ELSEWHERE: ErrorCode.SOURCE_BLOCKED,
    Kind.NOT_FOUND: ErrorCode.SOURCE_NOT_FOUND,
    Kind.TOO_LARGE: ErrorCode.SOURCE_TOO_LARGE,
    Kind.INTERNAL_ADDRESS: ErrorCode.NETWORK,
    Kind.PROXY: ErrorCode.NETWORK,
    Kind.NETWORK: ErrorCode.NETWORK,
    Kind.DISK: ErrorCode.INTERNAL,
    Kind.BROKEN: ErrorCode.INTERNAL,
}  # every other kind is `source_unavailable`: no retry helps
ABOUT_YOUTUBE = frozenset(CODES) - {
    Kind.NOT_FOUND,
    Kind.TOO_LARGE,
    Kind.DISK,
}  # not about the video
VAGUE = frozenset({Kind.NO_FORMATS, Kind.UNAVAILABLE, Kind.SIGN_IN, Kind.BROKEN})

# In this order: the bot check ("Sign in to confirm you're not a bot") resembles the age gate
# ("Sign in to confirm your age"), and both the plain "Sign in". The texts are those of
# yt_dlp/extractor/youtube (2026.8.19) and of YouTube's playability reasons that it passes on.
PATTERNS: tuple[tuple[Kind, str], ...] = (
    (Kind.INTERNAL_ADDRESS, r"internal address refused"),
    (Kind.ELSEWHERE, r"a site that is not asked"),
    (Kind.TOO_LARGE, r"File too large"),
    (Kind.DISK, r"No space left|unable to (open for writing|write data|create directory)"),
    (Kind.NETWORK, r"unable to download video data.*HTTP Error (404|410|416|5\d\d)"),
    (Kind.BOT_CHECK, r"not a bot|captcha|unusual traffic|All player responses are invalid"),
    (Kind.RATE_LIMIT, r"HTTP Error 429|Too Many Requests|rate.?limited|n't available, try again"),
    (Kind.MEDIA_REFUSED, r"unable to download video data.*HTTP Error 40[13]"),
    (Kind.AGE, r"confirm your age|age.?restricted|inappropriate for some users|verify your age"),
    (Kind.MEMBERS, r"members.only|join this channel|channel's members"),
    (Kind.PAID, r"requires payment|purchase|rental|to rent|Premium members"),
    (Kind.PRIVATE, r"private video|video is private|granted access"),
    (Kind.GEO, r"(available|blocked).{0,60}\b(country|location|region)|geo.?restrict"),
    (Kind.COPYRIGHT, r"copyright"),
    (Kind.UPCOMING, r"event will begin|premieres (in|on|will|shortly)|will begin|is upcoming"),
    (Kind.LIVE, r"\bis live\b|currently live"),
    (Kind.DRM, r"\bDRM\b"),
    (Kind.TERMINATED, r"account .{0,60}(terminated|closed)|(terminated|closed) .{0,40}account"),
    (Kind.REMOVED, r"removed|deleted|taken down|violat"),
    (Kind.NOT_FOUND, r"HTTP Error 404|does not exist|Incomplete YouTube ID"),
    (
        Kind.NO_FORMATS,
        r"Requested format is not available|No video formats|Only images|page needs to be reloaded"
        r"|not available on this app|latest version of YouTube|Failed to extract any player|SABR",
    ),
    (Kind.SIGN_IN, r"sign in|log ?in\b|registered users|account cookies"),
    (Kind.PROXY, r"proxy"),
    (Kind.FORBIDDEN, r"HTTP Error 40[13]"),
    (
        Kind.NETWORK,
        r"HTTP Error \d\d\d|timed out|connection|resolve|SSL|certificate|incomplete|too short"
        r"|bytes read|error occurred|something went wrong",
    ),
    (Kind.BROKEN, r"report this issue|Unable to extract|KeyError|TypeError|JSON"),
)
NOISE = (
    r"\x1b\[[0-9;]*m",
    r"^ERROR:\s*",
    r"^\[youtube(?:\+\w+)?\]\s*",
    r"^[\w-]{11}: ",
    r"[;.]\s*please report this issue on .*",
    r"\.?\s*(?:Also )?[Uu]se --(?:cookies|username|list-formats|proxy).*",
    r"\.?\s*Also see .*",
    r"\.?\s*See\s+https?://.*",
    r"\s*\(caused by .*",
    r"You might want to use a VPN.*",
    r"\.?\s*It is recommended to use `-t sleep`.*",
    r"\.?\s*For more information, refer to .*",
)
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)]+", re.I)


def kind_of(text: str, causes: tuple[str, ...] = ()) -> Kind:
    """Which refusal yt-dlp's text is.

    Args:
        causes: the names of the exception classes behind it, outermost first.
    """
    plain = text.replace("\u2019", "'")
    if "GeoRestrictedError" in causes:
        return Kind.GEO
    if "ProxyError" in causes:
        return Kind.PROXY
    for kind, pattern in PATTERNS:
        if re.search(pattern, plain, re.I | re.S):
            return kind
    return Kind.UNAVAILABLE  # YouTube's own reason, in words that are not listed above


def refusal(
    name: str,
    text: str,
    exit_: Exit,
    *,
    causes: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    secrets: frozenset[str] = frozenset(),
) -> JobError:
    """The contract's error for yt-dlp's `text` about video `name`.

    Args:
        warnings: what yt-dlp warned of before; they tell expired cookies and a block behind
            a text that names neither.
        secrets: never to appear in the error.
    """
    kind = kind_of(text, causes)
    if kind in VAGUE:
        kind, text = _behind(kind, text, warnings)
    code = CODES.get(kind, ErrorCode.SOURCE_UNAVAILABLE)
    subject = "YouTube" if kind in ABOUT_YOUTUBE else f"YouTube video {name}"
    about = f" (video {name})" if kind in ABOUT_YOUTUBE else ""
    said = clean(text, secrets)
    message = f"{subject} {kind.value}{about}" + (f": {said}" if said else "")
    return JobError(code, message, hint=_hint(kind, _judged(exit_, warnings)))


def clean(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """A foreign text fit for one line of a message: no secret, no query string, not endless."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    for noise in NOISE:
        text = re.sub(noise, "", text, flags=re.S)
    text = URL.sub(lambda match: _shown(match[0]), text)
    return CONTROLS.sub(" ", text).strip()[:MAX_TEXT].rstrip(" .")


def _shown(url: str) -> str:
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}/..."
    except ValueError:
        return "a link"


def _behind(kind: Kind, text: str, warnings: tuple[str, ...]) -> tuple[Kind, str]:
    """The refusal that a warning names, where the final text says less than it."""
    found = [(kind_of(warning), warning) for warning in warnings if "HTTP Error" in warning]
    found += [(kind_of(w), w) for w in warnings if re.search("not a bot|Unable to download", w)]
    for telling in (Kind.BOT_CHECK, Kind.RATE_LIMIT, Kind.FORBIDDEN, Kind.NETWORK, Kind.PROXY):
        for candidate, warning in found:
            if candidate is telling:
                return candidate, warning
    return kind, text


def _judged(exit_: Exit, warnings: tuple[str, ...]) -> Exit:
    if any("no longer valid" in warning for warning in warnings):
        return Exit(CookieState.EXPIRED, exit_.runtime, exit_.proxied)
    return exit_


COOKIE_HINTS = {
    CookieState.MISSING: "no cookies are set: export a signed-in browser's YouTube cookies and "
    "set YOUTUBE_COOKIES_CONTENT or YOUTUBE_COOKIES_B64 on the worker",
    CookieState.UNREADABLE: "YOUTUBE_COOKIES_CONTENT holds no YouTube cookies in Netscape "
    "format: export them as cookies.txt",
    CookieState.SIGNED_OUT: "the cookies are those of a signed-out browser (LOGIN_INFO is "
    "missing): sign in, then export them",
    CookieState.EXPIRED: "the cookies have expired: export new ones from a private window, and "
    "close it without signing out",
}
RUNTIME_HINT = (
    "no JavaScript runtime was found, which yt-dlp needs for YouTube: install deno "
    "(pip install 'yt-dlp[default,deno]')"
)
TOKEN_HINT = "give PO tokens (POT_PROVIDER_URL), a newer yt-dlp or other YOUTUBE_CLIENTS"
HINTS = {
    Kind.AGE: "it needs the cookies of an adult's account (YOUTUBE_COOKIES_CONTENT)",
    Kind.MEMBERS: "it needs the cookies of a member's account (YOUTUBE_COOKIES_CONTENT)",
    Kind.PRIVATE: "ask the owner to make it public or unlisted",
    Kind.GEO: "a proxy in a country where it is shown would see it (YOUTUBE_PROXIES)",
    Kind.UPCOMING: "submit it again when it has been shown",
    Kind.LIVE: "submit it again when the stream has ended and YouTube shows its recording",
    Kind.SIGN_IN: "it needs the cookies of an account that may see it (YOUTUBE_COOKIES_CONTENT)",
    Kind.NOT_FOUND: "check the link",
    Kind.TOO_LARGE: "use a shorter video, or raise MAX_AUDIO_MB on the worker",
    Kind.INTERNAL_ADDRESS: "check the worker's DNS; on your own machine set "
    "ALLOW_PRIVATE_NETWORK=1",
    Kind.PROXY: "check YOUTUBE_PROXIES on the worker",
    Kind.NETWORK: "try again later",
    Kind.DISK: "try again; give the worker more disk, or lower MAX_AUDIO_MB",
    Kind.BROKEN: "YouTube may have changed: give the worker the newest yt-dlp",
}


def _hint(kind: Kind, exit_: Exit) -> str:
    if CODES.get(kind) is not ErrorCode.SOURCE_BLOCKED:
        return HINTS.get(kind, "use another video")
    parts = []
    if exit_.runtime is None:
        parts.append(RUNTIME_HINT)
    if kind is not Kind.RATE_LIMIT and exit_.cookies in COOKIE_HINTS:
        parts.append(COOKIE_HINTS[exit_.cookies])
    if kind in (Kind.MEDIA_REFUSED, Kind.NO_FORMATS):
        parts.append(TOKEN_HINT)
    where = "another proxy" if exit_.proxied else "a proxy"
    parts.append(f"take another route: {where} (YOUTUBE_PROXIES) or another endpoint")
    return "; ".join([*parts, "asking again from the same exit won't help"])
