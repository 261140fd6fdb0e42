"""yt-dlp's process, seen from the worker: started, given its order, listened to, ended.

The other side is `ytdlp_process.py`, which says why it is a process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # where `-m handler.ytdlp_process` is found
START_SECONDS = 60.0  # for the process to import yt-dlp
# What the process needs of the environment; above all, none of the worker's keys.
ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Check:
    """What a look at yt-dlp found.

    Attributes:
        runtime: the JavaScript runtime with its version, if there is one.
        tokens: whether the plugin is there that gets PO tokens from POT_PROVIDER_URL.
    """

    version: str
    runtime: str | None
    tokens: bool = False


class YtDlp:
    """One yt-dlp process: starts at once, takes one order, ends with this object's block.

    Args:
        certificates: the file of SSL_CERT_FILE, if it is set.
    """

    def __init__(self, certificates: str = "") -> None:
        self._home = tempfile.TemporaryDirectory(prefix="yt-dlp-home-")
        env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        env |= {"HOME": self._home.name, "DENO_NO_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}
        if certificates:
            env["SSL_CERT_FILE"] = certificates
        self._process = subprocess.Popen(
            [sys.executable, "-m", "handler.ytdlp_process"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # yt-dlp writes cookies that it can't read there
            start_new_session=True,  # so that its own children can be ended with it
        )

    def __enter__(self) -> YtDlp:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        self._home.cleanup()

    def kill(self) -> None:
        """End the process and its children at once, from any thread."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def order(self, order: dict[str, Any]) -> None:
        """Say what to do; the answer is in `events`."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then the events end, and say so
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """What it reports, until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                yield json.loads(line)

    def how_it_ended(self) -> str:
        """For a message, once the events have ended."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def check(certificates: str = "") -> Check | None:
    """Look at yt-dlp without asking anybody for anything; None where it can't be started."""
    with YtDlp(certificates) as process:
        timer = threading.Timer(START_SECONDS, process.kill)
        timer.start()
        try:
            ready = next(process.events(), None)
        finally:
            timer.cancel()
    return Check(str(ready["version"]), ready["runtime"], ready["tokens"]) if ready else None
