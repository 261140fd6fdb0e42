"""Measure 4: `auto_terminate`, from the accepted result to the end of the process."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from bench.table import Row
from bench.worker import JobServer, Worker, accepted

RUNS = 30
TARGET_MS = 150
PATIENCE = 30.0  # seconds after which a process that does not end is given up


def measure(folder: Path, *, runs: int = RUNS) -> list[Row]:
    """Each run is a fresh process, with a second job in the queue that it must not take."""
    tails: list[float] = []
    delivered = second = 0
    for _ in range(runs):
        with JobServer() as jobs:
            source = {"audio_url": "samples/line.flac", "language": "en"}
            first = jobs.submit({**source, "auto_terminate": True})
            later = jobs.submit(source)
            with Worker(jobs, folder) as worker:
                post = accepted(jobs, first)
                gone = worker.wait_gone(PATIENCE)
            if "error" in post.body:
                print(f"  no result but {post.body['error']}", file=sys.stderr)
            delivered += "error" not in post.body
            second += later in jobs.taken
            tails.append(1000 * (gone - post.at) if gone else math.inf)
    p50, p95 = (_percentile(tails, share) for share in (0.5, 0.95))
    return [
        Row(
            f"4 result accepted to process gone (n={runs})",
            f"p50 {p50:.0f} ms, p95 {p95:.0f} ms",
            "",
            f"{delivered} delivered, {second} second jobs",
            f"p95 <= {TARGET_MS} ms, {runs}, 0",
            p95 <= TARGET_MS and delivered == runs and second == 0,
        )
    ]


def _percentile(values: list[float], share: float) -> float:
    """By nearest rank: a value that was seen."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
