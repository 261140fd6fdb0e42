"""Reads a result back from where it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests

from lyricpod.errors import ErrorCode, JobError
from lyricpod.result import JobResult
from orchestrator.results import normalise

MAX_BYTES = 64_000_000  # hours of words are a tenth of it
CHUNK = 65536


def read_url(url: str, job_id: str, *, seconds: float) -> JobResult:
    """The result at a row's `results_url`.

    Raises:
        OSError, requests.RequestException: it can't be fetched.
        JobError: what is there is no result.
    """
    data = _file(url) if url.startswith("file:") else _http(url, seconds)
    text = data.decode("utf-8", "replace")
    result = normalise(text, job_id=job_id, fingerprint=_own_fingerprint(text))
    if result is None:
        raise JobError(ErrorCode.INTERNAL, "there are no words at results_url")
    return result if result.result_url else result.model_copy(update={"result_url": url})


def _own_fingerprint(text: str) -> str:
    """Whatever work it says it is of: here the row says that it is the job's."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    return str(said.get("fingerprint") or "") if isinstance(said, dict) else ""


def _file(url: str) -> bytes:
    return Path(unquote(urlsplit(url).path)).read_bytes()


def _http(url: str, seconds: float) -> bytes:
    with requests.get(url, timeout=seconds, stream=True) as answer:
        answer.raise_for_status()
        data = bytearray()
        for chunk in answer.iter_content(CHUNK):
            data += chunk
            if len(data) > MAX_BYTES:
                raise JobError(ErrorCode.RESULT_TOO_LARGE, "the result at results_url is too large")
        return bytes(data)
