"""Whisper's encoder and decoder in miniature.

Attribute names are those of Hugging Face's Whisper, which CTranslate2's converter reads.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from .mel import MEL_BANDS
from .tokenizer import TIMESTAMP_COUNT
from .windows import WINDOW_FRAMES


@dataclass(frozen=True)
class Size:
    """Width, heads, feed-forward width, layers of each half, longest decoder input."""

    width: int = 128
    heads: int = 4
    feed_forward: int = 512
    layers: int = 4
    longest_text: int = 448


def sinusoids(count: int, width: int) -> torch.Tensor:
    """Sine and cosine position codes, shape (count, width)."""
    rates = torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(count)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], 1)


class Attention(nn.Module):
    """Multi-head attention that can also hand out its logits."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) to (batch, heads, length, width / heads)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def _joined(self, heads: torch.Tensor) -> torch.Tensor:
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def over_itself(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """Self-attention of (batch, length, width)."""
        query, key = self._split(self.q_proj(x)), self._split(self.k_proj(x))
        value = self._split(self.v_proj(x))
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self._joined(attended)

    def over_audio(self, x: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-attention: the result and the logits, shape (batch, heads, tokens, frames)."""
        query, key = self._split(self.q_proj(x)), self._split(self.k_proj(audio))
        value = self._split(self.v_proj(audio))
        logits = (query @ key.transpose(-1, -2)) * (query.shape[-1] ** -0.5)
        return self._joined(logits.float().softmax(-1).to(value.dtype) @ value), logits


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, normalised before each."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = Attention(size.width, size.heads)
        self.self_attn_layer_norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, size.feed_forward)
        self.fc2 = nn.Linear(size.feed_forward, size.width)
        self.final_layer_norm = nn.LayerNorm(size.width)

    def _fed_forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, frames, width) to the same shape."""
        x = x + self.self_attn.over_itself(self.self_attn_layer_norm(x), causal=False)
        return self._fed_forward(x)


class DecoderLayer(EncoderLayer):
    """An encoder layer, causal, with attention over the audio in between."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.encoder_attn = Attention(size.width, size.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(size.width)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, audio: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, tokens, width) to the same shape, and the cross-attention's logits."""
        x = x + self.self_attn.over_itself(self.self_attn_layer_norm(x), causal=True)
        attended, logits = self.encoder_attn.over_audio(self.encoder_attn_layer_norm(x), audio)
        return self._fed_forward(x + attended), logits


class Encoder(nn.Module):
    """Log-mel to audio states, one for 20 ms."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MEL_BANDS, size.width, 3, padding=1)
        self.conv2 = nn.Conv1d(size.width, size.width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(WINDOW_FRAMES, size.width)
        self.embed_positions.weight.data = sinusoids(WINDOW_FRAMES, size.width) * 0.5
        self.embed_positions.weight.requires_grad = False
        self.layers = nn.ModuleList([EncoderLayer(size) for _ in range(size.layers)])
        self.layer_norm = nn.LayerNorm(size.width)

    def forward(self, mel: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, 80, 2 frames) to (batch, frames, width): final states and middle ones."""
        convolved = functional.gelu(self.conv1(mel))
        x = functional.gelu(self.conv2(convolved)).transpose(1, 2)
        positions = torch.arange(x.shape[1])[None] + offset[:, None]
        x = x + self.embed_positions.weight[positions.clamp(max=WINDOW_FRAMES - 1)]
        middle = x
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == len(self.layers) // 2:
                middle = x
        return self.layer_norm(x), middle


class Decoder(nn.Module):
    """Tokens and audio states to the logits of the next token."""

    def __init__(self, size: Size, tokens: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(tokens, size.width)
        self.embed_positions = nn.Embedding(size.longest_text, size.width)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        # Timestamps start in the basis of the encoder's positions: a place can then be copied.
        times = sinusoids(TIMESTAMP_COUNT, size.width) * 0.12
        self.embed_tokens.weight.data[tokens - TIMESTAMP_COUNT :] = times
        nn.init.normal_(self.embed_positions.weight, std=0.02)
        self.layers = nn.ModuleList([DecoderLayer(size) for _ in range(size.layers)])
        self.layer_norm = nn.LayerNorm(size.width)

    def forward(
        self, tokens: torch.Tensor, audio: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits (batch, tokens, vocabulary); each layer's (batch, heads, tokens, frames)."""
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        attention = []
        for layer in self.layers:
            x, logits = layer(x, audio)
            attention.append(logits)
        return functional.linear(self.layer_norm(x), self.embed_tokens.weight), attention


class NanoWhisper(nn.Module):
    """The model and two helpers that only training uses: classes of phonemes and words."""

    def __init__(self, size: Size, tokens: int, phonemes: int, words: int) -> None:
        super().__init__()
        self.encoder = Encoder(size)
        self.decoder = Decoder(size, tokens)
        self.phoneme_classes = nn.Linear(size.width, phonemes)
        self.word_classes = nn.Linear(size.width, words)
