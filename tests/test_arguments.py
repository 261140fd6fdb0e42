"""The command line, in process and as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SAMPLES

from handler.arguments import Mode, UsageError, mode

RUNPOD = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/take"}
JOB = json.dumps({"input": {"audio_url": "song.mp3"}})


@pytest.mark.parametrize("given", [["--test_input", JOB], [f"--test_input={JOB}"], ["--test", JOB]])
def test_a_local_job_is_known_however_it_is_written(given: list[str]) -> None:
    """Both spellings of the option, and the SDK's abbreviations of it, run the job locally."""
    assert mode(given, {}) is Mode.LOCAL
    assert mode(given, RUNPOD) is Mode.LOCAL


def test_where_jobs_come_from() -> None:
    """RunPod's variables, the SDK's API option and its realtime port each tell; values don't."""
    assert mode([], RUNPOD) is Mode.SERVING
    assert mode(["--rp_log_level", "x--test_inputx"], RUNPOD) is Mode.SERVING
    assert mode(["--rp_serve_api"], {}) is Mode.API
    assert mode(["--rp_serve_api", "--test_input", JOB], {}) is Mode.API
    assert mode([], {"RUNPOD_REALTIME_PORT": "8000"}) is Mode.API


@pytest.mark.parametrize("wrong", [["--test-input", JOB], ["song.mp3"], ["--rp_log_level=x", "y"]])
def test_a_misspelt_option_is_said_to_be(wrong: list[str]) -> None:
    """Here no other job is run instead; on RunPod a word too many does not end the worker."""
    with pytest.raises(UsageError, match=r"there is no option .*--test_input"):
        mode(wrong, {})
    assert mode(wrong, RUNPOD) is Mode.SERVING
    assert mode(["--rp_log_level", "INFO", "--test_input", JOB], {}) is Mode.LOCAL


def test_the_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments test_input.json is the job; missing or odd it is said to be."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"test_input\.json can't be read.*--test_input"):
        mode([], {})
    Path("test_input.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UsageError, match="UTF-8"):
        mode([], {})
    Path("test_input.json").write_text('{"input": ')
    with pytest.raises(UsageError, match="is not JSON"):
        mode([], {})
    Path("test_input.json").write_text(JOB)
    assert mode([], {}) is Mode.LOCAL


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--test_input", "{'input': {}}"], "--test_input is not JSON"),
        (["--test_input={input"], "--test_input is not JSON"),
        (["--test_input", '{"audio_url": "song.mp3"}'], 'no "input"'),
        (["--test_input", '["input"]'], 'no "input"'),
        (["--test_input", ""], "--test_input is not JSON"),
        (["--test_input"], "--test_input is not JSON"),
    ],
)
def test_a_job_that_cannot_be_read_is_one_line(given: list[str], said: str, tmp_path: Path) -> None:
    """What is wrong and what to write instead, on one line, with exit code 2 and no traceback."""
    run = typed(*given, folder=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("lyricpod: ")
    assert run.stderr.count("\n") == 1
    assert said in run.stderr
    assert "--test_input '{" in run.stderr
    assert run.stdout == ""


def test_a_failed_local_job_says_why(tmp_path: Path) -> None:
    """Code, message and hint on one line for a person; the exit code tells a script."""
    given = {"input": {"audio_url": "/nowhere.mp3", "model": "nano"}}
    run = typed("--test_input", json.dumps(given), folder=tmp_path)
    assert run.returncode == 1
    said = "lyricpod: source_not_found: there is no file /nowhere.mp3 (check the path)"
    assert said in run.stderr.splitlines()
    assert "Traceback" not in run.stderr + run.stdout
    assert "retryable" not in run.stderr + run.stdout


def test_a_local_job_with_an_equals_sign(tmp_path: Path) -> None:
    """`--test_input={...}` does the job, files of this machine included."""
    given = {"input": {"audio_url": str(SAMPLES / "line.flac"), "model": "nano"}}
    run = typed(f"--test_input={json.dumps(given)}", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "0:00" in run.stdout


def typed(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "handler.py"), *arguments],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/tmp"),
            "DEVICE": "cpu",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
