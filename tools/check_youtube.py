"""Try YouTube videos from this machine, and print a table: `python -m tools.check_youtube`.

For a person with a network; the tests have none. Each video is fetched as the worker fetches
it, with the settings of the environment (YOUTUBE_COOKIES_CONTENT, YOUTUBE_PROXIES,
YOUTUBE_CLIENTS, POT_PROVIDER_URL, SSL_CERT_FILE), and thrown away again.

    python -m tools.check_youtube                     some public videos of every kind
    python -m tools.check_youtube URL [URL ...]       these
    python -m tools.check_youtube --file urls.txt     one link a line; # begins a comment
    python -m tools.check_youtube --max-mb 20         refuse larger ones (default 50)

The exit code is 0 if every video came or was refused as expected, else 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from handler import log
from handler.acquire import acquire
from handler.config import Settings
from handler.ytdlp import check
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import parse

WIDTH = 78  # characters of the table's last column

# What each is, its link, and the code that is expected; public and long-lived when listed.
KNOWN = (
    ("the first video", "https://www.youtube.com/watch?v=jNQXAC9IVRw", None),
    ("music video", "https://youtu.be/dQw4w9WgXcQ?t=3", None),
    ("open film, in a list", "https://www.youtube.com/watch?v=aqz-KE-bpKQ&list=PL1", None),
    ("mobile link", "https://m.youtube.com/watch?v=jNQXAC9IVRw", None),
    ("music link", "https://music.youtube.com/watch?v=dQw4w9WgXcQ", None),
    ("embedded", "https://www.youtube-nocookie.com/embed/aqz-KE-bpKQ", None),
    ("no such video", "https://youtu.be/AAAAAAAAAAA", ErrorCode.SOURCE_UNAVAILABLE),
    ("playlist", "https://www.youtube.com/playlist?list=PL1", ErrorCode.INVALID_INPUT),
    ("channel", "https://www.youtube.com/@YouTube", ErrorCode.INVALID_INPUT),
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    result: str
    seconds: float
    said: str
    good: bool


def main() -> int:
    """Try the videos; 0 if all went as expected."""
    arguments = _arguments()
    log.configure({"LOG_LEVEL": os.environ.get("LOG_LEVEL", "ERROR")})
    settings = Settings.from_env(os.environ).model_copy(update={"max_audio_mb": arguments.max_mb})
    found = check(settings.ssl_cert_file)
    if found is None:
        print("yt-dlp can't be started: install lyricpod[worker]")
        return 1
    print(f"yt-dlp {found.version}, JavaScript runtime: {found.runtime or 'NONE - install deno'}\n")
    rows = []
    for what, url, expected in _wanted(arguments):
        rows.append(_try(what, url, expected, settings))
        _show(rows[-1])
    good = sum(row.good for row in rows)
    print(f"\n{good} of {len(rows)} as expected")
    return 0 if good == len(rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("urls", nargs="*", metavar="URL")
    parser.add_argument("--file", type=Path)
    parser.add_argument("--max-mb", type=float, default=50.0)
    return parser.parse_args()


def _wanted(arguments: argparse.Namespace) -> Iterator[tuple[str, str, ErrorCode | None]]:
    given = list(arguments.urls)
    if arguments.file:
        lines = (line.partition(" #")[0].strip() for line in arguments.file.open())
        given += [line for line in lines if line and not line.startswith("#")]
    if not given:
        yield from KNOWN
    for url in given:
        yield url, url, None


def _try(what: str, url: str, expected: ErrorCode | None, settings: Settings) -> Row:
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="lyricpod-check-") as folder:
            request = parse({"youtube_url": url}, default_job_id="check").request
            source = acquire(request, Path(folder), settings, cancel=Cancel())
            size = source.path.stat().st_size / 1e6
            origin = source.origin
            kind = f"format {origin.format}, {origin.duration:.0f} s" if origin else ""
            said = f"{size:.1f} MB, {kind}: {source.title}"
            code: ErrorCode | None = None
    except JobError as error:
        code, said = error.code, f"{error.message} ({error.hint})"
    seconds = time.monotonic() - started
    return Row(what, code.value if code else "ok", seconds, said, code is expected)


def _show(row: Row) -> None:
    mark = " " if row.good else "!"
    print(f"{mark} {row.what[:24]:24} {row.result:19} {row.seconds:6.1f} s  {row.said[:WIDTH]}")
    for start in range(WIDTH, len(row.said), WIDTH):
        print(f"{'':56}{row.said[start : start + WIDTH]}")


if __name__ == "__main__":
    sys.exit(main())
