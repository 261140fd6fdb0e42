"""The doubles that stand for RunPod in the orchestrator's tests do what RunPod is known to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from jobserver import JobServer
from lossy_proxy import NONE, LossyProxy, Odds
from runpod_double import HELD, RunPodDouble, Script
from scripted_worker import fingerprint, publish, result

from lyricpod.request import parse
from lyricpod.result import JobResult
from lyricpod.storage import read_kept

INPUT = {"job_id": "a", "audio_url": "https://example.org/a.mp3"}
WORKER = Path(__file__).parent / "scripted_worker.py"


class Hook(ThreadingHTTPServer):
    """A webhook route that answers with the given statuses, then 200."""

    def __init__(self, *answers: int) -> None:
        super().__init__(("127.0.0.1", 0), HookHandler)
        self.answers = list(answers)
        self.bodies: list[Any] = []
        self.came = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/lyricpod/webhook/token"

    def wait(self, count: int) -> list[Any]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.bodies) >= count, 30)
            return self.bodies

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class HookHandler(BaseHTTPRequestHandler):
    """One call of the hook."""

    def do_POST(self) -> None:
        hook: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with hook.came:
            answer = hook.answers.pop(0) if hook.answers else 200
            hook.bodies.append(body)
            hook.came.notify_all()
        self.send_response(answer)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


def call(double: Any, method: str, path: str, key: str | None = None, **more: Any) -> Any:
    """One call with a connection of its own: an open one would be a ResourceWarning."""
    headers = {"Authorization": f"Bearer {key or 'rpa-double-key'}", "Connection": "close"}
    base = f"{double.url}/v2/endpoint-double"
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, f"{base}/{path}", headers=headers, timeout=30, **more)


def send(double: Any, input: Any = INPUT, **more: Any) -> str:
    answer = call(double, "POST", "run", json={"input": input, **more})
    assert answer.status_code == 200
    assert answer.json()["status"] == "IN_QUEUE"
    return str(answer.json()["id"])


def status(double: Any, runpod_id: str) -> Any:
    return call(double, "GET", f"status/{runpod_id}").json()


def test_a_job_goes_through_its_states_and_its_result_is_a_valid_one(runpod: RunPodDouble) -> None:
    """Queue, run with progress, end: each shown by the status as RunPod shows it."""
    runpod_id = send(runpod)
    assert status(runpod, runpod_id)["status"] == "IN_QUEUE"
    runpod.start("a")
    runpod.progress("a", {"pct": 40})
    running = status(runpod, runpod_id)
    assert (running["status"], running["output"]) == ("IN_PROGRESS", {"pct": 40})
    runpod.finish("a")
    ended = status(runpod, runpod_id)
    assert ended["status"] == "COMPLETED"
    assert {"delayTime", "executionTime", "workerId"} <= ended.keys()
    expected = parse(INPUT, default_job_id="x").request.fingerprint
    kept = read_kept(json.dumps(ended["output"]).encode(), expected)
    assert kept is not None
    assert kept.job_id == "a"
    assert len(kept.words or ()) == 40


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ({"error": "it broke"}, {"status": "FAILED", "error": "it broke"}),
        ({"status": "TIMED_OUT", "error": "late"}, {"status": "TIMED_OUT", "error": "late"}),
        ({"output": "https://x/y"}, {"status": "COMPLETED", "output": "https://x/y"}),
        ({"output": None}, {"status": "COMPLETED"}),
    ],
)
def test_a_job_ends_as_it_is_told(
    runpod: RunPodDouble, finish: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Failure, timeout and odd outputs are shown as given."""
    runpod_id = send(runpod)
    runpod.finish("a", **finish)
    seen = status(runpod, runpod_id)
    assert expected.items() <= seen.items()
    assert ("output" in seen) == ("output" in expected)


def test_a_script_runs_by_itself(runpod: RunPodDouble) -> None:
    """A job with seconds of queue and run ends without anybody's doing."""
    runpod.decide = lambda body: Script(queued=0.01, seconds=0.01, retries=1, progress=({"p": 1},))
    runpod_id = send(runpod)
    runpod.wait_until(lambda: runpod.jobs[runpod_id].status == "COMPLETED")
    assert status(runpod, runpod_id)["retries"] == 1


def test_the_execution_timeout_and_the_ttl_end_a_job(runpod: RunPodDouble) -> None:
    """Longer than executionTimeout: TIMED_OUT. Older than ttl: 404, in the middle of a run."""
    slow = send(runpod, {**INPUT, "job_id": "slow"}, policy={"executionTimeout": 20})
    runpod.start("slow")
    old = send(runpod, {**INPUT, "job_id": "old"}, policy={"ttl": 20})
    runpod.wait_until(lambda: runpod.jobs[slow].status == "TIMED_OUT" and old not in runpod.jobs)
    assert call(runpod, "GET", f"status/{old}").status_code == 404


def test_early_404s_pass_and_late_ones_stay(runpod: RunPodDouble) -> None:
    """Two early 404s, then the job; a forgotten job is never found again."""
    runpod.decide = lambda body: Script(queued=None, early_404=2)
    runpod_id = send(runpod)
    answers = [call(runpod, "GET", f"status/{runpod_id}").status_code for _ in range(3)]
    assert answers == [404, 404, 200]
    runpod.forget("a")
    assert call(runpod, "GET", f"status/{runpod_id}").status_code == 404


def test_cancel_ends_a_job_once(runpod: RunPodDouble) -> None:
    """Cancel answers CANCELLED; of an ended job, its end."""
    runpod_id = send(runpod)
    assert call(runpod, "POST", f"cancel/{runpod_id}").json()["status"] == "CANCELLED"
    assert status(runpod, runpod_id)["status"] == "CANCELLED"
    other = send(runpod)
    runpod.finish("a")
    assert call(runpod, "POST", f"cancel/{other}").json()["status"] == "COMPLETED"


def test_bad_calls_are_refused(runpod: RunPodDouble) -> None:
    """400 without input, 401 for another key, 404 for what is not there."""
    assert call(runpod, "POST", "run", json={"input": {}}).status_code == 400
    assert call(runpod, "POST", "run", data=b"{").status_code == 400
    assert call(runpod, "POST", "run", key="other", json={"input": INPUT}).status_code == 401
    assert call(runpod, "GET", "status/none").status_code == 404
    assert runpod.submissions == []


def test_more_calls_than_the_limit_are_refused_and_counted(runpod: RunPodDouble) -> None:
    """Within 10 s, the call after the last allowed one is answered 429."""
    with RunPodDouble(limits={"status": (3, 10)}) as small:
        answers = [call(small, "GET", "status/x").status_code for _ in range(4)]
        assert answers == [404, 404, 404, 429]
        assert small.refused == {"status": 1}
    assert runpod.refused == {}


@pytest.mark.parametrize(
    ("fault", "acted"), [("lose", True), ("reset", False), (503, False), (429, False)]
)
def test_a_fault_meets_one_call(runpod: RunPodDouble, fault: Any, acted: bool) -> None:
    """A lost answer was acted on, the other faults were not; the next call is well."""
    runpod.fail("run", fault)
    if isinstance(fault, int):
        assert call(runpod, "POST", "run", json={"input": INPUT}).status_code == fault
    else:
        with pytest.raises(requests.ConnectionError):
            call(runpod, "POST", "run", json={"input": INPUT})
    assert [s.fault for s in runpod.submissions] == ([fault] if acted else [])
    assert len(runpod.of("a")) == int(acted)
    send(runpod)


def test_a_hanging_call_ends_with_the_double() -> None:
    """It is acted on and not answered; closing the double frees its caller."""
    with RunPodDouble() as double:
        double.fail("run", "hang")
        failed: list[BaseException] = []

        def hang() -> None:
            try:
                call(double, "POST", "run", json={"input": INPUT})
            except requests.ConnectionError as error:
                failed.append(error)

        thread = threading.Thread(target=hang)
        thread.start()
        double.last("a")
    thread.join(10)
    assert failed


def test_health_counts_and_the_balance_is_asked_for(runpod: RunPodDouble) -> None:
    """The two other questions of RunPod's."""
    send(runpod)
    health = call(runpod, "GET", "health").json()
    assert health["jobs"]["inQueue"] == 1
    assert set(health["workers"]) >= {"idle", "ready", "running", "throttled", "unhealthy"}
    headers = {"Authorization": "Bearer rpa-double-key", "Connection": "close"}
    answer = requests.post(f"{runpod.url}/graphql", json={}, headers=headers, timeout=30)
    assert answer.json()["data"]["myself"]["clientBalance"] == 25.0


def test_a_webhook_has_the_documented_body_and_is_tried_three_times() -> None:
    """The status object, the input and the URL itself; again until it is answered with 200."""
    with (
        Hook(500, 404) as hook,
        RunPodDouble(decide=lambda body: HELD, webhook_pauses=(0.01, 0.01)) as runpod,
    ):
        runpod_id = send(runpod, webhook=hook.url)
        runpod.finish("a", output={"x": 1})
        body = hook.wait(3)[-1]
        runpod.wait_until(lambda: len(runpod.deliveries) == 3)
        assert [d.answer for d in runpod.deliveries] == [500, 404, 200]
        runpod.deliver("a")
        hook.wait(4)
    assert body["id"] == runpod_id
    assert body["status"] == "COMPLETED"
    assert body["output"] == {"x": 1}
    assert body["input"] == INPUT
    assert body["webhook"] == hook.url


def test_the_double_runs_as_a_process_and_ends_with_its_input() -> None:
    """It prints where it is, reports what came, and leaves no process behind."""
    process = subprocess.Popen(
        [sys.executable, "tests/runpod_double.py", "--seconds", "0.01"],
        cwd=WORKER.parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        headers = {"Connection": "close"}
        run = f"{told['RUNPOD_ENDPOINT_BASE_URL']}/{told['RUNPOD_ENDPOINT_ID']}/run"
        key = {"Authorization": f"Bearer {told['RUNPOD_API_KEY']}", **headers}
        requests.post(run, json={"input": INPUT}, headers=key, timeout=30)
        report = requests.get(told["url"] + "/double/report?full", headers=headers, timeout=30)
        assert report.json()["job_ids"] == ["a"]
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("fate", "acted"), [("lost", True), ("error", False), ("busy", False), ("reset", False)]
)
def test_the_proxy_does_what_it_is_told(runpod: RunPodDouble, fate: str, acted: bool) -> None:
    """Each fate acts on the call or does not, and is recorded with RunPod's id."""
    odds = Odds(**{"lost": 0.0, "error": 0.0, "busy": 0.0, "reset": 0.0, fate: 1.0})
    with LossyProxy([runpod.url], odds) as proxy:
        if fate in ("lost", "reset"):
            with pytest.raises(requests.ConnectionError):
                call(proxy, "POST", "run", json={"input": INPUT})
        else:
            answer = call(proxy, "POST", "run", json={"input": INPUT})
            assert answer.status_code == {"error": 502, "busy": 429}[fate]
        assert [(s.job_id, s.fate) for s in proxy.sendings] == [("a", fate)]
        assert [job.runpod_id for job in runpod.of("a")] == [
            s.runpod_id for s in proxy.sendings if acted
        ]


def test_the_proxys_fates_are_the_seeds(runpod: RunPodDouble) -> None:
    """Two proxies with one seed treat the same calls alike; another seed differs."""
    odds = Odds(lost=0, error=0.5, busy=0, reset=0)
    seen = []
    for seed in (1, 1, 2):
        with LossyProxy([runpod.url], odds, seed=seed) as proxy:
            seen.append([call(proxy, "GET", "health").status_code for _ in range(12)])
    assert seen[0] == seen[1] != seen[2]
    assert set(seen[0]) == {200, 502}


def test_the_proxy_lets_results_expire(runpod: RunPodDouble) -> None:
    """A running job is shown; once it has ended its status is 404."""
    with LossyProxy([runpod.url], NONE, expired=1.0) as proxy:
        runpod_id = send(proxy)
        assert status(proxy, runpod_id)["status"] == "IN_QUEUE"
        runpod.finish("a")
        assert call(proxy, "GET", f"status/{runpod_id}").status_code == 404
        assert proxy.expired_ids == {runpod_id}


def test_a_webhook_can_come_twice_and_go_to_any_replica() -> None:
    """One call becomes two; with two targets, one each; a dead target is a 502."""
    twice = Odds(lost=0, error=0, busy=0, reset=0, twice=1.0, late_seconds=0.01)
    with Hook() as one, Hook() as two:
        bases = [hook.url.removesuffix("/lyricpod/webhook/token") for hook in (one, two)]
        with LossyProxy(bases, twice) as proxy:
            with RunPodDouble(decide=lambda body: HELD) as runpod:
                send(runpod, webhook=f"{proxy.url}/lyricpod/webhook/token")
                runpod.finish("a")
                assert one.wait(1) == two.wait(1)
            proxy.targets = ["http://127.0.0.1:9"]
            assert call(proxy, "POST", "run", json={"input": INPUT}).status_code == 502


@pytest.mark.parametrize(
    "input",
    [
        INPUT,
        {"job_id": "b", "youtube_url": "https://youtu.be/x", "language": "en", "vad": True},
        {"job_id": "c", "audio_base64": "AAAA", "formats": ["srt"], "lyrics": "la"},
    ],
)
def test_a_scripted_result_is_a_valid_one(input: dict[str, Any], tmp_path: Path) -> None:
    """It has the request's own fingerprint, and a published one is read back from the folder."""
    expected = parse(input, default_job_id="x").request.fingerprint
    assert fingerprint(input) == expected
    done = publish(result(input, "x", words=7), tmp_path)
    kept = (tmp_path / "transcriptions" / input["job_id"] / "results.json").read_bytes()
    assert read_kept(kept, expected) == JobResult.model_validate(done).model_copy(
        update={"result_url": None}
    )


def start_worker(jobs: JobServer, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), *arguments],
        env={"PATH": os.environ["PATH"], **jobs.env()},
        stdin=subprocess.DEVNULL,
    )


def test_a_scripted_worker_does_jobs_and_stops_them(jobs: JobServer) -> None:
    """Progress and result arrive; a stopped job says cancelled; a scripted error is posted."""
    worker = start_worker(jobs)
    try:
        first = jobs.submit({**INPUT, "audio_url": "https://example.org/a.mp3?seconds=0.05"})
        assert jobs.wait_result(first)["output"]["job_id"] == "a"
        assert jobs.wait_progress(first, lambda body: True)["output"]["stage"] == "transcription"
        endless = jobs.submit({**INPUT, "audio_url": "https://example.org/a.mp3?seconds=600"})
        jobs.wait_progress(endless, lambda body: True)
        jobs.stop(endless)
        assert json.loads(jobs.wait_result(endless)["error"])["code"] == "cancelled"
        failing = {**INPUT, "audio_url": "https://example.org/a.mp3?error=network"}
        assert json.loads(jobs.wait_result(jobs.submit(failing))["error"])["retryable"] is True
    finally:
        worker.kill()
        worker.wait()


def test_a_scripted_worker_dies_by_script(jobs: JobServer) -> None:
    """A chance of one: killed by its own signal, with no result."""
    worker = start_worker(jobs, "--die", "1")
    job = jobs.submit(INPUT)
    assert worker.wait(30) == -signal.SIGKILL
    assert not [post for post in jobs.posts if post.job_id == job and not post.progress]
