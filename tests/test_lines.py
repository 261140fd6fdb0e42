"""Words become lyric lines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lyricpod.lines import MAX_CHARACTERS, join, lay_out
from lyricpod.result import Line, Word
from lyricpod.timeline import timeline

TEXTS = (
    st.sampled_from(["la", "oh,", "yes.", "-->", "世", "。", "ไทย", "7", "x" * 50])
    | st.from_regex(r"[a-z]{1,9}[,.]?", fullmatch=True)
    | st.text(max_size=8)
)
WORDS = st.lists(
    st.builds(
        lambda text, start, length: Word(word=text, start=start, end=start + length),
        TEXTS,
        st.floats(0, 30),
        st.floats(0, 1),
    ),
    max_size=40,
).map(lambda words: timeline(words, None))
STARTS = st.sets(st.integers(-2, 45), max_size=5)


def sung(text: str, pauses: dict[int, float] | None = None) -> tuple[Word, ...]:
    """Words of 0.2 s, one after the other; `pauses` are seconds before a word's index."""
    words, now = [], 0.0
    for index, part in enumerate(text.split()):
        now += (pauses or {}).get(index, 0.0)
        words.append(Word(word=part, start=now, end=now + 0.2))
        now += 0.2
    return timeline(words, None)


def texts(lines: tuple[Line, ...]) -> list[str]:
    return [line.text for line in lines]


@given(WORDS, STARTS)
@settings(max_examples=150, deadline=None)
def test_lines_partition_the_words(words: tuple[Word, ...], starts: set[int]) -> None:
    """The lines' words are the words, in order, each once, and no line is empty."""
    lines = lay_out(words, starts)
    assert tuple(word for line in lines for word in line.words) == words
    assert all(line.words for line in lines)


@given(WORDS, STARTS)
@settings(max_examples=150, deadline=None)
def test_a_line_agrees_with_its_words(words: tuple[Word, ...], starts: set[int]) -> None:
    """A line's text is its words joined, its times are those of its first and last word."""
    for line in lay_out(words, starts):
        assert line.text == join(line.words)
        assert (line.start, line.end) == (line.words[0].start, line.words[-1].end)
        assert len(line.text) <= MAX_CHARACTERS or len(line.words) == 1


@given(WORDS, STARTS)
@settings(max_examples=150, deadline=None)
def test_a_line_begins_at_each_segment_and_after_each_pause(
    words: tuple[Word, ...], starts: set[int]
) -> None:
    """No line runs across a segment's start or a pause of 0.7 s."""
    index = 0
    for line in lay_out(words, starts):
        assert not starts & set(range(index + 1, index + len(line.words)))
        gaps = [b.start - a.end for a, b in zip(line.words, line.words[1:], strict=False)]
        assert all(gap < 0.7 for gap in gaps)
        index += len(line.words)


def test_no_words_give_no_lines() -> None:
    """Silence has no lines."""
    assert lay_out(()) == ()


def test_a_pause_of_exactly_700_ms_ends_a_line() -> None:
    """0.1 s to 0.8 s counts as 0.7 s although it is less in floats."""
    words = (Word(word="a", start=0.0, end=0.1), Word(word="b", start=0.8, end=0.9))
    assert texts(lay_out(words)) == ["a", "b"]
    words = (words[0], Word(word="b", start=0.799, end=0.9))
    assert texts(lay_out(words)) == ["a b"]


def test_a_sentence_ends_a_line_of_a_few_words() -> None:
    """A full stop ends a line, quotes aside, but not one of a word or two."""
    assert texts(lay_out(sung("Oh. Oh. he said “stop.” Then we went"))) == [
        "Oh. Oh. he said “stop.”",
        "Then we went",
    ]


def test_an_overlong_line_breaks_at_the_largest_pause() -> None:
    """Among breaks that make equally few lines the longest breath is taken."""
    text = "one two three four five six seven eight nine ten"
    assert texts(lay_out(sung(text, {3: 0.3, 6: 0.5}))) == [
        "one two three four five six",
        "seven eight nine ten",
    ]


def test_an_overlong_line_breaks_after_a_comma() -> None:
    """A comma is a good place to break where nobody breathes."""
    assert texts(lay_out(sung("one two three, four five six seven eight nine ten"))) == [
        "one two three,",
        "four five six seven eight nine ten",
    ]


def test_an_overlong_line_leaves_no_orphan() -> None:
    """A longer breath before the last word does not leave it alone on a line."""
    text = "two three four five six seven eight nine ten"
    lines = lay_out(sung(text, {8: 0.6}))
    assert [len(line.words) > 1 for line in lines] == [True, True]


def test_a_long_word_stands_alone() -> None:
    """A word of more than 42 characters is neither cut nor joined by others."""
    long = "o" * 60
    assert texts(lay_out(sung(f"we sing {long} and rest"))) == ["we sing", long, "and rest"]


def test_a_long_phrase_is_laid_out_quickly() -> None:
    """Thousands of words without a pause are no quadratic matter."""
    lines = lay_out(sung("la " * 5000))
    assert len(lines) == 358


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["我", "爱", "你"], "我爱你"),
        (["君", "の", "ラ", "ブ"], "君のラブ"),
        (["ฉัน", "รัก"], "ฉันรัก"),
        (["你好。", "我", "love", "你"], "你好。我 love 你"),
        (["사랑", "해요"], "사랑 해요"),
        (["la", "la"], "la la"),
        ([], ""),
    ],
)
def test_words_are_joined_as_their_script_is_written(parts: list[str], expected: str) -> None:
    """A space stands between words, but not between characters of scripts without spaces."""
    assert join(Word(word=part, start=0, end=0) for part in parts) == expected
