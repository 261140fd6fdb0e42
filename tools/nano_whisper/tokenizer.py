"""A Whisper tokenizer in which every word of the vocabulary is one token."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .vocabulary import WORDS

TIMESTAMP_COUNT = 1501  # 0.00 to 30.00 s in steps of 20 ms
# All of Whisper's special names and in its order: the engine looks each of them up, and one
# that is missing breaks its sorted set of suppressed tokens.
SPECIALS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
_REPEATS = 8  # of each word in the training text, so that every merge is learnt
_SIZE_LIMIT = 4000  # more merges than the words need


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE: all 256 bytes (" -" must not encode to nothing), words, specials, times."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE_LIMIT,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([f" {word}" for word in WORDS for _ in range(_REPEATS)], trainer)
    times = [f"<|{step * 0.02:.2f}|>" for step in range(TIMESTAMP_COUNT)]
    for name in (*SPECIALS, *times):
        tokenizer.add_special_tokens([AddedToken(name, special=True)])
    for word in WORDS:
        if len(tokenizer.encode(f" {word}").ids) != 1:
            raise AssertionError(f"{word!r} is not one token")
    return tokenizer


class Vocab:
    """The token numbers that window assembly and the loss need."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.size: int = tokenizer.get_vocab_size()
        self.end = tokenizer.token_to_id("<|endoftext|>")
        self.start = tokenizer.token_to_id("<|startoftranscript|>")
        self.previous = tokenizer.token_to_id("<|startofprev|>")
        self.no_speech = tokenizer.token_to_id("<|nospeech|>")
        self.no_timestamps = tokenizer.token_to_id("<|notimestamps|>")
        self.first_timestamp: int = tokenizer.token_to_id("<|0.00|>")
        if self.first_timestamp + TIMESTAMP_COUNT != self.size:
            raise AssertionError("the timestamps are not the last tokens")
        self.word: dict[str, int] = {word: tokenizer.encode(f" {word}").ids[0] for word in WORDS}
        self.full_stop: int = tokenizer.encode(".").ids[0]
