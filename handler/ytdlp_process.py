"""yt-dlp in a process of its own: `python -m handler.ytdlp_process`. Its only import.

One order, a line of JSON, comes on standard input; events, a line of JSON each, leave on
standard output. The process ends at once, with all it started, when its input is closed: so
it never outlives the worker. Why a process: a cancel or a deadline can end it wherever it
waits, its connections are guarded for good (see `addresses.Guard`), it sees none of the
worker's secrets, and a crash costs one job.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TextIO

from handler.addresses import Guard

# What YouTube's extractor asks, and where the sound comes from.
SITES = (
    "youtube.com youtu.be youtube-nocookie.com youtubei.googleapis.com googlevideo.com ytimg.com "
    "google.com"
).split()
TOKEN_PLUGIN = "yt_dlp_plugins.extractor.getpot_bgutil_http"  # of bgutil-ytdlp-pot-provider
SOCKET_SECONDS = 20.0  # silence on a connection
RETRIES = 10  # of a broken download, each going on where it stopped
EVENT_SECONDS = 0.2  # between two reports of progress
ESTIMATE_SAYS = 0.8  # a size made of bit rate and duration is wrong by some percent
SPARE_BYTES = 1_000_000  # beyond the limit, before the system itself refuses to write

Emit = Callable[..., None]


class _Refused(Exception):
    """The video is not wanted: `code` of the contract, and why."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Log:
    """What yt-dlp says while it works; its warnings tell the cause of a later failure."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def debug(self, message: str) -> None:
        pass

    info = debug
    error = debug  # comes as an exception too

    def warning(self, message: str, **_: Any) -> None:
        self._emit("warning", text=message)


def main() -> None:
    """Do one order."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints may stand between the events
    emit = _emitter(channel)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import yt_dlp

    emit(
        "ready",
        version=yt_dlp.version.__version__,
        runtime=_runtime(yt_dlp),
        tokens=_has_token_plugin(),
    )
    line = sys.stdin.readline()
    if not line:
        return
    threading.Thread(target=_end_with_input, daemon=True).start()
    _obey(yt_dlp, json.loads(line), emit)


def _emitter(channel: TextIO) -> Emit:
    def emit(event: str, **fields: Any) -> None:
        channel.write(json.dumps({"event": event, **fields}) + "\n")
        channel.flush()

    return emit


def _end_with_input() -> None:
    while os.read(0, 4096):  # nothing is sent any more: this waits for the end
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _runtime(yt_dlp: Any) -> str | None:
    """The JavaScript runtime that yt-dlp will use, with its version."""
    # yt_dlp/YoutubeDL.py enables deno alone unless told otherwise; it runs scripts in a sandbox.
    found = yt_dlp.globals.supported_js_runtimes.value["deno"]().info
    return f"deno {found.version}" if found and found.supported else None


def _has_token_plugin() -> bool:
    """Whether the plugin is there that asks POT_PROVIDER_URL; yt-dlp is silent where it isn't."""
    try:
        return importlib.util.find_spec(TOKEN_PLUGIN) is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def _obey(yt_dlp: Any, order: dict[str, Any], emit: Emit) -> None:
    limit = order["max_bytes"] + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    services, exits = (filter(None, [order[name]]) for name in ("pot_provider", "proxy"))
    guard = Guard(SITES, services, exits, private=order["private"])
    guard.install()
    _guard_socks(yt_dlp.socks.sockssocket, guard)
    try:
        with yt_dlp.YoutubeDL(_options(order, emit)) as downloader:
            info = downloader.extract_info(order["url"])
        made = (info or {}).get("requested_downloads") or [{}]
        emit("done", path=made[0].get("filepath"))
    except _Refused as refused:
        emit("refused", code=refused.code, reason=str(refused))
    except yt_dlp.utils.YoutubeDLError as error:
        text = guard.refused or str(getattr(error, "msg", None) or error)
        emit("failed", text=text, causes=list(_causes(error)))
    except Exception as error:  # noqa: BLE001 - the process's boundary: the parent names it
        text = guard.refused or f"{type(error).__name__}: {error}"
        emit("failed", text=text, causes=list(_causes(error)))


def _guard_socks(sockssocket: Any, guard: Guard) -> None:
    """Look at where a SOCKS proxy is to connect to, which no audit event tells."""
    connect = sockssocket.connect

    def guarded(self: Any, address: Any) -> Any:
        guard.check_host(str(address[0]), int(address[1]))
        return connect(self, address)

    sockssocket.connect = guarded


def _options(order: dict[str, Any], emit: Emit) -> dict[str, Any]:
    arguments: dict[str, dict[str, list[str]]] = {}
    if order["clients"]:
        arguments["youtube"] = {"player_client": order["clients"]}
    if order["pot_provider"]:
        arguments["youtubepot-bgutilhttp"] = {"base_url": [order["pot_provider"]]}
    return {
        # One file over plain HTTP first: it can be resumed, and needs no ffmpeg.
        "format": "bestaudio[protocol=https]/bestaudio/best[protocol=https]/best",
        # The format in the name: a new try with another format must not resume this one's file.
        "outtmpl": os.path.join(order["folder"].replace("%", "%%"), "video.%(format_id)s.%(ext)s"),
        "noplaylist": True,
        "allowed_extractors": ["youtube"],
        "match_filter": _filter(order, emit),
        "progress_hooks": [_progress(order["max_bytes"], emit)],
        "logger": _Log(emit),
        "color": "no_color",
        "noprogress": True,
        "cachedir": False,
        "fixup": "never",
        "updatetime": False,
        "skip_unavailable_fragments": False,  # a gap would shift every word behind it
        "socket_timeout": SOCKET_SECONDS,
        "retries": RETRIES,
        "fragment_retries": RETRIES,
        "retry_sleep_functions": {"http": _pause, "fragment": _pause},
        "proxy": order["proxy"] or "",  # "" keeps the environment's proxies out
        "cookiefile": order["cookies"],
        "extractor_args": arguments,
        "compat_opts": {"no-certifi"} if os.environ.get("SSL_CERT_FILE") else set(),
    }


def _pause(n: int) -> float:
    return float(min(0.5 * 2**n, 10.0))


def _filter(order: dict[str, Any], emit: Emit) -> Callable[..., str | None]:
    def refuse(info: dict[str, Any], *, incomplete: bool = False) -> str | None:
        _check_video(info, order)
        if not incomplete:  # the format is chosen: the last moment before its first byte
            estimate = (info.get("filesize_approx") or 0) * ESTIMATE_SAYS
            _check_size(info.get("filesize") or estimate, order["max_bytes"])
            emit("found", **_described(info))
        return None

    return refuse


def _check_video(info: dict[str, Any], order: dict[str, Any]) -> None:
    if info.get("id") != order["id"]:
        raise _Refused("source_unavailable", "must be paid for: only its trailer is free")
    status = info.get("live_status")
    states = {
        "is_live": "is live: its sound has no end yet",
        "is_upcoming": "has not begun yet",
        "post_live": "was live a moment ago: YouTube still makes its recording",
    }
    if status in states:
        raise _Refused("source_unavailable", states[status])
    seconds = info.get("duration") or 0
    if seconds > order["max_seconds"]:
        what = f"is {seconds:.0f} s long; at most {order['max_seconds']:.0f} s are taken"
        raise _Refused("source_too_long", what)


def _check_size(size: float, limit: int) -> None:
    if size > limit:
        what = f"has {size / 1e6:.1f} MB of sound; at most {limit / 1e6:g} MB are taken"
        raise _Refused("source_too_large", what)


def _described(info: dict[str, Any]) -> dict[str, Any]:
    artists = info.get("artists") or [info.get("artist")]
    return {
        "title": info.get("title"),
        "artist": ", ".join(str(name) for name in artists if name) or None,
        "track": info.get("track"),
        "language": info.get("language"),
        "duration": info.get("duration"),
        "format": info.get("format_id"),
        "ext": info.get("ext"),
        "size": info.get("filesize") or info.get("filesize_approx"),
    }


def _progress(max_bytes: int, emit: Emit) -> Callable[[dict[str, Any]], None]:
    last = 0.0

    def hook(report: dict[str, Any]) -> None:
        nonlocal last
        done = report.get("downloaded_bytes") or 0
        _check_size(done, max_bytes)
        total = report.get("total_bytes") or report.get("total_bytes_estimate")
        _check_size(report.get("total_bytes") or 0, max_bytes)
        if report["status"] == "finished" or time.monotonic() - last >= EVENT_SECONDS:
            last = time.monotonic()
            emit("bytes", done=done, total=total)

    return hook


def _causes(error: BaseException) -> Iterator[str]:
    """The names of the exception classes behind yt-dlp's, outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield type(found).__name__
        carried = (getattr(found, "exc_info", None) or (None, None))[1]
        found = carried or getattr(found, "cause", None) or found.__cause__ or found.__context__


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        main()
