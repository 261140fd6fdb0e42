"""The two ways to do a job inside one process: our pipeline, and bare faster-whisper."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import structlog

from handler.config import Settings
from handler.models import Models
from handler.pipeline import Pipeline
from handler.transcribe import options
from lyricpod.cancel import Cancel
from lyricpod.request import Parsed, parse
from lyricpod.result import JobResult, Word
from lyricpod.storage import Folder


class Engine:
    """The nano model on the CPU in int8, loaded once, for both ways alike."""

    def __init__(self, results: Path) -> None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        settings = Settings(
            model="nano",
            device="cpu",
            compute_type="int8",
            allow_file_sources=True,
            max_audio_mb=2000,
            max_audio_seconds=5 * 3600,
        )
        models = Models(settings)
        self._whisper: Any = models.get("nano").whisper
        self._pipeline = Pipeline(settings, models, Folder(results), reuse=False)

    def ours(self, audio: Path, **fields: Any) -> JobResult:
        """The whole job: acquire, decode, transcribe, lay out, publish."""
        parsed = _request(audio, fields)
        return self._pipeline.run(parsed, cancel=Cancel(), report=lambda progress: None)

    def bare(self, audio: Path, **fields: Any) -> list[Word]:
        """`WhisperModel.transcribe` with the same options, uncut, its segments consumed."""
        request = _request(audio, fields).request
        segments, _ = self._whisper.transcribe(
            str(audio), language=request.language, **options(request)
        )
        return [
            Word(word=w.word, start=w.start, end=w.end, probability=w.probability)
            for segment in segments
            for w in segment.words or ()
        ]


def _request(audio: Path, fields: dict[str, Any]) -> Parsed:
    return parse({"audio_url": str(audio), "language": "en", **fields}, default_job_id="b")
