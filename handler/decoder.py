"""The child process that decodes one file, seen from the worker.

libav has had a fault that ends the process, or a loop that never ends, in nearly every release,
and it reads whatever strangers send. In the worker such a file would end the loaded model and the
job's answer too; in a process of its own it is that job's error. This costs 0.08 s of
processor time and 39 MB while it runs, for three minutes as for an hour (`python -m bench --only
7`); a job waits only for what its download did not cover. A fork would be cheaper, but not from a
process with CUDA and threads in it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

CHILD = Path(__file__).with_name("decode_process.py")
GRACE_SECONDS = 30.0  # without headway, or behind the pace, before a decoder is ended
PACE = 10.0  # seconds of audio in one second; ordinary files reach some hundreds
NO_LIMIT = 1e9  # seconds; stands for the infinity that a setting may hold
ENV = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")  # and none of the worker's secrets
MESSAGE_BYTES = 4096  # ours are shorter


class DecoderFault(Exception):
    """The decoding process failed for a reason that lies in the worker, not in the file."""


class Decoder:
    """One decoding process, used once; it starts at once and waits for its order.

    Start it on a thread that lives as long as the process: Linux ends it with its thread.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), str(os.getpid())],
            env={name: os.environ[name] for name in ENV if name in os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does. A second call does nothing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()

    def decode(
        self,
        source: Path,
        target: Path,
        *,
        rate: int,
        max_seconds: float,
        cancel: Cancel,
        on_seconds: Callable[[float, float | None], None],
    ) -> None:
        """Write `source` to `target` as mono samples of 16 bit at `rate` Hz.

        Raises:
            JobError: `source_not_audio`, `source_too_long`, `cancelled`.
            DecoderFault: the process could not do its work.
        """
        order = {
            "source": str(source),
            "target": str(target),
            "rate": rate,
            "max_seconds": min(max_seconds, NO_LIMIT),
            "processor_seconds": GRACE_SECONDS + min(max_seconds, NO_LIMIT) / PACE,
        }
        with cancel.interrupting(self._process.kill):
            self._send(order)
            for message in self._messages():
                if "seconds" not in message:
                    return _end(message, max_seconds)
                on_seconds(message["seconds"], message["total"])
        cancel.check()
        raise self._ended()

    def _send(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # how it ended is told by its status
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _messages(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends or falls behind."""
        assert self._process.stdout
        descriptor, rest = self._process.stdout.fileno(), b""
        started = heard = time.monotonic()
        decoded = 0.0
        while len(rest) <= MESSAGE_BYTES:
            deadline = GRACE_SECONDS + min(heard, started + decoded / PACE)
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _not_audio("the decoder did not get through it in time")
            data = os.read(descriptor, MESSAGE_BYTES)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if message.get("seconds", 0.0) > decoded:
                    decoded, heard = message["seconds"], time.monotonic()
                yield message

    def _ended(self) -> Exception:
        """What its end without a last word means."""
        try:
            status = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return DecoderFault("the decoding process says nothing that can be read")
        if status < 0:
            return _not_audio(f"the decoder crashed on this file ({signal.Signals(-status).name})")
        return DecoderFault(f"the decoding process ended with status {status}; see the log")


def _end(message: Mapping[str, Any], max_seconds: float) -> None:
    if "too_long" in message:
        raise JobError(
            ErrorCode.SOURCE_TOO_LONG,
            f"the audio is longer than {max_seconds:.0f} s (at least {message['too_long']:.0f} s)",
            hint="send a shorter recording, or raise MAX_AUDIO_SECONDS on the worker",
        )
    if "not_audio" in message:
        raise _not_audio(message["not_audio"])
    if "fault" in message:
        raise DecoderFault(message["fault"])


def _not_audio(why: str) -> JobError:
    return JobError(
        ErrorCode.SOURCE_NOT_AUDIO,
        f"the source can't be read as audio: {why}",
        hint="send a complete audio or video file, such as mp3, m4a, flac, ogg or wav",
    )
