"""The command line: how the worker was started, and whether its local job can be read."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from pathlib import Path

LOCAL_JOB = Path("test_input.json")  # where the SDK looks when nothing else names a job
EXAMPLE = """'{"input": {"audio_url": "song.mp3"}}'"""


class UsageError(Exception):
    """A command line that names no job that can be run."""


class Mode(Enum):
    """Where jobs come from."""

    SERVING = auto()  # RunPod
    API = auto()  # whoever reaches the SDK's own HTTP server
    LOCAL = auto()  # one job, from --test_input or test_input.json


def mode(arguments: Sequence[str], env: Mapping[str, str]) -> Mode:
    """What these arguments make of the SDK's start; a local job is looked at already here.

    Abbreviations are taken as the SDK takes them.

    Raises:
        UsageError: one line for a person, where the SDK would show a traceback.
    """
    given, others = _parser().parse_known_args(list(arguments))
    if "RUNPOD_WEBHOOK_GET_JOB" not in env:  # there a word too many must not end the worker
        _check_names(others)
    if given.rp_serve_api or env.get("RUNPOD_REALTIME_PORT", "0") != "0":
        return Mode.API
    if given.test_input is not None:
        _check(given.test_input, "--test_input", f"write --test_input {EXAMPLE}")
        return Mode.LOCAL
    if "RUNPOD_WEBHOOK_GET_JOB" in env:
        return Mode.SERVING
    hint = f"give a job with --test_input {EXAMPLE}"
    try:
        text = LOCAL_JOB.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{LOCAL_JOB} can't be read: {error.strerror}; {hint}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{LOCAL_JOB} is not UTF-8; {hint}") from None
    _check(text, str(LOCAL_JOB), f"mend it, or {hint}")
    return Mode.LOCAL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="handler.py",
        description=f"Serve jobs on RunPod; elsewhere run one job, by default that of {LOCAL_JOB}.",
        epilog="Other --rp_ options are passed on to the RunPod SDK.",
    )
    parser.add_argument(
        "--test_input", nargs="?", const="", metavar="JSON", help=f"the job to run, as {EXAMPLE}"
    )
    parser.add_argument("--rp_serve_api", action="store_true", help="serve jobs by HTTP instead")
    return parser


def _check_names(others: Sequence[str]) -> None:
    """A misspelt --test_input would run another job than the one that was meant."""
    for before, word in zip(("", *others), others, strict=False):
        if not word.startswith("--rp_") and not (before.startswith("--rp_") and "=" not in before):
            raise UsageError(f"there is no option {word[:80]!r}; write --test_input {EXAMPLE}")


def _check(text: str, where: str, hint: str) -> None:
    try:
        job = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}; {hint}") from None
    if not isinstance(job, dict) or job.get("input") is None:
        raise UsageError(f'{where} has no "input"; {hint}')
