"""Results at the seam: whatever a worker returned becomes one JobResult; where results are kept."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.lines import join, lay_out
from lyricpod.result import JobResult, Line, Word
from lyricpod.storage import Storage
from lyricpod.subtitles import plain, srt
from lyricpod.timeline import timeline

MAX_URL = 4096  # characters, as in a request
MAX_TEXT = 2000  # characters of a title, a warning or an error: more is not for people
MAX_WRAPPERS = 8  # an answer inside an answer inside ...

# What older workers call the same thing, the contract's name first.
RESULT_URLS = ("resultUrl", "result_url", "resultsUrl", "results_url", "url")
LAID_OUT = ("words", "lines", "srt", "plain")
SRT_URLS = ("srtUrl", "srt_url")
TEXTS = ("plain", "text")
READ_BY_HAND = frozenset(
    "words lines srt plain result_url srt_url language_probability duration video_id warnings "
    "job_id fingerprint".split()
)
WORD_TEXTS = ("word", "text")
WRAPPERS = ("output", "result")
ERROR_TEXTS = ("message", "error_message")  # the second is the SDK's, beside a whole traceback

_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):(\d{1,2}(?:[.,]\d{1,9})?)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # PostgreSQL takes no NUL
_UNKNOWN = math.nan  # a time: the timeline finds its place


def normalise(output: Any, *, job_id: str, fingerprint: str) -> JobResult | None:
    """One JobResult from the `output` of a COMPLETED job, whichever worker wrote it.

    Args:
        output: parsed JSON of any shape.
        job_id: whose answer it is; what the answer says of itself doesn't count.
        fingerprint: of the work that was asked for; an answer without one is taken for it.

    Returns:
        None where the answer holds neither words nor a URL, or is of other work: then the
        durable copy is what counts.

    Raises:
        JobError: the failure that the answer tells of, or `internal` if nobody can read it.
    """
    answer = _unwrap(output)
    if any(answer.get(name) for name in ("error", "error_message")):
        error = answer.get("error")
        raise failure(error if isinstance(error, str | Mapping) else answer)
    if _text(answer.get("fingerprint"), MAX_TEXT) not in (None, fingerprint):
        return None
    if ours := _ours(answer, job_id, fingerprint):
        return ours
    warnings = list(_warnings(answer.get("warnings")))
    result_url = _url(answer, RESULT_URLS, warnings)
    laid_out = _layout(answer, warnings)
    if result_url is None and "words" not in laid_out:
        return None
    return JobResult(
        **_others(answer),
        **{"words": None, "lines": None, "srt": None, "plain": _plain(answer), **laid_out},
        resultUrl=result_url,
        srtUrl=_url(answer, SRT_URLS, warnings),
        language_probability=_number(_first(answer, "language_probability", "languageProbability")),
        duration=_duration(answer),
        video_id=_text(_first(answer, "video_id", "videoId"), MAX_TEXT),
        warnings=tuple(warnings),
        job_id=job_id,
        fingerprint=fingerprint,
    )


def _ours(answer: Mapping[str, Any], job_id: str, fingerprint: str) -> JobResult | None:
    """The answer of a worker like ours, if it is all that the contract says: nothing to mend.

    Most answers are: to lay each out anew was a fifth of the loop's time.
    """
    whole = all(answer.get(name) is not None for name in LAID_OUT)
    if not whole or (answer.get("job_id"), answer.get("fingerprint")) != (job_id, fingerprint):
        return None
    try:
        result = JobResult.model_validate(answer)
    except (ValidationError, RecursionError):
        return None
    urls = [url for url in (result.result_url, result.srt_url) if url is not None]
    texts = (result.title, result.language, result.model, result.video_id, *result.warnings)
    clean = not any(_CONTROLS.search(text) or len(text) > MAX_TEXT for text in texts if text)
    fine = clean and all(map(_is_url, urls)) and _finite(result) and _in_order(result)
    return result if fine else None


def _finite(result: JobResult) -> bool:
    numbers = [result.duration, result.language_probability]
    numbers += result.timings.model_dump().values() if result.timings else ()
    return all(math.isfinite(number) for number in numbers if number is not None)


def _in_order(result: JobResult) -> bool:
    """Whether words and lines follow each other, within the audio; no number passes as NaN."""
    last = math.inf if result.duration is None else result.duration
    for items in (result.words or (), result.lines or ()):
        end = 0.0
        for item in items:
            if not end <= item.start <= item.end <= last:
                return False
            end = item.end
    return all(0 <= word.probability <= 1 and word.word for word in result.words or ())


def failure(error: object) -> JobError:
    """The JobError that an endpoint's `error` tells of, whatever its form; never a traceback."""
    if isinstance(error, str):
        parsed = _parsed(error)
        if not isinstance(parsed, Mapping):
            return JobError(ErrorCode.INTERNAL, _reason(error) or "no reason was given")
        error = parsed
    if not isinstance(error, Mapping):
        return JobError(ErrorCode.INTERNAL, "the worker failed and gave no reason")
    try:
        code = ErrorCode(str(error.get("code")))
    except ValueError:
        code = ErrorCode.INTERNAL
    retryable = error.get("retryable")
    return JobError(
        code,
        _reason(_first(error, *ERROR_TEXTS)) or "the worker failed and gave no reason",
        hint=_text(error.get("hint"), MAX_TEXT) or "",
        stage=_text(error.get("stage"), MAX_TEXT) or "",
        retryable=retryable if isinstance(retryable, bool) else None,
    )


def compress(result: JobResult) -> bytes:
    """The result as compressed JSON, small enough for a row."""
    return zlib.compress(result.model_dump_json(by_alias=True).encode())


def decompress(data: bytes) -> JobResult:
    """A result read back from `compress`.

    Raises:
        JobError: `internal`, the bytes are damaged.
    """
    try:
        return JobResult.model_validate_json(zlib.decompress(data))
    except (zlib.error, ValidationError):
        raise JobError(ErrorCode.INTERNAL, "the stored result is damaged") from None


class Publisher:
    """Keeps results where the settings say, if anywhere; for any number of threads."""

    def __init__(self, storage: Storage | None) -> None:
        self._storage = storage
        self._cancel = Cancel()

    @property
    def keeps(self) -> bool:
        """Whether there is a storage to upload to."""
        return self._storage is not None

    def publish(self, result: JobResult) -> JobResult:
        """The result with its `result_url`: the worker's, or that of an upload made now.

        Without a storage the result stays as it is.

        Raises:
            JobError: `upload_failed`; `cancelled` after `close`.
        """
        if result.result_url or self._storage is None:
            return result
        return self._storage.publish(result, self._cancel)

    def find(self, job_id: str, fingerprint: str) -> JobResult | None:
        """The durable copy of this work, or None if there is none.

        Raises:
            JobError: `network`, the storage could not be asked, so nobody knows; `cancelled`
                after `close`.
        """
        if self._storage is None:
            return None
        kept = self._storage.look(job_id, fingerprint, self._cancel)
        return kept.model_copy(update={"job_id": job_id}) if kept else None

    def keep_audio(self, data: bytes, job_id: str) -> str | None:
        """Upload a job's audio; where it is then, or None without a storage.

        Raises:
            JobError: `upload_failed`.
        """
        return self._storage.keep_audio(data, job_id, self._cancel) if self._storage else None

    def close(self) -> None:
        """End every exchange under way, at once."""
        self._cancel.set()


def _unwrap(output: Any) -> Mapping[str, Any]:
    """The object that holds the answer, out of lists, text and other objects."""
    for _ in range(MAX_WRAPPERS):
        if isinstance(output, str):
            output = _from_text(output)
        elif isinstance(output, list):
            output = _from_list(output)
        elif not isinstance(output, Mapping):
            break
        elif (inner := _inner(output)) is not None:
            output = inner
        else:
            return output
    if output is None:
        return {}
    raise _unreadable(output)


def _from_text(text: str) -> Any:
    if _is_url(text.strip()):
        return {"resultUrl": text.strip()}
    if not text.strip():
        return None
    parsed = _parsed(text)
    if isinstance(parsed, Mapping | list | str):  # JSON that was written as text once more
        return parsed
    raise _unreadable(text)


def _from_list(items: list[Any]) -> Any:
    """A list of words is one; else an answer's last part holds the result."""
    if items and all(isinstance(item, Mapping) and "start" in item for item in items):
        return (
            {"words": items} if not any("words" in item for item in items) else {"segments": items}
        )
    return next((item for item in reversed(items) if item), None)


def _inner(answer: Mapping[str, Any]) -> Any:
    """The wrapped answer, together with what the wrapper says beside it; None: not wrapped."""
    if any(answer.get(name) for name in ("error", "words", "segments", *RESULT_URLS)):
        return None
    name = next((name for name in WRAPPERS if answer.get(name)), None)
    if name is None:
        return None
    inner = answer[name]
    if not isinstance(inner, Mapping):
        return inner
    return {**{key: value for key, value in answer.items() if key not in WRAPPERS}, **inner}


def _layout(answer: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    """Words, and what is laid out from them; empty where the answer has no words."""
    given = _given_words(answer)
    if given is None:
        return {}
    candidates = [word for item in given if (word := _word(item))]
    if given and not candidates:
        raise _unreadable(given)
    if len(candidates) < len(given):
        left_out = len(given) - len(candidates)
        warnings.append(f"{left_out} of the answer's {len(given)} words could not be read")
    words = timeline(candidates, _duration(answer))
    lines = _lines(answer, words)
    return {"words": words, "lines": lines, "srt": srt(lines), "plain": plain(lines)}


def _given_words(answer: Mapping[str, Any]) -> list[Any] | None:
    words, segments = answer.get("words"), answer.get("segments")
    if isinstance(words, str):
        words = _parsed(words) or words
    if words is not None and not isinstance(words, list):
        raise _unreadable(words)
    if not words and isinstance(segments, list):
        found = [word for segment in segments for word in _items(segment, "words")]
        return found or words
    return words


def _items(holder: object, name: str) -> list[Any]:
    items = holder.get(name) if isinstance(holder, Mapping) else None
    return items if isinstance(items, list) else []


def _word(item: object) -> Word | None:
    if not isinstance(item, Mapping):
        return None
    text = _first(item, *WORD_TEXTS)
    if not isinstance(text, str):
        return None
    start, end = _seconds(item.get("start")), _seconds(item.get("end"))
    probability = _number(_first(item, "probability", "confidence", "score"))
    return Word(
        word=text,
        start=_UNKNOWN if start is None else start,
        end=_UNKNOWN if end is None else end,
        probability=1.0 if probability is None else probability,
    )


def _lines(answer: Mapping[str, Any], words: tuple[Word, ...]) -> tuple[Line, ...]:
    """The answer's own lines if they are of these words; else new ones that begin where they do."""
    given = [line for line in _items(answer, "lines") if isinstance(line, Mapping)]
    own = tuple(_own_lines(given, words))
    if own and sum(len(line.words) for line in own) == len(words):
        return own
    segments = [item for item in _items(answer, "segments") if isinstance(item, Mapping)]
    return lay_out(words, _begins(words, given or segments))


def _own_lines(given: Sequence[Mapping[str, Any]], words: tuple[Word, ...]) -> Iterator[Line]:
    """Lines as given, as long as each says the words that come next."""
    begin = 0
    for item in given:
        end = begin + len(_items(item, "words"))
        part = words[begin:end]
        if not part or len(part) < end - begin or item.get("text") != join(part):
            return
        yield Line(text=join(part), start=part[0].start, end=part[-1].end, words=part)
        begin = end


def _begins(words: Sequence[Word], holders: Sequence[Mapping[str, Any]]) -> set[int]:
    """Indices of the words that begin at the same millisecond as a line or segment."""
    starts = {round(s * 1000) for item in holders if (s := _seconds(item.get("start"))) is not None}
    return {index for index, word in enumerate(words) if round(word.start * 1000) in starts}


def _plain(answer: Mapping[str, Any]) -> str | None:
    text = _first(answer, *TEXTS)
    return _CONTROLS.sub("", text) if isinstance(text, str) else None


def _url(answer: Mapping[str, Any], names: Sequence[str], warnings: list[str]) -> str | None:
    for name in names:
        value = answer.get(name)
        if isinstance(value, str) and _is_url(value.strip()):
            return value.strip()
        if value:
            warnings.append(f"{name} of the answer is not an http, https or file URL: ignored")
    return None


def _is_url(text: str) -> bool:
    """Whether it is a link that a frontend may follow or a file of this machine."""
    if len(text) > MAX_URL or re.search(r"[\s\x00-\x20\x7f\ud800-\udfff]", text):
        return False
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        return False
    if parts.scheme == "file":
        return parts.path.startswith("/")
    return parts.scheme in ("http", "https") and bool(host)


def _duration(answer: Mapping[str, Any]) -> float | None:
    """Seconds of audio; a duration of nothing is an unknown one."""
    seconds = _seconds(answer.get("duration"))
    return seconds if seconds and seconds > 0 else None


def _seconds(value: object) -> float | None:
    """Seconds from a number, a number in text, or `[hh:]mm:ss[.,]mmm`; None if it is neither."""
    clock = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if clock is None:
        return _number(value)
    hours, minutes, seconds = clock.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _others(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that older workers lacked or gave as today's do; one that doesn't fit is lost."""
    found = {}
    for name in JobResult.model_fields.keys() - READ_BY_HAND:
        with suppress(ValidationError, RecursionError):
            value = _storable(answer.get(name))
            if value is not None:
                found[name] = getattr(JobResult.model_validate({name: value}), name)
    return found


def _storable(value: Any) -> Any:
    """JSON with its texts cut and cleaned, and without infinities."""
    if isinstance(value, str):
        return _text(value, MAX_TEXT)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _storable(item) for key, item in value.items()}
    return value


def _warnings(value: object) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        text = _text(item, MAX_TEXT)
        if text:
            yield text


def _text(value: object, most: int) -> str | None:
    """Text that a row can hold, of at most so many characters; None for all that isn't text."""
    if not isinstance(value, str):
        return None
    return _CONTROLS.sub("", value)[:most].strip() or None


def _reason(error: object) -> str | None:
    """What an error says; of a traceback only its last line, which names the exception."""
    if isinstance(error, str) and "Traceback (most recent call last)" in error:
        error = error.strip().splitlines()[-1]
    return _text(error, MAX_TEXT)


def _first(holder: Mapping[str, Any], *names: str) -> Any:
    return next((holder[name] for name in names if holder.get(name) is not None), None)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _unreadable(value: object) -> JobError:
    return JobError(
        ErrorCode.INTERNAL,
        f"the worker's answer can't be read: {_kind(value)} where the result should be",
        hint="update the worker's image; the contract is in the README",
    )


def _kind(value: object) -> str:
    names = {str: "text", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "an object")
