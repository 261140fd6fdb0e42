"""A job's last step: no fault in keeping a result costs the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import urllib3
from conftest import SAMPLES

from handler.config import Settings
from handler.models import Models
from handler.pipeline import Pipeline
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import parse
from lyricpod.result import JobResult

SETTINGS = Settings(model="nano", device="cpu", allow_file_sources=True)
FAULTS = [
    OSError(28, "No space left on device"),
    urllib3.exceptions.HTTPError("the key is planted-key"),
    ValueError("Must supply api_secret"),
    MemoryError(),
]


class BrokenStorage:
    """Raises one fault at each call; `cancel` comes at the same time if it is to."""

    def __init__(self, fault: Exception, *, cancelled: bool = False) -> None:
        self._fault = fault
        self._cancelled = cancelled

    def find(self, job_id: str, fingerprint: str, cancel: Cancel) -> JobResult | None:
        raise self._fault

    def publish(self, result: JobResult, cancel: Cancel) -> JobResult:
        if self._cancelled:
            cancel.set()
        raise self._fault


def run(storage: BrokenStorage) -> JobResult:
    given = {"audio_url": str(SAMPLES / "line.flac"), "language": "en"}
    pipeline = Pipeline(SETTINGS, Models(SETTINGS), storage)
    parsed = parse(given, default_job_id="job")
    return pipeline.run(parsed, cancel=Cancel(), report=lambda progress: None)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_in_storage_loses_no_words(fault: Exception) -> None:
    """Whatever storage raises, the words come back with a warning that holds none of its text."""
    result = run(BrokenStorage(fault))
    assert result.words
    assert result.srt
    assert result.result_url is None
    said = [warning for warning in result.warnings if type(fault).__name__ in warning]
    assert len(said) == 1
    assert "planted" not in said[0]


def test_a_fault_met_while_cancelled_is_the_cancel() -> None:
    """What a cancel breaks on its way counts as the cancel."""
    with pytest.raises(JobError) as raised:
        run(BrokenStorage(OSError(9, "Bad file descriptor"), cancelled=True))
    assert raised.value.code is ErrorCode.CANCELLED


def test_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's folder is gone when storage fails."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(BrokenStorage(OSError()))
    assert list(tmp_path.iterdir()) == []
