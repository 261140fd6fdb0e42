"""Whisper's log-mel spectrogram, kept on disk and read a window at a time.

faster-whisper computes the features of the whole recording in memory (603 MB for ten
minutes). What it then does with them is to ask for their shape and for one 30-second
slice after another. So this stands in for that array: computed in blocks while the
audio is read, stored in a file, clamped by the maximum of the whole recording as
faster-whisper clamps them. Memory stays flat, and nothing is cut: windows, words and times
are those of an uncut run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handler.audio import Pcm

BLOCK_FRAMES = 3_000  # frames computed at a time: 30 s, about 30 MB of spectrum
PADDING = 160  # samples of silence that faster-whisper adds at the end
DYNAMIC_RANGE = 8.0  # in log10: what is 80 dB below the loudest point is cut off

Mel = npt.NDArray[np.float32]


class LogMel:
    """A (mels, frames) float32 array in a file, as far as faster-whisper looks at one.

    Args:
        path: the file: frames one after another, each of `mels` float32.
        peak: the largest value of the whole recording, log10.
        on_read: told the first frame of every slice before it is read; may raise.
    """

    ndim = 2

    def __init__(
        self, path: Path, mels: int, frames: int, peak: float, on_read: Callable[[int], None]
    ) -> None:
        self._path = path
        self._peak = peak
        self._on_read = on_read
        self.shape = (mels, frames)

    def __getitem__(self, key: tuple[Any, slice]) -> Any:
        """`[:, a:b]` is read from disk, (mels, b - a); `[..., a:]` with no end is a view."""
        _, frames = key
        start, stop, _ = frames.indices(self.shape[1])
        if frames.stop is None:
            return _View(self, start)
        self._on_read(start)
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> Mel:
        mels = self.shape[0]
        count = max(0, stop - start) * mels
        flat = np.fromfile(self._path, np.float32, count=count, offset=start * mels * 4)
        raw = flat.reshape(-1, mels).T
        clamped = np.maximum(raw, np.float32(self._peak - DYNAMIC_RANGE))
        return np.ascontiguousarray((clamped + np.float32(4.0)) / np.float32(4.0))


class _View:
    """The rest of a LogMel from a frame on: what language detection slices."""

    ndim = 2

    def __init__(self, whole: LogMel, start: int) -> None:
        self._whole = whole
        self._start = start
        self.shape = (whole.shape[0], whole.shape[1] - start)

    def __getitem__(self, key: tuple[Any, slice]) -> Any:
        rows, frames = key
        start, stop, _ = frames.indices(self.shape[1])
        return self._whole[rows, start + self._start : stop + self._start]


def compute(
    pcm: Pcm,
    extractor: Any,
    path: Path,
    on_read: Callable[[int], None],
    check: Callable[[], None] = lambda: None,
) -> LogMel:
    """The log-mel spectrogram of `pcm`, as `extractor` (faster-whisper's) defines it.

    Args:
        path: where to keep it: 32 kB for a second of audio with 80 mels, 51 kB with 128.
        on_read: see `LogMel`.
        check: called between blocks; may raise to end the work.
    """
    hop, n_fft = extractor.hop_length, extractor.n_fft
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    # As faster-whisper counts them: the last frame of the padded recording is dropped.
    frames = (pcm.length + PADDING) // hop
    peak = -np.inf
    with path.open("wb") as file:
        for first in range(0, frames, BLOCK_FRAMES):
            check()
            count = min(BLOCK_FRAMES, frames - first)
            samples = _block(pcm, first * hop, (count - 1) * hop + n_fft, n_fft // 2)
            log = _log_mel(samples, window, hop, n_fft, extractor.mel_filters)
            peak = max(peak, float(log.max()))
            file.write(np.ascontiguousarray(log.T).tobytes())
    return LogMel(path, extractor.mel_filters.shape[0], frames, peak, on_read)


def _block(pcm: Pcm, start: int, size: int, half: int) -> Mel:
    """`size` samples from `start` of the recording, padded and mirrored by `half` at its ends."""
    length = pcm.length + PADDING
    index = np.abs(np.arange(start - half, start - half + size))
    index = np.where(index >= length, 2 * (length - 1) - index, index)
    low, high = int(index.min()), int(index.max()) + 1
    audio = pcm.read(low, high)
    audio = np.pad(audio, (0, high - low - audio.size))
    return np.asarray(audio[index - low], np.float32)


def _log_mel(samples: Mel, window: Mel, hop: int, n_fft: int, filters: Mel) -> Mel:
    strided = np.lib.stride_tricks.sliding_window_view(samples, n_fft)[::hop]
    spectrum = np.fft.rfft(strided * window, axis=-1).astype(np.complex64)
    power = np.abs(spectrum.T) ** 2
    log: Mel = np.log10(np.clip(filters @ power, 1e-10, None)).astype(np.float32)
    return log
