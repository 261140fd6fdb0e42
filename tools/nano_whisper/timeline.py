"""Lines laid out on a time line: what is sung in one window, and when."""

import random
from dataclasses import dataclass, field

import numpy as np

from .corpus import SAMPLE_RATE, Corpus, Line, Span

_ONE_VOICE_SHARE = 0.75
_REPEAT_SHARE = 0.08  # of lines that are the line before once more, as in a chorus
_PREVIOUS_TAIL_SHARE = 0.12  # of windows that start in the last sound of an earlier word
_LINE_END_SAMPLES = 300  # silence at a line's end to skip when taking its last sound


@dataclass
class Timeline:
    """Audio, shape (n,), float32 at 16 kHz, and the words in it, in seconds from its start.

    `cut_line`: the last line where the window ends inside it, else None.
    """

    samples: np.ndarray
    lines: list[list[Span]] = field(default_factory=list)
    cut_line: list[Span] | None = None
    phonemes: list[Span] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """No line starts in this window."""
        return not self.lines and self.cut_line is None


def silent_timeline(seconds: float) -> Timeline:
    """Nothing at all for `seconds`."""
    return Timeline(np.zeros(int(seconds * SAMPLE_RATE), np.float32))


def _shifted(spans: list[Span], seconds: float) -> list[Span]:
    return [(name, seconds + start, seconds + end) for name, start, end in spans]


def _first_pause(rng: random.Random) -> float:
    """Seconds before the first line."""
    return rng.uniform(0, 0.6) if rng.random() < 0.8 else rng.uniform(0.6, 3.0)


def _next_pause(rng: random.Random, density: float) -> float:
    """Seconds between two lines; `density` (0 to 1) makes a window's pauses long as a whole."""
    kind = rng.random() * 0.7 + density * 0.3
    if kind < 0.6:
        return rng.uniform(0.15, 0.7)
    return rng.uniform(0.7, 2) if kind < 0.9 else rng.uniform(2, 5)


def _add_previous_tail(samples: np.ndarray, line: Line, rng: random.Random) -> float:
    """Put the last sound of `line` at the start; returns the seconds from which lines may start."""
    count = min(len(samples), int(SAMPLE_RATE * rng.uniform(0.02, 0.09)))
    if len(line.audio) > count + _LINE_END_SAMPLES:
        tail = line.samples[-count - _LINE_END_SAMPLES : -_LINE_END_SAMPLES]
        samples[:count] += tail[:count]
    return count / SAMPLE_RATE + 0.08


def _fit_whole(
    line: Line, audio: np.ndarray, pool: list[Line], room: int, rng: random.Random
) -> tuple[Line, np.ndarray, int] | None:
    """A line that fits whole in `room` samples, its audio and first sample; None if none does."""
    if len(audio) < room:
        return line, audio, room - len(audio)
    shorter = min(rng.choices(pool, k=12), key=lambda other: len(other.audio))
    if len(shorter.audio) >= room:
        return None
    return shorter, shorter.samples, 0


def lay_lines(corpus: Corpus, rng: random.Random, seconds: float, may_cut: bool) -> Timeline:
    """Fill `seconds` with lines. `may_cut`: the window's end may fall inside the last line."""
    room = int(seconds * SAMPLE_RATE)
    timeline = Timeline(np.zeros(room, np.float32))
    one_voice = rng.random() < _ONE_VOICE_SHARE
    pool = corpus.by_voice[rng.choice(corpus.voices)] if one_voice else corpus.lines
    now = _first_pause(rng)
    if rng.random() < _PREVIOUS_TAIL_SHARE:
        now = max(now, _add_previous_tail(timeline.samples, rng.choice(pool), rng))
    line: Line | None = None
    density, window_gain = rng.random(), rng.uniform(0.4, 1)
    while now < seconds - 0.3:
        repeat = line is not None and rng.random() < _REPEAT_SHARE
        line = line if repeat and line is not None else rng.choice(pool)
        gain = window_gain * rng.uniform(0.7, 1.2)
        end = _lay_one(timeline, line, gain, now, pool, rng, may_cut)
        if end is None:
            break
        now = end + _next_pause(rng, density)
    return timeline


def _lay_one(
    timeline: Timeline,
    line: Line,
    gain: float,
    now: float,
    pool: list[Line],
    rng: random.Random,
    may_cut: bool,
) -> float | None:
    """Add a line at `now` seconds; returns where it ends, None where the window is full."""
    room = len(timeline.samples)
    audio, first = line.samples * gain, int(now * SAMPLE_RATE)
    if first + len(audio) > room and not may_cut:
        fitting = None if timeline.lines else _fit_whole(line, audio, pool, room, rng)
        if fitting is None:
            return None
        line, audio, first = fitting
        now = first / SAMPLE_RATE
    kept = min(len(audio), room - first)
    timeline.samples[first : first + kept] += audio[:kept]
    words = _shifted(line.words, now)
    timeline.phonemes += _shifted(line.phonemes, now)
    if first + len(audio) > room:
        timeline.cut_line = words
        return None
    timeline.lines.append(words)
    return words[-1][2]
