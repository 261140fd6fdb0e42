"""Any audio file -> 16 kHz mono samples on disk, and back in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler

from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

SAMPLE_RATE = 16_000  # Hz; what Whisper hears
SAMPLE_BYTES = 2  # signed 16 bit, as faster-whisper decodes too
MAX_BAD_PACKETS = 500  # a file that fails this often in a row holds no more sound

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
        return raw.astype(np.float32) / np.float32(32768.0)


def decode(
    source: Path,
    target: Path,
    *,
    max_seconds: float,
    cancel: Cancel,
    on_seconds: Callable[[float, float | None], None] = lambda done, total: None,
) -> Pcm:
    """Decode the first audio stream of `source` into `target`.

    Args:
        max_seconds: longer audio is refused, before decoding where the file says its length.
        on_seconds: told the seconds decoded so far, and the total where it is known.

    Raises:
        JobError: `source_not_audio`, `source_too_long`, `cancelled`.
    """
    try:
        with av.open(str(source), metadata_errors="ignore") as container:
            length = _decode(container, target, max_seconds, cancel, on_seconds)
    except (av.error.FFmpegError, ValueError, UnicodeError) as error:
        raise _not_audio(_why(error)) from error
    if length == 0:
        raise _not_audio("it holds no sound that can be decoded")
    return Pcm(target, length)


def _decode(
    container: Any,
    target: Path,
    max_seconds: float,
    cancel: Cancel,
    on_seconds: Callable[[float, float | None], None],
) -> int:
    if not container.streams.audio:
        raise _not_audio("it has no audio stream")
    total = container.duration / av.time_base if container.duration else None
    _refuse_too_long(total, max_seconds)
    resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    length = 0
    with target.open("wb") as file:
        for frame in _frames(container):
            cancel.check()
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray()
                file.write(samples.tobytes())
                length += samples.size
            _refuse_too_long(length / SAMPLE_RATE, max_seconds)
            on_seconds(length / SAMPLE_RATE, total)
    return length


def _frames(container: Any) -> Iterator[Any]:
    """Decoded frames, damaged ones left out, then None to flush the resampler."""
    frames = iter(container.decode(audio=0))
    bad = 0
    while bad < MAX_BAD_PACKETS:
        try:
            frame = next(frames)
        except StopIteration:
            break
        except av.error.InvalidDataError:
            bad += 1
            continue
        bad = 0
        frame.pts = None  # gaps and jumps in the file's clock would be refused
        yield frame
    yield None


def _refuse_too_long(seconds: float | None, max_seconds: float) -> None:
    if seconds is not None and seconds > max_seconds:
        raise JobError(
            ErrorCode.SOURCE_TOO_LONG,
            f"the audio is longer than {max_seconds:.0f} s (at least {seconds:.0f} s)",
            hint="send a shorter recording, or raise MAX_AUDIO_SECONDS on the worker",
        )


def _not_audio(why: str) -> JobError:
    return JobError(
        ErrorCode.SOURCE_NOT_AUDIO,
        f"the source can't be read as audio: {why}",
        hint="send a complete audio or video file, such as mp3, m4a, flac, ogg or wav",
    )


def _why(error: Exception) -> str:
    # FFmpeg's errors carry the local file name behind the reason: keep the reason alone.
    return str(getattr(error, "strerror", None) or type(error).__name__)
