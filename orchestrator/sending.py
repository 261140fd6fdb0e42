"""What is sent to an endpoint: the request with its limits. Pure."""

from __future__ import annotations

from typing import Any, Literal

from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import JobRequest
from orchestrator.config import EXECUTION_LEAST, EXECUTION_MOST, Settings
from orchestrator.records import QueuedRow, Waiting
from orchestrator.video import is_youtube

START_SECONDS = 120.0  # for a worker to load its model and fetch the audio
SPEED = {"runpod": 1.0, "local": 6.0}  # seconds of work for a second of audio, at the very most
SHORTEST = {"runpod": 300.0, "local": 1800.0}
AFTER_DEADLINE = 1800.0  # the platform's memory of a finished job; ttl must not end before
TTL_LEAST, TTL_MOST = 10.0, 7 * 86400.0  # seconds


def body(
    job: Waiting,
    settings: Settings,
    *,
    kind: Literal["runpod", "local"],
    webhook: str | None,
    backlog: int,
) -> dict[str, Any]:
    """The body of `POST /run`.

    `auto_terminate` is asked for by the request or by configuration, except in a backlog: a
    living worker takes the next job without a cold start.
    """
    request = {**job.request, "job_id": job.job_id}
    if "auto_terminate" not in request and kind == "runpod" and settings.auto_terminate:
        request["auto_terminate"] = backlog < settings.auto_terminate_backlog
    ttl = min(TTL_MOST, max(TTL_LEAST, job.remaining + AFTER_DEADLINE))
    sent: dict[str, Any] = {
        "input": request,
        "policy": {
            "executionTimeout": timeout_ms(job.duration, settings, kind=kind),
            "ttl": int(ttl * 1000),
        },
    }
    if webhook:
        sent["webhook"] = webhook
    return sent


def timeout_ms(
    duration: int | None, settings: Settings, *, kind: Literal["runpod", "local"]
) -> int:
    """The execution timeout of a job, by its audio's duration in seconds if that is known."""
    seconds = settings.execution_seconds
    if duration and duration > 0:
        seconds = max(SHORTEST[kind], START_SECONDS + SPEED[kind] * duration)
    return int(1000 * min(EXECUTION_MOST, max(EXECUTION_LEAST, seconds)))


def read_row(row: QueuedRow) -> tuple[dict[str, Any], str]:
    """The request and fingerprint of a row that the backend queued by itself.

    Raises:
        JobError: `invalid_input`: the row can't be read as a job.
    """
    url = (row.youtube_url or "").strip()
    given = dict(row.request or {})
    known = url and url in (given.get("youtube_url"), given.get("audio_url"))
    if not known and not url.lower().startswith(("http://", "https://")):
        raise JobError(
            ErrorCode.INVALID_INPUT,
            f"youtube_url is no http or https URL: {url[:80]!r}",
            hint="queue a job with the video's URL",
        )
    if not known:
        given = {"youtube_url" if is_youtube(url) else "audio_url": url}
    try:
        return checked(given, row.job_id)
    except JobError as error:  # its hint is for who writes requests, not for a frontend
        raise JobError(error.code, error.message) from error


def is_file(request: dict[str, Any]) -> bool:
    """Whether the source is a file of this machine."""
    url = request.get("audio_url")
    return isinstance(url, str) and not url.lower().startswith(("http://", "https://"))


def checked(given: dict[str, Any], job_id: str) -> tuple[dict[str, Any], str]:
    """A request as it is kept, without its id, and its fingerprint.

    Raises:
        JobError: `invalid_input`, naming what is wrong; a name nobody knows is wrong too.
    """
    from lyricpod.request import known_names, parse

    parsed = parse(given, default_job_id=job_id)
    if parsed.unknown:
        raise JobError(
            ErrorCode.INVALID_INPUT,
            f"there is no field {', '.join(parsed.unknown)}",
            hint=f"known fields: {', '.join(known_names())}",
        )
    return _kept(parsed.request), parsed.request.fingerprint


def _kept(request: JobRequest) -> dict[str, Any]:
    kept = request.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    kept.pop("job_id", None)
    return kept
