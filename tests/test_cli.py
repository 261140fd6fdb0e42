"""The command `lyricpod`, as a process, against a real PostgreSQL and RunPod's double."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from cloudinary_double import CloudinaryDouble
from conftest import ROOT, SAMPLES
from runpod_double import HELD, KEY, RunPodDouble, Script
from scripted_worker import result

from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import known_names
from orchestrator import Orchestrator
from orchestrator.cli import app

URL = "https://www.youtube.com/watch?v=dQw4w9WgXcQ"
SECONDS = 60
# The pool gives a database that is away ten seconds; nobody needs to wait for them here.
HASTY = (
    "import orchestrator.database as d; d.POOL_SECONDS = 0.5; "
    "from orchestrator.cli import main; main()"
)
# A loop that never ends, as if a thread hung in a call that has no deadline.
STUCK = (
    "import threading; from orchestrator.sync import Loop; "
    "Loop.run = lambda *_: threading.Event().wait(); "
    "from orchestrator.cli import main; main()"
)

Environment = dict[str, str]
Json = dict[str, Any]


@pytest.fixture
def runpod() -> Iterator[RunPodDouble]:
    """RunPod, where each job is done at once unless a test says otherwise."""
    with RunPodDouble() as double:
        yield double


@pytest.fixture
def env(runpod: RunPodDouble, database_url: str) -> Environment:
    """The settings that bring jobs to the double."""
    return {**runpod.env(), "DATABASE_URL": database_url, "POLL_SECONDS": "0.1"}


class Command:
    """Runs `lyricpod` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = ("-m", "orchestrator")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, env: Environment) -> subprocess.Popen[str]:
        """Start it; both streams are pipes."""
        process = subprocess.Popen(
            [sys.executable, *self.python, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def __call__(self, *arguments: str, env: Environment) -> tuple[int, str, str]:
        """Run it to its end: exit code, stdout, stderr."""
        process = self.start(*arguments, env=env)
        out, err = process.communicate(timeout=SECONDS)
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def all(self, *commands: tuple[str, ...], env: Environment) -> list[str]:
        """Run several at once, none of which may fail; what they print."""
        shown = []
        for process in [self.start(*arguments, env=env) for arguments in commands]:
            out, err = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, err
            shown.append(out)
        return shown

    def json(self, *arguments: str, env: Environment, code: int = 0) -> Json:
        """The one document on stdout."""
        got, out, err = self(*arguments, "--json", env=env)
        assert got == code, err
        document: Json = json.loads(out)
        return document


@pytest.fixture
def lyricpod(tmp_path: Path) -> Iterator[Command]:
    """The command; what a test leaves running is ended."""
    command = Command(tmp_path)
    yield command
    for process in command.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def orchestrator(env: Environment) -> Iterator[Orchestrator]:
    """The library on the same database, without a loop."""
    with Orchestrator.from_env(env) as opened:
        yield opened


def test_submit_wait_runs_the_loop_itself_where_nobody_does(
    lyricpod: Command, runpod: RunPodDouble, env: Environment
) -> None:
    """A first job, then all that is to be known of it: result, row, figures."""
    done = lyricpod.json("submit", URL, "--wait", "--language", "en", "--vad", env=env)
    assert (done["status"], done["pct"], done["attempt"]) == ("completed", 100, 1)
    assert done["endpoint"] == f"runpod:{runpod.endpoint_id}"
    sent = runpod.last(done["job_id"]).body["input"]
    assert sent == {"job_id": done["job_id"], "youtube_url": URL, "language": "en", "vad": True}

    shown = lyricpod.all(
        ("result", done["job_id"], "--json"),
        ("result", done["job_id"], "--srt"),
        ("result", done["job_id"]),
        ("list", "--status", "completed"),
        ("stats", "--json"),
        ("watch", done["job_id"]),
        env=env,
    )
    found, figures = json.loads(shown[0]), json.loads(shown[4])
    expected = result(sent, "")
    assert [word["word"] for word in found["words"]] == [w["word"] for w in expected["words"]]
    assert shown[1].strip() == found["srt"].strip()
    assert shown[2].splitlines()[0].split() == ["0:00.0", *found["lines"][0]["text"].split()]
    assert done["job_id"] in shown[3]
    assert (figures["success_rate"], figures["jobs"]["completed"]) == (1.0, 1)
    assert [route["endpoint"] for route in figures["routes"]] == [done["endpoint"]]
    assert f"lyricpod result {done['job_id']}" in shown[5]


def test_a_failed_job_is_exit_code_1_with_its_reason(
    lyricpod: Command, runpod: RunPodDouble, env: Environment
) -> None:
    """What the worker said reaches the person, without a traceback and without control codes."""
    error = JobError(ErrorCode.SOURCE_UNAVAILABLE, "the video is private\x1b[2J")
    runpod.decide = lambda body: Script(error=error.to_json())
    code, out, err = lyricpod("submit", URL, "--wait", env=env)
    assert code == 1
    assert "the video is private" in out
    assert "nothing else runs the loop" in err
    assert "\x1b" not in out + err
    code, out, err = lyricpod("result", out.split()[1], env=env)
    assert (code, out) == (1, "")
    assert "has no result: it is error" in err


def test_watch_follows_jobs_that_another_process_works_on(
    lyricpod: Command, runpod: RunPodDouble, env: Environment, orchestrator: Orchestrator
) -> None:
    """Who stops watching is told that the jobs go on; of two, one of which fails, both are told."""
    runpod.decide = lambda body: HELD
    code, out, _ = lyricpod("watch", env=env)
    assert (code, out) == (0, "no job is queued or in work\n")
    orchestrator.start()
    first = orchestrator.submit(youtube_url=URL)
    second = orchestrator.submit(youtube_url=URL)
    left = lyricpod.start("watch", first, env=env)
    assert left.stderr
    assert left.stderr.readline().startswith(f"{first}"[-28:])
    left.send_signal(signal.SIGINT)
    assert "goes on by itself" in left.communicate(timeout=SECONDS)[1]
    assert left.returncode == 130
    watching = lyricpod.start("watch", first, second, "--json", env=env)
    runpod.finish(first)
    runpod.finish(second, status="CANCELLED")
    out, err = watching.communicate(timeout=SECONDS)
    assert watching.returncode == 1, err
    jobs = {job["job_id"]: job["status"] for job in json.loads(out)["jobs"]}
    assert jobs == {first: "completed", second: "error"}
    assert "nothing runs the loop" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_job_that_is_waited_for_is_given_back_on_a_signal(
    lyricpod: Command,
    runpod: RunPodDouble,
    env: Environment,
    orchestrator: Orchestrator,
    number: signal.Signals,
) -> None:
    """The process says so, ends as shells expect, and no replica is counted after it."""
    runpod.decide = lambda body: HELD
    waiting = lyricpod.start("submit", URL, "--wait", "--job-id", "a", env=env)
    runpod.last("a")
    assert orchestrator.stats(1).replicas == 1
    waiting.send_signal(number)
    _, err = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == 128 + number
    assert "goes on with the next `lyricpod run`" in err
    assert orchestrator.stats(1).replicas == 0


def test_bars_move_on_a_terminal(
    lyricpod: Command, runpod: RunPodDouble, env: Environment, orchestrator: Orchestrator
) -> None:
    """On a terminal the bar shows the worker's percentage, message and newest line."""
    runpod.decide = lambda body: HELD
    orchestrator.start()
    job_id = orchestrator.submit(youtube_url=URL)
    runpod.start(job_id)
    line = {"text": "a line that was just heard", "start": 1.0, "end": 2.0}
    report = {"pct": 42, "status": "Listening", "stage": "transcription", "seq": 1, "lines": [line]}
    runpod.progress(job_id, report)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "watch", job_id],
        cwd=lyricpod.folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = _read_until(ours, "a line that was just heard")
    assert "42%" in seen
    assert "Listening" in seen
    runpod.finish(job_id)
    assert "100%" in _read_until(ours, "100%")
    _drain(ours)
    assert process.wait(SECONDS) == 0


def test_cancel_and_retry_say_what_they_did(
    lyricpod: Command, env: Environment, orchestrator: Orchestrator
) -> None:
    """Each of them tells a script whether it had something to do."""
    job_id = orchestrator.submit(youtube_url=URL)
    assert lyricpod.json("retry", job_id, env=env)["retried"] is False
    assert lyricpod.json("cancel", job_id, env=env) == {"job_id": job_id, "cancelled": True}
    assert orchestrator.cancel(job_id) is False
    again = lyricpod.json("retry", job_id, env=env)
    assert again == {"job_id": job_id, "status": "queued", "retried": True}


def test_run_ends_with_0_on_a_signal_even_if_a_call_hangs(
    lyricpod: Command, runpod: RunPodDouble, env: Environment, orchestrator: Orchestrator
) -> None:
    """The loop finishes a job, logs in JSON without the key, and obeys SIGTERM in mid-call."""
    process = lyricpod.start("run", env={**env, "LOG_LEVEL": "DEBUG"})
    assert orchestrator.wait(orchestrator.submit(youtube_url=URL), SECONDS).status == "completed"
    runpod.decide = lambda body: HELD
    runpod.fail_always("status", "hang")
    seen = runpod.calls["status"]
    runpod.last(orchestrator.submit(youtube_url=URL))
    runpod.wait_until(lambda: runpod.calls["status"] > seen)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    assert out == ""
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert "the loop runs" in events
    assert "job completed" in events
    assert KEY not in err


def test_run_obeys_ctrl_c_at_any_time(lyricpod: Command, env: Environment) -> None:
    """SIGINT once the loop runs: exit code 0, and nothing but log lines was said."""
    process = lyricpod.start("run", env=env)
    assert process.stderr
    while "the loop runs" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_run_ends_even_if_the_loop_is_stuck(lyricpod: Command, env: Environment) -> None:
    """What doesn't return within SHUTDOWN_SECONDS is left behind, with exit code 0."""
    lyricpod.python = ("-c", STUCK)
    process = lyricpod.start("run", env={**env, "SHUTDOWN_SECONDS": "0.5"})
    assert process.stderr
    while "the loop runs" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0


def test_a_file_goes_the_way_that_is_open(
    lyricpod: Command, env: Environment, orchestrator: Orchestrator
) -> None:
    """As a path where only this machine works, uploaded first for RunPod, else not at all."""
    sample = str(lyricpod.folder / "über alles, 50 % #1?.flac")
    shutil.copy(SAMPLES / "line.flac", sample)
    local = {"DATABASE_URL": env["DATABASE_URL"], "ALLOW_FILE_SOURCES": "1"}
    lyricpod.json("submit", os.path.relpath(sample, lyricpod.folder), "--job-id", "a", env=local)
    assert _sources(env) == {"a": Path(sample).as_uri()}
    code, _, err = lyricpod("submit", sample, env={**env, "ALLOW_FILE_SOURCES": "1"})
    assert code == 2
    assert "set CLOUDINARY_URL" in err
    with CloudinaryDouble() as cloudinary:
        remote = {**env, "CLOUDINARY_URL": cloudinary.cloudinary_url}
        lyricpod.json("submit", sample, "--job-id", "b", env=remote)
    assert _sources(env)["b"].startswith("http")
    assert set(_sources(env)) == {"a", "b"}


def _sources(env: Environment) -> dict[str, str]:
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        return dict(connection.execute("SELECT id, youtube_url FROM jobs").fetchall())


ERRORS = (
    (("progress",), 2, "No such command"),
    (("submit", "no-such-file.mp3"), 2, "there is no file"),
    (("submit", URL, "--language", "klingon"), 2, "not a language"),
    (("result", "unknown-job"), 4, "there is no job 'unknown-job'"),
    (("result", "x", "--srt", "--plain"), 2, "give one of"),
)


def test_each_error_has_its_line_and_its_code(lyricpod: Command, env: Environment) -> None:
    """One line on stderr for people; for scripts the same as one document."""
    started = [lyricpod.start(*arguments, "--json", env=env) for arguments, _, _ in ERRORS]
    for process, (_, code, said) in zip(started, ERRORS, strict=True):
        out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err.count("\n")) == (code, 1), err
        assert said in err
        assert json.loads(out)["exit_code"] == code


def test_settings_and_the_database_are_told_apart(lyricpod: Command) -> None:
    """Unusable settings are code 2, an unreachable database 3; neither shows a password."""
    lyricpod.python = ("-c", HASTY)
    away = {"DATABASE_URL": "postgresql://me:planted-secret@127.0.0.1:1/jobs"}
    code, out, err = lyricpod("list", env={**away, "LEASE_SECONDS": "soon"})
    assert (code, out) == (2, "")
    assert "LEASE_SECONDS" in err
    code, out, err = lyricpod("list", env=away)
    assert (code, out) == (3, "")
    assert "PostgreSQL does not answer" in err
    assert "planted-secret" not in err


def test_every_field_of_a_request_has_its_option() -> None:
    """A field that is added to the contract can be given on the command line."""
    commands: Any = typer.main.get_command(app)
    options = {parameter.name for parameter in commands.commands["submit"].params}
    sources = {"youtube_url", "audio_url", "audio_base64"}
    assert set(known_names()) - sources <= options


def test_the_library_brings_no_command_line() -> None:
    """`import orchestrator` leaves typer and our own screens alone."""
    names = "typer", "orchestrator.cli", "orchestrator.show", "orchestrator.doctor"
    code = f"import sys, orchestrator; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def _read_until(terminal: int, wanted: str) -> str:
    seen = ""
    while wanted not in seen:
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


def _drain(terminal: int) -> None:
    """Read to the end, which is an error where the other side has closed."""
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        pass
    os.close(terminal)
