"""Rebuild the nano Whisper from nothing: python -m tools.nano_whisper --out models/nano"""

import argparse
import time
from pathlib import Path

import torch

from . import voices
from .convert import convert
from .corpus import Corpus, Line, load_lines, stored_lines
from .evaluate import evaluate_samples
from .heads import choose_heads
from .model import NanoWhisper, Size
from .tokenizer import Vocab, build_tokenizer
from .train import RUNS, THREADS, train_run
from .windows import WORD_NUMBERS

SAMPLES = Path(__file__).parents[2] / "samples"
# Name, lines, voices, seed. The first two teach the first run, all four the second.
CORPORA = (
    ("train1", 9000, voices.FEW, 1),
    ("train2", 9000, voices.FEW, 2),
    ("train3", 9000, voices.MANY, 3),
    ("train4", 9000, voices.MANY, 4),
    ("held", 600, voices.FEW, 101),
    ("unseen", 200, voices.UNSEEN, 102),
)
_STARTED = time.monotonic()
_FEWEST_LINES = 8  # in a scaled-down corpus


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.nano_whisper", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--work", type=Path, default=Path("out/nano_whisper"), help="lines go here")
    parser.add_argument("--scale", type=float, default=1.0, help="share of lines and of minutes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _log(text: str) -> None:
    print(f"[{(time.monotonic() - _STARTED) / 60:6.1f} min] {text}", flush=True)


def _render(work: Path, scale: float, seed: int) -> dict[str, list[Line]]:
    """All corpora by name."""
    work.mkdir(parents=True, exist_ok=True)
    corpora = {}
    for name, count, names, own_seed in CORPORA:
        scaled = max(_FEWEST_LINES, round(count * scale))
        path = stored_lines(work, name, scaled, own_seed + 1000 * seed, names)
        corpora[name] = load_lines(path)
        _log(f"{name}: {scaled} lines")
    return corpora


def _train(
    corpora: dict[str, list[Line]], vocab: Vocab, size: Size, scale: float, seed: int
) -> NanoWhisper:
    """Both runs, one after the other, on lines whose text is not among the held-out ones."""
    held_out = [line.text for name in ("held", "unseen") for line in corpora[name]]
    few = Corpus(corpora["train1"] + corpora["train2"], held_out)
    every = Corpus(few.lines + corpora["train3"] + corpora["train4"], held_out)
    numbers = every.phoneme_numbers()
    model = NanoWhisper(size, vocab.size, len(numbers) + 1, len(WORD_NUMBERS) + 1)
    for run in RUNS:
        corpus = every if run.many_voices else few
        steps = train_run(model, vocab, run, corpus, numbers, scale, seed)
        _log(f"run {run.name!r}: {steps} steps")
    return model


def main() -> None:
    """Render, train, convert, choose the alignment heads, measure."""
    options = _arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(THREADS)
    tokenizer, size = build_tokenizer(), Size()
    corpora = _render(options.work, options.scale, options.seed)
    model = _train(corpora, Vocab(tokenizer), size, options.scale, options.seed)
    torch.save(model.state_dict(), options.work / "model.pt")
    convert(model, size, tokenizer, options.out)
    _log(f"converted; alignment heads {choose_heads(options.out, corpora['held'])}")
    for name, score in evaluate_samples(options.out, SAMPLES).items():
        _log(f"{name}: {score}")


if __name__ == "__main__":
    main()
