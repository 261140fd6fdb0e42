"""The composition root: one HTTP server, its jobs and its workers, from start to shutdown."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from aiohttp import web

from localpod import parent
from localpod.api import Api
from localpod.jobs import Jobs
from localpod.pool import Pool
from localpod.protocol import Protocol
from localpod.webhooks import Webhooks
from localpod.worker import Worker, environment

MAX_BODY_BYTES = 32_000_000  # of a result; the job API itself takes less


@dataclass(frozen=True)
class Options:
    """What localpod is started with; times are seconds."""

    worker_command: tuple[str, ...]
    workers: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    key: str = field(default="", repr=False)
    endpoint_id: str = "local"
    idle_seconds: float = 300.0
    stop_seconds: float = 10.0
    most_queued: int = 10_000
    retention_seconds: float = 1800.0
    webhook_pause: tuple[float, float] = (5.0, 15.0)
    parent_pid: int | None = None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on this host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def serve(options: Options, env: Mapping[str, str]) -> None:
    """Serve until SIGTERM, SIGINT or the parent's end. Says on stdout where, in one line of JSON.

    Raises:
        OSError: the address can't be served on.
    """
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    if options.parent_pid is not None:
        parent.watch(options.parent_pid, over.set)

    url = ""  # known once the server listens, and needed when the first worker starts

    def worker_environment(worker: Worker) -> dict[str, str]:
        return environment(worker, url, options.endpoint_id, env)

    jobs = Jobs(most_queued=options.most_queued, retention_seconds=options.retention_seconds)
    pool = Pool(
        jobs,
        most=options.workers,
        command=options.worker_command,
        environment=worker_environment,
        idle_seconds=options.idle_seconds,
        stop_seconds=options.stop_seconds,
    )
    webhooks = Webhooks(options.webhook_pause)
    jobs.on_ended.append(webhooks.send)
    runner = web.AppRunner(
        _application(options, jobs, pool),
        access_log=None,
        handler_cancellation=True,  # a poll whose worker is gone must not swallow the next job
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
        url = _url(runner.addresses[0])
        sys.stdout.write(json.dumps({"url": f"{url}/v2", "endpoint_id": options.endpoint_id}))
        sys.stdout.write("\n")
        sys.stdout.flush()
        await over.wait()
        await pool.close()  # while the server still answers: a worker that ends waits for its polls
    finally:
        await webhooks.close()
        await runner.cleanup()


def _application(options: Options, jobs: Jobs, pool: Pool) -> web.Application:
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    base = f"/v2/{options.endpoint_id}"
    app.add_routes(Api(jobs, pool, options.key).routes(base))
    app.add_routes(Protocol(jobs, pool).routes(base))
    return app


def _url(address: tuple[str, int]) -> str:
    host, port = address[0], address[1]
    if ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
