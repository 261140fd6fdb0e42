"""`python -m bench`: run the measures and print one table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import chaos, decode, end, job, memory, orchestrator, start
from bench.table import Row, render


def main() -> None:
    """Run what was asked for; exit 1 if a target is not met."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", type=int, choices=(1, 2, 3, 4, 5, 6, 7), help="one measure")
    parser.add_argument("--quick", action="store_true", help="fewer runs: a look, not a figure")
    parser.add_argument("--full", action="store_true", help="measure 3 with 3 h of audio, not 1 h")
    asked = parser.parse_args()
    measures: dict[int, Callable[[Path], list[Row]]] = {
        1: partial(job.measure, pairs=2 if asked.quick else job.PAIRS),
        2: partial(start.measure, pairs=2 if asked.quick else start.PAIRS),
        3: partial(memory.measure, hours=3 if asked.full else 1),
        4: partial(end.measure, runs=5 if asked.quick else end.RUNS),
        5: partial(orchestrator.measure, **(orchestrator.QUICK if asked.quick else {})),
        6: partial(chaos.measure, **(chaos.QUICK if asked.quick else {})),
        7: partial(decode.measure, pairs=3 if asked.quick else decode.PAIRS),
    }
    rows: list[Row] = []
    for number in [asked.only] if asked.only else sorted(measures):
        print(f"measure {number} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="lyricpod-bench-") as folder:
            rows += measures[number](Path(folder))
    print(f"{os.cpu_count()} cores, CPU, int8, nano; load now {os.getloadavg()[0]:.1f}\n")
    print(render(rows))
    sys.exit(any(row.met is False for row in rows))


if __name__ == "__main__":
    main()
