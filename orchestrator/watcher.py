"""Follows jobs to their end on a terminal, and sees to it that somebody works on them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from orchestrator import show
from orchestrator.errors import DatabaseUnavailable
from orchestrator.service import JobProgress, Orchestrator

LOOK_SECONDS = 0.3  # between two looks at the jobs that are shown
LOOP_SECONDS = 5.0  # between two looks at whether anybody runs the loop
OUTAGE_SECONDS = 60.0  # an outage of the database that is waited out
LOG = "lyricpod.log"  # in STATE_DIR: what is logged while bars are drawn


def follow(orchestrator: Orchestrator, labels: dict[str, str], *, run: bool) -> list[JobProgress]:
    """Show jobs on stderr until they have ended; returns how, in the order of `labels`.

    Args:
        labels: how each job is called, by id.
        run: run the loop in this process while nobody else does.

    Raises:
        UnknownJob: a row is not there, or was deleted meanwhile.
        DatabaseUnavailable: for a minute.
    """
    with _terminal(Path(orchestrator.settings.state_dir)) as terminal:
        out = show.console(terminal)
        watcher = _Watcher(orchestrator, run, lambda said: out.print(show.text(said, "dim")))
        try:
            with show.Bars(out, labels) as bars:
                return watcher.follow(list(labels), bars)
        except (KeyboardInterrupt, SystemExit):  # SIGINT; SIGTERM or SIGHUP
            how = "with the next `lyricpod run`" if watcher.runs else "by itself"
            out.print(f"what has not ended goes on {how}; `lyricpod watch` shows it")
            raise


class _Watcher:
    """Looks at jobs until all have ended, and at whether anybody works on them."""

    def __init__(self, orchestrator: Orchestrator, run: bool, say: Callable[[str], None]) -> None:
        self._orchestrator = orchestrator
        self._run = run
        self._say = say
        self.runs = False
        self._told = False
        self._looked = float("-inf")
        self._answered = time.monotonic()

    def follow(self, job_ids: Sequence[str], bars: show.Bars) -> list[JobProgress]:
        """How each of them ended."""
        ended: dict[str, JobProgress] = {}
        while len(ended) < len(job_ids):
            try:
                self._see_to_the_loop()
                for job_id in job_ids:
                    if job_id not in ended:
                        progress = self._orchestrator.progress(job_id)
                        bars.show(progress)
                        if progress.ended:
                            ended[job_id] = progress
                self._answered = time.monotonic()
            except DatabaseUnavailable:
                if time.monotonic() - self._answered > OUTAGE_SECONDS:
                    raise
            if len(ended) < len(job_ids):
                time.sleep(LOOK_SECONDS)
        return [ended[job_id] for job_id in job_ids]

    def _see_to_the_loop(self) -> None:
        now = time.monotonic()
        if self.runs or now - self._looked < LOOP_SECONDS:
            return
        self._looked = now
        if self._orchestrator.stats(1).replicas:
            return
        if self._run:
            self._say("nothing else runs the loop: it runs here until the job has ended")
            self._orchestrator.start()
            self.runs = True
        elif not self._told:
            self._say("nothing runs the loop: start `lyricpod run`")
            self._told = True


@contextmanager
def _terminal(state_dir: Path) -> Iterator[TextIO]:
    """The stderr for bars alone: what else writes there, children too, goes to a file meanwhile."""
    sys.stderr.flush()
    kept = os.dup(2)
    with _log_file(state_dir) as log, os.fdopen(kept, "w") as terminal:
        os.dup2(log.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stderr.flush()
            terminal.flush()
            os.dup2(kept, 2)


def _log_file(state_dir: Path) -> IO[bytes]:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        return (state_dir / LOG).open("ab")
    except OSError:  # a folder that can't be written to is no reason not to work
        return open(os.devnull, "ab")
