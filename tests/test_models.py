"""How models are waited for: a cancelled job doesn't wait, and the next one does."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SAMPLES, StartWorker
from jobserver import JobServer

import handler.models
from handler.config import Settings
from handler.models import Models, find
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

NANO = ROOT / "models" / "nano"
REPOSITORY = "Systran/faster-whisper-small"
REVISION = "536b0662742c02347bc0e980a01041f333bce120"


class SlowModel:
    """The nano model, one file of which is a pipe: it loads when `feed` is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for path in NANO.iterdir():
            if path.name != "vocabulary.json":
                (folder / path.name).symlink_to(path)
        self._pipe = folder / "vocabulary.json"
        os.mkfifo(self._pipe)

    def feed(self) -> None:
        """Give the loader what it waits for; returns once it was taken."""
        self._pipe.write_bytes((NANO / "vocabulary.json").read_bytes())


@pytest.fixture
def slow(tmp_path: Path) -> SlowModel:
    return SlowModel(tmp_path / "slow")


def test_a_stopped_job_does_not_wait_for_a_model(
    jobs: JobServer, start_worker: StartWorker, slow: SlowModel
) -> None:
    """A job stopped while the model is loaded ends at once; the same load serves the next job."""
    start_worker(MODEL=str(slow.folder))
    stopped = jobs.submit({"audio_url": str(SAMPLES / "line.flac")})
    jobs.wait_progress(stopped, waits_for_model)
    jobs.stop(stopped)
    refused = jobs.submit({"audio_url": "/nowhere.mp3"})
    assert "source_not_found" in jobs.wait_result(refused)["error"]  # while it is still loaded
    job = jobs.submit({"audio_url": str(SAMPLES / "line.flac"), "language": "en"})
    slow.feed()
    assert jobs.wait_result(job)["output"]["words"]
    assert [post.job_id for post in jobs.posts if not post.progress] == [refused, job]


def test_a_stop_with_auto_terminate_does_not_wait_for_a_model(
    jobs: JobServer, start_worker: StartWorker, slow: SlowModel
) -> None:
    """A worker that is to end after a job stopped during the load ends without the model."""
    worker = start_worker(MODEL=str(slow.folder), AUTO_TERMINATE="1")
    job = jobs.submit({"audio_url": str(SAMPLES / "line.flac")})
    jobs.wait_progress(job, waits_for_model)
    jobs.stop(job)
    assert worker.wait() == 0
    assert worker.group_is_empty()


def test_a_job_that_waits_hears_the_cancel(slow: SlowModel) -> None:
    """A cancel that comes while it waits ends the wait; who comes next gets the model."""
    models = Models(Settings(model=str(slow.folder), device="cpu"))
    cancel, ended = Cancel(), list[JobError]()

    def wait() -> None:
        with pytest.raises(JobError) as raised:
            models.get(None, cancel)
        ended.append(raised.value)

    running(wait, cancel.set)
    assert [error.code for error in ended] == [ErrorCode.CANCELLED]
    loaded = []
    running(lambda: loaded.append(models.get(None)), slow.feed)
    assert loaded == [models.get(None)]


def test_a_model_nobody_waits_for_is_not_loaded(slow: SlowModel) -> None:
    """A wish cancelled before its turn is dropped; made again, it is met."""
    models = Models(Settings(model=str(slow.folder), device="cpu"))
    cancelled = Cancel()
    cancelled.set()
    with pytest.raises(JobError):
        models.get(None, cancelled)  # begins the load, which holds the turn
    with pytest.raises(JobError):
        models.get("nano", cancelled)
    loaded = []
    running(lambda: loaded.append(models.get("nano")), slow.feed)
    assert loaded[0].name == "nano"


def test_a_load_that_failed_is_tried_again(tmp_path: Path) -> None:
    """A model that was not there when first asked for is found once it is."""
    (tmp_path / "late").mkdir()
    models = Models(Settings(model=str(tmp_path / "late"), device="cpu"))
    with pytest.raises(JobError) as raised:
        models.get(None)
    assert raised.value.code is ErrorCode.MODEL_UNAVAILABLE
    for path in NANO.iterdir():
        (tmp_path / "late" / path.name).symlink_to(path)
    assert models.get(None).english_only


def test_a_cached_model_of_runpod_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its short name or its repository's, for a job too: `refs/main` names the snapshot."""
    monkeypatch.setattr(handler.models, "RUNPOD_CACHE", tmp_path)
    snapshot = hub_copy(tmp_path)
    for name in ("small", REPOSITORY):
        assert find(name, trusted=False) == str(snapshot)
    assert Models(Settings(model="small", device="cpu")).get(None).name == "small"


def test_a_downloaded_model_needs_no_network(
    jobs: JobServer, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A worker whose model lies in Hugging Face's folder, as in a baked image, does its job."""
    hub_copy(tmp_path / "hub")
    start_worker(MODEL="small", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    output = jobs.wait_result(jobs.submit({"audio_url": str(SAMPLES / "line.flac")}))["output"]
    assert output["model"] == "small"
    assert "believe me" in output["plain"]


def hub_copy(hub: Path) -> Path:
    """The nano model as a hub's folder holds `small`; the snapshot's folder."""
    folder = hub / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    shutil.copytree(NANO, snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)
    return snapshot


def waits_for_model(body: dict[str, Any]) -> bool:
    return bool(body["output"]["stage"] == "transcription")


def running(work: Callable[[], object], meanwhile: Callable[[], None]) -> None:
    """Do `work` in a thread and something meanwhile; wait for both."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    meanwhile()
    thread.join(30)
    assert not thread.is_alive()
