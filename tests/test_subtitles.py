"""Lines become SubRip and plain text."""

from __future__ import annotations

from pathlib import Path

import pysubs2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lyricpod.lines import join, lay_out
from lyricpod.result import Line, Word
from lyricpod.subtitles import plain, srt, srt_text
from lyricpod.timeline import timeline

NASTY = [
    *("-->", "<b>", "</i>", "{x}", "{", "\\N", "\\h", "7", "12", "a\nb", "\r", "\0", "\ud800"),
    *("\u2028", "\x85", "\ufeff", "\u200b", "\u3000", "&amp;", "00:00:01,000", "1:2:3.4", "1:2:3:"),
    *("00:00:01,000 --> 00:00:02,000", "٠٠:٠٠:٠١,٠٠٠", "0:0:0,0:0:0,0:0:0,0", "WEBVTT", "世"),
]
TEXTS = st.sampled_from(NASTY) | st.text(
    st.sampled_from("0123:,.<>{}\\Nb \n") | st.characters(exclude_categories=()), max_size=12
)
TIMES = st.floats(-1, 30) | st.sampled_from([0.0, 1.0, 3599.9996, 359_999.9999, 1e9])
WORDS = st.lists(
    st.builds(
        lambda text, start, length: Word.model_construct(
            word=text, start=start, end=start + length, probability=1.0
        ),
        TEXTS,
        TIMES,
        st.sampled_from([0.0, 0.0004, 0.3, 2.0]),
    ),
    max_size=15,
).map(lambda words: timeline(words, None))
STARTS = st.sets(st.integers(0, 15), max_size=5)


def milliseconds(line: Line) -> tuple[int, int]:
    return round(line.start * 1000), round(line.end * 1000)


def one_word(text: str) -> tuple[Line, ...]:
    return lay_out(timeline([Word(word=text, start=1, end=2)], None))


@given(WORDS, STARTS)
@example(timeline([Word(word="7", start=0, end=0), Word(word="8", start=1, end=2)], None), {1})
@settings(max_examples=150, deadline=None)
def test_pysubs2_reads_the_same_lines_back(words: tuple[Word, ...], starts: set[int]) -> None:
    """Each line comes back from pysubs2 with its text and its times to the millisecond."""
    lines = lay_out(words, starts)
    read = pysubs2.SSAFile.from_string(srt(lines), format_="srt")
    assert [event.plaintext for event in read] == [srt_text(line.text) for line in lines]
    assert [(event.start, event.end) for event in read] == [milliseconds(line) for line in lines]


@given(WORDS, STARTS)
@settings(max_examples=150, deadline=None)
def test_plain_lines_and_words_agree(words: tuple[Word, ...], starts: set[int]) -> None:
    """The plain text's lines are the lines, and these are the words."""
    lines = lay_out(words, starts)
    assert plain(lines).splitlines() == [line.text for line in lines]
    assert plain(lines).splitlines() == [join(line.words) for line in lines]
    assert tuple(word for line in lines for word in line.words) == words


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_srt_text_keeps_its_length(text: str) -> None:
    """Escaping swaps characters one for one, twice is once, and no markup is left."""
    escaped = srt_text(text)
    assert len(escaped) == len(text)
    assert srt_text(escaped) == escaped
    assert not set("<>{}\\") & set(escaped)


@given(WORDS)
@settings(max_examples=50, deadline=None)
def test_files_survive_a_decoder_that_eats_byte_order_marks(words: tuple[Word, ...]) -> None:
    """Both texts are the same read as utf-8 and as utf-8-sig."""
    for text in (srt(lay_out(words)), plain(lay_out(words))):
        assert text.encode().decode("utf-8-sig") == text


def test_srt_as_written() -> None:
    """An index, times, text, a blank line, and plain newlines."""
    words = timeline(
        [Word(word="la", start=0, end=1), Word(word="<b>", start=3661.5, end=1e9)], 1e4
    )
    assert srt(lay_out(words)) == (
        "1\n00:00:00,000 --> 00:00:01,000\nla\n\n2\n01:01:01,500 --> 02:46:40,000\n＜b＞\n\n"
    )


def test_plain_as_written() -> None:
    """The original text, a newline after each line."""
    assert plain(one_word("<b>{x}\\N")) == "<b>{x}\\N\n"


def test_no_lines_are_no_text() -> None:
    """Silence is the empty text in both formats."""
    assert (srt(()), plain(())) == ("", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b>x</b>", "＜b＞x＜/b＞"),
        ("{x}", "｛x｝"),
        ("a\\Nb", "a＼Nb"),
        ("at 10:30", "at 10:30"),
        ("0:00:01.5", "0：00:01.5"),
    ],
)
def test_markup_is_shown_not_read(text: str, expected: str) -> None:
    """Markup and timestamps become look-alikes, a time of day stays."""
    assert srt_text(text) == expected


@pytest.mark.parametrize("text", ["7", "1 2", "007"])
def test_a_line_of_digits_is_not_an_index(text: str, tmp_path: Path) -> None:
    """A line of digits only is read as text from a file, between others and as the last."""
    lines = one_word(text) * 3
    path = tmp_path / "digits.srt"
    path.write_text(srt(lines), encoding="utf-8", newline="\n")
    assert [event.plaintext for event in pysubs2.load(str(path))] == [text] * 3
