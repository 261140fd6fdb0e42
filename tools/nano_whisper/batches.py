"""Windows in batches, without end, the same for the same seed."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset

from .mel import MEL_BANDS
from .windows import IGNORED, NO_SPAN, WINDOW_FRAMES, Window

CROP_BATCH = 8
FULL_BATCH = 3
_CROP_EVERY = 3  # among full windows: one draw in three is crops
_LARGEST_PADDING = 150  # encoder frames (3 s)

Draw = Callable[[random.Random, bool], Window]


@dataclass
class Batch:
    """mel (batch, 80, 2 frames); offset (batch,); phonemes, words (batch, frames);

    inputs, targets, starts, ends (batch, tokens).
    """

    mel: torch.Tensor
    offset: torch.Tensor
    phonemes: torch.Tensor
    words: torch.Tensor
    inputs: torch.Tensor
    targets: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor


def _padded(rows: list[list[int]] | list[np.ndarray], width: int, fill: int) -> torch.Tensor:
    """Integer rows as one tensor, shape (rows, width)."""
    padded = torch.full((len(rows), width), fill, dtype=torch.long)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = torch.as_tensor(row)
    return padded


def collate(windows: list[Window], frames: int) -> Batch:
    """One batch of `frames` encoder frames; features are padded with 0.0, as the engine does."""
    mel = torch.zeros(len(windows), MEL_BANDS, 2 * frames)
    for target, window in zip(mel, windows, strict=True):
        target[:, : window.mel.shape[1]] = window.mel
    tokens = max(len(window.inputs) for window in windows)
    return Batch(
        mel=mel,
        offset=torch.tensor([window.offset for window in windows]),
        phonemes=_padded([window.phonemes for window in windows], frames, 0),
        words=_padded([window.words for window in windows], frames, 0),
        inputs=_padded([window.inputs for window in windows], tokens, 0),
        targets=_padded([window.targets for window in windows], tokens, IGNORED),
        starts=_padded([window.starts for window in windows], tokens, NO_SPAN),
        ends=_padded([window.ends for window in windows], tokens, NO_SPAN),
    )


class BatchStream(IterableDataset):
    """Endless batches for one worker. `full_windows`: 30 s windows with crops among them."""

    def __init__(self, draw: Draw, full_windows: bool, first: int, seed: int) -> None:
        self._draw, self._full_windows = draw, full_windows
        self._first, self._seed = first, seed

    def _crops(self, rng: random.Random) -> Iterator[Batch]:
        """Two batches with similar lengths together and a random amount of padding."""
        windows = [self._draw(rng, True) for _ in range(2 * CROP_BATCH)]
        windows.sort(key=lambda window: window.frames)
        for part in (windows[:CROP_BATCH], windows[CROP_BATCH:]):
            padding = rng.choice((0, rng.randint(0, _LARGEST_PADDING)))
            yield collate(part, part[-1].frames + padding)

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        index = self._first
        while True:
            rng = random.Random(self._seed * 1000003 + index)
            if self._full_windows and index % _CROP_EVERY:
                windows = [self._draw(rng, False) for _ in range(FULL_BATCH)]
                yield collate(windows, WINDOW_FRAMES)
            else:
                yield from self._crops(rng)
            index += 1
