"""The trained model as a CTranslate2 folder that faster-whisper loads."""

import json
from pathlib import Path
from types import SimpleNamespace

from ctranslate2.converters import transformers as converter
from tokenizers import Tokenizer

from .loss import CURRENT_WORD_HEADS
from .model import NanoWhisper, Size

QUANTIZATION = "int8_float16"  # the smallest file; every device can load it
_SPACE = "\u0120"  # the space alone, in byte-level spelling
_PREPROCESSOR = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "sampling_rate": 16000,
}


def _loader() -> converter.WhisperLoader:
    """CTranslate2's loader; without transformers installed it still asks for one class of it."""
    if not hasattr(converter, "transformers"):
        converter.transformers = SimpleNamespace(Conv1D=())  # no layer is an instance of this
    return converter.WhisperLoader()


def _look_alike(model: NanoWhisper, size: Size) -> SimpleNamespace:
    """The attributes of a Hugging Face model that the loader reads: no transformers needed."""
    config = SimpleNamespace(
        encoder_layers=size.layers,
        encoder_attention_heads=size.heads,
        decoder_layers=size.layers,
        decoder_attention_heads=size.heads,
    )
    return SimpleNamespace(
        config=config,
        model=SimpleNamespace(encoder=model.encoder, decoder=model.decoder),
        proj_out=SimpleNamespace(weight=model.decoder.embed_tokens.weight, bias=None),
    )


def convert(model: NanoWhisper, size: Size, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model's five files into `folder`; other files there stay as they are."""
    model.eval().requires_grad_(False)
    spec = _loader().get_model_spec(_look_alike(model, size))
    numbers = tokenizer.get_vocab()
    spec.register_vocabulary(sorted(numbers, key=lambda token: numbers[token]))
    spec.config.suppress_ids = []
    # Whisper also bans the end of text here; an empty result is right for silence.
    spec.config.suppress_ids_begin = [tokenizer.token_to_id(_SPACE)]
    spec.config.lang_ids = [tokenizer.token_to_id("<|en|>")]
    spec.config.alignment_heads = [list(head) for head in CURRENT_WORD_HEADS]
    spec.validate()
    spec.optimize(quantization=QUANTIZATION)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    preprocessor = folder / "preprocessor_config.json"
    preprocessor.write_text(json.dumps(_PREPROCESSOR, indent=1))
