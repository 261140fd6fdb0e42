"""Known lyrics onto the audio, and words out of silence, with the nano model."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from conftest import SAMPLES

from handler.align import align, available, refine
from handler.audio import Pcm, decode
from handler.config import Settings
from handler.models import Loaded, Models
from handler.transcribe import transcribe
from handler.transcript import Transcript
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import parse

pytestmark = [
    pytest.mark.skipif(not available(), reason="needs lyricpod[align]"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(torch|stable_whisper)"),
]


@pytest.fixture(scope="module")
def nano() -> Loaded:
    return Models(Settings(model="nano", device="cpu")).get(None)


def sample(name: str, folder: Path) -> tuple[Pcm, dict[str, Any]]:
    pcm = decode(SAMPLES / f"{name}.flac", folder / f"{name}.pcm", max_seconds=600, cancel=Cancel())
    return pcm, json.loads((SAMPLES / f"{name}.json").read_text())


def lyrics(truth: dict[str, Any]) -> str:
    return "\n".join(line["text"] for line in truth["lines"])


def test_known_lyrics_get_their_times(nano: Loaded, tmp_path: Path) -> None:
    """Every word of the text comes back once, in order, where it is sung."""
    pcm, truth = sample("verse", tmp_path)
    heard = align(pcm, lyrics(truth), nano, "en", cancel=Cancel())
    assert [word.word for word in heard.words] == [word["word"] for word in truth["words"]]
    errors = [abs(a.end - b["end"]) for a, b in zip(heard.words, truth["words"], strict=True)]
    assert statistics.median(errors) < 0.1


def test_lines_are_those_of_the_text(nano: Loaded, tmp_path: Path) -> None:
    """The words that begin a line of the text are those whose times are starts."""
    pcm, truth = sample("verse", tmp_path)
    heard = align(pcm, lyrics(truth), nano, "en", cancel=Cancel())
    firsts = [word.word for word in heard.words if word.start in heard.starts]
    assert firsts == [line["text"].split()[0] for line in truth["lines"]]


def test_marks_stay_with_their_words(nano: Loaded, tmp_path: Path) -> None:
    """Words with hyphens, apostrophes and commas are not taken apart."""
    pcm, _ = sample("line", tmp_path)
    text = "go behind, your blue-diamond\n\nand (don't) believe me!"
    heard = align(pcm, text, nano, "en", cancel=Cancel())
    assert [word.word for word in heard.words] == text.split()


def test_a_cancel_ends_it(nano: Loaded, tmp_path: Path) -> None:
    """A cancel that comes while it works ends it before the audio's end."""
    pcm, truth = sample("song", tmp_path)
    cancel, seen = Cancel(), list[float]()

    def on_seconds(done: float) -> None:
        seen.append(done)
        cancel.set()

    with pytest.raises(JobError) as raised:
        align(pcm, lyrics(truth), nano, "en", cancel=cancel, on_seconds=on_seconds)
    assert raised.value.code is ErrorCode.CANCELLED
    assert max(seen) < pcm.seconds / 2


def test_refined_words_start_nearer_the_truth(nano: Loaded, tmp_path: Path) -> None:
    """Transcribed words keep their text, and starts are closer on average once refined."""
    pcm, truth = sample("song", tmp_path)
    request = parse({"audio_url": "https://example.com/a"}, default_job_id="j").request
    heard = transcribe(pcm, nano, request, folder=tmp_path, cancel=Cancel())
    better = refine(heard, pcm, cancel=Cancel())
    assert [word.word for word in better.words] == [word.word for word in heard.words]
    assert len(better.starts) == len(heard.starts)
    assert _mean_error(better, truth) < 0.9 * _mean_error(heard, truth)


def _mean_error(heard: Transcript, truth: dict[str, Any]) -> float:
    """How far starts are from the nearest true start of the same word, on average, in seconds."""
    times: dict[str, list[float]] = {}
    for word in truth["words"]:
        times.setdefault(word["word"], []).append(word["start"])
    return statistics.fmean(
        min(abs(word.start - time) for time in times[word.word.strip()])
        for word in heard.words
        if word.word.strip() in times
    )
