"""`auto_terminate`: ends the process once the result has landed.

Leans on parts of the RunPod SDK that it does not document, so its version is pinned and
tests/test_sdk_contract.py holds each of them: the dict given to `start()` is read for
`refresh_worker` after the handler returns; `JobsProgress` is empty when a job's result has
been posted; `rp_http._transmit` posts it, three times on a 5xx and once otherwise.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import structlog

POLL_SECONDS = 0.005  # between looks at whether the result has landed
ATTEMPT_SECONDS = 30.0  # for one post of a result
LONGEST_PAUSE = 5.0
REAP_SECONDS = 0.1  # for the killed heartbeat to be gone
NOT_FOR_GOOD = frozenset({408, 425, 429})  # 4xx answers that pass

log = structlog.get_logger()


class Lifecycle:
    """Decides how the process ends.

    Args:
        config: the very dict that is given to `runpod.serverless.start`.
        result_seconds: how long a result that is refused is posted again.
        serving: False in local runs, where nothing is terminated but the run itself.
        before_end: called when the result has landed, just before the process ends; it must
            keep its own deadline.
    """

    def __init__(
        self,
        config: dict[str, Any],
        result_seconds: float,
        *,
        serving: bool,
        before_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._result_seconds = result_seconds
        self._serving = serving
        self._before_end = before_end
        self._ending = False
        self._delivered = True

    def insist_on_results(self) -> None:
        """Have results posted again where the SDK would give up: a reset, a longer outage."""
        from runpod.serverless.modules import rp_http

        transmit = rp_http._transmit

        async def insistent(session: Any, url: str, data: Any) -> None:
            self._delivered = False
            await self._insist(lambda: transmit(session, url, data))
            self._delivered = True

        rp_http._transmit = insistent

    def job_started(self) -> None:
        """A new job decides anew."""
        self._config["refresh_worker"] = False

    def end_after_this_job(self) -> None:
        """Take no further job, mark the result with `stopPod`, end when it has landed.

        To be called in the event loop's thread, before the handler returns or raises.
        """
        if not self._serving or self._ending:
            return
        self._ending = True
        self._config["refresh_worker"] = True
        # The SDK answers SIGTERM by taking no more jobs. It sets the same flag itself after a
        # posted result, but not after a cancelled job.
        if callable(signal.getsignal(signal.SIGTERM)):
            signal.raise_signal(signal.SIGTERM)
        threading.Thread(target=self._watch, name="auto-terminate", daemon=True).start()

    async def _insist(self, post: Any) -> None:
        end = time.monotonic() + self._result_seconds
        pause = 0.2
        while True:
            try:
                async with asyncio.timeout(ATTEMPT_SECONDS):
                    await post()
                    return
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                status = getattr(error, "status", 0)
                final = 400 <= status < 500 and status not in NOT_FOR_GOOD
                if final or time.monotonic() + pause >= end:
                    log.error("the result was not taken", error=_what(error))
                    raise _as_client_error(error) from error
                log.warning("the result was refused; posting again", error=_what(error))
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _watch(self) -> None:
        from runpod.serverless.modules.worker_state import JobsProgress

        jobs = JobsProgress()
        while jobs.get_job_count():
            time.sleep(POLL_SECONDS)
        self._before_end()
        for child in multiprocessing.active_children():  # the SDK's heartbeat
            child.kill()
            child.join(REAP_SECONDS)
        log.info("worker ends", auto_terminate=True, result_delivered=self._delivered)
        sys.stdout.flush()
        sys.stderr.flush()
        # The SDK's own way out waits for a long poll, up to 91 s of paid time.
        os._exit(0 if self._delivered else 1)


def _what(error: BaseException) -> str:
    return f"{type(error).__name__} {getattr(error, 'status', '')}".strip()


def _as_client_error(error: BaseException) -> BaseException:
    # The SDK logs a ClientError and goes on; anything else would leave its job loop.
    return error if isinstance(error, aiohttp.ClientError) else aiohttp.ClientError(_what(error))
