"""espeak-ng through ctypes: audio together with the times of its words and phonemes."""

import ctypes
from dataclasses import dataclass

import numpy as np

LIBRARY = "libespeak-ng.so.1"

# From espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 1
_POSITION_IN_CHARACTERS = 1
_TEXT_IS_UTF8 = 1
_END_OF_EVENTS = 0
WORD_EVENT = 1
PHONEME_EVENT = 7
_RATE, _PITCH, _PITCH_RANGE, _WORD_GAP = 1, 3, 4, 7


class _EventId(ctypes.Union):
    _fields_ = [
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Manner:
    """How to speak: words a minute, pitch and its range 0 to 100, gap between words in 10 ms."""

    rate: int
    pitch: int
    pitch_range: int
    word_gap: int


@dataclass(frozen=True)
class SpeechEvent:
    """A word (position: its first character, counted from 1) or a phoneme, at `seconds`."""

    kind: int
    position: int
    seconds: float
    phoneme: str


class Espeak:
    """The synthesiser. The library keeps one global state: use one instance per process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self.sample_rate = int(
            self._library.espeak_Initialize(
                _OUTPUT_SYNCHRONOUS, 0, None, _INITIALIZE_PHONEME_EVENTS
            )
        )
        if self.sample_rate <= 0:
            raise RuntimeError("espeak-ng does not start: is its data installed?")
        self._callback = _Callback(self._receive)  # kept, or it is collected while in use
        self._library.espeak_SetSynthCallback(self._callback)
        self._pieces: list[np.ndarray] = []
        self._events: list[SpeechEvent] = []

    def _receive(self, samples: object, count: int, events: object) -> int:
        """Called by the library with each piece of audio and the events inside it."""
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _END_OF_EVENTS:
            event = events[index]
            is_phoneme = event.type == PHONEME_EVENT
            phoneme = event.id.string.decode("utf8", "replace") if is_phoneme else ""
            seconds = event.audio_position / 1000.0
            self._events.append(SpeechEvent(event.type, event.text_position, seconds, phoneme))
            index += 1
        return 0

    def say(self, text: str, voice: str, manner: Manner) -> tuple[np.ndarray, list[SpeechEvent]]:
        """Speak `text`: int16 samples, shape (n,), at `sample_rate`, and the events in order."""
        self._pieces, self._events = [], []
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in (
            (_RATE, manner.rate),
            (_PITCH, manner.pitch),
            (_PITCH_RANGE, manner.pitch_range),
            (_WORD_GAP, manner.word_gap),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._library.espeak_Synth(
            data, len(data) + 1, 0, _POSITION_IN_CHARACTERS, 0, _TEXT_IS_UTF8, None, None
        )
        audio = np.concatenate(self._pieces) if self._pieces else np.zeros(0, np.int16)
        return audio, self._events
