"""Measure 1: wall time of a job, against bare faster-whisper on the same audio."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.audio import loop
from bench.engine import Engine
from bench.table import Row

SECONDS = 180
PAIRS = 5
SHARE, MORE = 1.05, 0.5  # ours may take this many times bare's time, or this many seconds more
SOURCES = ("song", "verse", "stranger", "backing", "line")
STAGES = ("acquire", "decode", "model", "transcribe", "layout")


def measure(folder: Path, *, pairs: int = PAIRS) -> list[Row]:
    """Interleaved pairs; medians."""
    audio = loop(SOURCES, SECONDS, folder / "job.wav")
    engine = Engine(folder / "results")
    ours, bare, timings = [], [], []
    for _ in range(pairs):
        bare.append(_spent(lambda: engine.bare(audio)))
        ours.append(_spent(lambda: timings.append(engine.ours(audio).timings)))
    mine, theirs = (median(wall for wall, _ in runs) for runs in (ours, bare))
    mine_cpu, theirs_cpu = (median(cpu for _, cpu in runs) for runs in (ours, bare))
    spent = {stage: median(getattr(t, stage) or 0.0 for t in timings) for stage in STAGES}
    return [
        Row(
            f"1 job wall time, {SECONDS} s of audio (n={pairs})",
            f"{mine:.2f} s",
            f"{theirs:.2f} s",
            f"{mine / theirs:.3f} ({mine - theirs:+.2f} s)",
            f"<= {SHARE} or <= +{MORE} s",
            mine <= theirs * SHARE or mine <= theirs + MORE,
        ),
        Row(
            "1 ... CPU time, all threads",
            f"{mine_cpu:.2f} s",
            f"{theirs_cpu:.2f} s",
            f"{mine_cpu / theirs_cpu:.3f}",
            "",
            None,
        ),
        Row(
            "1 ... ours by stage",
            ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in spent.items()),
            "",
            f"rest {mine - sum(spent.values()):.3f} s",
            "",
            None,
        ),
    ]


def _spent(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor: the latter hardly see other programs."""
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu
