"""What a job is asked to do."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from lyricpod.errors import ErrorCode, JobError
from lyricpod.languages import LANGUAGES

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
MAX_URL = 4096  # characters; longer ones are attacks or mistakes
MAX_LYRICS = 100_000  # characters; the longest song texts are a tenth of it
MAX_PROMPT = 2_000  # characters; Whisper reads at most 224 tokens of it

SourceKind = Literal["youtube_url", "audio_url", "audio_base64"]
SOURCES: tuple[SourceKind, ...] = ("youtube_url", "audio_url", "audio_base64")
Format = Literal["srt"]

# What changes the result. The rest (ids, where it goes, when the worker ends) does not.
DETERMINING = (
    *SOURCES,
    "language",
    "model",
    "task",
    "lyrics",
    "formats",
    "vad",
    "beam_size",
    "initial_prompt",
)
FINGERPRINT_VERSION = 1  # raise it when the same request begins to mean another result


class JobRequest(BaseModel):
    """One job's `input`. Names are read in snake_case and camelCase; see `parse`.

    Attributes:
        job_id: the backend's id; `transcriptions/{job_id}/...` is made from it.
        language: ISO 639 code; None lets the model detect it.
        model: `nano`, or the name of an installed model; None is the worker's own.
        lyrics: the known text, to be aligned with the audio instead of transcribed.
        vad: skip what a voice activity detector takes for silence. Off by default:
            it is trained on speech and drops singing.
        auto_terminate: end the worker after this job; None leaves it to the worker.
        upload: False keeps the result out of storage.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )

    youtube_url: str | None = Field(default=None, min_length=1, max_length=MAX_URL)
    audio_url: str | None = Field(default=None, min_length=1, max_length=MAX_URL)
    audio_base64: str | None = Field(default=None, min_length=1, repr=False)
    job_id: str
    language: str | None = None
    model: str | None = Field(default=None, min_length=1, max_length=200)
    task: Literal["transcribe", "translate"] = "transcribe"
    lyrics: str | None = Field(default=None, max_length=MAX_LYRICS)
    formats: tuple[Format, ...] = ("srt",)
    vad: bool = False
    beam_size: int = Field(default=5, ge=1, le=20)
    initial_prompt: str | None = Field(default=None, max_length=MAX_PROMPT)
    auto_terminate: bool | None = None
    upload: bool = True

    @field_validator("formats", mode="before")
    @classmethod
    def _list_is_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("job_id")
    @classmethod
    def _id_is_safe(cls, value: str) -> str:
        if not JOB_ID.fullmatch(value):
            raise ValueError("must be 1 to 128 of A-Z a-z 0-9 _ -")
        return value

    @field_validator("language")
    @classmethod
    def _language_is_known(cls, value: str | None) -> str | None:
        code = value.strip().lower() if value else None
        if code and code not in LANGUAGES:
            raise ValueError("is not a language that Whisper knows; give an ISO 639 code like 'en'")
        return code

    @field_validator("youtube_url", "audio_url")
    @classmethod
    def _url_is_text(cls, value: str | None) -> str | None:
        if value is not None and re.search(r"[\x00-\x20\x7f]", value.strip()):
            raise ValueError("must be a URL without spaces or control characters")
        return value.strip() if value else value

    @field_validator("youtube_url")
    @classmethod
    def _youtube_is_http(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("http", "https"):
            raise ValueError("must be an http or https URL")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> JobRequest:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(SOURCES)}; got {', '.join(given) or 'none'}"
            )
        return self

    @property
    def source(self) -> tuple[SourceKind, str]:
        """The one source given: its kind and its value."""
        kind = next(name for name in SOURCES if getattr(self, name) is not None)
        return kind, getattr(self, kind)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what determines the result: the same for the same work."""
        what: dict[str, Any] = {name: getattr(self, name) for name in DETERMINING}
        if self.audio_base64 is not None:
            what["audio_base64"] = hashlib.sha256(self.audio_base64.encode()).hexdigest()
        canonical = json.dumps([FINGERPRINT_VERSION, what], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def audio_bytes(self) -> bytes:
        """The decoded `audio_base64`, with or without a `data:` prefix.

        Raises:
            JobError: `invalid_input`, if it is not base64.
        """
        text = self.audio_base64 or ""
        payload = text.partition(",")[2] if text.startswith("data:") else text
        try:
            return base64.b64decode("".join(payload.split()), validate=True)
        except binascii.Error as error:
            raise JobError(
                ErrorCode.INVALID_INPUT,
                f"audio_base64 is not base64: {error}",
                hint="send the file's bytes in standard base64",
            ) from error


@dataclass(frozen=True)
class Parsed:
    """A request, and the names in it that nobody knows."""

    request: JobRequest
    unknown: tuple[str, ...]


def known_names() -> list[str]:
    """The request's field names, in snake_case, sorted."""
    return sorted(JobRequest.model_fields)


def parse(data: object, *, default_job_id: str) -> Parsed:
    """Turn a job's `input` into a request; unknown names are set aside, not refused.

    A name given as null counts as not given. `job_id` falls back to the platform's id.

    Raises:
        JobError: `invalid_input`, naming each field that is wrong and why.
    """
    if not isinstance(data, dict):
        raise JobError(ErrorCode.INVALID_INPUT, "input must be a JSON object")
    known = set(JobRequest.model_fields) | {to_camel(name) for name in JobRequest.model_fields}
    fields = {k: v for k, v in data.items() if k in known and v is not None}
    unknown = tuple(sorted(_printable(k) for k in data if k not in known))
    if "job_id" not in fields and "jobId" not in fields:
        fields["job_id"] = default_job_id
    try:
        return Parsed(JobRequest.model_validate(fields), unknown)
    except ValidationError as error:
        raise JobError(
            ErrorCode.INVALID_INPUT,
            "; ".join(_reason(dict(item)) for item in error.errors(include_url=False)),
            hint=f"known fields: {', '.join(known_names())}",
        ) from None  # pydantic's error holds the whole input


def _printable(name: object) -> str:
    # JSON can name a field with half a surrogate pair, which no answer could carry.
    return str(name)[:64].encode("utf-8", "replace").decode()


def _reason(item: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    what = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
