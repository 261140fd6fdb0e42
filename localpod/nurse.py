"""Runs one worker process and lets nothing of it outlive localpod, whatever ends localpod.

Run as a file, with the worker's command line, as the leader of a process group that the worker
and its children stay in. Says on stdout how the worker ended. When stdin closes, because
localpod wants it or because localpod is gone, the whole group is killed, itself included.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> None:
    """Start the worker; returns never."""
    # SIGTERM goes to the whole group and is the worker's to obey. A handler, as an ignored
    # signal would stay ignored in the worker.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        # stdout is for the report alone: what the worker prints goes to the log.
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    except OSError as error:
        say(f"could not be started: {error.strerror}")
    else:
        threading.Thread(target=lambda: say(ending(worker.wait())), daemon=True).start()
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def say(text: str) -> None:
    """Report to localpod."""
    os.write(sys.stdout.fileno(), text.encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
