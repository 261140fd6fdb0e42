"""The command line: `python -m localpod --workers 1`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import shlex
import sys
from pathlib import Path

from localpod.server import Options, is_loopback, serve


def main() -> None:
    """Read the command line and serve."""
    options = read(sys.argv[1:])
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s localpod: %(message)s"
    )
    try:
        asyncio.run(serve(options, os.environ))
    except OSError as error:
        sys.exit(f"localpod: {options.host}:{options.port} can't be served on: {error.strerror}")


def read(arguments: list[str]) -> Options:
    """The options on a command line. Exits with a reason where they can't be used."""
    parser = _parser()
    given = parser.parse_args(arguments)
    key = given.key or os.environ.get("LOCALPOD_KEY", "")
    if not key and not is_loopback(given.host):
        parser.error(f"--host {given.host} is not loopback: set LOCALPOD_KEY to a key for callers")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", given.endpoint_id):
        parser.error("--endpoint-id may have letters, digits, - and _ only, 64 at most")
    command = given.worker_command or []
    if len(command) == 1:
        command = shlex.split(command[0])
    return Options(
        worker_command=tuple(command) or worker_command(),
        workers=given.workers,
        host=given.host,
        port=given.port,
        key=key,
        endpoint_id=given.endpoint_id,
        idle_seconds=given.idle_seconds,
        stop_seconds=given.stop_seconds,
        most_queued=given.max_queue,
        retention_seconds=given.retention_seconds,
        webhook_pause=(min(given.webhook_pause), max(given.webhook_pause)),
        parent_pid=given.parent_pid,
    )


def worker_command() -> tuple[str, ...]:
    """How the worker of this project is started: from its checkout, or as installed."""
    shim = Path(__file__).resolve().parent.parent / "handler.py"
    if shim.is_file():
        return (sys.executable, "-u", str(shim))
    return (sys.executable, "-u", "-c", "from handler.worker import main; main()")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("localpod", description="A RunPod endpoint on this machine.")
    add = parser.add_argument
    seconds = _number
    add("--workers", type=int, default=1, choices=range(1, 257), metavar="N", help="at most")
    add("--host", default="127.0.0.1", help="any but loopback needs a key")
    add("--port", type=int, default=0, help="0: a free one")
    add("--key", default="", help="of callers; better in LOCALPOD_KEY, which no process list shows")
    add("--endpoint-id", default="local")
    add(
        "--idle-seconds", type=seconds, default=300.0, help="a worker without a job is kept so long"
    )
    add("--stop-seconds", type=seconds, default=10.0, help="a stopped job may go on so long")
    add("--max-queue", type=int, default=10_000, help="jobs that may wait")
    add("--retention-seconds", type=seconds, default=1800.0, help="an ended job is known so long")
    add("--webhook-pause", type=seconds, nargs=2, default=(5.0, 15.0), metavar=("LEAST", "MOST"))
    add("--parent-pid", type=int, help="end when this process ends")
    add("--worker-command", nargs=argparse.REMAINDER, help="instead of the worker; the last option")
    return parser


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return value


if __name__ == "__main__":
    main()
