"""The command `lyricpod`: what a person or a script does with the orchestrator."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import psycopg
import typer

from lyricpod.errors import ConfigError, ErrorCode, JobError
from orchestrator import documents, show
from orchestrator.config import Settings
from orchestrator.doctor import examine
from orchestrator.errors import (
    DatabaseUnavailable,
    NotFinished,
    OrchestratorError,
    UnknownJob,
)
from orchestrator.log import configure
from orchestrator.serve import serve
from orchestrator.service import JobProgress, Orchestrator
from orchestrator.video import is_youtube
from orchestrator.watcher import follow

OK, FAILED, USAGE, UNREACHABLE, UNKNOWN, INTERRUPTED = 0, 1, 2, 3, 4, 130

WATCHED = 100  # jobs that `watch` follows at once
MAX_FILE = 500_000_000  # bytes, as the worker's own default

ENDINGS = (
    "Exit codes: 0 done, 1 the job failed (doctor: something is broken), 2 usage or settings, "
    "3 database or endpoint unreachable, 4 unknown job, 130 interrupted. Settings are environment "
    "variables: see the README."
)

app = typer.Typer(
    name="lyricpod",
    help="YouTube link or audio file in, words with their times out.",
    epilog=ENDINGS,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # they would show locals, and so secrets
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]


class Task(StrEnum):
    """What the worker does with the speech."""

    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Status(StrEnum):
    """A row's status."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    ERROR = "error"
    DONE = "done"


def main() -> None:
    """Run the command line and exit with its code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _leave)
    sys.exit(command(sys.argv[1:]))


def _leave(number: int, frame: FrameType | None) -> None:
    """What is open is closed on the way out; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    sys.exit(128 + number)


def command(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. An error is one line on stderr."""
    # Typer brings its own copy of click, or uses click itself: this is ClickException of either.
    usage = typer.BadParameter.__mro__[2]
    try:
        given = list(arguments) or ["--help"]
        return app(args=given, prog_name="lyricpod", standalone_mode=False) or OK
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (ConfigError, OrchestratorError, JobError, psycopg.Error) as error:
        return _failed(arguments, _message(error), _code(error))
    except Exception as error:  # two classes may be this one: see above
        if not isinstance(error, usage):
            raise
        said = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        return _failed(arguments, f"{said} (lyricpod --help)", USAGE)


def _failed(arguments: Sequence[str], message: str, code: int) -> int:
    sys.stderr.write(f"lyricpod: {show.text(message).plain}\n")
    if "--json" in arguments:
        _print_json({"error": message, "exit_code": code})
    return code


def _code(error: Exception) -> int:
    match error:
        case UnknownJob():
            return UNKNOWN
        case DatabaseUnavailable() | psycopg.Error():
            return UNREACHABLE
        case NotFinished():
            return FAILED
        case JobError(code=ErrorCode.UPLOAD_FAILED | ErrorCode.NETWORK):
            return UNREACHABLE
    return USAGE


def _message(error: Exception) -> str:
    if isinstance(error, JobError):
        return error.message + (f"; {error.hint}" if error.hint else "")
    if isinstance(error, psycopg.Error):
        said = error.diag.message_primary or type(error).__name__
        return f"PostgreSQL refused: {said}; `lyricpod doctor` looks closer"
    return str(error)


# Commands.


@app.command()
def submit(
    source: Annotated[str, typer.Argument(metavar="URL|FILE", show_default=False)],
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    language: Annotated[str | None, typer.Option(help="Code such as en; else detected.")] = None,
    model: Annotated[str | None, typer.Option(help="Else the worker's own.")] = None,
    task: Annotated[Task | None, typer.Option(help="translate: into English.")] = None,
    lyrics: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file with the known text.")
    ] = None,
    vad: Annotated[bool, typer.Option("--vad", help="Skip silence; drops singing.")] = False,
    beam_size: Annotated[int | None, typer.Option(help="1 to 20.")] = None,
    initial_prompt: Annotated[str | None, typer.Option(help="Names to expect.")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="srt.")] = None,
    auto_terminate: Annotated[
        bool | None,
        typer.Option("--auto-terminate/--keep-worker", help="End the worker after this job."),
    ] = None,
    upload: Annotated[bool, typer.Option("--upload/--no-upload", help="Keep the result.")] = True,
    job_id: Annotated[str | None, typer.Option(help="Its id; made if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Queue a YouTube link, an audio link or a file.

    A file goes as a path where only this machine works (ALLOW_FILE_SOURCES=1), else it is
    uploaded to Cloudinary first. With --wait the loop runs here if no other process runs it.
    """
    settings = Settings.from_env()
    fields: dict[str, Any] = {
        "language": language,
        "model": model,
        "task": task.value if task else None,
        "lyrics": _read_text(lyrics) if lyrics else None,
        "vad": vad or None,
        "beam_size": beam_size,
        "initial_prompt": initial_prompt,
        "formats": formats or None,
        "auto_terminate": auto_terminate,
        "upload": None if upload else False,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    given |= _source(source, settings)
    with _opened(settings) as orchestrator:
        queued = orchestrator.submit(job_id=job_id, **given)
        if not wait:
            _print_queued(queued, as_json)
            return
        label = Path(source).name if "://" not in source else source
        followed = follow(orchestrator, {queued: label}, run=True)
        _show_end(orchestrator, followed, as_json)


@app.command()
def watch(
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Follow jobs to their end; by default all that wait."""
    with _opened() as orchestrator:
        if job_ids:
            labels = {job_id: orchestrator.progress(job_id).title or job_id for job_id in job_ids}
        else:
            rows = [
                row
                for status in (Status.PROCESSING, Status.QUEUED)
                for row in orchestrator.list(WATCHED, status)
            ]
            labels = {row.job_id: row.title or row.job_id for row in rows[:WATCHED]}
        followed = follow(orchestrator, labels, run=False) if labels else []
        many = not job_ids or len(job_ids) > 1
        _show_end(orchestrator, followed, as_json, many=many)


@app.command()
def run() -> None:
    """Run the loop until SIGTERM or SIGINT; logs to stderr (LOG_LEVEL)."""
    configure(os.environ)
    raise typer.Exit(serve(Settings.from_env()))


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """End a job; its row says `error`, "Cancelled"."""
    with _opened() as orchestrator:
        done = orchestrator.cancel(job_id)
    said = f"job {job_id} is cancelled" if done else f"job {job_id} had ended before"
    _print({"job_id": job_id, "cancelled": done}, said, as_json)


@app.command()
def retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a job again that has ended."""
    with _opened() as orchestrator:
        before = orchestrator.progress(job_id)
        orchestrator.retry(job_id)
        status = orchestrator.progress(job_id).status
    again = before.ended
    said = f"job {job_id} is {status}" + ("" if again else " already: it has not ended")
    _print({"job_id": job_id, "status": status, "retried": again}, said, as_json)


@app.command("list")
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """The newest jobs."""
    with _opened() as orchestrator:
        rows = orchestrator.list(limit, status.value if status else None)
    if as_json:
        _print_json({"jobs": [documents.of_row(row) for row in rows]})
    elif rows:
        show.console(sys.stdout).print(show.rows(rows))
    else:
        sys.stdout.write("no jobs\n")


@app.command()
def result(
    job_id: JobId,
    srt: Annotated[bool, typer.Option("--srt", help="As subtitles.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="The text alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """The lines of a job with their times."""
    if srt + plain + as_json > 1:
        raise typer.BadParameter("give one of --srt, --plain and --json")
    with _opened() as orchestrator:
        found = orchestrator.result(job_id)
    if as_json:
        _print_json(found.to_wire())
    elif srt or plain:
        kept = (found.srt if srt else found.plain) or ""
        sys.stdout.write(kept + ("" if kept.endswith("\n") or not kept else "\n"))
    else:
        show.console(sys.stdout).print(show.lyrics(found))


@app.command()
def stats(
    hours: Annotated[float, typer.Option(min=0.01, max=24 * 366, help="Of the last hours.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Success rate, times and cost by route."""
    with _opened() as orchestrator:
        found = orchestrator.stats(hours)
    if as_json:
        _print_json(documents.of_stats(found))
    else:
        show.console(sys.stdout).print(*show.figures(found), sep="\n")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look for what keeps jobs from being done."""
    configure(os.environ, level=logging.CRITICAL)  # what it finds, it says
    found = examine(os.environ)
    shown = documents.of_findings(found)
    if as_json:
        _print_json(shown)
    else:
        show.console(sys.stdout).print(show.findings(found))
    raise typer.Exit(OK if shown["ok"] else FAILED)


# Sources.


def _source(source: str, settings: Settings) -> dict[str, str]:
    """The request's source field.

    Raises:
        ConfigError: a file, and no way to bring it to a worker.
    """
    if source.lower().startswith(("http://", "https://")):
        return {"youtube_url" if is_youtube(source) else "audio_url": source}
    path = Path(source)
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        size = None
    if size is None:
        raise typer.BadParameter(f"there is no file {source[:200]!r}; links begin with https://")
    if size > MAX_FILE:
        raise typer.BadParameter(f"{source[:200]} has more than {MAX_FILE // 10**6} MB")
    return _file(path, settings)


def _file(path: Path, settings: Settings) -> dict[str, str]:
    remote = bool(settings.runpod_api_key and settings.endpoint_ids)
    readable = os.environ.get("ALLOW_FILE_SOURCES", "").strip().lower() in (
        "1",
        "true",
        "yes",
        "on",
    )
    if readable and not remote:
        return {"audio_url": path.resolve().as_uri()}  # a path may hold spaces, a URL none
    if settings.cloudinary_url:
        return {"audio_base64": base64.b64encode(path.read_bytes()).decode()}
    raise ConfigError(
        f"{path} can't be sent to RunPod: set CLOUDINARY_URL, to which it is uploaded first"
        if remote
        else f"{path} can't be sent: the worker of this machine reads files only with "
        "ALLOW_FILE_SOURCES=1"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise typer.BadParameter(f"{path} can't be read: {error.strerror}") from None


# Opening and printing.


def _show_end(
    orchestrator: Orchestrator,
    followed: Sequence[JobProgress],
    as_json: bool,
    *,
    many: bool = False,
) -> None:
    """Say how the jobs ended, a single one with its lines, and exit."""
    if as_json:
        found = [documents.of_progress(progress) for progress in followed]
        _print_json({"jobs": found} if many else found[0])
    else:
        out = show.console(sys.stdout)
        if not many and followed[0].status == "completed":
            with suppress(NotFinished):  # it is kept where this process can't read it
                out.print(show.lyrics(orchestrator.result(followed[0].job_id)))
        for progress in followed:
            out.print(show.ending(progress))
        if not followed:
            sys.stdout.write("no job is queued or in work\n")
    failed = any(progress.status != "completed" for progress in followed)
    raise typer.Exit(FAILED if failed else OK)


@contextmanager
def _opened(settings: Settings | None = None) -> Iterator[Orchestrator]:
    configure(os.environ, level=logging.ERROR)
    settings = settings or Settings.from_env()
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # our own error says it
    try:
        orchestrator = Orchestrator(settings)
    except ValueError as error:  # an address or a key that can't be used
        raise ConfigError(str(error)) from None
    with orchestrator:
        yield orchestrator


def _print_queued(job_id: str, as_json: bool) -> None:
    said = f"job {job_id} is queued: `lyricpod watch {job_id}` follows it"
    _print({"job_id": job_id, "status": "queued"}, said, as_json)


def _print(document: dict[str, Any], said: str, as_json: bool) -> None:
    if as_json:
        _print_json(document)
    else:
        sys.stdout.write(f"{said}\n")


def _print_json(document: dict[str, Any]) -> None:
    # ASCII: any stdout takes it, and no title can drive a terminal.
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()
