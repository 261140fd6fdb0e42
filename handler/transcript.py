"""What transcribing and aligning both give."""

from __future__ import annotations

from dataclasses import dataclass

from lyricpod.result import Word


@dataclass(frozen=True)
class Transcript:
    """What the engine heard. `starts`: seconds at which segments or lyric lines began."""

    words: tuple[Word, ...]
    starts: tuple[float, ...]
    language: str
    language_probability: float
