"""Replicas as processes: paused, killed, ended, and cut off from everything they need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cloudinary_double
import pytest
from aiohttp import web
from cloudinary_double import CloudinaryDouble
from conftest import ROOT, SAMPLES
from jobserver import LoopbackServer
from pod import Watched
from postgres import Postgres, postgres
from replica import (
    CLOUDINARY_SECRET,
    COOKIES,
    PASSWORD,
    RUNPOD_KEY,
    RUNS,
    WAIT,
    Door,
    Replica,
    leaks,
    pass_time,
    with_password,
)
from rows import ADDED_LATER, ORIGINAL, Row, Rows, dump
from runpod_double import HELD, RunPodDouble, Script
from test_orchestrator import Backend

from lyricpod.errors import ConfigError, ErrorCode, JobError
from lyricpod.request import parse
from lyricpod.result import JobResult, Word
from orchestrator import Orchestrator, OrchestratorError

URL = "https://youtu.be/aaaaaaaaaaa"  # of a row that `Rows.queue` makes
QUICK = {"POLL_SECONDS": "0.1", "RETRY_SECONDS": "0.05"}
LEASE = 61.0  # seconds after which a lease of the default length has ended
LATE = 3.0  # seconds beyond SHUTDOWN_SECONDS that a busy machine may need; what hangs needs 20
WORKER = {
    "LOCAL_ENDPOINT": "auto",
    "MODEL": "nano",
    "DEVICE": "cpu",
    "HF_HUB_OFFLINE": "1",
    "ALLOW_PRIVATE_NETWORK": "1",
}
AFTER_THE_END = """
SELECT id FROM audit WHERE status IN ('completed', 'error') GROUP BY id HAVING count(*) > 1
"""
NO_RUNPOD = {"RUNPOD_API_KEY": "", "RUNPOD_ENDPOINT_ID": ""}

StartReplica = Callable[..., Replica]
StartOther = Callable[..., Orchestrator]


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[Postgres]:
    """A server of these tests' own, as some of them stop it."""
    with (
        tempfile.TemporaryDirectory(prefix="lyricpod-test-") as folder,
        postgres(Path(folder)) as server,
    ):
        yield server


@pytest.fixture
def runpod() -> Iterator[RunPodDouble]:
    double = RunPodDouble(decide=lambda body: HELD, key=RUNPOD_KEY, webhook_pauses=(0.1, 0.1))
    with double:
        yield double


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as server:
        yield server


@pytest.fixture
def cloudinary(monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudinaryDouble]:
    """Cloudinary with the planted secret."""
    monkeypatch.setattr(cloudinary_double, "API_SECRET", CLOUDINARY_SECRET)
    with CloudinaryDouble() as double:
        yield double


class Samples(LoopbackServer):
    """The audio of `samples/`, for workers here and (as far as its URL goes) at RunPod."""

    def _routes(self) -> list[web.RouteDef]:
        return [web.get("/{name}", self._file)]

    async def _file(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(SAMPLES / request.match_info["name"])


@pytest.fixture
def samples() -> Iterator[Samples]:
    with Samples() as server:
        yield server


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    """The backend's table, with all its columns."""
    with Rows(database_url) as backend:
        backend.run(ORIGINAL)
        backend.run(ADDED_LATER)
        yield backend.watch()


@pytest.fixture
def env(database_url: str, runpod: RunPodDouble) -> dict[str, str]:
    """What every replica is given: secrets of each kind are in it."""
    return {
        **runpod.env(),
        **QUICK,
        "DATABASE_URL": with_password(database_url),
        "YOUTUBE_COOKIES_CONTENT": COOKIES,
    }


@pytest.fixture
def start(
    rows: Rows, env: dict[str, str], database_url: str, runpod: RunPodDouble
) -> Iterator[StartReplica]:
    """Starts replicas; whatever the test did, no secret is in their logs or in the database."""
    replicas: list[Replica] = []

    def begin(*, ready: bool = True, **more: str) -> Replica:
        replicas.append(Replica({**env, **more}))
        if ready:
            replicas[-1].wait_log(RUNS)
        return replicas[-1]

    yield begin
    for each in replicas:
        each.close()
    logs = "\n".join(each.log for each in replicas)
    tokens = [url.rpartition("/")[2] for url in webhooks(runpod)]
    assert leaks(logs, *tokens) == []
    assert leaks(dump(database_url), *tokens) == []


@pytest.fixture
def other(env: dict[str, str]) -> Iterator[StartOther]:
    """Another replica, in this process."""
    with ExitStack() as stack:

        def begin(*, loop: bool = True, **more: str) -> Orchestrator:
            orchestrator = stack.enter_context(Orchestrator.from_env({**env, **more}))
            if loop:
                orchestrator.start()
            return orchestrator

        yield begin


def webhooks(runpod: RunPodDouble) -> list[str]:
    """The webhook URLs that were sent."""
    return [job.body["webhook"] for job in list(runpod.jobs.values()) if "webhook" in job.body]


def accepted(runpod: RunPodDouble, job_id: str) -> int:
    """How often a job was accepted."""
    return sum(bool(s.runpod_id) for s in runpod.submissions if s.job_id == job_id)


def trace(rows: Rows, job_id: str) -> tuple[Row, list[str], list[Row]]:
    """All that a late write would change."""
    return rows.get(job_id), rows.statuses(job_id), rows.attempts(job_id)


# Paused.


def test_a_replica_that_slept_while_it_sent_writes_nothing(
    rows: Rows, runpod: RunPodDouble, start: StartReplica, other: StartOther, backend: Backend
) -> None:
    """The POST's answer waits in its socket while another replica finishes the job."""
    sleeper = start(PUBLIC_URL=backend.url)
    runpod.fail("run", ("delay", 2.0))
    job = rows.queue("sent")
    runpod.last(job)
    sleeper.pause()
    assert rows.attempts(job)[0]["state"] == "submitting"
    pass_time(rows, LEASE)
    backend.orchestrator = other(PUBLIC_URL=backend.url)
    rows.attempt_until(job, lambda a: a["state"] == "unknown")
    runpod.start(job)
    runpod.finish(job)
    assert rows.ended(job)["status"] == "completed"
    before = trace(rows, job)
    sleeper.wake()
    sleeper.wait_log("the lease was gone")
    assert sleeper.terminate() == 0
    assert trace(rows, job) == before
    assert accepted(runpod, job) == 1


def test_a_replica_that_slept_while_it_looked_writes_nothing(
    rows: Rows, runpod: RunPodDouble, start: StartReplica, other: StartOther
) -> None:
    """It wakes with a running job's progress in hand, of a job that is over."""
    sleeper = start()
    job = rows.queue("looked")
    runpod.start(job)
    rows.attempt_until(job, lambda a: a["state"] == "running")
    runpod.fail_always("status", 503)  # so that the call to be delayed is the first to see this
    shown = {"pct": 40, "status": "late", "stage": "transcription", "seq": 1, "lines": []}
    runpod.progress(job, shown)
    runpod.fail("status", ("delay", 2.0))
    runpod.wait_until(lambda: not runpod._faults["status"])
    sleeper.pause()
    pass_time(rows, LEASE)
    runpod.fail_always("status", None)
    runpod.finish(job)
    taker = other()
    assert rows.ended(job)["status"] == "completed"
    taker.close()
    before = trace(rows, job)
    sleeper.wake()
    finish_one_more(rows, runpod, sleeper)
    assert trace(rows, job) == before
    assert accepted(runpod, job) == 1


def finish_one_more(rows: Rows, runpod: RunPodDouble, woken: Replica) -> None:
    """The woken replica works on, and has done all that it had in hand when it ends."""
    runpod.decide = lambda body: Script()
    assert rows.ended(rows.queue("one-more"))["status"] == "completed"
    assert woken.terminate() == 0


def test_a_replica_that_slept_while_it_uploaded_writes_nothing(
    rows: Rows,
    runpod: RunPodDouble,
    start: StartReplica,
    other: StartOther,
    cloudinary: CloudinaryDouble,
) -> None:
    """Its upload goes on after another replica has uploaded and closed the job."""
    stored = {"CLOUDINARY_URL": cloudinary.cloudinary_url}
    sleeper = start(**stored)
    cloudinary.fail(("hang", 1.0))
    runpod.decide = lambda body: Script()
    job = rows.queue("uploaded")
    cloudinary.wait_requests(1)
    sleeper.pause()
    pass_time(rows, LEASE)
    taker = other(**stored)
    assert rows.ended(job)["status"] == "completed"
    taker.close()
    before = trace(rows, job)
    uploads = len(cloudinary.requests)
    sleeper.wake()
    cloudinary.wait_requests(uploads + 2)  # its JSON and its SRT
    finish_one_more(rows, runpod, sleeper)
    assert trace(rows, job) == before


# Killed.


def test_a_killed_replicas_sending_is_found_by_its_webhook(
    rows: Rows, runpod: RunPodDouble, start: StartReplica, other: StartOther, backend: Backend
) -> None:
    """kill -9 between the intent's commit and the POST's answer: nothing is sent twice."""
    job = die_while_sending(rows, runpod, start(PUBLIC_URL=backend.url))
    backend.orchestrator = other(PUBLIC_URL=backend.url)
    rows.attempt_until(job, lambda a: a["state"] == "unknown")
    runpod.finish(job)
    assert rows.ended(job)["status"] == "completed"
    assert len(rows.attempts(job)) == 1
    assert accepted(runpod, job) == 1


def test_a_killed_replicas_sending_is_found_by_its_durable_copy(
    rows: Rows, runpod: RunPodDouble, start: StartReplica, other: StartOther, tmp_path: Path
) -> None:
    """The same without webhooks, where the worker kept its result."""
    stored = {"STORAGE_DIR": str(tmp_path / "kept")}
    job = die_while_sending(rows, runpod, start(**stored))
    taker = other(**stored)
    rows.attempt_until(job, lambda a: a["state"] == "unknown")
    request = parse({"youtube_url": URL}, default_job_id=job).request
    words = (Word(word="kept", start=0.0, end=1.0),)
    result = JobResult(words=words, plain="kept", job_id=job, fingerprint=request.fingerprint)
    taker._publisher.publish(result)
    pass_time(rows, 16)  # until the next look for a copy
    assert rows.ended(job)["status"] == "completed"
    assert [word.word for word in taker.result(job).words or ()] == ["kept"]
    assert accepted(runpod, job) == 1


def test_a_killed_replicas_sending_that_nobody_finds_is_made_again(
    rows: Rows, runpod: RunPodDouble, start: StartReplica, other: StartOther
) -> None:
    """Without webhooks and durable copies: once more, after UNKNOWN_SECONDS and not before."""
    job = die_while_sending(rows, runpod, start())
    other(UNKNOWN_SECONDS="300")
    rows.attempt_until(job, lambda a: a["state"] == "unknown")
    pass_time(rows, 200)
    rows.attempt_until(job, lambda a: a["next_poll_at"] > datetime.now(UTC))  # was looked for
    assert len(rows.attempts(job)) == 1
    runpod.decide = lambda body: Script()
    pass_time(rows, 101)
    assert rows.ended(job)["status"] == "completed"
    assert accepted(runpod, job) == 2


def die_while_sending(rows: Rows, runpod: RunPodDouble, victim: Replica) -> str:
    """Kill a replica whose job is accepted and whose POST has no answer."""
    runpod.fail("run", "hang")
    job = rows.queue("orphan")
    runpod.last(job)
    victim.kill()
    assert [a["state"] for a in rows.attempts(job)] == ["submitting"]
    pass_time(rows, LEASE)
    return job


# Ended by SIGTERM.


def test_sigterm_ends_an_idle_replica(rows: Rows, start: StartReplica) -> None:
    """Exit code 0 and no trace."""
    idle = start()
    assert idle.terminate(3 + LATE) == 0
    idle.wait_silent()
    assert rows.run("SELECT * FROM lyricpod_replicas") == []


def test_sigterm_while_a_post_hangs(
    rows: Rows, runpod: RunPodDouble, start: StartReplica, other: StartOther, backend: Backend
) -> None:
    """Its lease is given back: another replica goes on at once."""
    leaver = start(PUBLIC_URL=backend.url)
    runpod.fail("run", "hang")
    job = rows.queue("posted")
    runpod.last(job)
    assert leaver.terminate(3 + LATE) == 0
    assert [a["lease_token"] for a in rows.attempts(job)] == [None]
    backend.orchestrator = other(PUBLIC_URL=backend.url)
    rows.attempt_until(job, lambda a: a["state"] == "unknown")
    runpod.finish(job)
    assert rows.ended(job)["status"] == "completed"
    assert accepted(runpod, job) == 1


def test_sigterm_while_an_upload_hangs(
    rows: Rows,
    runpod: RunPodDouble,
    start: StartReplica,
    other: StartOther,
    cloudinary: CloudinaryDouble,
) -> None:
    """The result is committed, so another replica uploads it at once."""
    stored = {"CLOUDINARY_URL": cloudinary.cloudinary_url}
    leaver = start(**stored)
    cloudinary.fail(("hang", 30.0))
    runpod.decide = lambda body: Script()
    job = rows.queue("uploaded")
    cloudinary.wait_requests(1)
    assert leaver.terminate(3 + LATE) == 0
    assert [a["lease_token"] for a in rows.attempts(job)] == [None]
    other(**stored)
    assert rows.ended(job)["status"] == "completed"
    assert accepted(runpod, job) == 1


# Cut off.


def test_an_outage_of_the_database(
    rows: Rows,
    runpod: RunPodDouble,
    start: StartReplica,
    database_url: str,
    postgres_server: Postgres,
) -> None:
    """What ended or was accepted meanwhile is closed afterwards, nobody spins, SIGTERM ends it."""
    cut_off = start(LEASE_SECONDS="8", HTTP_SECONDS="4")
    jobs = [rows.queue(f"job-{number}") for number in range(5)]
    for job in jobs:
        runpod.start(job)
        rows.attempt_until(job, lambda a: a["state"] == "running")
    runpod.fail("run", ("delay", 2.0))
    jobs.append(rows.queue("being-sent"))
    runpod.last("being-sent")
    with away(postgres_server):
        before = Effort(cut_off, runpod)
        for job in jobs:
            runpod.finish(job)
        cut_off.wait_log("PoolTimeout")  # which takes ten seconds
        used = Effort(cut_off, runpod) - before
    assert used.cpu < 3, used
    assert used.lines < 60, cut_off.log
    assert used.calls < 60, used
    with Rows(database_url) as backend:
        backend.run("LISTEN rows")
        for job in jobs:
            assert backend.ended(job)["status"] == "completed"
            assert accepted(runpod, job) == 1
        assert backend.run(AFTER_THE_END) == []
    with away(postgres_server):
        assert cut_off.terminate(3 + LATE) == 0


def test_an_outage_that_is_longer_than_the_lease_loses_no_id(
    rows: Rows,
    runpod: RunPodDouble,
    other: StartOther,
    database_url: str,
    postgres_server: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RunPod took a job while the database was away: its id is noted when that is back."""
    monkeypatch.setattr("orchestrator.database.POOL_SECONDS", 0.2)
    sender = other(LEASE_SECONDS="2", HTTP_SECONDS="1")
    runpod.fail("run", ("delay", 0.5))
    job = rows.queue("accepted")
    runpod.last(job)
    with away(postgres_server):
        sender._loop._senders.finish(4.0)  # until it gives up; it may try on
    runpod.finish(job)
    with Rows(database_url) as backend:
        backend.run("LISTEN rows")
        assert backend.ended(job)["status"] == "completed"
    assert accepted(runpod, job) == 1


@contextmanager
def away(server: Postgres) -> Iterator[None]:
    """The database is away for as long as the block lasts."""
    server.stop()
    try:
        yield
    finally:
        server.start()


class Effort:
    """What a replica has done so far: CPU seconds, lines of its log, calls to RunPod."""

    def __init__(self, busy: Replica, runpod: RunPodDouble) -> None:
        self.cpu = busy.cpu_seconds()
        self.lines = len(busy.lines)
        self.calls = sum(runpod.calls.values())

    def __sub__(self, before: Effort) -> Effort:
        self.cpu -= before.cpu
        self.lines -= before.lines
        self.calls -= before.calls
        return self

    def __repr__(self) -> str:
        return f"{self.cpu:.2f} s of CPU, {self.lines} lines, {self.calls} calls"


@pytest.fixture
def door(runpod: RunPodDouble) -> Iterator[Door]:
    with Door(runpod) as door:
        yield door


@pytest.mark.parametrize("down", ["refused", "503"])
def test_an_outage_of_runpod(
    rows: Rows, runpod: RunPodDouble, start: StartReplica, door: Door, down: str
) -> None:
    """What was accepted is not sent again, what was not is sent afterwards, and nobody spins."""
    cut_off = start(RUNPOD_ENDPOINT_BASE_URL=door.base_url)
    jobs = [rows.queue(f"job-{number}") for number in range(4)]
    for job in jobs:
        runpod.start(job)
        rows.attempt_until(job, lambda a: a["state"] == "running")
    go_down(runpod, door, down)
    late = rows.queue("late")
    for job in jobs:
        rows.attempt_until(job, lambda a: a["unreachable_since"])
    before, looks = Effort(cut_off, runpod), 10
    for _ in range(looks):
        look_again(rows, jobs[0])
    used = Effort(cut_off, runpod) - before
    come_back(runpod, door, down)
    for job in jobs:
        runpod.finish(job)
        assert rows.ended(job)["status"] == "completed"
        assert accepted(runpod, job) == 1
    runpod.decide = lambda body: Script()
    pass_time(rows, 601)  # nobody knows whether a 503 was acted on: UNKNOWN_SECONDS
    assert rows.ended(late)["status"] == "completed"
    assert accepted(runpod, late) == 1
    assert used.calls <= 3 * looks * len(jobs), used  # `looks` were seen, by one who asks slowly
    assert used.lines < 20, cut_off.log
    assert used.cpu < 2, used
    assert rows.run(AFTER_THE_END) == []


def look_again(rows: Rows, job_id: str) -> None:
    """Wait until a sending was looked at once more."""
    planned = rows.attempts(job_id)[0]["next_poll_at"]
    rows.attempt_until(job_id, lambda a: a["next_poll_at"] > planned)


def go_down(runpod: RunPodDouble, door: Door, how: str) -> None:
    """RunPod answers nobody."""
    if how == "refused":
        door.shut()
    for operation in ("run", "status", "cancel", "health"):
        runpod.fail_always(operation, 503)


def come_back(runpod: RunPodDouble, door: Door, how: str) -> None:
    """And answers again."""
    for operation in ("run", "status", "cancel", "health"):
        runpod.fail_always(operation, None)
    if how == "refused":
        door.open()


# The local endpoint.


def test_what_runpod_cannot_take_is_done_here(
    rows: Rows,
    runpod: RunPodDouble,
    start: StartReplica,
    other: StartOther,
    door: Door,
    cloudinary: CloudinaryDouble,
    samples: Samples,
) -> None:
    """A blocked source and an unreachable RunPod: by the real worker, in one local endpoint."""
    line, stored = f"{samples.url}/line.flac", {"CLOUDINARY_URL": cloudinary.cloudinary_url}
    working = start(**WORKER, **stored, RUNPOD_ENDPOINT_BASE_URL=door.base_url)
    client = other(loop=False, **stored)
    error = JobError(ErrorCode.SOURCE_BLOCKED, "the source refuses this address").to_json()
    runpod.decide = lambda body: Script(error=error)
    for job in [client.submit(audio_url=line, language="en") for _ in range(2)]:
        done_here(rows.ended(job, WAIT))
        assert accepted(runpod, job) == 1
    (pod,) = working.localpods()
    door.shut()
    unreachable = client.submit(audio_url=line, language="en")
    done_here(rows.ended(unreachable, WAIT))
    assert accepted(runpod, unreachable) == 0
    assert working.localpods() == [pod]
    assert client.result(unreachable).words == client.result(job).words
    assert working.terminate() == 0
    working.wait_silent()


def test_a_local_endpoint_that_dies_is_begun_again(
    rows: Rows, start: StartReplica, other: StartOther, samples: Samples
) -> None:
    """kill -9 in the middle of a job: its worker goes too, and the job is done by the next one."""
    working = start(**WORKER, **NO_RUNPOD)
    job = other(loop=False).submit(audio_url=f"{samples.url}/verse.flac", language="en")
    rows.attempt_until(job, lambda a: a["state"] == "running", WAIT)
    (pod,) = working.localpods()
    watched = Watched(pod, *working.workers())
    os.kill(pod, signal.SIGKILL)
    watched.wait_until_gone()
    done_here(rows.ended(job, WAIT))
    assert [a["state"] for a in rows.attempts(job)] == ["lost", "completed"]
    assert len(working.localpods()) == 1


def test_a_replica_leaves_nothing_and_its_local_job_to_another(
    rows: Rows, runpod: RunPodDouble, start: StartReplica, other: StartOther, samples: Samples
) -> None:
    """By kill -9 or SIGTERM: neither endpoint nor worker outlives it, another does the job."""
    killed = start(**WORKER, **NO_RUNPOD)
    job = other(loop=False).submit(audio_url=f"{samples.url}/verse.flac", language="en")
    rows.attempt_until(job, lambda a: a["state"] == "running", WAIT)
    killed.kill()
    killed.wait_silent()
    pass_time(rows, LEASE)
    ended = start(**WORKER, **NO_RUNPOD)
    rows.attempt_until(job, lambda a: a["number"] == 2 and a["state"] == "running", WAIT)
    assert ended.terminate(3 + LATE) == 0
    ended.wait_silent()
    runpod.decide = lambda body: Script()
    other()
    assert rows.ended(job)["processing_method"] == "runpod"
    assert [a["state"] for a in rows.attempts(job)] == ["lost", "lost", "completed"]


def done_here(row: Row) -> None:
    """The worker of this machine did it."""
    assert (row["status"], row["processing_method"]) == ("completed", "local"), row


# Secrets.


def lyricpod(env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """The command line, begun."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/tmp"), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(*commands: subprocess.Popen[str]) -> str:
    """All that these commands print."""
    return "\n".join(command.communicate(timeout=WAIT)[0] for command in commands)


def test_no_failure_tells_a_secret(
    rows: Rows,
    runpod: RunPodDouble,
    start: StartReplica,
    env: dict[str, str],
    backend: Backend,
    cloudinary: CloudinaryDouble,
    other: StartOther,
) -> None:
    """Refused keys, refused uploads, bad rows: logs and rows are searched when the test is over."""
    given = {
        **env,
        "PUBLIC_URL": backend.url,
        "CLOUDINARY_URL": cloudinary.cloudinary_url,
        "LOG_LEVEL": "DEBUG",
    }
    start(**given)
    backend.orchestrator = client = other(loop=False, **given)
    runpod.decide = lambda body: Script()
    assert rows.ended(rows.queue("good"))["status"] == "completed"
    backend.wait_until(lambda: 200 in backend.came)
    assert rows.ended(rows.queue("bad", "ftp://nowhere"))["status"] == "error"
    cloudinary.refuse_always(401)
    refused = rows.queue("refused")
    rows.attempt_until(refused, lambda a: a["publish_tries"] > 0)
    told = json.dumps(rows.attempts(refused), default=str)
    assert "Cloudinary" in told
    runpod.key = "another"
    rows.until(rows.queue("key"), lambda r: "RUNPOD_API_KEY" in (r["status_message"] or ""))
    shown = [("doctor",), ("doctor", "--json"), ("list", "--json"), ("stats", "--json")]
    printed = said(*(lyricpod(given, *arguments) for arguments in shown))
    assert "RUNPOD_API_KEY" in printed
    printed += repr((client.health(), client.list(), client.progress("refused"), client.settings))
    printed += told + traceback_of(lambda: client.progress("nobody"), OrchestratorError)
    assert not client.handle_webhook("a-wrong-token", b"{")
    assert leaks(printed) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"DATABASE_URL": f"postgresql://me:{quote(PASSWORD, safe='')}@host:port/name"},
        {"DATABASE_URL": f"postgresql://me:%zz{PASSWORD}@host/name"},
        {"DATABASE_URL": f"mysql://me:{PASSWORD}@host/name"},
        {"DATABASE_URL": f"postgresql://me:{quote(PASSWORD, safe='')}@host/name?odd={PASSWORD}"},
        {"CLOUDINARY_URL": f"http://key:{CLOUDINARY_SECRET}@cloud"},
        {"CLOUDINARY_URL": f"cloudinary://key:{CLOUDINARY_SECRET}@"},
        {"CLOUDINARY_URL": f"cloudinary://{CLOUDINARY_SECRET}"},
        {"RUNPOD_API_KEY": f"{RUNPOD_KEY}\nsecond"},
        {"RUNPOD_API_KEY": f"{RUNPOD_KEY}\N{LATIN SMALL LETTER E WITH ACUTE}"},
        *({name: RUNPOD_KEY} for name in ("RUNPOD_PRICE", "LOCAL_ENDPOINT", "REPLICAS")),
        {"PUBLIC_URL": RUNPOD_KEY},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_an_unusable_setting_is_told_without_its_value(
    database_url: str, env: dict[str, str], bad: dict[str, str]
) -> None:
    """A secret that is written wrongly, or into the wrong variable, is in no exception."""

    def use() -> None:
        Orchestrator.from_env({**env, **bad}).close()

    told = traceback_of(use, (ConfigError, OrchestratorError))
    name = next(iter(bad))
    assert {"RUNPOD_API_KEY": "API key"}.get(name, name) in told
    assert leaks(told) == []


def traceback_of(
    act: Callable[[], Any], expected: type[Exception] | tuple[type[Exception], ...]
) -> str:
    """The traceback of what `act` raises, its causes included."""
    with pytest.raises(expected) as raised:
        act()
    return "".join(traceback.format_exception(raised.value))
