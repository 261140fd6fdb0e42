"""The process that decodes one file: started by `decoder.py`, and ended by its end.

It takes one order, a line of JSON, on standard input and answers in lines of JSON on standard
output: `{"seconds", "total"}` as it goes, then `{"done"}`, `{"too_long"}`, `{"not_audio"}` or
`{"fault"}`. It is run as a file, imports neither the package nor numpy and so starts in 80 ms.

What a hostile file can reach here is little. libav gets an open file instead of a name, the
formats that are lists of other files are refused, no protocol is allowed, nothing more can be
opened once the two files are, and memory, processor time and the size of what is written end at
limits that the kernel keeps.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import av
import av.error
import av.subtitles.codeccontext
import av.subtitles.stream  # PyAV imports these two at the first file, when no file can be opened
from av.audio.resampler import AudioResampler

MEMORY_BYTES = 1 << 30  # address space; an ordinary file takes a quarter of it, mostly libraries
MAX_BAD_PACKETS = 500  # a file that fails this often in a row holds no more sound
REPORT_SECONDS = 0.25  # between two reports of progress
RATES = range(1_000, 768_001)  # Hz; outside of it a header is wrong, and resampling explodes
OGG_BEGINS = 2  # flag of an Ogg page that begins a stream
BLOCK_BYTES = 1 << 16  # of one look for the next page
PR_SET_PDEATHSIG = 1  # of Linux's prctl
# Each demuxer that may meet a stranger's file. Absent are those that open further files or
# addresses (hls, dash, concat, sdp, rtsp, imf, image2), and those of pictures, text and games.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,loas,matroska,mov,mp3,mpc,"
    "mpc8,mpeg,mpegts,mxf,nut,ogg,oma,rm,tak,truehd,tta,voc,w64,wav,wv,xwma"
)
GUESSED = frozenset("aac ac3 amr dts eac3 loas mp3 mpeg mpegts truehd".split())  # no true length
# Decoders of sound alone: libav would decode a cover picture too, to learn its pixel format.
CODECS = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_swf,alac,als,amrnb,amrwb,ape,"
    "atrac3,atrac3p,cook,dca,dsd_lsbf,dsd_lsbf_planar,dsd_msbf,dsd_msbf_planar,eac3,flac,gsm,"
    "gsm_ms,libopencore_amrnb,libopencore_amrwb,libopus,libspeex,libvorbis,mp1,mp1float,mp2,"
    "mp2float,mp3,mp3float,mpc7,mpc8,nellymoser,opus,pcm_alaw,pcm_bluray,pcm_dvd,pcm_f16le,"
    "pcm_f24le,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,"
    "pcm_s24le,pcm_s32be,pcm_s32le,pcm_s64be,pcm_s64le,pcm_s8,pcm_u16be,pcm_u16le,pcm_u24be,"
    "pcm_u24le,pcm_u32be,pcm_u32le,pcm_u8,speex,tak,truehd,tta,vorbis,wavpack,wmalossless,wmapro,"
    "wmav1,wmav2,wmavoice"
)
NOT_READ = "it is empty, damaged at its start, a playlist, or in no format of sound or film"
NO_SOUND = "no sound in it can be decoded"
OPTIONS = {"format_whitelist": FORMATS, "codec_whitelist": CODECS, "protocol_whitelist": "none"}


@dataclass(frozen=True)
class Order:
    """What to decode, and how far; seconds."""

    source: str
    target: str
    rate: int  # Hz
    max_seconds: float
    processor_seconds: float


class _NotAudio(Exception):
    """The file holds nothing that can be decoded; the reason is the text."""


class _TooLong(Exception):
    """The sound is longer than wanted; the seconds known of are the argument."""


class _Input:
    """A piece of an open file without its name: libav goes by what it holds, not by its ending."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file, self._start, self._stop = file, start, stop
        file.seek(start)

    def read(self, size: int) -> bytes:
        return self._file.read(max(0, min(size, self._stop - self._file.tell())))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: self._start, os.SEEK_CUR: self._file.tell(), os.SEEK_END: self._stop}
        wanted = min(max(self._start, origin[whence] + offset), self._stop)
        return self._file.seek(wanted) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start


class _Output:
    """Where the samples go; it refuses more than are wanted, and tells how far it is."""

    def __init__(self, file: BinaryIO, order: Order) -> None:
        self._file = file
        self._order = order
        self.rate = order.rate
        self._reported = 0.0
        self.bytes = 0
        self.total: float | None = None  # seconds, where they are known

    def expect(self, seconds: float | None) -> None:
        """Refuse what the file itself says is too long."""
        self.total = seconds
        if seconds is not None and seconds > self._order.max_seconds:
            raise _TooLong(seconds)

    def write(self, samples: bytes) -> None:
        self._file.write(samples)
        self.bytes += len(samples)
        seconds = self.bytes / (2 * self._order.rate)
        if seconds > self._order.max_seconds:
            raise _TooLong(seconds)
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            _say({"seconds": seconds, "total": self.total})


class _Mono:
    """Frames of any shape, even one that changes between them -> 16 bit mono at one rate."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._shape: tuple[str, str, int] | None = None
        self._resampler = self._new()

    def feed(self, frame: Any) -> bytes:
        """The samples that a frame completes; at a new shape, also what the old one held back."""
        if frame.sample_rate not in RATES:
            raise ValueError(f"a sample rate of {frame.sample_rate} Hz")
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        rest = b"" if shape == self._shape else self.rest()
        frame.pts = None  # gaps and jumps in the file's clock would be refused
        samples = self._samples(frame)
        self._shape = shape  # not before: a resampler that fails at once can't be flushed
        return rest + samples

    def rest(self) -> bytes:
        """What is held back; the next frame may have any shape."""
        if self._shape is None:
            self._resampler = self._new()
            return b""
        self._shape = None
        try:
            return self._samples(None)
        finally:
            self._resampler = self._new()

    def _new(self) -> AudioResampler:
        return AudioResampler(format="s16", layout="mono", rate=self._rate)

    def _samples(self, frame: Any) -> bytes:
        pieces = self._resampler.resample(frame)
        # A plane is longer than its samples: it is padded for the processor.
        return b"".join(bytes(piece.planes[0])[: piece.samples * 2] for piece in pieces if piece)


def main() -> None:
    """Decode what standard input orders; end in silence if it closes first."""
    _end_with(int(sys.argv[1]))
    line = sys.stdin.buffer.readline()
    if not line:
        return
    try:
        _decode(Order(**json.loads(line)))
        answer: dict[str, Any] = {"done": True}
    except _TooLong as error:
        answer = {"too_long": error.args[0]}
    except _NotAudio as error:
        answer = {"not_audio": str(error)}
    except MemoryError:
        answer = {"not_audio": f"decoding it takes more than {MEMORY_BYTES >> 20} MB of memory"}
    except Exception as error:  # noqa: BLE001 - this process's boundary: the parent raises it
        answer = {"fault": f"{type(error).__name__}: {error}"}
    _say(answer)
    sys.stdout.flush()
    os._exit(0)  # what libav frees after a hostile file can crash it when all is done


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent; leave the terminal's signals to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _decode(order: Order) -> None:
    with Path(order.source).open("rb") as source, Path(order.target).open("wb") as target:
        _confine(order)
        output, reason = _Output(target, order), _NotAudio(NO_SOUND)
        links, end = _links(source), source.seek(0, os.SEEK_END)
        for start, stop in zip(links, (*links[1:], end), strict=True):
            try:
                _decode_link(_Input(source, start, stop), output, alone=len(links) == 1)
            except _NotAudio as error:
                reason = error
    if not output.bytes:
        raise reason


def _links(file: BinaryIO) -> list[int]:
    """Where each recording in a file begins: 0, and in a chained Ogg further ones.

    libav goes on at a new link only where channels and sample rate stay as they were.
    """
    links, at, first = [0], 0, True  # `first`: among the pages that begin a link's streams
    while file.seekable() and file.seek(at) == at and len(head := file.read(27)) == 27:
        if head[:4] != b"OggS":
            if not at or (at := _next_page(file, at)) < 0:
                break
            continue
        begins = bool(head[5] & OGG_BEGINS)
        if begins and not first:
            links.append(at)
        first = begins
        at += 27 + head[26] + sum(file.read(head[26]))
    return links


def _next_page(file: BinaryIO, at: int) -> int:
    """Where an Ogg page begins behind a damaged one; -1 if nowhere."""
    file.seek(at)
    while block := file.read(BLOCK_BYTES):
        found = block.find(b"OggS")
        if found >= 0:
            return at + found
        at += max(1, len(block) - 3)
        file.seek(at)
        if len(block) < BLOCK_BYTES:
            break
    return -1


def _confine(order: Order) -> None:
    """From here on: no further file or socket, and an end to memory, time and output."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    size = int((order.max_seconds + 60) * order.rate) * 2
    seconds = int(order.processor_seconds) + 1
    for kind, limit in (
        (resource.RLIMIT_NOFILE, lowest_free),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY_BYTES),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        if kind != resource.RLIMIT_AS or sys.platform == "linux":
            resource.setrlimit(kind, (limit, limit))


def _decode_link(source: _Input, output: _Output, *, alone: bool) -> None:
    try:
        container = av.open(source, options=OPTIONS, metadata_errors="ignore", io_open=_refuse)
    except av.error.MemoryError:
        raise
    except (av.error.FFmpegError, PermissionError, ValueError) as error:
        raise _NotAudio(NOT_READ) from error
    stream = _stream(container)
    if alone and container.format.name not in GUESSED:
        output.expect(_length(container, stream))
    for samples in _pieces(container, stream, output.rate):
        output.write(samples)


def _stream(container: Any) -> Any:
    """The stream a player would take, or the first that can be decoded."""
    if not container.streams.audio:
        raise _NotAudio("it has no audio stream")
    best = container.streams.best("audio")
    for stream in (best, *container.streams.audio):
        if stream is not None and stream.codec_context is not None:
            stream.thread_count = 1
            return stream
    raise _NotAudio("its audio is in a coding that is not known here")


def _length(container: Any, stream: Any) -> float | None:
    """Seconds, as the file gives them."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _pieces(container: Any, stream: Any, rate: int) -> Iterator[bytes]:
    """Samples in order, what is damaged left out."""
    mono, bad, reason, sound = _Mono(rate), 0, "", False
    for packet in _packets(container, stream):
        try:
            for frame in packet.decode():
                yield mono.feed(frame)
                bad, sound = 0, True
        except av.error.MemoryError:
            raise
        except (av.error.FFmpegError, ValueError) as error:
            bad, reason = bad + 1, _why(error)
            if bad > MAX_BAD_PACKETS:
                break
    yield mono.rest()
    if not sound and reason:
        raise _NotAudio(f"{NO_SOUND}: {reason}")


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets to the end, beginning again behind what the file's own order stumbles over."""
    for _ in range(MAX_BAD_PACKETS):
        try:
            yield from container.demux(stream)
        except av.error.InvalidDataError:
            continue
        except av.error.FFmpegError:
            return
        return


def _refuse(url: str, flags: int, options: Any) -> NoReturn:
    raise PermissionError("a file may not open others")


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _why(error: Exception) -> str:
    # FFmpeg's errors carry the file's name behind the reason: keep the reason alone.
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


if __name__ == "__main__":
    main()
