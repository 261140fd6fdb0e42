"""A flag that ends a job's work, wherever it waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lyricpod.errors import ErrorCode, JobError


class Cancel:
    """Set once, from any thread; checked by the work, and heard by whatever blocks it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._interrupts: list[Callable[[], None]] = []

    def set(self) -> None:
        """End the work: calls every interrupt that stands, once."""
        with self._lock:
            self._event.set()
            interrupts, self._interrupts = self._interrupts, []
        for interrupt in interrupts:
            interrupt()

    def is_set(self) -> bool:
        """Whether the job was cancelled."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise `cancelled` if the job was cancelled."""
        if self._event.is_set():
            raise JobError(ErrorCode.CANCELLED, "the job was cancelled")

    def wait(self, seconds: float) -> None:
        """Pause for `seconds`, or raise `cancelled` as soon as the job is cancelled."""
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """While the block runs, a cancel calls `interrupt` (from the cancelling thread)."""
        with self._lock:
            late = self._event.is_set()
            if not late:
                self._interrupts.append(interrupt)
        if late:
            self.check()
        try:
            yield
        finally:
            with self._lock:
                if interrupt in self._interrupts:
                    self._interrupts.remove(interrupt)
