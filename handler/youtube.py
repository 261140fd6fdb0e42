"""A YouTube link -> its audio on disk, through yt-dlp; its errors become ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from handler.config import Settings
from handler.cookies import Cookies, CookieState, cookies
from handler.refusals import COOKIE_HINTS, RUNTIME_HINT, Exit, Kind, clean, kind_of, refusal
from handler.video import video_id, watch_url
from handler.ytdlp import YtDlp, check
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

DIRECT = "direct"  # among the proxies: this machine's own exit
TRIES = 2  # per exit, and only where the network failed: a block is never asked twice
PAUSE = 1.0  # seconds before the second
BLOCKED_SECONDS = 900.0  # for which a blocked exit comes after the others
PLUGIN_HINT = "pip install bgutil-ytdlp-pot-provider"  # GPL-3.0: no dependency of this package
MAX_NAME = 500  # characters of a title or an artist
OnBytes = Callable[[int, int | None], None]
log = structlog.get_logger()


@dataclass(frozen=True)
class Video:
    """What was downloaded: where it is, and what YouTube says of it."""

    path: Path
    video_id: str
    title: str | None = None
    artist: str | None = None
    track: str | None = None
    language: str | None = None
    duration: float | None = None
    format: str | None = None
    version: str | None = None
    runtime: str | None = None


class Exits:
    """A worker's ways out to YouTube: those that YouTube blocked lately come last.

    Last and not left out: a block may be of one video, and it passes.

    Args:
        setting: YOUTUBE_PROXIES.
    """

    def __init__(self, setting: str) -> None:
        given = [item for item in setting.replace(",", " ").split() if item]
        self._all = ["" if item.lower() == DIRECT else item for item in given] or [""]
        self._until: dict[str, float] = {}  # monotonic seconds, by exit

    def in_turn(self) -> list[tuple[int, str]]:
        """The exits as they are to be tried, each with its place in the setting, from 1."""
        now = time.monotonic()
        return sorted(
            enumerate(self._all, 1), key=lambda numbered: self._until.get(numbered[1], now) > now
        )

    def blocked(self, proxy: str) -> None:
        """Note that YouTube refuses this exit."""
        self._until[proxy] = time.monotonic() + BLOCKED_SECONDS


def announce(settings: Settings) -> None:
    """Log at start-up what YouTube's jobs will need: yt-dlp, a runtime, cookies that hold."""
    found = check(settings.ssl_cert_file)
    if found is None:
        log.error("yt-dlp can't be started: no YouTube link can be fetched")
        return
    log.info("yt-dlp ready", version=found.version, runtime=found.runtime)
    if found.runtime is None:
        log.warning("YouTube may refuse this worker", hint=RUNTIME_HINT)
    if settings.pot_provider_url and not found.tokens:
        log.warning("no PO tokens: yt-dlp has no plugin for POT_PROVIDER_URL", hint=PLUGIN_HINT)
    state = _jar(settings).state
    if state in (CookieState.UNREADABLE, CookieState.SIGNED_OUT, CookieState.EXPIRED):
        log.warning(
            "the YouTube cookies are of no use", state=state.value, hint=COOKIE_HINTS[state]
        )


def fetch(
    url: str,
    folder: Path,
    settings: Settings,
    *,
    cancel: Cancel,
    on_bytes: OnBytes = lambda done, total: None,
    process: YtDlp | None = None,
    exits: Exits | None = None,
) -> Video:
    """Download the best audio of a video as it comes, unconverted.

    Each exit of YOUTUBE_PROXIES is tried in turn; one that is blocked is not asked again.

    Args:
        exits: the worker's, which remembers blocks from job to job.
        process: one that was started ahead of time; it is used up.

    Raises:
        JobError: `invalid_input`, `source_*`, `network`, `internal`, `cancelled`.
    """
    name = video_id(url)
    jar = _jar(settings)
    end = time.monotonic() + settings.download_seconds
    exits = exits or Exits(settings.youtube_proxies)
    in_turn = exits.in_turn()
    failures: list[JobError] = []
    with jar.file() as file:
        for number, proxy in in_turn:
            attempt = _Attempt(name, folder, settings, jar, file, proxy, end)
            try:
                return attempt.through(cancel, on_bytes, process)
            except JobError as error:
                if error.code not in (ErrorCode.SOURCE_BLOCKED, ErrorCode.NETWORK):
                    raise
                if error.code is ErrorCode.SOURCE_BLOCKED:
                    exits.blocked(proxy)
                failures.append(error)
                blocked = error.code is ErrorCode.SOURCE_BLOCKED
                what = "YouTube refused an exit" if blocked else "YouTube was not reached"
                log.warning(what, exit=number, error=str(error))
            process = None
            if time.monotonic() >= end:
                break
    raise _worst(failures, len(in_turn))


def _jar(settings: Settings) -> Cookies:
    return cookies(
        settings.youtube_cookies_content,
        settings.youtube_cookies_b64 or settings.youtube_cookies_content_b64,
    )


def _worst(failures: list[JobError], exits: int) -> JobError:
    """The error that says most: a block tells more than an exit that is down."""
    error = next((e for e in failures if e.code is ErrorCode.SOURCE_BLOCKED), failures[-1])
    if len(failures) > 1:
        error.message += f" ({len(failures)} of {exits} exits tried)"
    return error


@dataclass
class _Attempt:
    """The tries through one exit, and what yt-dlp said meanwhile."""

    name: str
    folder: Path
    settings: Settings
    jar: Cookies
    cookie_file: Path | None
    proxy: str
    end: float  # monotonic seconds
    ready: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    passing: bool = False  # whether the last fault may pass without another exit

    def through(self, cancel: Cancel, on_bytes: OnBytes, process: YtDlp | None) -> Video:
        """Try, and once more where the network failed: what has come is gone on with."""
        for last in (False, True):
            try:
                with process or YtDlp(self.settings.ssl_cert_file) as running:
                    return self._once(running, cancel, on_bytes)
            except JobError as error:
                short = time.monotonic() + PAUSE >= self.end
                if last or short or not self.passing:
                    raise
                log.info("trying YouTube again", error=str(error))
            process = None
            self.warnings.clear()
            cancel.wait(PAUSE)
        raise AssertionError("the last try returns or raises")

    def _once(self, process: YtDlp, cancel: Cancel, on_bytes: OnBytes) -> Video:
        late = threading.Event()

        def expire() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(max(0.0, self.end - time.monotonic()), expire)
        timer.daemon = True
        with cancel.interrupting(process.kill):
            timer.start()
            try:
                process.order(self._order())
                for event in process.events():
                    path = self._heard(event, on_bytes)
                    if path is not None:
                        return self._video(path)
            finally:
                timer.cancel()
        cancel.check()
        if late.is_set():
            raise self._late()
        raise JobError(
            ErrorCode.INTERNAL,
            f"yt-dlp ended without a word while it fetched video {self.name} "
            f"({process.how_it_ended()})",
            hint="try again; if it happens each time, give the worker another yt-dlp",
        )

    def _order(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "url": watch_url(self.name),
            "folder": str(self.folder),
            "max_bytes": int(self.settings.max_audio_mb * 1e6),
            "max_seconds": self.settings.max_audio_seconds,
            "cookies": str(self.cookie_file) if self.cookie_file else None,
            "proxy": self.proxy,
            "clients": self.settings.youtube_clients.replace(",", " ").split(),
            "pot_provider": self.settings.pot_provider_url,
            "private": self.settings.allow_private_network,
        }

    def _heard(self, event: dict[str, Any], on_bytes: OnBytes) -> Path | None:
        match event["event"]:
            case "ready":
                self.ready = event
            case "found":
                self.found = event
            case "warning":
                self._warned(str(event["text"]))
            case "bytes":
                on_bytes(int(event["done"]), event["total"])
            case "refused":
                raise self._not_wanted(event)
            case "failed":
                raise self._failed(event)
            case "done":
                return self._checked(event["path"])
        return None

    def _warned(self, text: str) -> None:
        self.warnings.append(text)
        log.debug("yt-dlp warns", text=clean(text, self._secrets()))

    def _checked(self, path: str | None) -> Path:
        found = Path(path).resolve() if path else None
        if found is None or not found.is_file() or self.folder.resolve() not in found.parents:
            raise JobError(
                ErrorCode.NETWORK,
                f"YouTube video {self.name} gave no file",
                hint="try again later",
            )
        return found

    def _video(self, path: Path) -> Video:
        about = {name: _line(self.found.get(name)) for name in ("title", "artist", "track")}
        return Video(
            path,
            self.name,
            **about,
            language=_line(self.found.get("language")),
            duration=self.found.get("duration"),
            format=_line(self.found.get("format")),
            version=_line(self.ready.get("version")),
            runtime=_line(self.ready.get("runtime")),
        )

    def _not_wanted(self, event: dict[str, Any]) -> JobError:
        hints = {
            ErrorCode.SOURCE_TOO_LONG: "use a shorter video, or raise MAX_AUDIO_SECONDS",
            ErrorCode.SOURCE_TOO_LARGE: "use a shorter video, or raise MAX_AUDIO_MB",
        }
        code = ErrorCode(event["code"])
        hint = hints.get(code, "submit it again later, if it is shown in full then")
        return JobError(code, f"YouTube video {self.name} {event['reason']}", hint=hint)

    def _failed(self, event: dict[str, Any]) -> JobError:
        causes = tuple(event["causes"])
        self.passing = kind_of(str(event["text"]), causes) is Kind.NETWORK
        return refusal(
            self.name,
            str(event["text"]),
            Exit(self.jar.state, self.ready.get("runtime"), bool(self.proxy)),
            causes=causes,
            warnings=tuple(self.warnings),
            secrets=self._secrets(),
        )

    def _late(self) -> JobError:
        return JobError(
            ErrorCode.NETWORK,
            f"YouTube video {self.name} was not there within "
            f"{self.settings.download_seconds:.0f} s",
            hint="try again later, or raise DOWNLOAD_SECONDS on the worker",
        )

    def _secrets(self) -> frozenset[str]:
        user, _, password = self.proxy.partition("://")[2].rpartition("@")[0].partition(":")
        hidden = {self.proxy, self.settings.pot_provider_url, f"{user}:{password}", user, password}
        return self.jar.secrets | {text for text in hidden if len(text) > 3}


def _line(value: object) -> str | None:
    """A foreign text as one line of reasonable length, fit for a result and a log."""
    text = "".join(c if c.isprintable() else " " for c in str(value)) if value else ""
    return text.strip()[:MAX_NAME] or None
