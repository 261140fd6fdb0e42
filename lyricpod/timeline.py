"""The contract's words: candidate words put in order, cleaned, and cut to integer milliseconds."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from lyricpod.result import Word

_MS_PER_SECOND = 1000
# 99:59:59,999, the last time an SRT can show; keeps a wild time finite where no duration is known.
_LATEST_MS = 100 * 60 * 60 * _MS_PER_SECOND - 1
_PROBABILITY_DIGITS = 4
# A decoder of "utf-8-sig" eats it at the head of a file, so it can't be part of a word.
_BYTE_ORDER_MARK = "\ufeff"


class _Candidate(NamedTuple):
    start: int  # ms
    end: int  # ms, never before start
    text: str
    probability: float


def timeline(words: Iterable[Word], duration: float | None) -> tuple[Word, ...]:
    """Make candidate words the contract's words.

    A time that isn't finite is unknown: such a start is the end of the word given before it (0 for
    the first), such an end is the word's own start. No word is dropped for its times, only one
    that has nothing to show.

    Args:
        words: in any order, times in seconds, overlapping or not.
        duration: of the audio in seconds; None (or not finite) if not known.

    Returns:
        Words sorted by start (equal starts keep their order), in seconds to the millisecond,
        within 0 and `duration`, each ending no later than the next one starts.
    """
    ordered = sorted(_candidates(words, _limit_ms(duration)), key=lambda word: word.start)
    next_starts = [word.start for word in ordered[1:]] + [_LATEST_MS]
    return tuple(
        Word(
            word=word.text,
            start=word.start / _MS_PER_SECOND,
            end=min(word.end, next_start) / _MS_PER_SECOND,
            probability=word.probability,
        )
        for word, next_start in zip(ordered, next_starts, strict=False)
    )


def _candidates(words: Iterable[Word], limit: int) -> list[_Candidate]:
    """Clean words in the given order, times in ms from 0 to `limit` ms."""
    found: list[_Candidate] = []
    for word in words:
        text = _clean(word.word)
        if not text:
            continue
        start = _to_ms(word.start, limit, unknown=found[-1].end if found else 0)
        end = max(start, _to_ms(word.end, limit, unknown=start))
        found.append(_Candidate(start, end, text, _clamp_probability(word.probability)))
    return found


def _limit_ms(duration: float | None) -> int:
    """The last millisecond that is not after `duration` (seconds)."""
    if duration is None or not math.isfinite(duration):
        return _LATEST_MS
    limit = _to_ms(duration, _LATEST_MS, unknown=0)
    # Rounding may have gone up past the end of the audio; flooring would lose 1.001 s to 1.000 s.
    return limit - 1 if limit and limit / _MS_PER_SECOND > duration else limit


def _to_ms(seconds: float, limit: int, *, unknown: int) -> int:
    """Seconds to the nearest ms from 0 to `limit` ms; `unknown` ms for NaN and infinities."""
    if not math.isfinite(seconds):
        return unknown
    # Cut before multiplying: 1e308 s in ms is no longer finite.
    return min(limit, round(min(max(seconds, 0.0), float(_LATEST_MS)) * _MS_PER_SECOND))


def _clamp_probability(probability: float) -> float:
    """0 to 1; NaN is 0, the model knew nothing."""
    if math.isnan(probability):
        return 0.0
    return round(min(1.0, max(0.0, probability)), _PROBABILITY_DIGITS)


def _clean(text: str) -> str:
    """One line of text that can be encoded and seen, or "" if nothing of it can be seen."""
    kept = "".join(char for char in text if _is_kept(char))
    # What was removed may have stood between a letter and its accent; text that came in as NFC
    # leaves as NFC, and other text keeps the form it came in.
    if unicodedata.is_normalized("NFC", text):
        kept = unicodedata.normalize("NFC", kept)
    # split() knows every separator that splitlines() knows: U+2028, U+0085, U+001C and so on.
    clean = " ".join(kept.split())
    # Joiners and direction marks belong to words (Persian, emoji) but don't make one.
    visible = any(unicodedata.category(char) not in {"Cf", "Zs"} for char in clean)
    return clean if visible else ""


def _is_kept(char: str) -> bool:
    # Some controls are separators (newline, tab): they stay until they become a space.
    separates = char.isspace()
    return separates or (
        char != _BYTE_ORDER_MARK and unicodedata.category(char) not in {"Cc", "Cs"}
    )
