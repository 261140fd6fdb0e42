"""One run in a process of its own: `python -m bench.once ours|bare AUDIO ANSWER`.

Writes `{words, peak_mb}` to ANSWER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.engine import Engine
from lyricpod.timeline import timeline


def run(way: str, audio: Path, answer: Path) -> None:
    """Do it, with a beam of 1 so that hours of audio stay measurable."""
    engine = Engine(answer.parent / "results")
    if way == "ours":
        words = engine.ours(audio, beam_size=1).words or ()
    else:
        words = timeline(tuple(engine.bare(audio, beam_size=1)), None)
    listed = [[w.word, w.start, w.end] for w in words]
    answer.write_text(json.dumps({"words": listed, "peak_mb": _peak_mb()}))


def _peak_mb() -> float:
    # ru_maxrss would count the peak of the process that started this one: Linux hands it on.
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kib) * 1024 / 1e6


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
