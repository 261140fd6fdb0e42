"""What a job gives back: words with their times, and all that is laid out from them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Word(_Frozen):
    """A word of the timeline.

    Attributes:
        word: the word without surrounding space.
        start: seconds from the start of the audio, to the millisecond.
        end: seconds; never before `start`, never after the next word's start.
        probability: the model's, 0 to 1.
    """

    word: str
    start: float
    end: float
    probability: float = 1.0


class Line(_Frozen):
    """A lyric line: consecutive words of the timeline, shown together.

    `start` is its first word's start and `end` its last word's end, in seconds.
    """

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()


class Timings(_Frozen):
    """Seconds spent in each stage of a job."""

    acquire: float = 0.0
    decode: float = 0.0
    model: float = 0.0
    transcribe: float = 0.0
    align: float = 0.0
    layout: float = 0.0
    upload: float = 0.0
    total: float = 0.0


class Origin(_Frozen):
    """Where the sound came from, and what its site said of it.

    Attributes:
        kind: `youtube`, `cache` (a video's sound kept earlier), `url`, `file` or `inline`.
        language: the sound's language as the site gives it.
        duration: seconds, as the site gives it.
        format: YouTube's number of the format.
        yt_dlp: its version, which is its date.
        js_runtime: what ran YouTube's scripts, with its version.
    """

    kind: str
    language: str | None = None
    duration: float | None = None
    format: str | None = None
    yt_dlp: str | None = None
    js_runtime: str | None = None


class JobResult(_Frozen):
    """A finished job. `words`, `lines`, `srt` and `plain` come from one timeline.

    Wire names are those of the contract (`resultUrl`, `srtUrl` in camelCase); an
    attribute that is None is absent on the wire.
    """

    words: tuple[Word, ...] | None = ()
    srt: str | None = ""
    plain: str | None = ""
    lines: tuple[Line, ...] | None = ()
    result_url: str | None = Field(default=None, alias="resultUrl")
    srt_url: str | None = Field(default=None, alias="srtUrl")
    language: str | None = None
    language_probability: float | None = None
    duration: float | None = None
    title: str | None = None
    video_id: str | None = None
    artist: str | None = None
    track: str | None = None
    source: Origin | None = None
    model: str | None = None
    timings: Timings | None = None
    warnings: tuple[str, ...] = ()
    job_id: str = ""
    fingerprint: str = ""

    def to_wire(self) -> dict[str, Any]:
        """A fresh dict for JSON, None left out; the SDK pops keys from what it is given."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
