"""The loop as a process of its own: runs until a signal, then ends in time."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType

from orchestrator.config import Settings
from orchestrator.log import get_logger
from orchestrator.service import Orchestrator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SPARE_SECONDS = 0.25  # of the shutdown's time: for a thread that hangs, the process ends this early
LOOK_SECONDS = 0.5

log = get_logger()


def serve(settings: Settings) -> int:
    """Run the loop until SIGTERM, SIGINT or SIGHUP (unless ignored); returns the exit code.

    Within SHUTDOWN_SECONDS of the signal the process has ended, whatever hangs: what is not given
    back by then, leases give back by themselves.

    Raises:
        OrchestratorError: the database can't be used.
    """
    heeded = [number for number in SIGNALS if not _ignored(number)]
    for number in heeded:
        signal.signal(number, _leave)
    with Orchestrator(settings) as orchestrator:
        # Its put may interrupt itself; an Event's set, called in a handler, could wait for ever.
        events: SimpleQueue[int] = SimpleQueue()
        for number in heeded:
            signal.signal(number, lambda number, _: events.put(number))
        stop = threading.Event()
        threading.Thread(
            target=_run, args=(orchestrator, stop, events), name="lyricpod", daemon=True
        ).start()
        log.info("the loop runs", runpod=settings.endpoint_ids, local=settings.local_endpoint)
        ended_by = _first(events)
        _end_in_time(settings.shutdown_seconds)
        log.info("the loop ends", signal=signal.Signals(ended_by).name if ended_by else None)
        stop.set()
        if ended_by:
            with suppress(Empty):
                events.get(timeout=settings.shutdown_seconds)
    return 0 if ended_by else 1


def _first(events: SimpleQueue[int]) -> int:
    """The first event. Never one long wait: a signal in the moment before it would wake nobody."""
    while True:
        with suppress(Empty):
            return events.get(timeout=LOOK_SECONDS)


def _run(orchestrator: Orchestrator, stop: threading.Event, events: SimpleQueue[int]) -> None:
    try:
        orchestrator.run(stop)
    finally:
        events.put(0)


def _ignored(number: signal.Signals) -> bool:
    """nohup ignores SIGHUP and means it; a shell ignores SIGINT for what it starts with `&`."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _leave(number: int, frame: FrameType | None) -> None:
    """Before the loop runs there is nothing to give back."""
    sys.exit(0)


def _end_in_time(seconds: float) -> None:
    watchdog = threading.Timer(max(0.1, seconds - SPARE_SECONDS), os._exit, (0,))
    watchdog.daemon = True
    watchdog.start()
