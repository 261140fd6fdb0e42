"""The face of the library: submit, cancel, progress, result, run."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psycopg
import requests
from psycopg_pool import ConnectionPool

from lyricpod.errors import ErrorCode, JobError
from lyricpod.result import JobResult, Line
from lyricpod.storage import storage
from orchestrator import database, webhooks
from orchestrator.config import Settings
from orchestrator.credit import Credit, RunPodBalance
from orchestrator.errors import DatabaseUnavailable, NotFinished, OrchestratorError, UnknownJob
from orchestrator.fleet import Fleet
from orchestrator.kept import read_url
from orchestrator.listener import Listener
from orchestrator.log import get_logger
from orchestrator.records import JobRow
from orchestrator.results import Publisher, decompress
from orchestrator.sending import checked
from orchestrator.stats import Stats, read
from orchestrator.store import Store
from orchestrator.sync import Loop

ENDED = ("completed", "error", "done")
LOOK_SECONDS = 1.0  # at most between two looks of `wait`

log = get_logger()


@dataclass(frozen=True)
class JobProgress:
    """How far a job is, from the database alone.

    Attributes:
        status: `queued`, `processing`, `completed` or `error`, as in the backend's table.
        pct: 0 to 100.
        lines: the newest lines that the worker has heard.
        endpoint: where it was sent last; None before that.
        attempt: which sending this is, from 1; 0 before the first.
    """

    job_id: str
    status: str
    pct: int = 0
    message: str = ""
    stage: str = ""
    lines: tuple[Line, ...] = ()
    error: str | None = None
    result_url: str | None = None
    srt_url: str | None = None
    title: str | None = None
    endpoint: str | None = None
    attempt: int = 0
    updated_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED


@dataclass(frozen=True)
class Health:
    """`status` is `ok`, `degraded` or `shutting_down`; the rest says why."""

    status: str
    database: bool
    loop: bool
    endpoints: dict[str, dict[str, object]] = field(default_factory=dict)


class Orchestrator:
    """Jobs from a queued row to a finished row. Thread-safe; async code calls it in a thread.

    Opening it connects to PostgreSQL and makes what tables are missing; the loop runs only in
    `run` or between `start` and `close`.

    Raises:
        OrchestratorError: the database can't be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._instance = uuid.uuid4()
        source = None
        if settings.runpod_api_key:
            source = RunPodBalance(settings.runpod_graphql_url, settings.runpod_api_key)
        self._fleet = Fleet(settings, self._instance, Credit(source, settings.min_credit_usd))
        self._publisher = Publisher(
            storage(settings.cloudinary_url, settings.storage_dir, settings.upload_seconds)
        )
        self._url = database.resolve(settings.database_url, Path(settings.state_dir))
        self._pool: ConnectionPool = database.pool(
            self._url, size=settings.database_pool, name="lyricpod"
        )
        self.store = Store(self._pool)
        self.store.prepare()
        self._loop = Loop(self.store, self._fleet, self._publisher, settings, self._instance)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._running = threading.Event()
        self._closed = False

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Self:
        """By the environment's variables; see `Settings`.

        Raises:
            lyricpod.errors.ConfigError: a variable can't be used.
            OrchestratorError: the database can't be used.
        """
        return cls(Settings.from_env(env))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the backend asks for.

    def submit(
        self,
        *,
        job_id: str | None = None,
        youtube_url: str | None = None,
        audio_url: str | None = None,
        audio_base64: str | None = None,
        **fields: Any,
    ) -> str:
        """Queue a job; returns its id.

        Args:
            job_id: the row's id; made if not given. The same request again is no second job.
            audio_base64: is uploaded first and never enters the database.
            fields: any other field of a request, in snake_case.

        Raises:
            lyricpod.errors.JobError: `invalid_input`, saying what is wrong; `upload_failed`.
            OrchestratorError: there is another job of this id.
            DatabaseUnavailable: the job may be queued or not; submit it again under its job_id.
        """
        job_id = job_id or str(uuid.uuid4())
        given = {
            "youtube_url": youtube_url,
            "audio_url": audio_url,
            "audio_base64": audio_base64,
            **fields,
        }
        request, fingerprint = checked(given, job_id)
        if audio_base64 is not None:
            request, fingerprint = self._upload_first(given, job_id)
        source = request.get("youtube_url") or request["audio_url"]
        deadline = self.settings.deadline_seconds
        for last in (False, True):  # a commit whose answer was lost is read again, not assumed
            try:
                self.store.submit(job_id, source, request, fingerprint, deadline)
                break
            except (DatabaseUnavailable, psycopg.errors.UniqueViolation):
                if last:
                    raise
        self._loop.wake()
        return job_id

    def progress(self, job_id: str) -> JobProgress:
        """How far a job is, from any replica, without asking RunPod.

        Raises:
            UnknownJob: there is no such row.
        """
        row = self.store.row(job_id)
        if row is None:
            raise UnknownJob(job_id)
        return _shown(row, self.store.last_attempt(job_id) or {})

    def wait(self, job_id: str, timeout: float | None = None) -> JobProgress:
        """Wait until a job has ended, or for `timeout` seconds; returns how far it is."""
        end = None if timeout is None else time.monotonic() + timeout
        with Listener(self._url, ("lyricpod_job",)) as listener:
            while not (progress := self.progress(job_id)).ended:
                left = LOOK_SECONDS if end is None else min(LOOK_SECONDS, end - time.monotonic())
                if left <= 0:
                    break
                listener.wait(left)
        return progress

    def cancel(self, job_id: str) -> bool:
        """End a job: its row says `error`, "Cancelled"; False if it had ended before.

        Raises:
            UnknownJob: there is no such row.
        """
        done = self.store.cancel(job_id)
        if not done and self.store.row(job_id) is None:
            raise UnknownJob(job_id)
        self._loop.wake()
        return done

    def retry(self, job_id: str) -> None:
        """Queue an ended job again; one that has not ended is left as it is.

        Raises:
            UnknownJob: there is no such row.
        """
        if self.store.reopen(job_id, self.settings.deadline_seconds) is None:
            raise UnknownJob(job_id)
        self._loop.wake()

    def result(self, job_id: str) -> JobResult:
        """The words of a job, from the database or from where they are kept.

        Raises:
            UnknownJob: there is no such row.
            NotFinished: there is no result yet, or it can't be read.
        """
        if kept := self.store.kept_result(job_id):
            return decompress(kept)
        progress = self.progress(job_id)
        if not progress.result_url:
            raise NotFinished(
                f"job {job_id} has no result: it is {progress.status}"
                + (f" ({progress.error})" if progress.error else "")
            )
        try:
            return read_url(progress.result_url, job_id, seconds=self.settings.http_seconds)
        except (OSError, requests.RequestException, JobError) as error:
            raise NotFinished(
                f"the result of job {job_id} can't be read at its results_url "
                f"({type(error).__name__}); try again, or look at the storage"
            ) from error

    def health(self) -> Health:
        """For the backend's health route; asks the database, and no endpoint."""
        try:
            self.store.ping()
            answers = True
        except DatabaseUnavailable:
            answers = False
        endpoints = self._fleet.report()
        well = answers and all(e["reachable"] and not e["paused"] for e in endpoints.values())
        status = "shutting_down" if self._closed else ("ok" if well else "degraded")
        return Health(status, answers, self._running.is_set(), endpoints)

    def list(self, limit: int = 50, status: str | None = None) -> tuple[JobRow, ...]:
        """The newest rows."""
        return tuple(self.store.rows(limit, status))

    def stats(self, hours: float = 24) -> Stats:
        """Success rates, times and cost of the jobs of the last hours, by endpoint."""
        return read(self._pool, hours)

    def handle_webhook(self, token: str, body: object = b"") -> bool:
        """What the backend's route `POST /lyricpod/webhook/{token}` calls; answer 200 if True.

        Nothing in the body is believed but the job's id at RunPod: the call only makes the
        loop look. False: no sending ever had this token; answer 404.

        Raises:
            DatabaseUnavailable: answer 500, so that RunPod calls again.
        """
        known = self.store.heard(webhooks.digest(token), webhooks.runpod_id_of(body))
        if known:
            self._loop.wake()
        return known

    # The loop.

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; returns within SHUTDOWN_SECONDS of it."""
        self._running.set()
        waker = threading.Thread(target=self._wake_at, args=(stop,), daemon=True)
        waker.start()
        try:
            with Listener(self._url, ("lyricpod_work",), heard=self._loop.wake):
                self._loop.run(stop)
        finally:
            self._running.clear()

    def start(self) -> None:
        """Run the loop in a thread of its own, until `close`."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self.run, args=(self._stop,), name="lyricpod", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """End the loop, the local endpoint and all connections."""
        self._closed = True
        self._stop.set()
        if self._thread:
            self._thread.join(self.settings.shutdown_seconds)
        self._fleet.close()
        self._publisher.close()
        self._pool.close(timeout=1.0)

    def _wake_at(self, stop: threading.Event) -> None:
        stop.wait()
        self._loop.wake()

    def _upload_first(self, given: Mapping[str, Any], job_id: str) -> tuple[dict[str, Any], str]:
        from lyricpod.request import parse

        audio = parse(dict(given), default_job_id=job_id).request.audio_bytes()
        url = self._publisher.keep_audio(audio, job_id)
        if url is None:
            raise JobError(
                ErrorCode.INVALID_INPUT,
                "audio_base64 can't be sent: there is no place to upload it to first",
                hint="set CLOUDINARY_URL, or give an audio_url",
            )
        return checked({**given, "audio_base64": None, "audio_url": url}, job_id)


def _shown(row: JobRow, attempt: Mapping[str, Any]) -> JobProgress:
    status = "completed" if row.status == "done" else row.status
    told = attempt.get("progress") or {}
    running = status == "processing"
    return JobProgress(
        job_id=row.job_id,
        status=status,
        pct=100 if status == "completed" else (row.pct or int(told.get("pct") or 0)),
        message=row.status_message or str(told.get("status") or ""),
        stage=row.current_stage or str(told.get("stage") or ""),
        lines=tuple(Line.model_validate(line) for line in told.get("lines") or ())
        if running
        else (),
        error=row.error_message if status == "error" else None,
        result_url=row.results_url,
        srt_url=row.srt_url,
        title=row.title,
        endpoint=attempt.get("endpoint"),
        attempt=int(attempt.get("number") or 0),
        updated_at=row.updated_at,
    )


__all__ = ["Health", "JobProgress", "Orchestrator", "OrchestratorError"]
