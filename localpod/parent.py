"""Watches the process that started localpod."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

LOOK_SECONDS = 1.0


def watch(pid: int, gone: Callable[[], None]) -> None:
    """Call `gone` when the process `pid` has ended; at once on Linux, else within a second.

    Not by PR_SET_PDEATHSIG: that fires as soon as the thread that started localpod ends.
    Without process descriptors `pid` must be the parent itself.
    """
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        gone()
    except (AttributeError, OSError):  # not Linux, or a sandbox without this call
        _look(loop, pid, gone)
    else:

        def ended() -> None:
            loop.remove_reader(descriptor)
            gone()

        loop.add_reader(descriptor, ended)


def _look(loop: asyncio.AbstractEventLoop, pid: int, gone: Callable[[], None]) -> None:
    if os.getppid() != pid:
        gone()
    else:
        loop.call_later(LOOK_SECONDS, _look, loop, pid, gone)
