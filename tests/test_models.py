"""How models are waited for: a cancelled job doesn't wait, and the next one does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SAMPLES, StartWorker
from jobserver import JobServer

from handler.config import Settings
from handler.models import Models
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

NANO = ROOT / "models" / "nano"


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


def waits_for_model(body: dict[str, Any]) -> bool:
    return bool(body["output"]["stage"] == "transcription")


def running(work: Callable[[], object], meanwhile: Callable[[], None]) -> None:
    """Do `work` in a thread and something meanwhile; wait for both."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    meanwhile()
    thread.join(30)
    assert not thread.is_alive()
