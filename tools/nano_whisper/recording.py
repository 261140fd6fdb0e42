"""What a recording does to a voice: tone, noise, chords, level, sixteen bits."""

import random

import numpy as np
from scipy.signal import lfilter

from .corpus import SAMPLE_RATE

_SILENT_REFERENCE = 0.05  # level that noise refers to where there is no voice


def chords(rng: random.Random, count: int) -> np.ndarray:
    """Plucked chords of four notes, shape (count,), peak 1."""
    samples, seconds = np.zeros(count), np.arange(count) / SAMPLE_RATE
    step = int(SAMPLE_RATE * rng.uniform(0.8, 2.5))
    for first in range(0, count, step):
        root = 110 * 2 ** (rng.randint(0, 18) / 12)
        part = seconds[first : first + step]
        for semitones in (0, rng.choice((3, 4)), 7, 12):
            pitch = root * 2 ** (semitones / 12)
            for harmonic in (1, 2, 3):
                wave = np.sin(2 * np.pi * pitch * harmonic * part + rng.random() * 6)
                decay = np.exp(-(part - part[0]) * rng.uniform(0, 2))
                samples[first : first + step] += wave / harmonic**1.5 * decay
    return samples / (np.abs(samples).max() + 1e-9)


def _noise(rng: random.Random, count: int) -> np.ndarray:
    """White or, in half the cases, low-passed noise, shape (count,), standard deviation 1."""
    source = np.random.RandomState(rng.randint(0, 2**31 - 1))
    noise = source.standard_normal(count).astype(np.float32)
    if rng.random() < 0.5:
        noise = lfilter([1], [1, -rng.uniform(0.5, 0.97)], noise).astype(np.float32)
    return noise / (noise.std() + 1e-9)


def _levelled(samples: np.ndarray, rng: random.Random) -> np.ndarray:
    """Peak between -25 and 0 dB; in most cases rounded as a file of 16 bits is."""
    peak = np.abs(samples).max()
    if peak > 0:
        samples = samples * (10 ** (rng.uniform(-25, 0) / 20) / (peak + 1e-6))
    if rng.random() < 0.7:
        samples = np.round(samples * 32767).astype(np.float32) / 32768
    return samples


def recorded(
    samples: np.ndarray, rng: random.Random, silence: bool, short_crop: bool
) -> np.ndarray:
    """The voice, shape (n,), as a recording might have it; crops are noisier than windows."""
    if rng.random() < 0.3 and not silence:
        samples = lfilter([1, -rng.uniform(-0.6, 0.8)], [1], samples).astype(np.float32)
    level = _SILENT_REFERENCE if silence else np.sqrt((samples**2).mean()) * 1.5
    chance = rng.random()
    if chance < (0.65 if short_crop else 0.5) or (silence and chance < 0.7):
        decibels = rng.uniform(12 if short_crop else 20, 55)
        samples = samples + _noise(rng, len(samples)) * level * 10 ** (-decibels / 20)
    if rng.random() < (0.12 if short_crop else 0.05):
        music = chords(rng, len(samples)) * level * 10 ** (-rng.uniform(3, 25) / 20)
        samples = samples + music.astype(np.float32)
    return _levelled(samples, rng)
