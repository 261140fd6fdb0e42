"""The whole flow on this machine: PostgreSQL, a RunPod endpoint, the worker, the orchestrator.

`make demo`. Offline: three recordings of samples/ go in, with the nano model; other ones if their
names are given. STATE_DIR and STORAGE_DIR say where the database and the results go.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator import JobProgress, Orchestrator, OrchestratorError, show
from orchestrator.log import configure
from orchestrator.watcher import LOG, follow

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ("line", "verse", "song")
FOLDERS = {"STATE_DIR": ".lyricpod/demo", "STORAGE_DIR": "out"}
SETTINGS = {
    "POLL_SECONDS": "0.3",  # for bars that move: the recordings are short
    # The worker's own, which it inherits.
    "MODEL": "nano",
    "DEVICE": "cpu",
    "ALLOW_FILE_SOURCES": "1",
    "HF_HUB_OFFLINE": "1",
    "LOG_LEVEL": "INFO",
}
# What this machine may have set for its real work.
OTHERS = ("RUNPOD_", "CLOUDINARY_", "YOUTUBE_", "LOCAL_", "DATABASE_", "PUBLIC_URL")


def main() -> int:
    """Run the demo; 0 if every job was completed."""
    begin = time.monotonic()
    os.chdir(ROOT)
    for name in [name for name in os.environ if name.startswith(OTHERS)]:
        del os.environ[name]
    os.environ.update({**FOLDERS, **os.environ, **SETTINGS})
    configure(os.environ)
    names = sys.argv[1:] or SAMPLES
    try:
        with Orchestrator.from_env() as orchestrator:
            state = orchestrator.settings.state_dir
            print(f"PostgreSQL runs in {state}; {len(names)} jobs go into its table jobs.")
            ended = work(orchestrator, names)
            failed = [progress for progress in ended if progress.status != "completed"]
            tell(orchestrator, [progress for progress in ended if progress not in failed])
    except OrchestratorError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    for progress in failed:
        print(f"{progress.job_id} failed: {progress.error}; see {state}/{LOG}")
    print(f"{len(ended) - len(failed)} of {len(ended)} jobs in {time.monotonic() - begin:.1f} s.")
    return 1 if failed else 0


def work(orchestrator: Orchestrator, names: Sequence[str]) -> list[JobProgress]:
    """Queue the samples, and run the loop until they are done."""
    labels = {}
    for name in names:
        path = ROOT / "samples" / f"{name}.flac"
        job_id = f"{name}-{secrets.token_hex(2)}"  # new each time, so that it is done anew
        labels[orchestrator.submit(job_id=job_id, audio_url=str(path), language="en")] = path.name
    return follow(orchestrator, labels, run=True)


def tell(orchestrator: Orchestrator, completed: list[JobProgress]) -> None:
    """The lines of one job, then all rows: words, times, route, and where the files are."""
    out = show.console(sys.stdout)
    results = [orchestrator.result(progress.job_id) for progress in completed]
    rows = {row.job_id: row for row in orchestrator.list(len(completed))}
    if results:
        heard = results[len(results) // 2]
        out.print(f"\nWhat was heard in {heard.job_id}:")
        out.print(show.lyrics(heard))
    if completed:
        found = [
            (progress, result, rows[progress.job_id])
            for progress, result in zip(completed, results, strict=True)
        ]
        out.print("\nThe rows, and the folders with results.json and subtitles.srt:")
        out.print(show.outcomes(found), "")


if __name__ == "__main__":
    sys.exit(main())
