"""Lyric lines as text: SubRip subtitles and plain lyrics."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lyricpod.result import Line

# Players and pysubs2 read these as markup: <b>x</b> as x, {x} as nothing, \N as a line break.
_LOOK_ALIKES = str.maketrans("<>{}\\", "＜＞｛｝＼")
# pysubs2 takes every line with two timestamps for a cue's times, with or without an arrow:
# https://github.com/tkarabela/pysubs2/blob/master/pysubs2/formats/subrip.py (from_file)
# Looking ahead breaks timestamps that share digits, too.
_CLOCK_COLON = re.compile(r":(?=\d{1,2}:\d{1,2}[.,]\d)")
_LATEST_MS = 100 * 60 * 60 * 1000 - 1  # 99:59:59,999: readers know two digits of hours


def srt(lines: Iterable[Line]) -> str:
    """SubRip text: index from 1, times to the millisecond, text, blank line; "" for no lines."""
    return "".join(
        f"{index}\n{_timestamp(line.start)} --> {_timestamp(line.end)}\n{srt_text(line.text)}\n\n"
        for index, line in enumerate(lines, start=1)
    )


def srt_text(text: str) -> str:
    """A line's text as SubRip shows it: what would be read as markup or times is fullwidth."""
    return _CLOCK_COLON.sub("：", text.translate(_LOOK_ALIKES))


def plain(lines: Iterable[Line]) -> str:
    """The lyrics, a text line per lyric line, unchanged; "" for no lines."""
    return "".join(f"{line.text}\n" for line in lines)


def _timestamp(seconds: float) -> str:
    """Seconds as `HH:MM:SS,mmm`, rounded once, from 0 to 99:59:59,999."""
    seconds_whole, ms = divmod(min(max(round(seconds * 1000), 0), _LATEST_MS), 1000)
    minutes_whole, second = divmod(seconds_whole, 60)
    hour, minute = divmod(minutes_whole, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d},{ms:03d}"
