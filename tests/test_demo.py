"""`make demo`, with its shortest recording."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
from conftest import ROOT


def test_the_demo_ends_with_a_finished_row_and_leaves_nothing(tmp_path: Path) -> None:
    """A real PostgreSQL, localpod and the worker: words, times, route, files; then all is gone.

    What the machine has set for its real work is not touched.
    """
    state, out = tmp_path / "state", tmp_path / "out"
    env = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/tmp"),
        "STATE_DIR": str(state),
        "STORAGE_DIR": str(out),
        "DATABASE_URL": "postgresql://127.0.0.1:1/planted",
        "RUNPOD_API_KEY": "planted",
        "RUNPOD_ENDPOINT_ID": "planted",
        "CLOUDINARY_URL": "cloudinary://planted:planted@planted",
    }
    done = subprocess.run(
        [sys.executable, "tools/demo.py", "line"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + (state / "lyricpod.log").read_text()
    row = re.search(r"(line-\w+) +completed +8 +5\.5 s +[\d.]+ s +local +(\S+)", done.stdout)
    assert row, done.stdout
    kept = json.loads((out / "transcriptions" / row[1] / "results.json").read_text())
    assert len(kept["words"]) == 8
    assert kept["lines"][0]["text"] in done.stdout
    assert "1 of 1 jobs" in done.stdout
    assert "line.flac: 100% completed" in done.stderr
    assert "planted" not in done.stdout + done.stderr
    found = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in found if str(state) in str(line)], done.stderr
    assert not (state / "postgres" / "postmaster.pid").exists()
