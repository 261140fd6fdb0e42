"""Recordings of any length, made of the samples."""

from __future__ import annotations

import itertools
import wave
from collections.abc import Sequence
from pathlib import Path

from handler.audio import SAMPLE_BYTES, SAMPLE_RATE, decode
from lyricpod.cancel import Cancel

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def loop(names: Sequence[str], seconds: int, target: Path) -> Path:
    """Write the samples, one after another and again, as a 16 kHz mono WAV of `seconds`."""
    left = seconds * SAMPLE_RATE * SAMPLE_BYTES
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(SAMPLE_BYTES)
        file.setframerate(SAMPLE_RATE)
        for data in itertools.cycle([_pcm(name, target.parent) for name in names]):
            file.writeframes(data[:left])
            left -= len(data)
            if left <= 0:
                return target
    raise AssertionError("a cycle has no end")


def _pcm(name: str, folder: Path) -> bytes:
    path = folder / f"{name}.pcm"
    decode(SAMPLES / f"{name}.flac", path, max_seconds=3600, cancel=Cancel())
    return path.read_bytes()
