"""A replica as a process of its own, for tests that pause and kill it; and secrets to look for."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from aiohttp import web
from conftest import ROOT
from rows import Rows
from runpod_double import RunPodDouble

WAIT = 60.0  # for what takes a second on a machine that is not busy
RUNS = "the loop runs"  # what a replica logs when it is ready

# Secrets of every kind, each unlike anything else.
RUNPOD_KEY = "rpa_PlantedRunPodKey7Qw"
CLOUDINARY_SECRET = "PlantedCloudinarySecret8x"
PASSWORD = "Planted/Data@base%Password"
COOKIE = "PlantedCookieValue4711xyz"
COOKIES = (
    f"# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t4102444800\tSAPISID\t{COOKIE}\n"
)
SECRETS = (RUNPOD_KEY, CLOUDINARY_SECRET, PASSWORD, COOKIE)


def with_password(url: str) -> str:
    """A database's URL with the planted password in it."""
    return url.replace("//postgres@", f"//postgres:{quote(PASSWORD, safe='')}@", 1)


def leaks(text: str, *more: str) -> list[str]:
    """Which secrets are in a text, as they are, quoted for a URL or coded in base64."""
    return [form for secret in (*SECRETS, *more) for form in _forms(secret) if form in text]


def _forms(secret: str) -> set[str]:
    """Of base64 the middle part, at each of the three places that a text can begin at."""
    coded = (base64.b64encode(b"-" * n + secret.encode()).decode()[4:-4] for n in range(3))
    return {secret, quote(secret, safe=""), *coded}


class Replica:
    """`python -m orchestrator run`; its log is that of its children too."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "run"],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": os.environ.get("HOME", "/tmp"),
                "PYTHONUNBUFFERED": "1",
                **env,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.pid = self.process.pid
        self._lines: list[str] = []
        self._silent = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def lines(self) -> list[str]:
        """The log so far."""
        with self._changed:
            return list(self._lines)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_log(self, text: str, count: int = 1, timeout: float = WAIT) -> None:
        """Wait until `count` lines of the log have this text. Raises TimeoutError."""

        def said() -> bool:
            return sum(text in line for line in self._lines) >= count or self._silent

        with self._changed:
            self._changed.wait_for(said, timeout)
            found = sum(text in line for line in self._lines)
        if found < count:
            raise TimeoutError(f"{text!r} was said {found} times; the log is\n{self.log}")

    def wait_silent(self) -> None:
        """Wait until nobody is left who could write to the log: it and all its children."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._silent, WAIT):
                raise TimeoutError(f"a child lives on; the log is\n{self.log}")

    def pause(self) -> None:
        """Stop it where it is."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def wake(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self, timeout: float = WAIT) -> int:
        """SIGTERM; its exit code. Raises subprocess.TimeoutExpired."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self) -> None:
        """kill -9, whether it runs, is paused or has ended."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill it, and what should have ended with it and has not."""
        left = [*self.localpods(), *self.workers()]
        self.kill()
        self._reader.join(WAIT)
        if self._reader.is_alive():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"one of {left} outlives it; the log is\n{self.log}")
        if self.process.stdout:
            self.process.stdout.close()

    def cpu_seconds(self) -> float:
        """CPU time that it has used, without its children."""
        fields = _stat(self.pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def localpods(self) -> list[int]:
        """Its local endpoints that live."""
        return [pid for pid in _children(self.pid) if b"localpod" in _command(pid)]

    def workers(self) -> list[int]:
        """What its local endpoints have started."""
        found = [child for pod in self.localpods() for child in _children(pod)]
        return found + [grandchild for child in found for grandchild in _children(child)]

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._silent = True
            self._changed.notify_all()


def _stat(pid: int) -> list[str]:
    """What follows the name in /proc/PID/stat: the state, the parent and so on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            state, of = _stat(int(path.name))[:2]
            if int(of) == parent and state != "Z":
                found.append(int(path.name))
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Door:
    """Another address of RunPod's double, which refuses connections while it is shut."""

    def __init__(self, double: RunPodDouble) -> None:
        self._double = double
        self._runner: web.AppRunner | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    @property
    def base_url(self) -> str:
        """The value for RUNPOD_ENDPOINT_BASE_URL."""
        return f"http://127.0.0.1:{self._port}/v2"

    def open(self) -> None:
        """Listen, at the same port as ever."""
        self._do(self._open())

    def shut(self) -> None:
        """Cut what is connected, and refuse what comes."""
        self._do(self._shut())

    def _do(self, act: Coroutine[Any, Any, None]) -> None:
        if self._double._loop is None:
            raise RuntimeError("the double is not running")
        asyncio.run_coroutine_threadsafe(act, self._double._loop).result(WAIT)

    async def _open(self) -> None:
        app = web.Application()
        app.add_routes(self._double._routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]

    async def _shut(self) -> None:
        if self._runner:
            await self._runner.cleanup()
        self._runner = None


def pass_time(rows: Rows, seconds: float) -> None:
    """Let time pass for all that is under way: the only clock is the database's."""
    ago = f"- make_interval(secs => {float(seconds)})"
    rows.run(
        f"UPDATE lyricpod_attempts SET next_poll_at = next_poll_at {ago}, "
        f"lease_until = lease_until {ago}, waiting_until = waiting_until {ago}, "
        f"submitted_at = submitted_at {ago}, created_at = created_at {ago}"
    )
    rows.run(f"UPDATE lyricpod_jobs SET next_try_at = next_try_at {ago}")
    rows.run(f"UPDATE lyricpod_replicas SET seen_at = seen_at {ago}")
