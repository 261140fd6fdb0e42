"""Words moved out of silence, by loudness alone: numpy only.

The method and its constants are those of stable-ts's `adjust_by_silence` (MIT, by jianfch), so
that importing torch, which takes over a second, is left to jobs that align lyrics.
tests/test_silence.py holds this to the same times.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from handler.audio import SAMPLE_RATE, Samples
from lyricpod.result import Word

UNITS = 50  # looks at the loudness in a second
UNIT_SAMPLES = SAMPLE_RATE // UNITS
LOUDEST = 0.001  # the share of samples that are at least as loud as the reference
HEADROOM = 1.75  # full scale over the reference
QUIETEST = 1e-5  # a recording that is never louder is silent
SMOOTHED_UNITS = 5  # of which the mean is taken
LEVELS = 20  # of loudness; the lowest is silence
SHORTEST_SOUND = 0.1  # s; what is not longer is taken for noise within a silence
SHORTEST_WORD = 100  # ms; no word is made shorter
# How far a word may reach over both ends of a silence inside it, as a share of the silence.
OVERREACH = 0.3
ENDINGS = frozenset("\"'.。,，!！?？:：”)]}、」")  # a word that ends so keeps its start

Silences = npt.NDArray[np.int64]  # (n, 2): start and end, ms from the audio's start


def silences(audio: Samples, shortest: float) -> Silences:
    """The silent stretches of at least `shortest` seconds."""
    loudness = _loudness(audio)
    if not loudness.size:
        return np.empty((0, 2), np.int64)
    half = SMOOTHED_UNITS // 2
    padded = np.pad(loudness, half, mode="reflect") if loudness.size > half else loudness
    kernel = np.full(SMOOTHED_UNITS, 1 / SMOOTHED_UNITS)
    smooth = np.convolve(padded, kernel, "valid") if loudness.size > half else loudness
    sounding = np.zeros(loudness.size, np.bool_)
    sounds = _runs(np.rint(smooth * LEVELS) > 0)
    for start, end in sounds[_seconds(sounds) > SHORTEST_SOUND]:
        sounding[start : end + 1] = True
    found = _runs(~sounding)
    return found[_seconds(found) >= shortest] * (1000 // UNITS)


def out_of_silence(words: Sequence[Word], cuts: Sequence[int], quiet: Silences) -> list[Word]:
    """The words between the first and last cut, their starts or ends moved to where sound is.

    Args:
        words: in the same time as `quiet`, seconds.
        cuts: each but the last begins a segment; the last word of one keeps its start.
    """
    moved: list[Word] = []
    for low, high in pairwise(cuts):
        for index in range(low, high):
            keeps_start = index == high - 1 or words[index].word[-1:] in ENDINGS
            moved.append(_moved(words[index], quiet, keeps_start=keeps_start))
    return moved


def _loudness(audio: Samples) -> npt.NDArray[np.float64]:
    """The amplitude at every unit, 1 being somewhat above the loudest; empty if there is none."""
    top, units = int(audio.size * LOUDEST), round(audio.size / UNIT_SAMPLES) + 1
    if not top or units <= 2:
        return np.empty(0)
    amplitude = np.abs(audio)
    reference = float(np.partition(amplitude, -top)[-top])
    if reference < QUIETEST:
        return np.zeros(units)
    where = np.maximum((np.arange(units) + 0.5) * (audio.size / units) - 0.5, 0)
    left = where.astype(np.int64)
    right = np.minimum(left + 1, audio.size - 1)
    between = amplitude[left] + (where - left) * (amplitude[right] - amplitude[left])
    return np.asarray(between / min(1.0, reference * HEADROOM), np.float64)


def _runs(mask: npt.NDArray[np.bool_]) -> Silences:
    """Where the mask is true: (n, 2), each first index and the one after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return edges.reshape(-1, 2)


def _seconds(runs: Silences) -> npt.NDArray[np.float64]:
    # Not from the number of units: stable-ts loses some that are just long enough so.
    return np.asarray(runs[:, 1] / UNITS - runs[:, 0] / UNITS, np.float64)


def _moved(word: Word, quiet: Silences, *, keeps_start: bool) -> Word:
    start, end = round(word.start * 1000), round(word.end * 1000)
    start, end = _trimmed(start, end, quiet, keeps_start)
    if end - start > SHORTEST_WORD:
        start, end = _off_the_inner(start, end, quiet, keeps_start)
    return word.model_copy(update={"start": start / 1000, "end": end / 1000})


def _trimmed(start: int, end: int, quiet: Silences, keeps_start: bool) -> tuple[int, int]:
    """Times after a silence over the word's start, or over its end, was cut off."""
    if end - start <= SHORTEST_WORD:
        return start, end
    begins, ends = quiet[:, 0], quiet[:, 1]
    if keeps_start:
        over = np.flatnonzero((start <= begins) & (begins < end) & (end <= ends))
        return start, max(int(begins[over[0]]), start + SHORTEST_WORD) if over.size else end
    over = np.flatnonzero((begins <= start) & (start < ends) & (ends <= end))
    return min(int(ends[over[0]]), end - SHORTEST_WORD) if over.size else start, end


def _off_the_inner(start: int, end: int, quiet: Silences, keeps_start: bool) -> tuple[int, int]:
    """Times after the one silence inside the word was cut off, with the little sound beyond it."""
    inside = quiet[(start <= quiet[:, 0]) & (quiet[:, 1] <= end)]
    if len(inside) != 1:
        return start, end
    begin, stop = (int(edge) for edge in inside[0])
    if min(begin - start, end - stop) > OVERREACH * (stop - begin):
        return start, end
    if keeps_start:
        return start, max(begin, start + SHORTEST_WORD)
    return min(stop, end - SHORTEST_WORD), end
