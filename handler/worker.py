"""The worker's composition root and error boundary."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import structlog

from handler import arguments
from handler import log as logging
from handler.arguments import Mode
from handler.config import Settings
from lyricpod.cancel import Cancel
from lyricpod.errors import ConfigError, ErrorCode, JobError
from lyricpod.request import parse
from lyricpod.result import JobResult

LEAN_BYTES = 5_000_000  # above it, an answer that is kept elsewhere leaves the words out
MAX_BYTES = 10_000_000  # what RunPod takes as a result

log = structlog.get_logger()


def main() -> None:
    """Run the worker: on RunPod, or once for `--test_input` or test_input.json.

    Exits with 2 where the command line names no job, and with 1 where a local job failed.
    """
    env = os.environ
    try:
        mode = arguments.mode(sys.argv[1:], env)
    except arguments.UsageError as error:
        sys.stderr.write(f"lyricpod: {error}\n")
        sys.exit(2)
    # The SDK's default, DEBUG, logs every result; of a local run the worker itself tells all.
    env.setdefault("RUNPOD_LOG_LEVEL", "NOTSET" if mode is Mode.LOCAL else "INFO")
    env.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.configure(env)
    try:
        settings = Settings.from_env(env)
        # The SDK's own API is open to whoever reaches its port: no file of this machine for them.
        worker = Worker(settings.for_test_input() if mode is Mode.LOCAL else settings, env, mode)
    except ConfigError as error:
        sys.exit(f"lyricpod: {error}")
    worker.run()


class Worker:
    """One process: takes jobs from the SDK, one at a time, and answers each."""

    def __init__(self, settings: Settings, env: Mapping[str, str], mode: Mode) -> None:
        self._settings = settings
        self._env = env
        self._mode = mode
        self._serving = mode is Mode.SERVING
        self._config: dict[str, Any] = {"handler": self.handle}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="job")
        self._pipeline: Future[Any] = Future()
        self._imported = threading.Event()

    def run(self) -> None:
        """Load the model while the SDK is imported, then serve until told to end."""
        threading.Thread(target=self._prepare, name="prepare", daemon=True).start()
        from handler import sdk

        serverless = sdk.serverless()
        from handler.lifecycle import Lifecycle

        self._lifecycle = Lifecycle(
            self._config,
            self._settings.result_seconds,
            serving=self._serving,
            before_end=self._settle,
        )
        if self._serving:
            self._lifecycle.insist_on_results()
        # The SDK forks its heartbeat: no import may be half done in another thread then.
        self._imported.wait()
        if self._pipeline.done() and (fault := self._pipeline.exception()):
            sys.exit(f"lyricpod: the worker can't start: {fault}")
        serverless.start(self._config)

    def _prepare(self) -> None:
        """Import the engine, build the pipeline and load the default model."""
        started = time.monotonic()
        try:
            from handler.cache import audio_cache
            from handler.models import Models
            from handler.pipeline import Pipeline
            from handler.youtube import Exits
            from lyricpod.storage import storage

            pipeline = Pipeline(
                self._settings,
                Models(self._settings),
                storage(
                    self._settings.cloudinary_url,
                    self._settings.storage_dir,
                    self._settings.upload_seconds,
                ),
                reuse=self._serving,
                cache=audio_cache(self._settings),
                exits=Exits(self._settings.youtube_proxies),
            )
            pipeline.models.import_engine()  # which the first job would wait for
        except Exception as error:  # noqa: BLE001 - carried to the thread that waits
            self._pipeline.set_exception(error)
            log.error("the worker can't start", error=str(error))
            return
        else:
            self._pipeline.set_result(pipeline)
        finally:
            self._imported.set()
        if self._mode is not Mode.LOCAL:
            try:
                loaded = pipeline.models.get(None)
                seconds = round(time.monotonic() - started, 2)
                log.info("model ready", model=loaded.name, device=loaded.device, seconds=seconds)
            except JobError as error:  # each job that needs it tries again and says so
                log.error("model not ready", error=str(error))
            self._announce_youtube()

    def _announce_youtube(self) -> None:
        from handler import youtube

        try:
            youtube.announce(self._settings)
        except OSError as error:
            log.error("yt-dlp can't be looked at", error=error.strerror)

    def _settle(self) -> None:
        """Before the process ends: give what is being kept in the audio cache a moment."""
        ready = self._pipeline.done() and not self._pipeline.exception()
        cache = self._pipeline.result().cache if ready else None
        if cache and not cache.settle(self._settings.audio_cache_seconds):
            log.warning("audio is not kept: the worker ends", audio_cache=False)

    async def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """What the SDK calls with each job: answers with a result or `error`, never raises.

        Only a cancel leaves as `CancelledError`, once the work has ended.
        """
        from handler.job_server import Reporter

        self._lifecycle.job_started()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(job_id=job["id"])
        cancel, reporter = Cancel(), Reporter(self._env, job["id"])
        context = _Context(job, self._settings.auto_terminate)
        variables = structlog.contextvars.get_contextvars()
        work = asyncio.get_running_loop().run_in_executor(
            self._thread, self._work, context, cancel, reporter, variables
        )
        cancelled = await _finish(work, cancel)
        cancelled = await _finish(asyncio.ensure_future(reporter.close()), cancel) or cancelled
        if context.auto_terminate:
            self._lifecycle.end_after_this_job()
        if cancelled:
            log.info("job cancelled")
            raise asyncio.CancelledError
        return work.result()

    def _work(
        self, context: _Context, cancel: Cancel, reporter: Any, variables: dict[str, Any]
    ) -> dict[str, Any]:
        structlog.contextvars.bind_contextvars(**variables)
        try:
            parsed = context.parse()
            # `job_id` is the platform's; the backend's row has this one.
            if parsed.request.job_id != variables.get("job_id"):
                structlog.contextvars.bind_contextvars(row=parsed.request.job_id)
            log.info("job started", request=_shown(parsed.request))
            result = self._pipeline.result().run(parsed, cancel=cancel, report=reporter.report)
            answer_ = answer(result)
            log.info("job done", words=len(result.words or ()), seconds=_total(result))
            if self._mode is Mode.LOCAL:
                show(result)
            return answer_
        except JobError as error:
            return self._failed(error)
        except Exception:  # the worker's one boundary: whatever it is, the job gets an answer
            fault = secrets.token_hex(4)
            log.exception("unforeseen fault", fault=fault)
            unforeseen = JobError(
                ErrorCode.INTERNAL,
                f"the worker met a fault it did not foresee (fault {fault})",
                hint=f"look for {fault} in the worker's log",
            )
            return self._failed(unforeseen)

    def _failed(self, error: JobError) -> dict[str, Any]:
        if self._mode is Mode.LOCAL:  # the SDK then exits with 1
            sys.stderr.write(f"lyricpod: {error}\n")
        else:
            log.warning("job failed", code=error.code.value, error=error.message, stage=error.stage)
        return {"error": error.to_json()}


class _Context:
    """A job as it came, and what is decided about it while it is read."""

    def __init__(self, job: dict[str, Any], auto_terminate: bool) -> None:
        self._job = job
        self.auto_terminate = auto_terminate
        given = job.get("input")
        if isinstance(given, dict):  # holds for refused input too
            wish = given.get("auto_terminate", given.get("autoTerminate"))
            self.auto_terminate = wish if isinstance(wish, bool) else auto_terminate

    def parse(self) -> Any:
        return parse(self._job.get("input"), default_job_id=str(self._job["id"]))


async def _finish(work: asyncio.Future[Any], cancel: Cancel) -> bool:
    """Wait for the work's end, however often this task is cancelled; whether it was."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
            # An interrupt closes sockets, which may take a moment: not in the event loop.
            threading.Thread(target=cancel.set, daemon=True).start()
    return cancelled


def answer(result: JobResult) -> dict[str, Any]:
    """The result as RunPod takes it: without the words where they are too many and kept.

    Raises:
        JobError: `result_too_large`.
    """
    wire = result.to_wire()
    size = len(json.dumps(wire, ensure_ascii=False).encode())
    if size > LEAN_BYTES and result.result_url:
        warning = "words, lines and srt are left out of this answer: they are at resultUrl"
        lean = {"words": None, "lines": None, "srt": None}
        return result.model_copy(update={**lean, "warnings": (*result.warnings, warning)}).to_wire()
    if size > MAX_BYTES:
        raise JobError(
            ErrorCode.RESULT_TOO_LARGE,
            f"the result has {size / 1e6:.1f} MB, more than RunPod takes, and is kept nowhere",
            hint="set CLOUDINARY_URL on the worker",
            stage="finalization",
        )
    return wire


def show(result: JobResult) -> None:
    """Print a result for a person: its lines with their times, and where the files are."""
    for line in result.lines or ():
        minutes, seconds = divmod(line.start, 60)
        sys.stdout.write(f"{int(minutes):3d}:{seconds:05.2f}  {line.text}\n")
    for warning in result.warnings:
        sys.stdout.write(f"warning: {warning}\n")
    for name, url in (("result", result.result_url), ("subtitles", result.srt_url)):
        if url:
            sys.stdout.write(f"{name}: {url}\n")
    sys.stdout.flush()


def _shown(request: Any) -> dict[str, Any]:
    """A request fit for a log line: no audio, no lyrics, no query strings."""
    kind, value = request.source
    chosen = {k: getattr(request, k) for k in ("language", "model", "task", "beam_size", "vad")}
    return {"kind": kind, "source": _named(kind, value), **chosen}


def _named(kind: str, value: str) -> str:
    from handler.download import display
    from handler.video import video_id

    if kind == "audio_base64":
        return "inline"
    try:
        if kind == "youtube_url":
            return f"youtu.be/{video_id(value)}"
        scheme = urlsplit(value).scheme
    except (JobError, ValueError):  # the job is refused for it
        return "no usable link"
    if scheme in ("http", "https"):
        return display(value)
    # A path as it is; but a link without its scheme looks like one, and its query may be secret.
    return value.partition("?")[0][:200] if scheme in ("", "file") else f"{scheme}:"


def _total(result: JobResult) -> float | None:
    return result.timings.total if result.timings else None
