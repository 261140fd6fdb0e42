"""The operator's YouTube cookies: read, judged, and lent to yt-dlp as a private file."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

HEADER = "# Netscape HTTP Cookie File\n"
HTTP_ONLY = "#HttpOnly_"
FIELDS = 7  # domain, subdomains, path, secure, expiry, name, value
SIGNED_IN = "LOGIN_INFO"  # YouTube takes it back when it ends a session; yt-dlp looks for it too
IDENTITY = frozenset({"SAPISID", "__Secure-1PAPISID", "__Secure-3PAPISID"})
SECRET_LENGTH = 8  # characters; shorter values are no secrets, and words of messages


class CookieState(StrEnum):
    """What can be told of cookies without asking YouTube."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    SIGNED_OUT = "signed out"
    EXPIRED = "expired"
    USABLE = "usable"


@dataclass(frozen=True)
class Cookies:
    """Cookies in Netscape format; `text` is empty unless some can be read."""

    state: CookieState
    text: str = field(default="", repr=False)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    @contextmanager
    def file(self) -> Iterator[Path | None]:
        """The cookies as a file that only this user can read; gone after the block."""
        if not self.text:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="lyricpod-cookies-") as folder:  # mode 0700
            path = Path(folder) / "cookies.txt"
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.text)
            yield path


def cookies(content: str, encoded: str, now: float | None = None) -> Cookies:
    """Read cookies as they stand in the environment.

    Args:
        content: Netscape format, line breaks possibly written as backslash and n.
        encoded: the same in base64; read where `content` is empty.
        now: seconds since the epoch, for the expiry dates.
    """
    text = content.strip() or _decoded(encoded.strip())
    if text is None:
        return Cookies(CookieState.UNREADABLE)
    if not text:
        return Cookies(CookieState.MISSING)
    rows = [row for row in map(_row, _lines(text)) if row]
    ours = [row for row in rows if row[0].lstrip(".").lower().endswith("youtube.com")]
    if not ours:
        return Cookies(CookieState.UNREADABLE)
    return Cookies(
        _state(ours, time.time() if now is None else now),
        HEADER + "".join("\t".join(row) + "\n" for row in rows),
        frozenset(row[6] for row in rows if len(row[6]) >= SECRET_LENGTH),
    )


def _decoded(encoded: str) -> str | None:
    try:
        return base64.b64decode("".join(encoded.split()), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _lines(text: str) -> list[str]:
    if "\n" not in text and "\\n" in text:  # as dashboards store it
        text = text.replace("\\r", "").replace("\\n", "\n").replace("\\t", "\t")
    return text.splitlines()


def _row(line: str) -> list[str] | None:
    line = line.removeprefix(HTTP_ONLY)
    if line.startswith("#") or not line.strip():
        return None
    row = line.split("\t")
    if len(row) != FIELDS:
        row = line.split()  # tabs become spaces when pasted
    usable = len(row) == FIELDS and row[4].replace(".", "", 1).isdigit()
    return [item.strip() for item in row] if usable else None


def _state(rows: list[list[str]], now: float) -> CookieState:
    ends = {row[5]: float(row[4]) for row in rows}  # 0 is a session's cookie, which has no date
    if SIGNED_IN not in ends or not IDENTITY & set(ends):
        return CookieState.SIGNED_OUT
    gone = {name for name, end in ends.items() if 0 < end < now}
    if SIGNED_IN in gone or IDENTITY & set(ends) <= gone:
        return CookieState.EXPIRED
    return CookieState.USABLE
