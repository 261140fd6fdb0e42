"""Any audio file -> 16 kHz mono samples on disk, and back in pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from handler.decoder import Decoder
from lyricpod.cancel import Cancel

SAMPLE_RATE = 16_000  # Hz; what Whisper hears
SAMPLE_BYTES = 2  # signed 16 bit, as faster-whisper decodes too

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Pcm:
    """Decoded audio on disk: 16 kHz, mono, signed 16 bit, no header.

    Kept in a file because three hours are 345 MB: memory stays flat however long it is.
    """

    path: Path
    length: int

    @property
    def seconds(self) -> float:
        """The audio's duration."""
        return self.length / SAMPLE_RATE

    def read(self, start: int, stop: int) -> Samples:
        """Samples `start` to `stop` as float32 of -1 to 1, cut at the recording's end."""
        start, stop = max(0, start), min(self.length, stop)
        count = max(0, stop - start)
        raw = np.fromfile(self.path, np.int16, count=count, offset=start * SAMPLE_BYTES)
        samples = raw.astype(np.float32)
        samples /= np.float32(32768.0)  # in place: an hour of them is 230 MB
        return samples


def decode(
    source: Path,
    target: Path,
    *,
    max_seconds: float,
    cancel: Cancel,
    on_seconds: Callable[[float, float | None], None] = lambda done, total: None,
    decoder: Decoder | None = None,
) -> Pcm:
    """Decode the audio stream that a player would take of `source` into `target`.

    Args:
        max_seconds: longer audio is refused, before decoding where the file says its length.
        on_seconds: told the seconds decoded so far, and the total where it is known.
        decoder: a process started ahead of time, while the source was still on its way.

    Raises:
        JobError: `source_not_audio`, `source_too_long`, `cancelled`.
    """
    with decoder or Decoder() as process:
        process.decode(
            source,
            target,
            rate=SAMPLE_RATE,
            max_seconds=max_seconds,
            cancel=cancel,
            on_seconds=on_seconds,
        )
    return Pcm(target, target.stat().st_size // SAMPLE_BYTES)
