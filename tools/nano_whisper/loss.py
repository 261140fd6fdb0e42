"""What the model is taught: the text, and everything espeak-ng's events tell on the way."""

import torch
from torch.nn import functional

from .batches import Batch
from .model import NanoWhisper
from .tokenizer import Vocab
from .windows import NO_SPAN

# (layer, head) whose cross-attention must lie on the word being predicted ...
CURRENT_WORD_HEADS = ((1, 0), (2, 0), (3, 0), (3, 1))
# ... and on the word just read.
PREVIOUS_WORD_HEADS = ((0, 0), (1, 1))
# A timestamp may be off by 20 ms at little cost: weights of the step before, itself, after.
_TIMESTAMP_WEIGHTS = {-1: 1, 0: 3, 1: 1}
_PHONEME_WEIGHT = 0.5
_WORD_WEIGHT = 0.5
_CURRENT_WEIGHT = 1.0
_PREVIOUS_WEIGHT = 0.5


def span_divergence(logits: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Mean divergence of attention from an even one over its span, where there is a span.

    logits (batch, tokens, frames); starts, ends (batch, tokens) in frames.
    """
    frames, has_span = logits.shape[-1], starts >= 0
    first = starts[has_span].clamp(max=frames - 1)
    end = torch.maximum(ends[has_span].clamp(max=frames), first + 1)
    length = (end - first).float()
    log_attention = logits[has_span].float().log_softmax(-1)
    frame = torch.arange(frames)[None]
    inside = (frame >= first[:, None]) & (frame < end[:, None])
    return (-length.log() - (log_attention * inside).sum(1) / length).mean()


def _attention_losses(
    attention: list[torch.Tensor], batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean divergence of the heads on the current word and of those on the previous one."""

    def shifted(spans: torch.Tensor) -> torch.Tensor:
        return functional.pad(spans[:, :-1], (1, 0), value=NO_SPAN)

    before = shifted(batch.starts), shifted(batch.ends)
    current = [
        span_divergence(attention[layer][:, head], batch.starts, batch.ends)
        for layer, head in CURRENT_WORD_HEADS
    ]
    previous = [
        span_divergence(attention[layer][:, head], *before) for layer, head in PREVIOUS_WORD_HEADS
    ]
    return torch.stack(current).mean(), torch.stack(previous).mean()


def _timestamp_loss(log_p: torch.Tensor, targets: torch.Tensor, vocab: Vocab) -> torch.Tensor:
    """Cross-entropy with a soft target; log_p (rows, vocabulary), targets (rows,)."""
    total = torch.zeros_like(log_p[:, 0])
    for shift, weight in _TIMESTAMP_WEIGHTS.items():
        token = (targets + shift).clamp(vocab.first_timestamp, vocab.size - 1)
        total = total - weight * log_p.gather(1, token[:, None])[:, 0]
    return total / sum(_TIMESTAMP_WEIGHTS.values())


def _text_loss(
    logits: torch.Tensor, targets: torch.Tensor, vocab: Vocab, timestamp_weight: float
) -> torch.Tensor:
    """Mean over the predicted tokens; logits (batch, tokens, vocabulary)."""
    predicted = targets >= 0
    log_p, wanted = logits[predicted].log_softmax(-1), targets[predicted]
    losses = -log_p.gather(1, wanted[:, None])[:, 0]
    is_time = wanted >= vocab.first_timestamp
    if is_time.any():
        losses = losses.clone()
        losses[is_time] = _timestamp_loss(log_p[is_time], wanted[is_time], vocab)
    return torch.where(is_time, timestamp_weight * losses, losses).mean()


def total_loss(
    model: NanoWhisper, batch: Batch, vocab: Vocab, timestamp_weight: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """The sum to minimise, and its parts for the log."""
    audio, middle = model.encoder(batch.mel, batch.offset)
    phonemes = functional.cross_entropy(
        model.phoneme_classes(middle).flatten(0, 1), batch.phonemes.flatten()
    )
    words = functional.cross_entropy(model.word_classes(audio).flatten(0, 1), batch.words.flatten())
    logits, attention = model.decoder(batch.inputs, audio)
    text = _text_loss(logits, batch.targets, vocab, timestamp_weight)
    current, previous = _attention_losses(attention, batch)
    frames = _PHONEME_WEIGHT * phonemes + _WORD_WEIGHT * words
    loss = text + frames + _CURRENT_WEIGHT * current + _PREVIOUS_WEIGHT * previous
    parts = {"text": text, "phonemes": phonemes, "words": words, "current": current}
    return loss, {name: float(part.detach()) for name, part in parts.items()}
