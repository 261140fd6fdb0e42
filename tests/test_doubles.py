"""The loopback doubles behave as the real SDKs expect."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from cloudinary_double import CloudinaryDouble
from jobserver import JobServer

WORKER = """
import asyncio
import runpod

async def handler(job):
    if job["input"].get("progress"):
        runpod.serverless.progress_update(job, {"step": job["input"]["progress"]})
    if job["input"].get("forever"):
        await asyncio.Event().wait()
    return {"echo": job["input"]}

if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
"""


@pytest.fixture
def cloud() -> Iterator[CloudinaryDouble]:
    with CloudinaryDouble() as double:
        yield double


@pytest.fixture
def uploader() -> Iterator[Any]:
    module = importlib.import_module("cloudinary.uploader")
    yield module
    module._http.clear()  # its sockets are a ResourceWarning otherwise


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    """A job server with one real SDK worker on it."""
    script = tmp_path_factory.mktemp("worker") / "worker.py"
    script.write_text(WORKER)
    with JobServer() as server, Worker(script, server):
        yield server


class Worker:
    """A worker process and its heartbeat child, killed together at the end."""

    def __init__(self, script: Path, server: JobServer) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **server.env()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


def upload(uploader: Any, cloud: CloudinaryDouble, data: bytes, **more: Any) -> dict[str, Any]:
    options = {"resource_type": "raw", "public_id": "a/b.json", **cloud.options(), **more}
    answer: dict[str, Any] = uploader.upload(data, **options)
    return answer


def explicit(uploader: Any, cloud: CloudinaryDouble, public_id: str) -> dict[str, Any]:
    options = {"type": "upload", "resource_type": "raw", **cloud.options()}
    answer: dict[str, Any] = uploader.explicit(public_id, **options)
    return answer


def test_upload_is_stored_and_delivered_at_its_version(
    cloud: CloudinaryDouble, uploader: Any
) -> None:
    """The real uploader's bytes come back from the URL of their version."""
    more = {"tags": ["x", "y & z"], "overwrite": True, "invalidate": True}
    first = upload(uploader, cloud, b"one", **more)
    asset = cloud.assets["a/b.json"][0]
    assert (asset.data, asset.tags) == (b"one", ("x", "y & z"))
    assert (asset.overwrite, asset.invalidate) == (True, True)
    second = upload(uploader, cloud, b"two!", signature_algorithm="sha256")
    assert second["bytes"] == 4
    assert second["version"] > first["version"]
    assert requests.get(first["secure_url"], timeout=5).content == b"one"
    assert requests.get(second["secure_url"], timeout=5).content == b"two!"
    kept = upload(uploader, cloud, b"three", overwrite=False)
    assert (kept["existing"], kept["version"]) == (True, second["version"])


def test_unversioned_url_is_stale(cloud: CloudinaryDouble, uploader: Any) -> None:
    """The URL without a version goes on giving what it gave first."""
    url = f"{cloud.url}/demo/raw/upload/a/b.json"
    assert requests.get(url, timeout=5).status_code == 404
    upload(uploader, cloud, b"one")
    assert requests.get(url, timeout=5).content == b"one"
    upload(uploader, cloud, b"two")
    assert requests.get(url, timeout=5).content == b"one"


def test_explicit_gives_the_current_version(cloud: CloudinaryDouble, uploader: Any) -> None:
    """The lookup gives the newest version, and NotFound for an unknown id."""
    exceptions = importlib.import_module("cloudinary.exceptions")
    with pytest.raises(exceptions.NotFound, match=r"Resource not found - a/b\.json"):
        explicit(uploader, cloud, "a/b.json")
    upload(uploader, cloud, b"one")
    second = upload(uploader, cloud, b"two")
    assert explicit(uploader, cloud, "a/b.json")["version"] == second["version"]


def test_wrong_secret_is_refused(cloud: CloudinaryDouble, uploader: Any) -> None:
    """A signature made with another secret stores nothing."""
    exceptions = importlib.import_module("cloudinary.exceptions")
    with pytest.raises(exceptions.AuthorizationRequired, match="Invalid Signature"):
        upload(uploader, cloud, b"one", api_secret="wrong")
    assert cloud.assets == {}
    assert cloud.requests[-1].status == 401


def test_cloudinary_url_configures_the_sdk(cloud: CloudinaryDouble) -> None:
    """CLOUDINARY_URL alone sends a fresh process to the double."""
    code = "import cloudinary.uploader as u; u.upload(b'x', resource_type='raw', public_id='p')"
    env = {**os.environ, "CLOUDINARY_URL": cloud.cloudinary_url}
    subprocess.run([sys.executable, "-c", code], env=env, stdin=subprocess.DEVNULL, check=True)
    assert cloud.assets["p"][0].data == b"x"


def test_cloudinary_faults(cloud: CloudinaryDouble, uploader: Any) -> None:
    """Each fault fails one call that the SDK does not repeat; a refusal stays until it ends."""
    exceptions = importlib.import_module("cloudinary.exceptions")
    for fault in ("reset", 500, ("hang", 30.0)):
        cloud.fail(fault)
        with pytest.raises(exceptions.Error):
            upload(uploader, cloud, b"one", timeout=0.5)
    cloud.refuse_always(429)
    with pytest.raises(exceptions.RateLimited):
        upload(uploader, cloud, b"one")
    cloud.refuse_always(None)
    upload(uploader, cloud, b"one")
    statuses = [call.status for call in cloud.requests]
    assert statuses == [None, 500, None, 429, 200]


def test_worker_takes_a_job_and_posts_its_result(jobs: JobServer) -> None:
    """The real SDK takes a job, posts the handler's answer and sends heartbeats."""
    job_id = jobs.submit({"n": 1})
    jobs.wait_taken(job_id)
    assert jobs.wait_result(job_id) == {"output": {"echo": {"n": 1}}}
    jobs.wait_until(lambda: bool(jobs.pings))


def test_worker_ends_a_job_on_stop(jobs: JobServer) -> None:
    """A stopped job posts no result, and the worker is free for the next one."""
    job_id = jobs.submit({"progress": 1, "forever": True}, "stop-me")
    jobs.wait_progress(job_id, lambda body: body["output"] == {"step": 1})
    jobs.wait_until(lambda: any(job_id in ping.job_ids for ping in jobs.pings))
    jobs.stop(job_id)
    jobs.wait_result(jobs.submit({"n": 2}))
    assert not [post for post in jobs.posts if post.job_id == job_id and not post.progress]


def test_worker_repeats_a_result_on_502_only(jobs: JobServer) -> None:
    """The SDK repeats the post of a result after a 502 and gives it up after a reset."""
    jobs.fail_results("502", ("delay", 0.5))
    repeated = jobs.submit({"n": 3})
    jobs.wait_result(repeated)
    assert [p.accepted for p in jobs.posts if p.job_id == repeated] == [False, True]
    jobs.fail_results("reset")
    lost = jobs.submit({"n": 4})
    jobs.wait_result(jobs.submit({"n": 5}))
    assert [p.accepted for p in jobs.posts if p.job_id == lost] == [False]


def test_delayed_progress_lands_after_the_result(jobs: JobServer) -> None:
    """With slow progress posts the overwriting order of the platform is seen."""
    jobs.delay_progress(2.0)
    job_id = jobs.submit({"progress": 7})
    jobs.wait_result(job_id)
    jobs.wait_progress(job_id, lambda _: True)
    jobs.delay_progress(0)
    assert [p.progress for p in jobs.posts if p.job_id == job_id] == [False, True]


def test_close_ends_an_open_poll() -> None:
    """Closing answers an open long poll at once instead of after its 20 s."""
    with JobServer() as server:
        code = "import sys, requests; sys.exit(requests.get(sys.argv[1]).status_code != 204)"
        url = server.env()["RUNPOD_WEBHOOK_GET_JOB"].replace("/job-take/", "/job-stop/")
        started = time.monotonic()
        client = subprocess.Popen([sys.executable, "-c", code, url], stdin=subprocess.DEVNULL)
        server.wait_until(lambda: server.open_polls == 1)
    assert client.wait(10) == 0
    assert time.monotonic() - started < 15
