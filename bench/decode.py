"""Measure 7: what a decoding process of its own costs, against the same work in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import av
from av.audio.resampler import AudioResampler

from bench.audio import loop
from bench.table import Row
from handler.audio import SAMPLE_BYTES, SAMPLE_RATE, decode
from handler.decoder import Decoder
from lyricpod.cancel import Cancel

SECONDS = 180
HOUR = 3600
PAIRS = 7
MORE = 0.3  # seconds that a process of its own may add to a job
GROWTH = 1.25  # an hour may take this many times the memory of three minutes


def measure(folder: Path, *, pairs: int = PAIRS) -> list[Row]:
    """Interleaved: in this process, in one started then, in one that stood ready; medians."""
    source, hour = _mp3(SECONDS, folder), folder / "hour.mp3"
    hour.write_bytes(source.read_bytes() * (HOUR // SECONDS))
    target = folder / "audio.pcm"
    bare, fresh, ready = [], [], []
    for _ in range(pairs):
        bare.append(_spent(partial(_in_process, source, target)))
        fresh.append(_spent(lambda: _decode(source, target, Decoder())))
        ready.append(_spent(partial(_decode, source, target, _warm(Decoder()))))
    idle, short, long = (_peak(path, target) for path in (None, source, hour))
    theirs, mine, best = (median(wall for wall, _ in runs) for runs in (bare, fresh, ready))
    theirs_cpu, mine_cpu = (median(cpu for _, cpu in runs) for runs in (bare, fresh))
    name = f"7 decode {SECONDS} s of MP3, a process for it (n={pairs})"
    return [
        _row(name, mine, theirs, f"<= +{MORE} s", mine - theirs <= MORE),
        _row("7 ... process started during the download", best, theirs),
        _row("7 ... CPU time, its start included", mine_cpu, theirs_cpu),
        Row(
            f"7 ... peak memory, 60 min over 3 min (it waits with {idle:.0f} MB)",
            f"{long:.0f} MB",
            f"{short:.0f} MB",
            f"{long / short:.2f}",
            f"<= {GROWTH}",
            long / short <= GROWTH,
        ),
    ]


def _row(name: str, ours: float, bare: float, target: str = "", met: bool | None = None) -> Row:
    return Row(name, f"{ours:.3f} s", f"{bare:.3f} s", f"{ours - bare:+.3f} s", target, met)


def _decode(source: Path, target: Path, decoder: Decoder, **more: Any) -> None:
    decode(source, target, max_seconds=2 * HOUR, cancel=Cancel(), decoder=decoder, **more)


def _in_process(source: Path, target: Path) -> None:
    """The plain loop that every PyAV program has."""
    resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    with av.open(str(source)) as container, target.open("wb") as file:
        for frame in (*container.decode(audio=0), None):
            for piece in resampler.resample(frame):
                if piece:
                    file.write(bytes(piece.planes[0])[: piece.samples * SAMPLE_BYTES])


def _spent(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, ended child processes included."""
    wall, cpu = time.monotonic(), sum(os.times()[:4])
    work()
    return time.monotonic() - wall, sum(os.times()[:4]) - cpu


def _warm(decoder: Decoder) -> Decoder:
    """The same, once it has imported everything and waits for its order."""
    for _ in range(400):  # of 5 ms
        if "pipe_read" in Path(f"/proc/{decoder.pid}/wchan").read_text():
            return decoder
        time.sleep(0.005)
    raise RuntimeError("the decoder does not wait for its order, or this system hides it")


def _peak(source: Path | None, target: Path) -> float:
    """MB that a decoder has taken at most, towards its end; without a source: while it waits."""
    decoder, peaks = _warm(Decoder()), []
    peaks.append(_status(decoder.pid)["VmHWM"])
    if source:

        def on_seconds(done: float, total: float | None) -> None:
            peaks.append(_status(decoder.pid).get("VmHWM", "0"))

        _decode(source, target, decoder, on_seconds=on_seconds)
    decoder.close()
    return max(int(peak) for peak in peaks) / 1024


def _status(pid: int) -> dict[str, str]:
    """First words of the process's figures."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        name: (value.split() or [""])[0] for name, _, value in (x.partition(":") for x in lines)
    }


def _mp3(seconds: int, folder: Path) -> Path:
    target = folder / f"{seconds}.mp3"
    source = loop(("song",), seconds, folder / f"{seconds}.wav")
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        stream = made.add_stream("libmp3lame", rate=44100, layout="stereo")
        context = stream.codec_context
        context.open()
        resampler = AudioResampler("fltp", "stereo", 44100, frame_size=context.frame_size)
        for frame in (*given.decode(audio=0), None):
            for piece in resampler.resample(frame):
                made.mux(stream.encode(piece) if piece else [])
        made.mux(stream.encode(None))
    source.unlink()
    return target
