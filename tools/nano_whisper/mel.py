"""The log-mel spectrogram, with the numbers faster-whisper's feature extractor gives."""

from functools import cache

import numpy as np
import torch
from faster_whisper.feature_extractor import FeatureExtractor

from .corpus import SAMPLE_RATE

MEL_BANDS = 80
FFT_SIZE = 400
HOP_SAMPLES = 160
_DYNAMIC_RANGE = 8.0  # decades below the loudest point at which the spectrogram is cut


@cache
def _filters() -> torch.Tensor:
    """Mel filters, shape (bands, FFT bins)."""
    filters = FeatureExtractor.get_mel_filters(SAMPLE_RATE, FFT_SIZE, n_mels=MEL_BANDS)
    return torch.from_numpy(filters.astype("float32"))


def log_mel(samples: np.ndarray, louder_elsewhere: float = 0.0) -> torch.Tensor:
    """Samples, shape (n,), float at 16 kHz, to log-mel, shape (80, n / 160).

    `louder_elsewhere`: decades by which the loudest point of the whole recording exceeds this
    window's, because the engine cuts relative to the whole recording.
    """
    window = torch.from_numpy(np.hanning(FFT_SIZE + 1)[:-1].astype("float32"))
    signal = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    signal = torch.nn.functional.pad(signal, (0, HOP_SAMPLES))
    transform = torch.stft(signal, FFT_SIZE, HOP_SAMPLES, window=window, return_complex=True)
    power = transform[:, :-1].abs() ** 2
    mel = (_filters() @ power).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() + louder_elsewhere - _DYNAMIC_RANGE) + 4.0) / 4.0
