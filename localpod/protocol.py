"""The side that workers see: the protocol that the RunPod SDK 1.12.0 speaks.

Source: rp_job.py, rp_http.py and rp_ping.py in runpod/serverless/modules.
"""

from __future__ import annotations

import json

from aiohttp import web

from localpod.jobs import Jobs
from localpod.pool import Pool
from localpod.worker import Worker

MOST_BATCH = 100


class Protocol:
    """Answers workers; one that localpod did not start is refused."""

    def __init__(self, jobs: Jobs, pool: Pool) -> None:
        self._jobs = jobs
        self._pool = pool

    def routes(self, base: str) -> list[web.RouteDef]:
        """The protocol's routes under `base`."""
        return [
            web.get(base + "/job-take/{worker}", self._take),
            web.get(base + "/job-take-batch/{worker}", self._take),
            web.get(base + "/job-stop/{worker}", self._stops),
            web.get(base + "/ping/{worker}", self._ping),
            web.post(base + "/job-done/{worker}/{job}", self._done),
        ]

    def _worker(self, request: web.Request) -> Worker:
        token = request.query.get("token", "")
        worker = self._pool.find(request.match_info["worker"], token)
        if worker is None:
            raise web.HTTPUnauthorized(text="no such worker")
        return worker

    async def _take(self, request: web.Request) -> web.Response:
        worker = self._worker(request)
        batch = request.query.get("batch_size")
        if batch and not (batch.isdecimal() and 1 <= int(batch) <= MOST_BATCH):
            raise web.HTTPBadRequest(text=f"batch_size must be 1 to {MOST_BATCH}")
        if request.query.get("job_in_progress", "0") == "0":
            self._pool.has_none(worker)
        jobs = await self._pool.take(worker, int(batch or 1))
        if not jobs:
            return web.Response(status=204)
        wire = [{"id": job.id, "input": job.input} for job in jobs]
        return web.json_response(wire if batch else wire[0])

    async def _stops(self, request: web.Request) -> web.Response:
        stops = await self._pool.stops(self._worker(request))
        return web.json_response({"jobsToStop": stops}) if stops else web.Response(status=204)

    async def _ping(self, request: web.Request) -> web.Response:
        self._worker(request)
        return web.Response()  # the process itself is watched

    async def _done(self, request: web.Request) -> web.Response:
        worker = self._worker(request)
        job_id = request.match_info["job"]
        try:
            body = json.loads(await request.read())  # JSON, although it says form-urlencoded
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise web.HTTPBadRequest(text="the body must be a JSON object")
        if body.get("status") == "IN_PROGRESS":
            if held := worker.held.get(job_id):
                self._jobs.progress(held.job, body.get("output"))
            return web.Response()
        job = self._pool.done(worker, job_id, stop=bool(body.get("stopPod")))
        if job is not None:  # else a second post of a result that was taken already
            error = body.get("error")
            self._jobs.finish(job, body.get("output"), None if error is None else str(error))
        return web.Response()
