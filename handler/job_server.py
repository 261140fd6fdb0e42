"""Posts progress to RunPod, and knows when the last post is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import aiohttp
import structlog

from lyricpod.progress import Progress

INTERVAL = 0.5  # seconds between two posts: at most two a second
LAST_POST_SECONDS = 5.0  # how long the result waits for a post that is under way

log = structlog.get_logger()


class Reporter:
    """One job's progress posts, newest first and never after `close`.

    The SDK's own `progress_update` starts a thread that nobody can wait for: its post was
    seen to arrive after the result, and replaces it. So these posts are awaited here.

    Args:
        env: has `RUNPOD_WEBHOOK_POST_OUTPUT`, the URL that results go to; without it
            (a local run) nothing is posted.
        job_id: the platform's id of the job.
    """

    def __init__(self, env: Mapping[str, str], job_id: str) -> None:
        template = env.get("RUNPOD_WEBHOOK_POST_OUTPUT", "")
        url = template.replace("$RUNPOD_POD_ID", env.get("RUNPOD_POD_ID", ""))
        self._url = url.replace("$ID", job_id) + "&isStream=false" if url else ""
        self._headers = {
            "Authorization": env.get("RUNPOD_AI_API_KEY", ""),
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Request-ID": job_id,
        }
        self._loop = asyncio.get_running_loop()
        self._newest: Progress | None = None
        self._wake = asyncio.Event()
        self._closed = asyncio.Event()
        self._seq = 0
        self._task = self._loop.create_task(self._post_all()) if self._url else None

    def report(self, progress: Progress) -> None:
        """Offer a report, from any thread; a newer one replaces one not posted yet."""
        if self._task:
            self._loop.call_soon_threadsafe(self._offer, progress)

    async def close(self) -> None:
        """Post nothing more; returns when no post is under way (after 5 s at most)."""
        self._closed.set()
        self._wake.set()
        if self._task:
            done, _ = await asyncio.wait({self._task}, timeout=LAST_POST_SECONDS)
            if not done:
                self._task.cancel()
                with suppress(asyncio.CancelledError):
                    await self._task

    def _offer(self, progress: Progress) -> None:
        self._newest = progress
        self._wake.set()

    async def _post_all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=LAST_POST_SECONDS)
        async with aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._closed.is_set():
                    return
                progress, self._newest = self._newest, None
                if progress:
                    await self._post(session, progress)
                    await self._pause()

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), INTERVAL)

    async def _post(self, session: aiohttp.ClientSession, progress: Progress) -> None:
        self._seq += 1
        output = replace(progress, seq=self._seq).to_wire()
        body = json.dumps({"status": "IN_PROGRESS", "output": output}, ensure_ascii=False)
        try:
            async with session.post(self._url, data=body.encode()) as answer:
                await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("progress was not taken", error=type(error).__name__)
