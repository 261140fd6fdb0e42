"""localpod's worker processes: their deaths, their ends, and that nothing outlives localpod."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pod import KEY, ROOT, WAIT, WORKER, Ear, Pod, Watched, parent_of

from localpod import parent as parent_module


@pytest.fixture(scope="module")
def ear() -> Iterator[Ear]:
    with Ear() as ear:
        yield ear


@pytest.fixture
def pod(ear: Ear, tmp_path: Path) -> Iterator[Pod]:
    with Pod(ear, tmp_path / "log", "--stop-seconds", "0.2") as pod:
        yield pod


def test_a_job_whose_worker_died_is_dispatched_once_more(pod: Pod, tmp_path: Path) -> None:
    """The second worker's result counts; `retries` says 1."""
    job_id = pod.run({"die": str(tmp_path / "mark"), "output": 1})
    first, second = pod.told(job_id, "started"), pod.told(job_id, "started")
    assert first["worker"] != second["worker"]
    hook = pod.hook(job_id)
    assert (hook["status"], hook["output"], hook["retries"]) == ("COMPLETED", 1, 1)
    assert hook["workerId"] == second["worker"]
    assert pod.health()["jobs"]["retried"] == 1


def test_a_job_whose_workers_died_twice_fails(pod: Pod) -> None:
    """FAILED with how the worker ended; the next job gets a worker all the same."""
    job_id = pod.run({"die": "", "progress": [{"pct": 5}]})
    hook = pod.hook(job_id)
    assert (hook["status"], hook["retries"]) == ("FAILED", 1)
    assert "exit code 7" in hook["error"]
    assert "output" not in hook
    assert pod.hook(pod.run({"output": 1}))["status"] == "COMPLETED"


def test_a_killed_worker_takes_its_children_along(pod: Pod) -> None:
    """The SDK's heartbeat is such a child: it would ping for ever."""
    job_id = pod.run({"child": True, "deaf": True})
    first = pod.told(job_id, "started")
    gone = Watched(first["pid"], first["child"])
    os.kill(first["pid"], signal.SIGKILL)
    gone.wait_until_gone()
    assert pod.told(job_id, "started")["worker"] != first["worker"]


def test_a_killed_nurse_takes_its_worker_along(pod: Pod) -> None:
    """Whatever dies of a worker's processes, the rest of them ends and the job goes on."""
    job_id = pod.run({"child": True, "deaf": True})
    first = pod.told(job_id, "started")
    gone = Watched(first["pid"], first["child"])
    os.kill(parent_of(first["pid"]), signal.SIGKILL)
    gone.wait_until_gone()
    assert pod.told(job_id, "started")["worker"] != first["worker"]


def test_a_result_that_got_lost_is_asked_for_again(pod: Pod, tmp_path: Path) -> None:
    """A worker that asks for a job while it should have one has lost it."""
    job_id = pod.run({"forget": str(tmp_path / "mark"), "output": 1})
    hook = pod.hook(job_id)
    assert (hook["status"], hook["retries"]) == ("COMPLETED", 1)
    assert pod.told(job_id, "started")["pid"] == pod.told(job_id, "started")["pid"]


def test_a_worker_that_does_not_stop_is_killed(pod: Pod) -> None:
    """A job that ran out of time frees its worker's place, if need be by force."""
    job_id = pod.run({"deaf": True, "child": True}, {"executionTimeout": 300})
    started = pod.told(job_id, "started")
    gone = Watched(started["pid"], started["child"])
    assert pod.hook(job_id)["status"] == "TIMED_OUT"
    gone.wait_until_gone()
    assert pod.hook(pod.run({"output": 1}))["workerId"] != started["worker"]
    assert pod.status(job_id)["status"] == "TIMED_OUT"


def test_progress_of_a_cancelled_job_is_not_kept(ear: Ear, tmp_path: Path) -> None:
    """A worker that has not stopped yet goes on posting: the row's end stays as it was."""
    with Pod(ear, tmp_path / "log") as pod:
        job_id = pod.run({"deaf": True})
        take = pod.told(job_id, "started")["take"]
        pod.cancel(job_id)
        done = take.replace("/job-take/", "/job-done/").replace("?", f"/{job_id}?")
        _get(done, b'{"status": "IN_PROGRESS", "output": {"pct": 50}}')
        assert "output" not in pod.status(job_id)
        _get(done, b'{"output": "too late"}')
        assert "output" not in pod.status(job_id)
        assert pod.status(job_id)["status"] == "CANCELLED"


def test_stop_pod_ends_the_worker_after_its_result(pod: Pod) -> None:
    """A result with `stopPod` counts, and the next job gets a new worker."""
    job_id = pod.run({"output": 1, "stopPod": True})
    started = pod.told(job_id, "started")
    hook = pod.hook(job_id)
    assert (hook["status"], hook.get("retries")) == ("COMPLETED", None)
    assert pod.hook(pod.run({"output": 2}))["workerId"] != started["worker"]


def test_an_idle_worker_ends(ear: Ear, tmp_path: Path) -> None:
    """Nothing is kept in memory for jobs that don't come, and the next one starts a worker."""
    with Pod(ear, tmp_path / "log", "--idle-seconds", "0.2") as pod:
        job_id = pod.run({"progress": [1], "output": 1, "child": True})
        started = pod.told(job_id, "started")
        gone = Watched(started["pid"], started["child"])
        pod.hook(job_id)
        gone.wait_until_gone()
        assert pod.hook(pod.run({"output": 2}))["workerId"] != started["worker"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [((*WORKER, "--die"), "exit code 3"), (("/no/such/worker",), "could not be started")],
)
def test_jobs_fail_when_no_worker_can_be_started(
    ear: Ear, tmp_path: Path, command: tuple[str, ...], reason: str
) -> None:
    """Nobody waits for ever, and nothing is started in a tight loop."""
    with Pod(ear, tmp_path / "log", "--workers", "4", worker=command) as pod:
        jobs = [pod.run({"output": 1}) for _ in range(6)]
        for job_id in jobs:
            hook = pod.hook(job_id)
            assert hook["status"] == "FAILED"
            assert reason in hook["error"]
        assert pod.health()["workers"]["unhealthy"] == 1
        assert pod.log.count(" starts") <= 4 + 2  # all of them at first, then one by one


def test_a_worker_knows_nothing_of_its_callers(ear: Ear, tmp_path: Path) -> None:
    """No key, no database; the SDK's variables are localpod's own, the rest is passed on."""
    secrets = {
        "DATABASE_URL": "postgresql://user:pass@host/db",
        "RUNPOD_API_KEY": "planted",
        "RUNPOD_ENDPOINT_ID": "theirs",
        "MODEL": "nano",
    }
    with Pod(ear, tmp_path / "log", env=secrets) as pod:
        started = pod.told(pod.run({"environment": True, "output": 1}), "started")
    env = started["environment"]
    assert not {"DATABASE_URL", "RUNPOD_API_KEY", "LOCALPOD_KEY"} & env.keys()
    assert not any(secret in json.dumps(env) for secret in (KEY, "planted", "user:pass"))
    assert env["RUNPOD_ENDPOINT_ID"] == "local"
    assert env["MODEL"] == "nano"
    assert not Path(env["TMPDIR"]).exists()


def test_workers_that_are_not_ours_are_refused(pod: Pod) -> None:
    """The protocol wants a living worker's id and its token; the callers' key does not serve."""
    job_id = pod.run({"wait": True})
    take = pod.told(job_id, "started")["take"]
    address, _, token = take.partition("?token=")
    worker = address.rpartition("/")[2]
    for path, given in (
        (f"/job-take/{worker}", ""),
        (f"/job-take/{worker}", "?token=" + KEY),
        (f"/job-take/other?token={token}", ""),
        (f"/job-take-batch/{worker}?batch_size=2", ""),
        (f"/job-stop/{worker}", "?token=x"),
        (f"/ping/{worker}", "?token=%C3%BC"),
    ):
        assert pod.call("GET", path + given).status_code == 401
    done = f"/job-done/{worker}/{job_id}"
    assert pod.call("POST", done + "?token=x", {"output": "forged"}).status_code == 401
    assert pod.call("POST", f"{done}?token={token}", data="no json").status_code == 400
    assert pod.status(job_id)["status"] == "IN_PROGRESS"


def test_jobs_can_be_taken_in_batches(pod: Pod) -> None:
    """`job-take-batch` gives a list; each job of it ends by itself."""
    first = pod.run({"wait": True})
    take = pod.told(first, "started")["take"]
    second, third, fourth = (pod.run({"output": 1}) for _ in range(3))
    batch = take.replace("/job-take/", "/job-take-batch/") + "&batch_size=2&job_in_progress=1"
    assert [job["id"] for job in _get(batch)] == [second, third]
    assert pod.status(third)["status"] == "IN_PROGRESS"
    assert pod.status(fourth)["status"] == "IN_QUEUE"
    done = take.replace("/job-take/", "/job-done/").replace("?", f"/{third}?")
    _get(done, b'{"output": 3}')
    assert pod.hook(third)["output"] == 3
    assert pod.status(second)["status"] == "IN_PROGRESS"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        _get(batch.replace("batch_size=2", "batch_size=x"))


def _get(url: str, body: bytes | None = None) -> list[dict[str, str]]:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=WAIT) as answer:
        text = answer.read()
    found: list[dict[str, str]] = json.loads(text) if text else []
    return found


def test_nothing_outlives_a_killed_localpod(ear: Ear, tmp_path: Path) -> None:
    """After kill -9: no nurse, no worker, no child of a worker."""
    with Pod(ear, tmp_path / "log", "--workers", "2") as pod:
        gone = _busy_workers(pod, 2)
        pod.process.kill()
        gone.wait_until_gone()


def test_sigterm_ends_everything_in_order(ear: Ear, tmp_path: Path) -> None:
    """Exit code 0, running jobs or not, and none of its processes is left."""
    with Pod(ear, tmp_path / "log", "--workers", "2") as pod:
        gone = _busy_workers(pod, 2)
        pod.process.terminate()
        assert pod.process.wait(WAIT) == 0
        gone.wait_until_gone()
        assert "Traceback" not in pod.log


PARENT = """
import os, subprocess, sys, threading
def start():
    child = subprocess.Popen([*sys.argv[1:3], "localpod", "--parent-pid", str(os.getpid()),
                              *sys.argv[3:]], stdin=subprocess.DEVNULL)
    print(child.pid, file=sys.stderr, flush=True)
thread = threading.Thread(target=start)  # which ends: the process that goes on is the parent
thread.start()
thread.join()
threading.Event().wait()
"""


def test_nothing_outlives_a_killed_parent(ear: Ear, tmp_path: Path) -> None:
    """localpod ends when the process named by --parent-pid is killed, and its workers too."""
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, sys.executable, "-m", "--worker-command", *WORKER],
            cwd=ROOT,
            env={**os.environ, "LOCALPOD_KEY": KEY},
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert parent.stdout is not None
    with parent.stdout as stdout:
        pod = Pod.__new__(Pod)
        pod.adopt(ear, log, stdout.readline())
        workers = _busy_workers(pod, 1)
        localpod = Watched(int(log.read_text().split(maxsplit=1)[0]))
        parent.kill()
        parent.wait(WAIT)
        localpod.wait_until_gone()
        workers.wait_until_gone()


def test_a_parent_that_is_gone_already_ends_it_at_once(ear: Ear, tmp_path: Path) -> None:
    """A parent killed while localpod starts is noticed too."""
    dead = subprocess.Popen(["true"])
    dead.wait(WAIT)
    with Pod(ear, tmp_path / "log", "--parent-pid", str(dead.pid)) as pod:
        assert pod.process.wait(WAIT) == 0


def test_the_parent_is_watched_without_process_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the system has none, a change of the parent's number says that it is gone."""

    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, "not here")

    numbers = iter([4, 4, 1])
    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(os, "getppid", lambda: next(numbers))
    monkeypatch.setattr(parent_module, "LOOK_SECONDS", 0.001)

    async def watch() -> None:
        gone = asyncio.Event()
        parent_module.watch(4, gone.set)
        assert not gone.is_set()
        await asyncio.wait_for(gone.wait(), WAIT)

    asyncio.run(watch())
    assert next(numbers, None) is None


def _busy_workers(pod: Pod, count: int) -> Watched:
    jobs = [pod.run({"deaf": True, "child": True}) for _ in range(count)]
    pids: list[int] = []
    for job_id in jobs:
        started = pod.told(job_id, "started")
        pids += [started["pid"], started["child"], parent_of(started["pid"])]
    return Watched(*pids)


SDK = """
import json, sys, runpod
endpoint = runpod.Endpoint("local", api_key=sys.argv[1])
assert endpoint.health()["jobs"]["completed"] == 0
job = endpoint.run({"input": {"audio_url": "samples/line.flac", "model": "nano",
                              "language": "en", "job_id": "sdk-1"}})
output = job.output(timeout=60)
print(json.dumps([job.status(), output, endpoint.health()["jobs"]]))
"""


def test_the_sdk_runs_a_real_job_with_the_real_worker(ear: Ear, tmp_path: Path) -> None:
    """`runpod.Endpoint`, pointed here by RUNPOD_ENDPOINT_BASE_URL, gets words from the worker.

    The worker is then told to stop a job, and takes one more. A key in ~/.runpod/config.toml,
    which the SDK prefers to the one it is given, does not lock it out.
    """
    (tmp_path / ".runpod").mkdir()
    (tmp_path / ".runpod" / "config.toml").write_text('[default]\napi_key = "of-another"\n')
    env = {
        "HOME": str(tmp_path),
        "MODEL": "nano",
        "DEVICE": "cpu",
        "ALLOW_FILE_SOURCES": "1",
        "HF_HUB_OFFLINE": "1",
        "STORAGE_DIR": "",
        "CLOUDINARY_URL": "",
    }
    with Pod(ear, tmp_path / "log", worker=(), env=env) as pod:
        done = subprocess.run(
            [sys.executable, "-c", SDK, KEY],
            env={**os.environ, "RUNPOD_ENDPOINT_BASE_URL": pod.base},
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        status, output, jobs = json.loads(done.stdout.splitlines()[-1])
        assert status == "COMPLETED"
        assert output["job_id"] == "sdk-1"
        assert output["words"]
        assert jobs == {"completed": 1, "failed": 0, "inProgress": 0, "inQueue": 0, "retried": 0}

        song = {"audio_url": "samples/song.flac", "model": "nano", "language": "en"}
        stopped = pod.run({**song, "job_id": "sdk-2"}, {"executionTimeout": 1})
        assert pod.hook(stopped)["status"] == "TIMED_OUT"
        line = {"audio_url": "samples/line.flac", "model": "nano", "language": "en"}
        last = pod.run({**line, "job_id": "sdk-3", "auto_terminate": True})
        hook = pod.hook(last)
        assert hook["status"] == "COMPLETED", hook
        assert hook["workerId"] == pod.status(stopped)["workerId"]


def test_the_worker_is_found_where_localpod_is_installed(tmp_path: Path) -> None:
    """From a checkout the shim is run; as an installed package the worker's own main."""
    show = "from localpod.__main__ import worker_command; print(worker_command()[-1])"
    shutil.copytree(ROOT / "localpod", tmp_path / "localpod")

    def found(folder: Path) -> str:
        command = [sys.executable, "-c", show]
        return subprocess.check_output(command, cwd=folder, text=True, timeout=WAIT).strip()

    assert found(ROOT) == str(ROOT / "handler.py")
    assert found(tmp_path) == "from handler.worker import main; main()"
