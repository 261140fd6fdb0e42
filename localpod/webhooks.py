"""Tells a job's webhook that the job has ended."""

from __future__ import annotations

import asyncio
import json
import logging
import random

import aiohttp

from localpod.jobs import Job, Status

TRIES = 3
ANSWER_SECONDS = 10.0

log = logging.getLogger(__name__)


class Webhooks:
    """Posts to webhooks, each at most three times.

    Args:
        pause: the least and the most seconds between two tries.
    """

    def __init__(self, pause: tuple[float, float]) -> None:
        self._pause = pause
        self._tasks: set[asyncio.Task[None]] = set()
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            headers={"Content-Type": "application/json"},
        )

    def send(self, job: Job) -> None:
        """Post the job's end, if it has a webhook and did not end by its caller's own wish."""
        if not job.webhook or job.status is Status.CANCELLED:
            return
        wire = {**job.to_wire(), "input": job.input, "webhook": job.webhook}
        body = json.dumps(wire).encode()
        task = asyncio.create_task(self._deliver(job.id, job.webhook, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _deliver(self, job_id: str, url: str, body: bytes) -> None:
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(random.uniform(*self._pause))
            answer = await self._post(url, body)
            if answer == "200":
                return
            # The URL holds a token: it is in no log line.
            log.warning("webhook of job %s: %s (try %d of %d)", job_id, answer, attempt + 1, TRIES)

    async def _post(self, url: str, body: bytes) -> str:
        try:
            async with self._session.post(url, data=body, allow_redirects=False) as answer:
                return str(answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return type(error).__name__
