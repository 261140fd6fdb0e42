"""Candidate words become the contract's words."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lyricpod.result import Word
from lyricpod.timeline import timeline

NASTY = ["-->", "<b>", "{x}", "\\N", "7", "a\nb", "\0", "\ud800", "\u2028", "\ufeff", "\u200b", " "]
TEXTS = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=()), max_size=6)
TIMES = st.floats() | st.floats(-1, 20) | st.integers(0, 40).map(lambda half: half / 2)
# A surrogate doesn't pass pydantic's validation; model_construct stands for a careless engine.
WORDS = st.lists(
    st.builds(
        lambda text, start, end, probability: Word.model_construct(
            word=text, start=start, end=end, probability=probability
        ),
        TEXTS,
        TIMES,
        TIMES,
        st.floats(),
    ),
    max_size=12,
)
DURATIONS = st.none() | st.floats() | st.floats(0, 20)


def candidate(text: str, start: float = 0.0, end: float = 1.0, probability: float = 1.0) -> Word:
    return Word.model_construct(word=text, start=start, end=end, probability=probability)


@given(WORDS, DURATIONS)
@example([candidate("a", 1e308, 1e308)], None)
@settings(max_examples=150, deadline=None)
def test_times_are_in_order(words: list[Word], duration: float | None) -> None:
    """Whatever comes in, words start at 0 or later, never overlap and never run backwards."""
    made = timeline(words, duration)
    times = [time for word in made for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(time >= 0 and time == round(time * 1000) / 1000 for time in times)


@given(WORDS, st.floats(0, 20))
@settings(max_examples=150, deadline=None)
def test_times_are_within_the_audio(words: list[Word], duration: float) -> None:
    """No time is after the duration, not even by rounding up to the millisecond."""
    assert all(word.end <= duration for word in timeline(words, duration))


@given(WORDS, DURATIONS)
@settings(max_examples=150, deadline=None)
def test_text_is_one_clean_line(words: list[Word], duration: float | None) -> None:
    """Every word can be encoded, has no surrounding space and stays on one line."""
    for word in timeline(words, duration):
        assert word.word == " ".join(word.word.split())
        assert word.word.splitlines() == [word.word]
        assert not any(unicodedata.category(char) in {"Cc", "Cs"} for char in word.word)
        assert word.word.encode()


@given(WORDS, DURATIONS)
@settings(max_examples=150, deadline=None)
def test_timeline_of_a_timeline_is_itself(words: list[Word], duration: float | None) -> None:
    """Making a timeline twice changes nothing more."""
    made = timeline(words, duration)
    assert timeline(made, duration) == made


@given(st.lists(st.tuples(TIMES, TIMES), max_size=12), DURATIONS)
@settings(max_examples=150, deadline=None)
def test_no_word_is_lost_for_its_times(
    times: list[tuple[float, float]], duration: float | None
) -> None:
    """Each word with text is there once, whatever its times."""
    words = [candidate(f"w{index}", *pair) for index, pair in enumerate(times)]
    made = timeline(words, duration)
    assert sorted(word.word for word in made) == sorted(word.word for word in words)


@given(st.text(max_size=8), st.text("\0\x01\x7f", max_size=2), st.text(max_size=8))
@example("e", "\0", "\u0301")
@settings(max_examples=150, deadline=None)
def test_nfc_stays_nfc(before: str, controls: str, after: str) -> None:
    """Text that comes in as NFC leaves as NFC, also where a control stood before an accent."""
    text = unicodedata.normalize("NFC", before) + controls + after
    if unicodedata.is_normalized("NFC", text):
        made = timeline([candidate(text)], None)
        assert all(unicodedata.is_normalized("NFC", word.word) for word in made)


def test_an_overlapped_word_is_cut() -> None:
    """Of two overlapping words the earlier ends where the later starts."""
    made = timeline([candidate("b", 1.5, 3), candidate("a", 1, 2)], 10)
    assert [(word.word, word.start, word.end) for word in made] == [("a", 1, 1.5), ("b", 1.5, 3)]


def test_equal_starts_keep_their_order() -> None:
    """Words that start together stay in the order given, the earlier with no length."""
    made = timeline([candidate("b", 1, 2), candidate("a", 1, 2)], 10)
    assert [(word.word, word.start, word.end) for word in made] == [("b", 1, 1), ("a", 1, 2)]


def test_an_unknown_start_follows_the_word_before() -> None:
    """A word without a finite start stands at the end of the word given before it."""
    made = timeline([candidate("a", 1, 2), candidate("b", math.nan, math.inf)], 10)
    assert [(word.word, word.start, word.end) for word in made] == [("a", 1, 2), ("b", 2, 2)]


def test_times_are_rounded_not_cut() -> None:
    """1.9996 s is 2.000 s, not 1.999 s."""
    (word,) = timeline([candidate("a", 1.9996, 1.001)], None)
    assert (word.start, word.end) == (2.0, 2.0)


def test_a_duration_in_milliseconds_is_reached() -> None:
    """1.001 s is 1000.9999 ms in floats, and is still the end of 1.001 s of audio."""
    (word,) = timeline([candidate("a", 0, 5)], 1.001)
    assert word.end == 1.001


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        (" la \t\r\n\u2028 la\u00a0", "la la"),
        ("a\0b\ud800c", "abc"),
        ("\ufeffWort", "Wort"),
        ("\u0645\u06cc\u200c\u0631\u0648\u0645", "\u0645\u06cc\u200c\u0631\u0648\u0645"),
        ("e\u0301", "e\u0301"),
    ],
)
def test_text_is_cleaned(given_text: str, expected: str) -> None:
    """Separators become one space, controls vanish, joiners and decomposed accents stay."""
    (word,) = timeline([candidate(given_text)], None)
    assert word.word == expected


@pytest.mark.parametrize("text", ["", " \n", "\0", "\udfff", "\ufeff", "\u200b \u200d"])
def test_words_without_anything_to_see_are_dropped(text: str) -> None:
    """A word that would show nothing is no word."""
    assert timeline([candidate(text)], None) == ()


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0.12345678, 0.1235), (-1.0, 0.0), (7.0, 1.0), (math.nan, 0.0), (math.inf, 1.0)],
)
def test_probability_is_clamped(probability: float, expected: float) -> None:
    """A probability is 0 to 1 with four digits, and 0 if it isn't a number."""
    (word,) = timeline([candidate("a", probability=probability)], None)
    assert word.probability == expected
