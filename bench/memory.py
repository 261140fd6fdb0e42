"""Measure 3: peak memory of hours against minutes, and that no word differs from an uncut run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from bench.audio import loop
from bench.table import Row
from bench.worker import ROOT

SHORT = 600
HOUR = 3600
TARGET = 1.25


@dataclass(frozen=True)
class Answer:
    """What one process found and took."""

    words: list[list[Any]]
    peak_mb: float


def measure(folder: Path, *, hours: int = 1) -> list[Row]:
    """Three processes: ours on ten minutes, bare on the same, ours on `hours`."""
    minutes = loop(("song",), SHORT, folder / "short.wav")
    ours, bare = _run("ours", minutes, folder), _run("bare", minutes, folder)
    long = _run("ours", loop(("song",), hours * HOUR, folder / "long.wav"), folder)
    ratio = long.peak_mb / ours.peak_mb
    differing = _differing([w[0] for w in ours.words], [w[0] for w in bare.words])
    moved = _differing([tuple(w) for w in ours.words], [tuple(w) for w in bare.words])
    part = "" if hours == 3 else "; 3 h with --full"
    return [
        Row(
            f"3 peak memory, {hours} h over 10 min (n=1{part})",
            f"{long.peak_mb:.0f} MB over {ours.peak_mb:.0f} MB",
            f"{bare.peak_mb:.0f} MB (10 min)",
            f"{ratio:.2f}",
            f"<= {TARGET}",
            ratio <= TARGET,
        ),
        Row(
            "3 ... words differing from an uncut bare run, 10 min",
            f"{len(ours.words)} words",
            f"{len(bare.words)} words",
            f"{differing} in text, {moved} in text or time",
            "0 in text",
            differing == 0,
        ),
    ]


def _run(way: str, audio: Path, folder: Path) -> Answer:
    answer = folder / "answer.json"
    command = [sys.executable, "-m", "bench.once", way, str(audio), str(answer)]
    subprocess.run(command, cwd=ROOT, check=True)
    return Answer(**json.loads(answer.read_text()))


def _differing(ours: list[Any], bare: list[Any]) -> int:
    """How many words are not common to both, in order."""
    changes = SequenceMatcher(None, ours, bare, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for tag, a, b, c, d in changes if tag != "equal")
