"""Lyric lines: the words of a timeline, grouped the way they are sung and read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from lyricpod.result import Line, Word

# A sung phrase ends with a breath; gaps inside a phrase stay well below this.
PAUSE_MS = 700
# The customary width of a subtitle line (Netflix's and the BBC's guides say 42 and 37 to 42).
MAX_CHARACTERS = 42
# "Oh. Oh. Oh." is one line, so a sentence ends a line only from this length on.
MIN_SENTENCE_WORDS = 3
# A comma is worth about the breath that it stands for when it competes with real pauses.
COMMA_MS = 300

_SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "｡", "؟", "।")
_COMMAS = (",", ";", ":", "、", "，", "；", "：", "،", "､", "—", "–")
_CLOSERS = "\"'”’»)]}」』）】》"

# Whisper splits these scripts by character, not by space (split_to_word_tokens):
# https://github.com/SYSTRAN/faster-whisper/blob/master/faster_whisper/tokenizer.py
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3000, 0x30FF),  # CJK punctuation, Hiragana, Katakana
    (0x31C0, 0x31FF),  # strokes, Katakana extensions
    (0x3400, 0x4DBF),  # Han extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0xFF01, 0xFF0F),  # fullwidth punctuation, up to the digits
    (0xFF1A, 0xFF20),  # fullwidth punctuation, up to the letters
    (0xFF5B, 0xFF9F),  # fullwidth and halfwidth punctuation, halfwidth Katakana
    (0x1B000, 0x1B16F),  # Kana supplement and extensions
    (0x20000, 0x3FFFF),  # Han extensions B and later
)


class _Cost(NamedTuple):
    """What a layout costs, the first difference decides; costs of parts add up."""

    orphans: int  # lines of one word
    lines: int
    merit: int  # ms of pause at the breaks, negative
    squares: int  # of line widths: even lines are lower

    def plus(self, other: _Cost) -> _Cost:
        return _Cost(
            self.orphans + other.orphans,
            self.lines + other.lines,
            self.merit + other.merit,
            self.squares + other.squares,
        )


_FREE = _Cost(0, 0, 0, 0)


def join(words: Iterable[Word]) -> str:
    """The words as text: a space between them, but none between scripts written without."""
    text = ""
    for word in words:
        text += _gap(text, word.word) + word.word
    return text


def lay_out(words: Sequence[Word], starts: Collection[int] = ()) -> tuple[Line, ...]:
    """Group a timeline's words into lines.

    A line ends before a word at which the engine began a segment, at a pause of `PAUSE_MS`,
    after a sentence of at least `MIN_SENTENCE_WORDS` words, and at `MAX_CHARACTERS` characters;
    only a single longer word stands on a longer line, alone.

    Args:
        words: a timeline: in order, not overlapping, seconds.
        starts: indices into `words` where a new segment began; others are ignored.

    Returns:
        Lines whose words, one after the other, are `words`.
    """
    return tuple(line for phrase in _phrases(words, starts) for line in _fit(phrase))


def _phrases(words: Sequence[Word], starts: Collection[int]) -> list[list[Word]]:
    """Split where a line ends however short it is."""
    breaks = frozenset(starts)
    phrases: list[list[Word]] = []
    for index, word in enumerate(words):
        if not phrases or index in breaks or _ends(phrases[-1], word):
            phrases.append([])
        phrases[-1].append(word)
    return phrases


def _ends(phrase: Sequence[Word], following: Word) -> bool:
    sentence = len(phrase) >= MIN_SENTENCE_WORDS and _closes(phrase[-1], _SENTENCE_ENDS)
    return sentence or _pause_ms(phrase[-1], following) >= PAUSE_MS


def _fit(phrase: Sequence[Word]) -> list[Line]:
    """Lines of at most `MAX_CHARACTERS`: fewest orphans, then fewest lines, then best breaks."""
    spans = _spans(phrase)
    best = [_FREE]  # best[end]: the cheapest layout of phrase[:end]
    begins = [0]  # begins[end]: where the last line of that layout begins
    for end in range(1, len(phrase) + 1):
        cost, begin = min(
            (best[begin].plus(_line_cost(phrase, spans, begin, end)), begin)
            for begin in range(max(0, end - MAX_CHARACTERS), end)  # a word has a character
            if begin == end - 1 or _width(spans, begin, end) <= MAX_CHARACTERS
        )
        best.append(cost)
        begins.append(begin)
    lines: list[Line] = []
    end = len(phrase)
    while end:
        lines.append(_line(phrase[begins[end] : end]))
        end = begins[end]
    return lines[::-1]


def _line_cost(
    phrase: Sequence[Word], spans: Sequence[tuple[int, int]], begin: int, end: int
) -> _Cost:
    merit = _merit_ms(phrase[begin - 1], phrase[begin]) if begin else 0
    return _Cost(int(end - begin == 1), 1, -merit, _width(spans, begin, end) ** 2)


def _merit_ms(before: Word, after: Word) -> int:
    """How good a break is, in ms of pause."""
    return _pause_ms(before, after) + (COMMA_MS if _closes(before, _COMMAS) else 0)


def _line(words: Sequence[Word]) -> Line:
    return Line(text=join(words), start=words[0].start, end=words[-1].end, words=tuple(words))


def _spans(phrase: Sequence[Word]) -> list[tuple[int, int]]:
    """Where each word begins and ends in the joined phrase, in characters."""
    spans: list[tuple[int, int]] = []
    before, position = "", 0
    for word in phrase:
        begin = position + len(_gap(before, word.word))
        position = begin + len(word.word)
        spans.append((begin, position))
        before = word.word
    return spans


def _width(spans: Sequence[tuple[int, int]], begin: int, end: int) -> int:
    """Characters of the line made of words `begin` to `end` (exclusive)."""
    return spans[end - 1][1] - spans[begin][0]


def _pause_ms(before: Word, after: Word) -> int:
    # In integer ms: 0.7 s between 0.1 s and 0.8 s is less than 0.7 in floats.
    return round(after.start * 1000) - round(before.end * 1000)


def _closes(word: Word, marks: tuple[str, ...]) -> bool:
    """Whether the word ends with one of the marks, closing quotes and brackets aside."""
    return word.word.rstrip(_CLOSERS).endswith(marks)


def _gap(before: str, after: str) -> str:
    if not before or not after or (_is_unspaced(before[-1]) and _is_unspaced(after[0])):
        return ""
    return " "


def _is_unspaced(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in _UNSPACED)
