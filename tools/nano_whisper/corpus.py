"""Spoken lines with exact times: rendering, storing, loading."""

import pickle
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from .espeak import PHONEME_EVENT, WORD_EVENT, Espeak, Manner, SpeechEvent
from .vocabulary import line_of_words

SAMPLE_RATE = 16000
_UP, _DOWN = 320, 441  # 22050 Hz, espeak-ng's rate, to 16000 Hz
_SILENT_LEVEL = 60  # of 32768: quieter samples at the ends of a line are not speech
_TAIL_SECONDS = 0.02
_PAUSES = frozenset(("", "_", "_:", "_|", "_!", ";", "_^_"))  # phoneme names without sound

Span = tuple[str, float, float]  # name, start and end in seconds


@dataclass(frozen=True)
class Line:
    """One spoken line: int16 audio, shape (n,), at 16 kHz; words and phonemes with seconds."""

    audio: np.ndarray
    words: list[Span]
    phonemes: list[Span]
    voice: str

    @property
    def text(self) -> str:
        """The words with single spaces."""
        return " ".join(word for word, _, _ in self.words)

    @property
    def samples(self) -> np.ndarray:
        """The audio as float32 in -1 to 1, shape (n,)."""
        return self.audio.astype(np.float32) / 32768


class Corpus:
    """Lines to draw from, all together (`lines`) or by voice (`by_voice`)."""

    def __init__(self, lines: Iterable[Line], without: Iterable[str] = ()) -> None:
        """`without`: texts to leave out where they have three words or more (the held-out ones)."""
        unwanted = set(without)
        self.lines = [line for line in lines if len(line.words) < 3 or line.text not in unwanted]
        self.by_voice: dict[str, list[Line]] = {}
        for line in self.lines:
            self.by_voice.setdefault(line.voice, []).append(line)
        self.voices = sorted(self.by_voice)

    def phoneme_numbers(self) -> dict[str, int]:
        """Number from 1 of every phoneme that sounds; 0 is silence."""
        names = {name for line in self.lines for name, _, _ in line.phonemes}
        return {name: i + 1 for i, name in enumerate(sorted(names - {"", "_", "_:"}))}


def _speech_end(audio: np.ndarray) -> int:
    """Index after the last sample that is louder than silence."""
    loud = np.flatnonzero(np.abs(audio.astype(np.int32)) > _SILENT_LEVEL)
    return int(loud[-1]) + 1 if len(loud) else len(audio)


def _word_starts(words: Sequence[str], events: Iterable[SpeechEvent]) -> list[float] | None:
    """Seconds at which each word starts; None where an event is missing for a word."""
    index_at, position = {}, 1
    for index, word in enumerate(words):
        index_at[position] = index
        position += len(word) + 1
    starts: dict[int, float] = {}
    for event in events:
        if event.kind == WORD_EVENT and event.position in index_at:
            starts.setdefault(index_at[event.position], event.seconds)
    return [starts[i] for i in range(len(words))] if len(starts) == len(words) else None


def _phoneme_spans(events: Iterable[SpeechEvent], end: float) -> list[Span]:
    """Each phoneme lasts until the next one starts; `end` closes the last."""
    heard = [(e.phoneme, e.seconds) for e in events if e.kind == PHONEME_EVENT]
    stops = [seconds for _, seconds in heard[1:]] + [end]
    spans = [
        (name, start, min(end, stop)) for (name, start), stop in zip(heard, stops, strict=False)
    ]
    return [span for span in spans if span[2] > span[1]]


def _word_spans(
    words: Sequence[str], starts: Sequence[float], phonemes: list[Span], end: float
) -> list[Span] | None:
    """Words narrowed to their sounding phonemes; None where a word would have no length."""
    spans: list[Span] = []
    for word, start, stop in zip(words, starts, [*starts[1:], end], strict=True):
        sounding = [
            (first, last)
            for name, first, last in phonemes
            if name not in _PAUSES and start - 0.005 <= first < stop - 0.001
        ]
        if sounding:
            start, stop = max(start, sounding[0][0]), min(stop, sounding[-1][1])
        if stop <= start:
            return None
        spans.append((word, start, stop))
    return spans


def _random_manner(rng: random.Random) -> Manner:
    """Rate, pitch and gap as varied as songs need; most lines have no gap between words."""
    gap = 0 if rng.random() < 0.6 else rng.randint(1, 10)
    return Manner(rng.randint(115, 190), rng.randint(25, 75), rng.randint(20, 80), gap)


def render_line(
    espeak: Espeak, words: Sequence[str], rng: random.Random, voice: str
) -> Line | None:
    """Speak the words as one sentence; None where the events do not tell every word's time."""
    audio, events = espeak.say(" ".join(words) + ".", voice, _random_manner(rng))
    last = _speech_end(audio)
    end = last / espeak.sample_rate
    starts = _word_starts(words, events)
    if starts is None:
        return None
    phonemes = _phoneme_spans(events, end)
    spans = _word_spans(words, starts, phonemes, end)
    if spans is None:
        return None
    kept = audio[: last + int(_TAIL_SECONDS * espeak.sample_rate)].astype(np.float32)
    resampled = np.clip(resample_poly(kept, _UP, _DOWN), -32768, 32767).astype(np.int16)
    return Line(resampled, spans, phonemes, voice)


def render_lines(count: int, seed: int, voices: Sequence[str]) -> list[Line]:
    """`count` lines, the same for the same seed, voices and espeak-ng."""
    rng, espeak = random.Random(seed), Espeak()
    lines: list[Line] = []
    while len(lines) < count:
        line = render_line(espeak, line_of_words(rng), rng, rng.choice(voices))
        if line is not None:
            lines.append(line)
    return lines


def stored_lines(folder: Path, name: str, count: int, seed: int, voices: Sequence[str]) -> Path:
    """The file of these lines, rendered now unless an earlier run has left it."""
    path = folder / f"{name}-{count}-{seed}.pickle"
    if not path.exists():
        lines = render_lines(count, seed, voices)
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(pickle.dumps(lines, protocol=5))
        unfinished.rename(path)
    return path


def load_lines(path: Path) -> list[Line]:
    """Lines that `stored_lines` wrote; only open files this tool made (pickle runs code)."""
    lines: list[Line] = pickle.loads(path.read_bytes())
    return lines
