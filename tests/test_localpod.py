"""localpod's job API, through scripted workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pod import KEY, ROOT, WAIT, Ear, Pod


@pytest.fixture(scope="module")
def ear() -> Iterator[Ear]:
    with Ear() as ear:
        yield ear


@pytest.fixture(scope="module")
def pod(ear: Ear, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    log = tmp_path_factory.mktemp("localpod") / "log"
    with Pod(ear, log, "--webhook-pause", "0", "0") as pod:
        yield pod


def test_a_job_is_done_and_its_status_has_the_documented_fields(pod: Pod) -> None:
    """A result comes back by status and by webhook, the latter with input and webhook beside."""
    job_id = pod.run({"output": {"words": 3}, "odd": "\ud800"})
    worker = pod.told(job_id, "started")["worker"]
    hook = pod.hook(job_id)
    status = pod.status(job_id)
    assert status["delayTime"] >= 0
    assert status["executionTime"] >= 0
    times = {"delayTime": status["delayTime"], "executionTime": status["executionTime"]}
    assert status == {
        "id": job_id,
        "status": "COMPLETED",
        "workerId": worker,
        "output": {"words": 3},
        **times,
    }
    asked = hook.pop("input")
    assert asked["output"] == {"words": 3}
    assert hook.pop("webhook").endswith("/hook")
    assert hook == status


def test_an_error_fails_the_job_and_keeps_its_output(pod: Pod) -> None:
    """An `error` in the answer means FAILED, whatever else the answer has."""
    job_id = pod.run({"error": "it broke", "output": {"half": 1}})
    hook = pod.hook(job_id)
    assert (hook["status"], hook["error"], hook["retries"]) == ("FAILED", "it broke", 0)
    assert pod.status(job_id)["output"] == {"half": 1}


def test_the_newest_progress_is_the_output_of_a_running_job(pod: Pod) -> None:
    """While a job runs, `output` is what its worker posted last."""
    job_id = pod.run({"progress": [{"pct": 1}, {"pct": 2}], "wait": True})
    pod.told(job_id, "started")
    pod.told(job_id, "posted")
    status = pod.status(job_id)
    assert (status["status"], status["output"]) == ("IN_PROGRESS", {"pct": 2})
    pod.cancel(job_id)
    pod.told(job_id, "stopped")


def test_progress_after_the_end_changes_nothing(pod: Pod) -> None:
    """The SDK's progress posts come late at times: the result stays."""
    job_id = pod.run({"output": "the result", "late": {"pct": 99}})
    pod.told(job_id, "started")
    pod.told(job_id, "late")
    status = pod.status(job_id)
    assert (status["status"], status["output"]) == ("COMPLETED", "the result")


@pytest.mark.parametrize("given", ["", "Bearer wrong", KEY, f"bearer{KEY}", b"Bearer \xff"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/run"), ("GET", "/status/x"), ("POST", "/cancel/x"), ("GET", "/health")],
)
def test_callers_without_the_key_are_refused(
    pod: Pod, given: str | bytes, method: str, path: str
) -> None:
    """Every route of the job API asks for the bearer key."""
    headers = {"Authorization": given} if given else {}
    assert pod.call(method, path, {"input": {"a": 1}}, headers=headers).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"input":' * 100_000,
        b'{"input": {}}',
        b'{"input": "text"}',
        b'{"input": null}',
        b'{"input": {"a": 1}, "webhook": "ftp://x"}',
        b'{"input": {"a": 1}, "webhook": "http://["}',
        b'{"input": {"a": 1}, "webhook": 5}',
        b'{"input": {"a": 1}, "policy": 5}',
        b'{"input": {"a": 1}, "policy": {"executionTimeout": 0}}',
        b'{"input": {"a": 1}, "policy": {"executionTimeout": "1"}}',
        b'{"input": {"a": 1}, "policy": {"ttl": NaN}}',
        b'{"input": {"a": 1}, "policy": {"ttl": true}}',
    ],
)
def test_a_body_that_can_not_be_used_is_refused_with_a_reason(pod: Pod, body: bytes) -> None:
    """400 with an `error` that names the field, and no job."""
    before = pod.health()["jobs"]
    answer = pod.call("POST", "/run", data=body)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert pod.health()["jobs"] == before


def test_a_body_above_10_mb_is_refused(pod: Pod) -> None:
    """As on the platform: 413."""
    answer = pod.call("POST", "/run", {"input": {"audio_base64": "A" * 10_000_001}})
    assert answer.status_code == 413


def test_what_is_not_there_is_not_found(pod: Pod) -> None:
    """An unknown job, another endpoint: 404; status by POST: 405."""
    assert pod.call("GET", "/status/nobody").status_code == 404
    assert pod.call("POST", "/cancel/nobody").status_code == 404
    assert pod.call("POST", "x/run", {"input": {"a": 1}}).status_code == 404
    assert pod.call("POST", "/status/nobody").status_code == 405


def test_a_running_job_is_cancelled_and_its_worker_takes_the_next(pod: Pod) -> None:
    """The worker is told to stop this job, and lives on."""
    first = pod.run({"wait": True})
    pid = pod.told(first, "started")["pid"]
    assert pod.cancel(first) == {"id": first, "status": "CANCELLED"}
    assert pod.status(first)["status"] == "CANCELLED"
    pod.told(first, "stopped")
    second = pod.run({"output": 1})
    assert pod.told(second, "started")["pid"] == pid


def test_a_queued_job_is_cancelled_and_never_runs(pod: Pod) -> None:
    """A cancelled job leaves the queue; the one behind it runs."""
    first = pod.run({"wait": True})
    pod.told(first, "started")
    second, third = pod.run({"output": 2}), pod.run({"output": 3})
    assert pod.health()["jobs"]["inQueue"] == 2
    assert pod.cancel(second)["status"] == "CANCELLED"
    assert pod.health()["jobs"]["inQueue"] == 1
    pod.cancel(first)
    assert pod.hook(third)["output"] == 3
    assert pod.status(second) == {"id": second, "status": "CANCELLED"}


def test_a_cancel_after_the_end_changes_nothing(pod: Pod) -> None:
    """The result stays, and the answer says so."""
    job_id = pod.run({"output": 1})
    pod.hook(job_id)
    assert pod.cancel(job_id)["status"] == "COMPLETED"
    assert pod.status(job_id)["output"] == 1


def test_an_execution_timeout_ends_the_job_and_stops_its_worker(pod: Pod) -> None:
    """TIMED_OUT, with the limit in the error; the worker hears of it."""
    job_id = pod.run({"wait": True}, {"executionTimeout": 50})
    hook = pod.hook(job_id)
    assert hook["status"] == "TIMED_OUT"
    assert "50 ms" in hook["error"]
    pod.told(job_id, "started")
    pod.told(job_id, "stopped")


def test_a_time_to_live_is_a_hard_end(pod: Pod) -> None:
    """After `ttl` even a running job is unknown, and its worker is told to stop it."""
    job_id = pod.run({"wait": True}, {"ttl": 400})
    pod.told(job_id, "started")
    pod.told(job_id, "stopped")
    assert pod.call("GET", f"/status/{job_id}").status_code == 404


def test_a_webhook_is_tried_three_times_and_wants_a_200(pod: Pod) -> None:
    """Anything but a 200 is tried again: twice, and then no more."""
    pod.ear.answers["/picky"].extend([500, 204, 200])
    pod.ear.answers["/broken"].extend([500] * 9)
    body = {"input": {"output": 1}, "webhook": pod.ear.url + "/picky"}
    first = pod.call("POST", "/run", body).json()["id"]
    assert {pod.ear.hear("/picky")["id"] for _ in range(3)} == {first}
    pod.call("POST", "/run", {**body, "webhook": pod.ear.url + "/broken"})
    for _ in range(3):
        pod.ear.hear("/broken")
    pod.hook(pod.run({"output": 2}))  # time enough for a fourth call
    assert pod.ear.silent("/broken")
    assert pod.ear.silent("/picky")


def test_webhook_urls_and_keys_are_in_no_log_line(pod: Pod) -> None:
    """A webhook's URL holds a token: a failed call is logged without it."""
    pod.ear.answers["/secret-token"].extend([500] * 3)
    body = {"input": {"output": 1}, "webhook": pod.ear.url + "/secret-token"}
    pod.call("POST", "/run", body)
    for _ in range(3):
        pod.ear.hear("/secret-token")
    pod.hook(pod.run({"output": 2}))
    assert "webhook of job" in pod.log
    assert "secret-token" not in pod.log
    assert KEY not in pod.log


def test_a_full_queue_refuses(ear: Ear, tmp_path: Path) -> None:
    """429 with Retry-After, until a job leaves the queue."""
    with Pod(ear, tmp_path / "log", "--max-queue", "1") as pod:
        first = pod.run({"wait": True})
        pod.told(first, "started")
        second = pod.run({"output": 1})
        answer = pod.call("POST", "/run", {"input": {"output": 2}})
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) > 0
        pod.cancel(second)
        pod.run({"output": 3})


def test_an_ended_job_is_forgotten_after_its_retention(ear: Ear, tmp_path: Path) -> None:
    """Its status is 404 then, and its webhook was called all the same."""
    with Pod(ear, tmp_path / "log", "--retention-seconds", "0") as pod:
        job_id = pod.run({"output": 1})
        assert pod.hook(job_id)["output"] == 1
        assert pod.call("GET", f"/status/{job_id}").status_code == 404


def test_without_a_key_everyone_but_a_browser_is_answered(ear: Ear, tmp_path: Path) -> None:
    """Any web page could otherwise ask a browser on this machine to send jobs."""
    with Pod(ear, tmp_path / "log", env={"LOCALPOD_KEY": ""}) as pod:
        pod.headers = {}
        assert pod.hook(pod.run({"output": 1}))["output"] == 1
        pod.headers = {"Origin": "https://example.com"}
        assert pod.call("GET", "/health").status_code == 401


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--host", "0.0.0.0"), "LOCALPOD_KEY"),
        (("--host", ""), "LOCALPOD_KEY"),
        (("--endpoint-id", "a/b"), "--endpoint-id"),
        (("--workers", "0"), "--workers"),
        (("--idle-seconds", "nan"), "--idle-seconds"),
        (("--port", "1", "--host", "127.0.0.1"), "127.0.0.1:1"),
    ],
)
def test_it_does_not_start_on_options_it_can_not_use(options: tuple[str, ...], reason: str) -> None:
    """A reason that names the option, no traceback, nothing on stdout."""
    if "--port" in options and os.geteuid() == 0:
        options = ("--host", "192.0.2.1", "--key", "k")  # an address of no machine
        reason = "192.0.2.1:0"
    done = subprocess.run(
        [sys.executable, "-m", "localpod", *options],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "LOCALPOD_KEY"},
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert done.returncode in (1, 2)
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_health_counts_jobs_and_workers(ear: Ear, tmp_path: Path) -> None:
    """The documented counters, with workers started as jobs come."""
    with Pod(ear, tmp_path / "log", "--workers", "2") as pod:
        zero: dict[str, Any] = {
            "idle": 0,
            "initializing": 0,
            "ready": 0,
            "running": 0,
            "throttled": 0,
            "unhealthy": 0,
        }
        assert pod.health()["workers"] == zero
        pod.hook(pod.run({"output": 1}))
        pod.hook(pod.run({"error": "x"}))
        waiting = [pod.run({"wait": True}) for _ in range(3)]
        pod.told(waiting[0], "started")
        pod.told(waiting[1], "started")
        assert pod.health() == {
            "jobs": {"completed": 1, "failed": 1, "inProgress": 2, "inQueue": 1, "retried": 0},
            "workers": {**zero, "running": 2},
        }


def test_many_jobs_each_end_once(ear: Ear, tmp_path: Path) -> None:
    """300 jobs over 8 workers: every job's own result, one webhook call each."""
    with Pod(ear, tmp_path / "log", "--workers", "8") as pod:
        jobs = {pod.run({"output": number}): number for number in range(300)}
        for job_id, number in jobs.items():
            hook = pod.hook(job_id)
            assert (hook["status"], hook["output"]) == ("COMPLETED", number)
        counts = pod.health()["jobs"]
        assert (counts["completed"], counts["retried"]) == (300, 0)
        assert all(pod.heard_all(job_id) for job_id in jobs)
