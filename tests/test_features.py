"""The log-mel spectrogram on disk stands in for faster-whisper's own, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SAMPLES
from faster_whisper import WhisperModel
from faster_whisper.audio import decode_audio

from handler.audio import decode
from handler.features import compute
from handler.models import Loaded
from handler.transcribe import options, transcribe
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import parse


@pytest.fixture(scope="module")
def whisper() -> WhisperModel:
    return WhisperModel(str(ROOT / "models/nano"), device="cpu", compute_type="int8")


@pytest.mark.parametrize("name", ["line", "verse", "song"])
def test_features_are_the_same(name: str, whisper: WhisperModel, tmp_path: Path) -> None:
    """Shape and values are those that faster-whisper computes in memory."""
    source = SAMPLES / f"{name}.flac"
    pcm = decode(source, tmp_path / "a", max_seconds=1e9, cancel=Cancel())
    reads: list[int] = []
    ours = compute(pcm, whisper.feature_extractor, tmp_path / "f", reads.append)
    theirs = whisper.feature_extractor(decode_audio(str(source)))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours[:, : ours.shape[1]], theirs, atol=1e-6)
    np.testing.assert_allclose(ours[..., 100:][..., :50], theirs[:, 100:150], atol=1e-6)
    assert reads == [0, 100]


@pytest.mark.parametrize("samples", [1, 100, 399, 16_001])
def test_the_shortest_audio_has_features(
    samples: int, whisper: WhisperModel, tmp_path: Path
) -> None:
    """Audio shorter than one analysis window is mirrored at its ends as far as it goes."""
    from handler.audio import Pcm

    path = tmp_path / "a"
    np.ones(samples, np.int16).tofile(path)
    ours = compute(
        Pcm(path, samples), whisper.feature_extractor, tmp_path / "f", lambda frame: None
    )
    assert ours.shape[1] == (samples + 160) // 160
    assert np.isfinite(ours[:, : ours.shape[1]]).all()


def test_words_are_those_of_an_uncut_run(whisper: WhisperModel, tmp_path: Path) -> None:
    """Transcribing from disk gives every word and time of faster-whisper's own run."""
    source = SAMPLES / "song.flac"
    request = parse({"audio_url": "x", "language": "en"}, default_job_id="a").request
    segments, _ = whisper.transcribe(str(source), language="en", **options(request))
    theirs = [(w.word, w.start, w.end) for s in segments for w in s.words or ()]
    pcm = decode(source, tmp_path / "a", max_seconds=1e9, cancel=Cancel())
    ours = transcribe(
        pcm, Loaded("nano", whisper, "cpu", "int8"), request, folder=tmp_path, cancel=Cancel()
    )
    assert [(w.word, w.start, w.end) for w in ours.words] == theirs


def test_a_cancel_ends_within_one_inference_call(whisper: WhisperModel, tmp_path: Path) -> None:
    """A cancel set while a window is being worked on ends before the next window."""
    request = parse({"audio_url": "x", "language": "en"}, default_job_id="a").request
    pcm = decode(SAMPLES / "song.flac", tmp_path / "a", max_seconds=1e9, cancel=Cancel())
    cancel, seen = Cancel(), []

    def on_words(seconds: float, words: object) -> None:
        seen.append(seconds)
        cancel.set()

    model = Loaded("nano", whisper, "cpu", "int8")
    with pytest.raises(JobError) as caught:
        transcribe(pcm, model, request, folder=tmp_path, cancel=cancel, on_words=on_words)
    assert caught.value.code is ErrorCode.CANCELLED
    assert seen == [0.0]


def test_silence_can_be_skipped(whisper: WhisperModel, tmp_path: Path) -> None:
    """With `vad` the words keep their places in the recording; music alone gives none."""
    request = parse({"audio_url": "x", "language": "en", "vad": True}, default_job_id="a").request
    model = Loaded("nano", whisper, "cpu", "int8")
    heard = {}
    for name in ("verse", "instrumental"):
        (tmp_path / name).mkdir()
        source = SAMPLES / f"{name}.flac"
        pcm = decode(source, tmp_path / name / "a", max_seconds=1e9, cancel=Cancel())
        heard[name] = transcribe(pcm, model, request, folder=tmp_path / name, cancel=Cancel()).words
    assert len(heard["verse"]) > 20
    assert heard["verse"][-1].end > 15
    assert heard["instrumental"] == ()
