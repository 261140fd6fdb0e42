"""Word error rate and the errors of word times, against a known truth."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel, decode_audio

from .corpus import Span


def load_model(folder: Path) -> WhisperModel:
    """The model as the measurements use it: CPU, eight bits, two threads."""
    return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=2)


def bare(text: str) -> str:
    """A word in small letters, without spaces or punctuation."""
    return re.sub(r"[^a-z']", "", text.lower())


def heard_words(
    model: WhisperModel, samples: np.ndarray, beam_size: int = 5, most_tokens: int | None = None
) -> list[Span]:
    """The words faster-whisper hears in samples, shape (n,), 16 kHz, with times in seconds."""
    segments, _ = model.transcribe(
        samples,
        language="en",
        word_timestamps=True,
        temperature=0,
        condition_on_previous_text=False,
        beam_size=beam_size,
        max_new_tokens=most_tokens,
    )
    words = [word for segment in segments for word in segment.words or ()]
    return [(bare(word.word), word.start, word.end) for word in words if bare(word.word)]


def _distances(true: Sequence[str], heard: Sequence[str]) -> np.ndarray:
    """Edit distances of all beginnings, shape (true + 1, heard + 1)."""
    distances = np.zeros((len(true) + 1, len(heard) + 1), int)
    distances[:, 0], distances[0] = np.arange(len(true) + 1), np.arange(len(heard) + 1)
    for i, true_word in enumerate(true, 1):
        for j, heard_word in enumerate(heard, 1):
            distances[i, j] = min(
                distances[i - 1, j - 1] + (true_word != heard_word),
                distances[i - 1, j] + 1,
                distances[i, j - 1] + 1,
            )
    return distances


def matched_words(true: Sequence[str], heard: Sequence[str]) -> tuple[int, list[tuple[int, int]]]:
    """Number of word errors, and the index pairs of the words that are right."""
    distances = _distances(true, heard)
    i, j, pairs = len(true), len(heard), []
    while i and j:
        wrong = true[i - 1] != heard[j - 1]
        if distances[i, j] == distances[i - 1, j - 1] + wrong:
            if not wrong:
                pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
        elif distances[i, j] == distances[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return int(distances[-1, -1]), pairs[::-1]


@dataclass
class Score:
    """Word errors, true words and absolute time errors of the right words, in seconds."""

    errors: int = 0
    words: int = 0
    start_errors: list[float] = field(default_factory=list)
    end_errors: list[float] = field(default_factory=list)

    def add(self, true: Sequence[Span], heard: Sequence[Span]) -> None:
        """Count one recording."""
        names = [bare(word) for word, _, _ in true]
        errors, pairs = matched_words(names, [word for word, _, _ in heard])
        self.errors += errors
        self.words += len(true)
        self.start_errors += [abs(true[i][1] - heard[j][1]) for i, j in pairs]
        self.end_errors += [abs(true[i][2] - heard[j][2]) for i, j in pairs]

    def time_error(self) -> float:
        """Medians and 90 % quantiles of starts and ends together; infinite without a word."""
        if not self.start_errors:
            return float("inf")
        return float(sum(np.quantile(self.start_errors, (0.5, 0.9)))) + float(
            sum(np.quantile(self.end_errors, (0.5, 0.9)))
        )

    def __str__(self) -> str:
        text = f"{self.words} words, {self.errors} errors"
        for name, errors in (("start", self.start_errors), ("end", self.end_errors)):
            if errors:
                median, worst = np.quantile(errors, (0.5, 0.9))
                text += f", {name} error median {median:.3f} s, 90 % {worst:.3f} s"
        return text


def evaluate_samples(model_folder: Path, samples: Path) -> dict[str, Score]:
    """The score of each recording in `samples` that has a JSON file with the truth."""
    model, scores = load_model(model_folder), {}
    for truth in sorted(samples.glob("*.json")):
        words = json.loads(truth.read_text())["words"]
        true = [(word["word"], word["start"], word["end"]) for word in words]
        heard = heard_words(model, decode_audio(str(truth.with_suffix(".flac"))))
        scores[truth.stem] = Score()
        scores[truth.stem].add(true, heard)
    return scores
