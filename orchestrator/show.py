"""What a person sees in the terminal: bars, lines, tables. The only import of rich."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO
from urllib.parse import unquote

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from lyricpod.result import JobResult, Line
from orchestrator.doctor import Finding, Level
from orchestrator.records import JobRow
from orchestrator.service import JobProgress
from orchestrator.stats import Route, Spread, Stats

FILE_WIDTH = 300  # columns where the output is no terminal: nothing is cut for grep
LABEL = 28  # characters of a job's name beside its bar
COLOURS = {Level.OK: "green", Level.NOTE: "blue", Level.WARNING: "yellow", Level.BROKEN: "red"}

# A title is a stranger's text: what a terminal takes for a command is left out.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def console(file: TextIO) -> Console:
    """A console on a stream, with nothing cut off where that is a file or a pipe."""
    width = None if file.isatty() else FILE_WIDTH
    return Console(file=file, width=width, highlight=False, emoji=False, markup=False)


def text(value: object, style: str = "") -> Text:
    """Text from outside, with no control over the terminal."""
    return Text(_CONTROLS.sub(" ", "" if value is None else str(value)), style=style)


def clock(seconds: float) -> str:
    """`m:ss.s`, with hours where there are any."""
    tenths = round(max(0.0, seconds) * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    shown = f"{minutes}:{rest / 10:04.1f}"
    return f"{hours}:{shown.zfill(7)}" if hours else shown


class Bars:
    """A progress bar for each job, and the newest lines of a single one below its bar.

    Args:
        labels: how each job is called, by id.
    """

    def __init__(self, out: Console, labels: dict[str, str]) -> None:
        self._out = out
        self._labels = {job_id: text(label).plain[-LABEL:] for job_id, label in labels.items()}
        self._said: dict[str, tuple[str, str]] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}", markup=False),
        )
        widest = max((len(label) for label in self._labels.values()), default=0)
        self._tasks = {
            job_id: self._bars.add_task(label.ljust(widest), total=100, message="queued")
            for job_id, label in self._labels.items()
        }
        self._live = Live(self._bars, console=out, transient=not out.is_terminal)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.update(self._bars)
        self._live.stop()

    def show(self, progress: JobProgress) -> None:
        """Move a job's bar, and show its newest lines."""
        message = text(progress.error or progress.message).plain
        newest = text(progress.lines[-1].text).plain if progress.lines else ""
        single = len(self._labels) == 1
        shown = message if single or not newest else f"{message}: {newest}"
        task = self._tasks[progress.job_id]
        self._bars.update(task, completed=progress.pct, message=shown)
        if progress.ended:
            self._bars.stop_task(task)
        if single:
            self._live.update(Group(self._bars, *map(_lyric, progress.lines)))
        self._log(progress, message)

    def _log(self, progress: JobProgress, message: str) -> None:
        """Where bars can't move (a file, a log), each new message is a line of its own."""
        if self._out.is_terminal or self._said.get(progress.job_id) == (progress.status, message):
            return
        self._said[progress.job_id] = (progress.status, message)
        label = self._labels[progress.job_id]
        self._out.print(text(f"{label}: {progress.pct}% {progress.status} {message}".rstrip()))


def ending(progress: JobProgress) -> Text:
    """One line on how a job ended, and where its result is."""
    style = {"completed": "green", "error": "red"}.get(progress.status, "")
    route = f" by {progress.endpoint}" if progress.endpoint else ""
    said = Text.assemble(text(f"job {progress.job_id} "), text(progress.status, style), text(route))
    if progress.error:
        said.append_text(text(f": {progress.error}"))
    for name, url in (("result", progress.result_url), ("srt", progress.srt_url)):
        if url:
            said.append_text(Text(f"\n  {name:<7}") + text(url))
    if progress.status == "completed" and not progress.result_url:
        said.append_text(Text("\n  result ") + text(f"lyricpod result {progress.job_id}"))
    return said


def lyrics(result: JobResult) -> Text:
    """The lines of a result with their times."""
    return Text("\n").join([_lyric(line) for line in result.lines or ()])


def rows(found: Sequence[JobRow]) -> Table:
    """The rows of `list`."""
    table = _table("job", "status", "pct", "age", "route", "took", "title or error")
    for row in found:
        table.add_row(
            text(row.job_id),
            text(row.status, _status_style(row.status)),
            text("" if row.pct is None else row.pct),
            text(_age(row.created_at)),
            text(row.processing_method),
            text(_seconds(row.processing_time_seconds)),
            text(row.error_message or row.title),
        )
    return table


def figures(stats: Stats) -> list[Text | Table]:
    """The figures of `stats`, a column for each route."""
    head = (
        f"last {stats.hours:g} h: {stats.completed} completed, {stats.failed} failed, "
        f"{stats.cancelled} cancelled, {stats.processing} in work, {stats.queued} queued",
        f"success {_share(stats.success_rate)}, cost {_usd(stats.cost_usd)}, "
        f"seconds from arrival to result {_spread(stats.total)}",
        f"processes that run the loop: {stats.replicas}",
    )
    shown: list[Text | Table] = [Text("\n").join([text(line) for line in head])]
    if stats.routes:
        shown += [Text(""), _routes(stats.routes)]
        shown.append(Text("seconds: what half, nine of ten and 99 of 100 took at most", "dim"))
    if stats.errors:
        reasons = ", ".join(f"{code} {count}" for code, count in stats.errors)
        shown.append(text(f"why sendings failed: {reasons}"))
    return shown


def _routes(routes: Sequence[Route]) -> Table:
    table = _table("route", *(text(route.endpoint).plain for route in routes))
    counts = ("attempts", "completed", "failed", "cancelled", "open")
    for name in counts:
        table.add_row(name, *(str(getattr(route, name)) for route in routes))
    table.add_row("success", *(_share(route.success_rate) for route in routes))
    for name, label in (("total", "seconds"), ("delay", "in queue"), ("execution", "in work")):
        table.add_row(label, *(_spread(getattr(route, name)) for route in routes))
    costs = (_usd(route.cost_usd) + (" and unpriced" * (route.unpriced > 0)) for route in routes)
    table.add_row("cost", *costs)
    return table


def findings(found: Iterable[Finding]) -> Table:
    """What `doctor` found, each with its remedy."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name in ("level", "check", "message"):
        table.add_column(name, overflow="fold", no_wrap=name != "message")
    for finding in found:
        message = text(finding.message)
        if finding.remedy:
            message = Text.assemble(message, "\n-> ", text(finding.remedy))
        table.add_row(text(finding.level, COLOURS[finding.level]), text(finding.check), message)
    return table


def outcomes(found: Sequence[tuple[JobProgress, JobResult, JobRow]]) -> Table:
    """Finished jobs with their words, times, route, and the folders of their files."""
    table = _table("job", "status", "words", "audio", "took", "route", "folder")
    for progress, result, row in found:
        table.add_row(
            text(progress.job_id),
            text(progress.status, _status_style(progress.status)),
            text(len(result.words or ())),
            text(_seconds(result.duration)),
            text(_seconds(row.processing_time_seconds)),
            text(progress.endpoint),
            text(_folder(progress.result_url or "")),
        )
    return table


def _lyric(line: Line) -> Text:
    return Text.assemble((f"{clock(line.start):>8}  ", "cyan"), text(line.text))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("job", "status", "route"))
    return table


def _status_style(status: str) -> str:
    return {"completed": "green", "done": "green", "error": "red"}.get(status, "yellow")


def _folder(url: str) -> str:
    """Where a URL's file is; a folder below the current one as a relative path."""
    folder = url.rpartition("/")[0]
    here = Path.cwd().as_uri() + "/"
    return unquote(folder.removeprefix(here)) if folder.startswith(here) else folder


def _age(moment: datetime | None) -> str:
    if moment is None:
        return ""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = max(0.0, (datetime.now(UTC) - aware).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def _spread(spread: Spread) -> str:
    values = (spread.p50, spread.p90, spread.p99)
    return "/".join("-" if value is None else f"{value:.1f}" for value in values)


def _share(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _usd(usd: float | None) -> str:
    return "unknown" if usd is None else f"${usd:.4f}"
