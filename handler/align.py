"""Known lyrics onto the audio, and steadier word times. The only import of stable-ts."""

from __future__ import annotations

import bisect
import copy
import importlib.util
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import accumulate
from types import ModuleType
from typing import Any

from handler.audio import SAMPLE_RATE, Pcm
from handler.models import Loaded, memory_for
from handler.silence import out_of_silence, silences
from handler.transcript import Transcript
from lyricpod.cancel import Cancel
from lyricpod.result import Word

UNSPACED = {"zh", "yue", "ja", "th", "lo", "my"}  # no space between words
# Tokens of text offered to a window of 30 s: one number loses its place in one song or another.
TOKEN_STEPS = (60, 100)
DETECTED_SECONDS = 30  # of audio from which a language is guessed

REFINED_SECONDS = 600  # of audio held in memory at a time while words move to silences
OVERLAP_SECONDS = 30  # a word may last into the next stretch
MIN_SILENCE = 0.2  # s; shorter ones are inside words. The best of those tried on samples/

OnSeconds = Callable[[float], None]  # seconds of the audio worked through


def available() -> bool:
    """Whether this worker can align: stable-ts and torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("stable_whisper", "torch"))


def align(
    pcm: Pcm,
    lyrics: str,
    model: Loaded,
    language: str | None,
    *,
    cancel: Cancel,
    on_seconds: OnSeconds = lambda seconds: None,
) -> Transcript:
    """Find when each word of known lyrics is sung; each of their lines is one of `starts`.

    A cancel ends it within one inference call. The audio is held in memory, as float32:
    stable-ts takes an array (230 MB for an hour). Words that aren't found last 0 s.

    Args:
        language: None: heard from the recording's first 30 s.

    Raises:
        JobError: `out_of_memory`, `cancelled`.
    """
    with memory_for(model.name):
        return _align(pcm, lyrics, model, language, cancel, on_seconds)


def _align(
    pcm: Pcm,
    lyrics: str,
    model: Loaded,
    language: str | None,
    cancel: Cancel,
    on_seconds: OnSeconds,
) -> Transcript:
    cancel.check()
    audio, probability = pcm.read(0, pcm.length), 1.0
    if model.english_only:
        language = "en"
    elif not language:
        heard = audio[: DETECTED_SECONDS * SAMPLE_RATE]
        language, probability, _ = model.whisper.detect_language(heard)

    whisper = _checked(model.whisper, cancel)
    tries = []
    for index, step in enumerate(TOKEN_STEPS):

        def on_progress(done: float, total: float, before: int = index) -> None:
            cancel.check()
            on_seconds((before * float(total) + float(done)) / len(TOKEN_STEPS))

        with warnings.catch_warnings():
            # Said by the words themselves: what was not found lasts 0 s, at probability 0.
            warnings.filterwarnings(
                "ignore", r"Failed to align the last|.* segments failed to align"
            )
            found = _stable("alignment").align(
                whisper,
                audio,
                lyrics,
                language,
                token_step=step,
                original_split=True,
                suppress_silence=False,  # on samples/ it makes aligned ends worse, starts no better
                verbose=None,
                progress_callback=on_progress,
            )
        if found:
            tries.append(found)
    found = max(tries, key=_likelihood, default=None)
    cancel.check()
    lines = [_words(segment.words, language) for segment in found.segments] if found else []
    words = _apart(word for line in lines for word in line)
    sizes = [len(line) for line in lines if line]
    return Transcript(
        words,
        tuple(words[first].start for first in accumulate(sizes[:-1], initial=0) if words),
        language or "",
        float(probability),
    )


def refine(transcript: Transcript, pcm: Pcm, *, cancel: Cancel) -> Transcript:
    """The same words, times moved out of silence; needs neither stable-ts nor torch.

    Raises:
        JobError: `cancelled`.
    """
    words = list(transcript.words)
    begins = [word.start for word in words]
    if begins != sorted(begins):
        return transcript
    firsts = sorted({bisect.bisect_left(begins, start) for start in transcript.starts})
    for stretch in range(0, pcm.length, REFINED_SECONDS * SAMPLE_RATE):
        cancel.check()
        offset = stretch / SAMPLE_RATE
        low = bisect.bisect_left(begins, offset)
        high = bisect.bisect_left(begins, offset + REFINED_SECONDS)
        if low < high:
            seconds = REFINED_SECONDS + OVERLAP_SECONDS
            audio = pcm.read(stretch, stretch + seconds * SAMPLE_RATE)
            quiet = silences(audio, MIN_SILENCE) + stretch * 1000 // SAMPLE_RATE
            cuts = [low, *(index for index in firsts if low < index < high), high]
            words[low:high] = out_of_silence(words, cuts, quiet)
    apart = _apart(words)
    return replace(transcript, words=apart, starts=tuple(apart[index].start for index in firsts))


def _apart(words: Iterable[Word]) -> tuple[Word, ...]:
    """The words with starts at least 1 ms apart, so that a start tells which word it is."""
    apart: list[Word] = []
    for word in words:
        start = max(word.start, apart[-1].start + 0.001) if apart else word.start
        end = max(start, word.end) if word.end > word.start else start
        apart.append(word.model_copy(update={"start": start, "end": end}))
    return tuple(apart)


def _stable(module: str) -> Any:
    """A module of stable-ts. It uses nothing of torchaudio for 16 kHz arrays, so that may lack."""
    try:
        importlib.import_module("torchaudio")
    except (ImportError, OSError):  # not there, or built for another torch
        sys.modules["torchaudio"] = ModuleType("torchaudio")
    return importlib.import_module(f"stable_whisper.{module}")


def _likelihood(found: Any) -> float:
    return statistics.fmean(float(word.probability or 0) for word in found.all_words())


def _checked(whisper: Any, cancel: Cancel) -> Any:
    """A shallow copy of the model that looks for a cancel before each inference."""
    checked = copy.copy(whisper)

    def encode(features: Any) -> Any:
        cancel.check()
        return whisper.encode(features)

    checked.encode = encode
    return checked


def _words(timed: Iterable[Any], language: str | None) -> list[Word]:
    """A line's words; what stable-ts split inside a word (at a hyphen, a mark) is joined again."""
    words: list[Word] = []
    for part in timed:
        text, start, end = str(part.word), float(part.start), float(part.end)
        if words and not text.startswith(" ") and language not in UNSPACED:
            last = words.pop()
            text, start, end = last.word + text, last.start, max(last.end, end)
        words.append(
            Word(word=text.strip(), start=start, end=end, probability=float(part.probability or 0))
        )
    return words
