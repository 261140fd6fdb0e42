"""Processes that a measure starts: one group each, a log file, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.worker import ROOT

TICKS = os.sysconf("SC_CLK_TCK")
MB = 1024  # kB
READY_SECONDS = 60.0
STOP_SECONDS = 10.0


class Process:
    """A process whose first line on stdout is one line of JSON that says it is ready.

    Its stderr is appended to `log`. It ends with this object, its group too.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env={**base_env(), **env},
                stdin=subprocess.PIPE,  # its end tells a child that this process is gone
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self._log = log
        self._said: Any = None
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def ready(self) -> Any:
        """The JSON of its first line, waited for."""
        if self._said is None:
            self._said = self._first_line()
        return self._said

    def _first_line(self) -> Any:
        if self._process.stdout is None:
            raise RuntimeError("the process has no stdout")
        timer = threading.Timer(READY_SECONDS, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise RuntimeError(f"{self._process.args} did not start; see {self._log}")
        return json.loads(line)

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, to the whole group; it is gone when this returns."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._close()

    def stop(self) -> int:
        """SIGTERM; its exit status, -9 if it did not end by itself in 10 s."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()
        return int(self._process.returncode)

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def base_env() -> dict[str, str]:
    """What each process needs to run at all, and nothing of the operator's."""
    keep = ("PATH", "HOME", "XDG_RUNTIME_DIR", "LANG", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in keep if name in os.environ}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def family_cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children, those that ended and were waited for too."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(stat.parent.name) == pid or int(fields[1]) == pid:
                used = sum(int(field) for field in fields[11:13])
                waited = sum(int(field) for field in fields[13:15])
                total += (used + (waited if int(stat.parent.name) == pid else 0)) / TICKS
    return total


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process: now, and its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return tuple(int(found[name].split()[0]) / MB for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
