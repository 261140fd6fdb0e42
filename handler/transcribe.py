"""Decoded audio -> words with their times. With models.py, the only import of faster-whisper."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from handler.audio import SAMPLE_BYTES, SAMPLE_RATE, Pcm
from handler.features import LogMel, compute
from handler.models import Loaded, memory_for
from handler.transcript import Transcript
from lyricpod.cancel import Cancel
from lyricpod.request import JobRequest
from lyricpod.result import Word

VAD_BLOCK = 600 * SAMPLE_RATE  # samples that silence is looked for in at a time
FRAMES_PER_SECOND = 100


OnWords = Callable[[float, tuple[Word, ...]], None]  # seconds worked through, words so far


def transcribe(
    pcm: Pcm,
    model: Loaded,
    request: JobRequest,
    *,
    folder: Path,
    cancel: Cancel,
    on_words: OnWords = lambda seconds, words: None,
) -> Transcript:
    """Transcribe or translate with word timestamps.

    A cancel ends it within one inference call.

    Args:
        folder: where features (and with `vad` the speech alone) are kept meanwhile.

    Raises:
        JobError: `out_of_memory`, `cancelled`.
    """
    with memory_for(model.name):
        return _transcribe(pcm, model, request, folder, cancel, on_words)


def _transcribe(
    pcm: Pcm,
    model: Loaded,
    request: JobRequest,
    folder: Path,
    cancel: Cancel,
    on_words: OnWords,
) -> Transcript:
    chunks = _speech(pcm, cancel) if request.vad else None
    if chunks == []:
        return Transcript((), (), request.language or "", 0.0)
    heard = _only(pcm, chunks, folder / "speech.pcm") if chunks else pcm
    words: list[Word] = []
    starts: list[float] = []

    def on_read(frame: int) -> None:
        cancel.check()
        on_words(frame / FRAMES_PER_SECOND, tuple(words))

    extractor = model.whisper.feature_extractor
    features = compute(heard, extractor, folder / "features.f32", on_read, cancel.check)
    segments, info = _reading(model.whisper, features).transcribe(
        # Only its length is looked at: the features are there already.
        np.broadcast_to(np.zeros(1, np.float32), (heard.length,)),
        language=request.language,
        **options(request),
    )
    for segment in _restored(segments, chunks):
        cancel.check()
        found = [
            Word(word=w.word, start=w.start, end=w.end, probability=w.probability)
            for w in segment.words or ()
        ]
        starts += [word.start for word in found[:1]]
        words += found
    return Transcript(
        tuple(words), tuple(sorted(starts)), info.language, float(info.language_probability)
    )


def options(request: JobRequest) -> dict[str, Any]:
    """faster-whisper's options for a request: its defaults, but for what lyrics need."""
    return {
        "task": request.task,
        "beam_size": request.beam_size,
        "initial_prompt": request.initial_prompt,
        "word_timestamps": True,
        # Songs repeat themselves: fed with its own last lines, the model loops.
        "condition_on_previous_text": False,
    }


def _reading(whisper: Any, features: LogMel) -> Any:
    """A shallow copy of the model that takes these features for any audio."""
    reader = copy.copy(whisper)
    reader.feature_extractor = _Ready(whisper.feature_extractor, features)
    return reader


class _Ready:
    """faster-whisper's feature extractor, with its work already done."""

    def __init__(self, extractor: Any, features: LogMel) -> None:
        self._extractor = extractor
        self._features = features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)

    def __call__(self, audio: object, chunk_length: object = None) -> LogMel:
        return self._features


def _speech(pcm: Pcm, cancel: Cancel) -> list[dict[str, int]]:
    """Where speech is, `[{start, end}]` in samples, found block by block."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    chunks: list[dict[str, int]] = []
    for first in range(0, pcm.length, VAD_BLOCK):
        cancel.check()
        for chunk in get_speech_timestamps(pcm.read(first, first + VAD_BLOCK), VadOptions()):
            start, end = chunk["start"] + first, chunk["end"] + first
            if chunks and start <= chunks[-1]["end"]:  # speech across two blocks
                chunks[-1]["end"] = end
            else:
                chunks.append({"start": start, "end": end})
    return chunks


def _only(pcm: Pcm, chunks: list[dict[str, int]], path: Path) -> Pcm:
    """The chunks of `pcm`, one after another, as audio of their own."""
    length = 0
    with pcm.path.open("rb") as source, path.open("wb") as target:
        for chunk in chunks:
            source.seek(chunk["start"] * SAMPLE_BYTES)
            target.write(source.read((chunk["end"] - chunk["start"]) * SAMPLE_BYTES))
            length += chunk["end"] - chunk["start"]
    return Pcm(path, length)


def _restored(segments: Iterable[Any], chunks: list[dict[str, int]] | None) -> Iterable[Any]:
    from faster_whisper.transcribe import restore_speech_timestamps

    return restore_speech_timestamps(segments, chunks, SAMPLE_RATE) if chunks else segments
