"""Training windows: a log-mel and everything the model should say about it."""

import random
from dataclasses import dataclass

import numpy as np
import torch

from .corpus import Corpus, Span
from .mel import log_mel
from .recording import recorded
from .timeline import Timeline, lay_lines, silent_timeline
from .tokenizer import Vocab
from .vocabulary import WORDS

FRAMES_PER_SECOND = 50  # encoder frames, and the resolution of timestamps
WINDOW_FRAMES = 1500  # 30 s
IGNORED = -100  # target of a token that is given, not predicted
NO_SPAN = -1  # a token without a place in the audio
_FIRST_TIMESTAMP_LIMIT = 50  # the engine lets a window's first timestamp be 1.0 s at most
_SILENCE_SHARE = 0.05
_TIMESTAMPS_SHARE = 0.6
_PROMPT_SHARE = 0.25
_OFFSET_SHARE = 0.4

WORD_NUMBERS: dict[str, int] = {word: i + 1 for i, word in enumerate(WORDS)}

Row = tuple[int, int, int]  # token, first encoder frame, end frame of what it stands for


@dataclass
class Window:
    """One example; `frames` = encoder frames with content, `tokens` = decoder length.

    mel (80, up to 2 frames); offset: encoder position of the first frame; phonemes, words
    (frames,): class of each frame, 0 for silence; inputs, targets, starts, ends (tokens,).
    """

    mel: torch.Tensor
    offset: int
    frames: int
    phonemes: np.ndarray
    words: np.ndarray
    inputs: list[int]
    targets: list[int]
    starts: list[int]
    ends: list[int]


def _frame(seconds: float) -> int:
    return round(seconds * FRAMES_PER_SECOND)


def _draw_timeline(corpus: Corpus, rng: random.Random, short_crop: bool) -> Timeline:
    """Lines or silence of a random length: up to 11 s in a crop, else up to 30 s."""
    silence = rng.random() < _SILENCE_SHARE
    may_cut = False
    if short_crop:
        seconds = rng.choice((rng.uniform(1.5, 4), rng.uniform(2.5, 8), rng.uniform(4, 11)))
    else:
        may_cut = rng.random() < 0.5
        part = rng.choice((rng.uniform(1.5, 8), rng.uniform(3, 29)))
        seconds = 30.0 if may_cut else part
        if silence:
            seconds = rng.choice((rng.uniform(0.1, 1.5), rng.uniform(1, 6), rng.uniform(1, 30)))
    if silence:
        return silent_timeline(seconds)
    return lay_lines(corpus, rng, seconds, may_cut)


def _draw_mel(timeline: Timeline, rng: random.Random, short_crop: bool) -> torch.Tensor:
    """Log-mel, shape (80, even and at most 3000)."""
    samples = recorded(timeline.samples, rng, timeline.empty, short_crop)
    mel = log_mel(samples, rng.uniform(0, 1) if rng.random() < 0.3 else 0.0)
    return mel[:, : min(mel.shape[1] // 2 * 2, 2 * WINDOW_FRAMES)]


def _classes(spans: list[Span], numbers: dict[str, int], frames: int) -> np.ndarray:
    """Class of each frame, shape (frames,), 0 outside the spans."""
    classes = np.zeros(frames, np.int64)
    for name, start, end in spans:
        classes[_frame(start) : _frame(end)] = numbers.get(name, 0)
    return classes


class _Transcript:
    """Decoder rows for a time line: tokens and the encoder frames each one stands for."""

    def __init__(self, timeline: Timeline, vocab: Vocab, frames: int, offset: int) -> None:
        self._timeline, self._vocab = timeline, vocab
        self._frames, self._offset = frames, offset

    def _time_row(self, seconds: float, limit: int = WINDOW_FRAMES) -> Row:
        """A timestamp token; it attends to about 0.1 s on either side."""
        frame = _frame(seconds)
        step = min(limit, max(0, min(WINDOW_FRAMES, frame + self._offset)))
        return self._vocab.first_timestamp + step, max(0, frame - 4), frame + 5

    def _start_row(self, seconds: float, is_first: bool) -> Row:
        limited = is_first and not self._offset
        return self._time_row(seconds, _FIRST_TIMESTAMP_LIMIT if limited else WINDOW_FRAMES)

    def _next_start(self, index: int) -> float:
        """Where the line after `index` starts, in seconds, else the content's end."""
        lines, cut_line = self._timeline.lines, self._timeline.cut_line
        if index + 1 < len(lines):
            return lines[index + 1][0][1]
        return cut_line[0][1] if cut_line else self._frames / FRAMES_PER_SECOND

    def _line_rows(self, index: int, timestamps: bool) -> list[Row]:
        """A line's words and full stop; the full stop takes the pause, not the last word."""
        words = self._timeline.lines[index]
        end = _frame(words[-1][2])
        rows = [self._start_row(words[0][1], index == 0)] if timestamps else []
        for word, start, stop in words:
            first = _frame(start)
            rows.append((self._vocab.word[word], first, max(_frame(stop), first + 1)))
        stop_end = max(end + 3, min(end + 15, _frame(self._next_start(index))))
        rows.append((self._vocab.full_stop, end, stop_end))
        return [*rows, self._time_row(words[-1][2] + 0.02)] if timestamps else rows

    def rows(self, timestamps: bool) -> list[Row]:
        """All lines, the start of a cut one, and the end."""
        lines, cut_line = self._timeline.lines, self._timeline.cut_line
        rows = [row for i in range(len(lines)) for row in self._line_rows(i, timestamps)]
        if cut_line and timestamps:
            rows.append(self._start_row(cut_line[0][1], not lines))
        if not lines:
            return [*rows, (self._vocab.end, NO_SPAN, NO_SPAN)]
        after = _frame(lines[-1][-1][2]) + 10
        return [*rows, (self._vocab.end, min(after, self._frames - 2), self._frames)]


def _silence_rows(vocab: Vocab, kind: int) -> list[Row]:
    """Silence: 0 'no speech', then the end; 1 the time 0.00, then the end; 2 the end at once.

    'No speech' is banned while decoding, so the second must end at once after 0.00.
    """
    first = ([vocab.no_speech], [vocab.first_timestamp], [])[kind]
    return [(token, NO_SPAN, NO_SPAN) for token in (*first, vocab.end)]


def _prompt(corpus: Corpus, vocab: Vocab, rng: random.Random, timestamps: bool) -> list[int]:
    """In a quarter of the windows one to six unrelated lines as the text before."""
    if rng.random() >= _PROMPT_SHARE:
        return []
    tokens = [vocab.previous]
    for _ in range(rng.randint(1, 6)):
        words = [vocab.word[word] for word, _, _ in rng.choice(corpus.lines).words]
        start = rng.randint(0, 1400)
        line = words + ([vocab.full_stop] if rng.random() < 0.9 else [])
        if timestamps:
            end = min(WINDOW_FRAMES, start + 30 + rng.randint(0, 60))
            line = [vocab.first_timestamp + start, *line, vocab.first_timestamp + end]
        tokens += line
    return tokens


def _draw_rows(
    transcript: _Transcript, vocab: Vocab, rng: random.Random, silence: bool
) -> tuple[list[Row], bool, bool]:
    """The rows, whether timestamps are used, and whether the first row is given."""
    timestamps = rng.random() < _TIMESTAMPS_SHARE
    if not silence:
        return transcript.rows(timestamps), timestamps, False
    kind = rng.randint(0, 2)
    return _silence_rows(vocab, kind), kind < 2, kind == 1


def draw_window(
    corpus: Corpus,
    vocab: Vocab,
    phoneme_numbers: dict[str, int],
    rng: random.Random,
    short_crop: bool,
) -> Window:
    """A random window. `short_crop`: up to 11 s, placed anywhere in the 30 s of positions."""
    timeline = _draw_timeline(corpus, rng, short_crop)
    mel = _draw_mel(timeline, rng, short_crop)
    frames = (mel.shape[1] + 1) // 2
    offset = 0
    if short_crop and frames < WINDOW_FRAMES and rng.random() < _OFFSET_SHARE:
        offset = rng.randint(0, WINDOW_FRAMES - frames)
    spoken = [span for line in timeline.lines for span in line] + (timeline.cut_line or [])
    transcript = _Transcript(timeline, vocab, frames, offset)
    rows, timestamps, first_given = _draw_rows(transcript, vocab, rng, timeline.empty)
    head = [*_prompt(corpus, vocab, rng, timestamps), vocab.start]
    head += [] if timestamps else [vocab.no_timestamps]
    tokens = [token for token, _, _ in rows]
    given = len(head) - 1
    targets = [IGNORED] * given + tokens
    if first_given:
        targets[given] = IGNORED
    return Window(
        mel=mel,
        offset=offset,
        frames=frames,
        phonemes=_classes(timeline.phonemes, phoneme_numbers, frames),
        words=_classes(spoken, WORD_NUMBERS, frames),
        inputs=head + tokens[:-1],
        targets=targets,
        starts=[NO_SPAN] * given + [start for _, start, _ in rows],
        ends=[NO_SPAN] * given + [end for _, _, end in rows],
    )
