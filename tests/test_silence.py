"""Words out of silence: the same times as stable-ts gives, without torch."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES

from handler.align import MIN_SILENCE, _stable, available
from handler.audio import SAMPLE_RATE, Samples, decode
from handler.silence import out_of_silence, silences
from lyricpod.cancel import Cancel
from lyricpod.result import Word


def sound(*stretches: tuple[float, float]) -> Samples:
    """Seconds at each loudness, one after another."""
    parts = [np.full(round(seconds * SAMPLE_RATE), volume) for seconds, volume in stretches]
    return np.concatenate(parts).astype(np.float32)


def moved(start: float, end: float, audio: Samples, text: str = " la", last: bool = False) -> Word:
    """One word among others, or the last of its segment, out of the audio's silences."""
    words = [Word(word=text, start=start, end=end), Word(word=" on", start=9, end=9)]
    cuts = [0, 1, 2] if last else [0, 2]
    return out_of_silence(words, cuts, silences(audio, MIN_SILENCE))[0]


def test_silence_is_found() -> None:
    """What is not heard between two sounds is a silence; faint noise in it does not break it."""
    audio = sound((1, 0.5), (0.5, 0), (0.06, 0.01), (0.5, 0), (1, 0.5))
    ((start, end),) = silences(audio, MIN_SILENCE)
    assert start == pytest.approx(1000, abs=100)
    assert end == pytest.approx(2060, abs=100)
    assert silences(audio, 2.0).size == 0


def test_audio_that_is_all_silent_or_too_short() -> None:
    """Nothing but silence is one silence; a few samples and none at all hold none."""
    ((start, end),) = silences(np.zeros(SAMPLE_RATE, np.float32), MIN_SILENCE)
    assert (start, end) == (0, 1020)
    assert silences(np.zeros(500, np.float32), MIN_SILENCE).shape == (0, 2)
    assert silences(np.zeros(0, np.float32), MIN_SILENCE).shape == (0, 2)


def test_a_start_in_silence_moves_to_the_sound() -> None:
    """A word that begins too early begins with the sound, and keeps its end."""
    word = moved(0.5, 2.5, sound((2, 0), (2, 0.5)))
    assert word.start == pytest.approx(2.0, abs=0.1)
    assert word.end == 2.5


@pytest.mark.parametrize(("text", "last"), [(" la", True), (" la,", False)])
def test_an_end_in_silence_moves_back(text: str, last: bool) -> None:
    """The last word of a segment, or one before a mark, ends with the sound instead."""
    word = moved(0.5, 3.5, sound((2, 0.5), (2, 0)), text, last)
    assert word.start == 0.5
    assert word.end == pytest.approx(2.0, abs=0.1)


def test_a_word_within_silence_keeps_its_place() -> None:
    """Nothing tells where a word wholly within a silence belongs."""
    word = moved(0.5, 1.5, sound((2, 0), (2, 0.5)))
    assert (word.start, word.end) == (0.5, 1.5)


@pytest.mark.skipif(not available(), reason="needs lyricpod[align]")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:(torch|stable_whisper)")
@pytest.mark.parametrize("name", ["line", "verse", "song", "backing", "stranger"])
def test_the_times_are_those_of_stable_ts(name: str, tmp_path: Path) -> None:
    """For 400 arbitrary words on each sample, every start and end is the same."""
    pcm = decode(SAMPLES / f"{name}.flac", tmp_path / "pcm", max_seconds=600, cancel=Cancel())
    audio = pcm.read(0, pcm.length)
    chance = random.Random(name)
    words = [arbitrary(chance, pcm.seconds) for _ in range(400)]
    cuts = [0, *sorted(chance.sample(range(1, 400), 60)), 400]
    ours = out_of_silence(words, cuts, silences(audio, MIN_SILENCE))
    segments = [
        [{"word": w.word, "start": w.start, "end": w.end} for w in words[low:high]]
        for low, high in pairwise(cuts)
    ]
    theirs = _stable("result").WhisperResult(segments, force_order=False, check_sorted=False)
    theirs.adjust_by_silence(audio, min_silence_dur=MIN_SILENCE, verbose=None)
    pairs = zip(ours, theirs.all_words(), strict=True)
    unlike = [(a, b) for a, b in pairs if abs(a.start - b.start) + abs(a.end - b.end) > 0.0015]
    assert unlike == []
    assert sum(a != b for a, b in zip(ours, words, strict=True)) > 20


def arbitrary(chance: random.Random, seconds: float) -> Word:
    start = round(chance.uniform(0, seconds - 0.1), 3)
    length = chance.choice([0.05, 0.1, 0.3, 0.8, 2.5])
    text = chance.choice([" la", " la,", " la.", "la"])
    return Word(word=text, start=start, end=round(min(seconds, start + length), 3))
