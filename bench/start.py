"""Measure 2: process start to first result, against a bare handler of the same job."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from bench.audio import loop
from bench.table import Row
from bench.worker import OURS, JobServer, Worker, accepted

PAIRS = 7
TARGET = 0.9
SECONDS = 3  # of audio, cut from a sample
BARE = """
import runpod
from faster_whisper import WhisperModel

model = WhisperModel("models/nano", device="cpu", compute_type="int8")

def handler(job):
    segments, info = model.transcribe(
        job["input"]["audio_url"], language="en", beam_size=5, word_timestamps=True,
        condition_on_previous_text=False,
    )
    words = [
        {"word": w.word, "start": w.start, "end": w.end, "probability": float(w.probability)}
        for segment in segments for w in segment.words
    ]
    return {"words": words, "language": info.language}

runpod.serverless.start({"handler": handler})
"""


def measure(folder: Path, *, pairs: int = PAIRS) -> list[Row]:
    """Interleaved pairs of fresh processes; medians."""
    audio = loop(("line",), SECONDS, folder / "start.wav")
    ours, bare = [], []
    for _ in range(pairs):
        bare.append(_seconds(folder, audio, ("-c", BARE)))
        ours.append(_seconds(folder, audio, OURS))
    mine, theirs = median(ours), median(bare)
    return [
        Row(
            f"2 process start to first result, {SECONDS} s of audio (n={pairs})",
            f"{mine:.2f} s",
            f"{theirs:.2f} s",
            f"{mine / theirs:.3f}",
            f"<= {TARGET}",
            mine / theirs <= TARGET,
        )
    ]


def _seconds(folder: Path, audio: Path, arguments: tuple[str, ...]) -> float:
    with JobServer() as jobs:
        job = jobs.submit({"audio_url": str(audio), "language": "en"})
        with Worker(jobs, folder, arguments) as worker:
            post = accepted(jobs, job)
    if "error" in post.body or len(str(post.body)) < 100:
        raise RuntimeError(f"no words came: {post.body}")
    return post.at - worker.started
