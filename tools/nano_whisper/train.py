"""The schedule: short crops, then 30 s windows, then a longer run with many voices."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.data import DataLoader

from .batches import Batch, BatchStream, Draw
from .corpus import Corpus
from .loss import total_loss
from .model import NanoWhisper
from .tokenizer import Vocab
from .windows import draw_window

THREADS = 2
_WARM_UP_STEPS = 200
_FINAL_RATE = 0.03  # of the peak, at the end of a run
_LOG_EVERY = 100


@dataclass(frozen=True)
class Phase:
    """Minutes on one kind of windows."""

    full_windows: bool
    minutes: float


@dataclass(frozen=True)
class Run:
    """One optimiser and one cosine over the phases together."""

    name: str
    phases: tuple[Phase, ...]
    peak_rate: float
    timestamp_weight: float
    bfloat16: bool
    many_voices: bool
    seed: int


RUNS = (
    Run("first", (Phase(False, 17), Phase(True, 28)), 1.6e-3, 1.0, False, False, 5),
    # The word error rate on songs falls from about 28 % to 3 % in this one.
    Run("second", (Phase(True, 50),), 1e-3, 2.0, True, True, 12),
)


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up by steps times a cosine by `progress`, the share (0 to 1) of the run's time."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * min(1, (step + 1) / _WARM_UP_STEPS) * (cosine * (1 - _FINAL_RATE) + _FINAL_RATE)


def _batches(draw: Draw, full_windows: bool, first: int, seed: int) -> Iterator[Batch]:
    """Batches that one worker process makes ahead of time."""
    stream = BatchStream(draw, full_windows, first, seed)
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=6)
    return iter(loader)


class Trainer:
    """The state of one run: model, optimiser, steps and time."""

    def __init__(self, model: NanoWhisper, vocab: Vocab, run: Run, scale: float) -> None:
        self._model, self._vocab, self._run = model, vocab, run
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True
        )
        self._seconds = sum(phase.minutes for phase in run.phases) * 60 * scale
        self._scale, self._started = scale, time.monotonic()
        self.steps = 0

    def _step(self, batch: Batch) -> dict[str, float]:
        """One update of the weights; returns the loss's parts."""
        progress = min(1.0, (time.monotonic() - self._started) / self._seconds)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._run.peak_rate, self.steps, progress)
        self._model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._run.bfloat16):
            weight = self._run.timestamp_weight
            loss, parts = total_loss(self._model, batch, self._vocab, weight)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self.steps += 1
        return parts

    def train_phase(self, phase: Phase, draw: Draw, seed: int) -> None:
        """Train for the phase's minutes, by the clock and for one step at least."""
        batches = _batches(draw, phase.full_windows, self.steps, seed)
        end = time.monotonic() + phase.minutes * 60 * self._scale
        while True:
            parts = self._step(next(batches))
            finished = time.monotonic() >= end
            if finished or self.steps % _LOG_EVERY == 0:
                shown = " ".join(f"{name}={value:.3f}" for name, value in parts.items())
                print(f"{self._run.name}: step {self.steps} {shown}", flush=True)
            if finished:
                return


def train_run(
    model: NanoWhisper,
    vocab: Vocab,
    run: Run,
    corpus: Corpus,
    phoneme_numbers: dict[str, int],
    scale: float,
    seed: int,
) -> int:
    """All phases of a run; returns the number of steps."""
    draw: Draw = partial(draw_window, corpus, vocab, phoneme_numbers)
    trainer = Trainer(model, vocab, run, scale)
    for phase in run.phases:
        trainer.train_phase(phase, draw, run.seed + 1000 * seed)
    return trainer.steps
