"""Threads for the work of one kind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Crew:
    """A fixed number of daemon threads: none outlives the process, whatever it waits for.

    Args:
        size: threads, started as they are needed.
        failed: told of whatever escapes a piece of work.
    """

    def __init__(self, name: str, size: int, failed: Callable[[BaseException], None]) -> None:
        self._name = name
        self._size = size
        self._failed = failed
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._changed = threading.Condition()
        self._busy = 0
        self._threads = 0

    @property
    def free(self) -> int:
        """How many pieces of work could start at once."""
        with self._changed:
            return self._size - self._busy

    def do(self, work: Callable[[], None]) -> None:
        """Have it done by the next free thread."""
        with self._changed:
            self._busy += 1
            grow = self._threads < min(self._busy, self._size)
            self._threads += grow
            number = self._threads
        self._work.put(work)
        if grow:
            threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True).start()

    def finish(self, timeout: float) -> bool:
        """Wait until nothing is under way; False if that took too long. The threads then end."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._busy == 0, timeout)
        for _ in range(self._threads):
            self._work.put(None)
        return done

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - the loop's boundary: one job's fault ends here
                self._failed(error)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()
