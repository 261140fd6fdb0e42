"""A job in order: acquire, decode, transcribe, lay out, publish."""

from __future__ import annotations

import bisect
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from handler import align
from handler.acquire import Source, acquire
from handler.audio import Pcm, decode
from handler.cache import AudioCache
from handler.config import Settings
from handler.decoder import Decoder
from handler.models import NANO, Loaded, Models
from handler.transcribe import transcribe
from handler.transcript import Transcript
from handler.youtube import Exits
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.lines import lay_out
from lyricpod.progress import Progress, Stage
from lyricpod.request import JobRequest, Parsed
from lyricpod.result import JobResult, Line, Timings, Word
from lyricpod.storage import Storage
from lyricpod.subtitles import plain, srt
from lyricpod.timeline import timeline

NEWEST_LINES = 3  # shown with each progress report
RECENT_WORDS = 40  # enough words for the newest lines
NANO_WARNING = (
    "made with the nano model, which knows about 200 English words of synthetic speech: "
    "for demonstrations and tests only"
)

Report = Callable[[Progress], None]
log = structlog.get_logger()


@dataclass
class _Clock:
    """Seconds spent by stage."""

    started: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, stage: Stage) -> Iterator[None]:
        before = time.monotonic()
        try:
            yield
        except JobError as error:
            raise error.at(stage.value) from error.__cause__
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - before

    def timings(self) -> Timings:
        total = time.monotonic() - self.started
        return Timings(**{k: round(v, 3) for k, v in {**self.spent, "total": total}.items()})


@dataclass(frozen=True)
class Pipeline:
    """What every job of this worker shares."""

    settings: Settings
    models: Models
    storage: Storage | None
    reuse: bool = True  # answer a repeated job from its durable copy
    cache: AudioCache | None = None  # of YouTube's sound
    exits: Exits | None = None  # to YouTube

    def run(self, parsed: Parsed, *, cancel: Cancel, report: Report) -> JobResult:
        """Do one job, start to end; no file of it is left.

        Raises:
            JobError: any code of the contract.
        """
        request = parsed.request
        storage = self.storage if request.upload else None
        report(Progress.of(Stage.INITIALIZATION, 0, "Starting"))
        if self.reuse and storage:
            kept = _kept(storage, request, cancel)
            if kept:
                log.info("answered from the durable copy", url=kept.result_url)
                return kept
        # The decoder starts while the source is still on its way.
        with tempfile.TemporaryDirectory(prefix="lyricpod-") as folder, Decoder() as decoder:
            result = self._make(parsed, Path(folder), decoder, cancel, report)
        return self._publish(result, storage, cancel, report)

    def _make(
        self, parsed: Parsed, folder: Path, decoder: Decoder, cancel: Cancel, report: Report
    ) -> JobResult:
        request, clock = parsed.request, _Clock()
        with clock.stage("acquire", Stage.DOWNLOAD):
            source = acquire(
                request,
                folder,
                self.settings,
                cancel=cancel,
                on_bytes=_bytes_to(report),
                cache=self.cache,
                exits=self.exits,
            )
        with clock.stage("decode", Stage.DOWNLOAD):
            pcm = decode(
                source.path,
                folder / "audio.pcm",
                max_seconds=self.settings.max_audio_seconds,
                cancel=cancel,
                decoder=decoder,
            )
        with clock.stage("model", Stage.TRANSCRIPTION):
            model = self.models.get(request.model, cancel, on_wait=_waiting_to(report))
        if _aligns(request):
            with clock.stage("align", Stage.ALIGNMENT):
                transcript = align.align(
                    pcm,
                    request.lyrics or "",
                    model,
                    request.language,
                    cancel=cancel,
                    on_seconds=_aligned_to(report, pcm.seconds),
                )
        else:
            with clock.stage("transcribe", Stage.TRANSCRIPTION):
                transcript = transcribe(
                    pcm,
                    model,
                    request,
                    folder=folder,
                    cancel=cancel,
                    on_words=_words_to(report, pcm.seconds),
                )
        if not _aligns(request):
            with clock.stage("align", Stage.ALIGNMENT):
                transcript = align.refine(transcript, pcm, cancel=cancel)
        with clock.stage("layout", Stage.FINALIZATION):
            words = timeline(transcript.words, pcm.seconds)
            lines = lay_out(words, _starts(words, transcript.starts))
            return _result(parsed, source, pcm, model, transcript, words, lines, clock)

    def _publish(
        self, result: JobResult, storage: Storage | None, cancel: Cancel, report: Report
    ) -> JobResult:
        if storage is None:
            if self.storage:
                return result
            warning = "kept nowhere: neither CLOUDINARY_URL nor STORAGE_DIR is set on the worker"
            return _warned(result, warning)
        report(Progress.of(Stage.FINALIZATION, 0.3, "Saving the result", lines=_last(result)))
        before = time.monotonic()
        try:
            published = storage.publish(result, cancel)
        except JobError as error:
            if error.code is ErrorCode.CANCELLED:
                raise error.at(Stage.FINALIZATION.value) from None
            log.error("upload failed", error=str(error))
            return _warned(result, f"{error.message}; the words are in this answer alone")
        except Exception as error:  # whatever publishing meets, it never costs the words
            cancel.check()
            log.error("upload failed", exc_info=True)
            what = f"the result was not uploaded: unforeseen {type(error).__name__}"
            return _warned(result, f"{what}; the words are in this answer alone")
        log.info("result kept", url=published.result_url, seconds=time.monotonic() - before)
        return published


def _kept(storage: Storage, request: JobRequest, cancel: Cancel) -> JobResult | None:
    """The job's durable copy; a fault in looking for it means that there is none."""
    try:
        return storage.find(request.job_id, request.fingerprint, cancel)
    except JobError:
        raise
    except Exception:  # nor does the look for an earlier copy cost the job
        cancel.check()
        log.error("the look for a durable copy failed", exc_info=True)
        return None


def _result(
    parsed: Parsed,
    source: Source,
    pcm: Pcm,
    model: Loaded,
    transcript: Transcript,
    words: tuple[Word, ...],
    lines: tuple[Line, ...],
    clock: _Clock,
) -> JobResult:
    request = parsed.request
    return JobResult(
        words=words,
        lines=lines,
        srt=srt(lines),
        plain=plain(lines),
        language=transcript.language or None,
        language_probability=round(transcript.language_probability, 4),
        duration=round(pcm.seconds, 3),
        title=source.title,
        video_id=source.video_id,
        artist=source.artist,
        track=source.track,
        source=source.origin,
        model=model.name,
        timings=clock.timings(),
        warnings=tuple(_warnings(parsed, model, transcript)),
        job_id=request.job_id,
        fingerprint=request.fingerprint,
    )


def _warnings(parsed: Parsed, model: Loaded, transcript: Transcript) -> Iterator[str]:
    request = parsed.request
    if parsed.unknown:
        yield f"unknown names in the input were ignored: {', '.join(parsed.unknown)}"
    if model.name == NANO:
        yield NANO_WARNING
    if model.english_only and request.language not in (None, "en"):
        yield f"model {model.name} knows English only; language {request.language!r} was ignored"
    if model.english_only and request.task == "translate":
        yield f"model {model.name} can't translate; the words are as sung"
    if _aligns(request):
        lost = sum(w.probability == 0 and w.end <= w.start for w in transcript.words)
        if lost:
            yield f"{lost} words of the lyrics were not found in the audio: their times are guesses"
    elif request.lyrics:
        yield f"lyrics were not aligned: {_why_not_aligned(request)}"
    if not transcript.words:
        yield "no words were heard"


def _aligns(request: JobRequest) -> bool:
    """Whether the job's lyrics are put onto the audio instead of transcribing it."""
    return bool(
        request.lyrics
        and request.lyrics.strip()
        and request.task == "transcribe"
        and align.available()
    )


def _why_not_aligned(request: JobRequest) -> str:
    if not align.available():
        return "this worker has no stable-ts; install lyricpod[align] on it"
    if request.task == "translate":
        return "a translation has other words than the lyrics; use the task transcribe"
    return "they are blank"


def _starts(words: tuple[Word, ...], times: tuple[float, ...]) -> set[int]:
    """The indexes of the words that begin a segment."""
    begins = [word.start for word in words]
    return {bisect.bisect_left(begins, round(time, 3)) for time in times}


def _warned(result: JobResult, warning: str) -> JobResult:
    return result.model_copy(update={"warnings": (*result.warnings, warning)})


def _last(result: JobResult) -> tuple[Line, ...]:
    return (result.lines or ())[-NEWEST_LINES:]


def _bytes_to(report: Report) -> Callable[[int, int | None], None]:
    def on_bytes(done: int, total: int | None) -> None:
        fraction = done / total if total else 0.5
        report(Progress.of(Stage.DOWNLOAD, fraction, f"Downloading, {done / 1e6:.1f} MB"))

    return on_bytes


def _waiting_to(report: Report) -> Callable[[], None]:
    return lambda: report(Progress.of(Stage.TRANSCRIPTION, 0, "Loading the model"))


def _words_to(report: Report, seconds: float) -> Callable[[float, tuple[Word, ...]], Any]:
    def on_words(done: float, words: tuple[Word, ...]) -> None:
        lines = lay_out(timeline(words[-RECENT_WORDS:], None))[-NEWEST_LINES:]
        message = f"Transcribing, {min(done, seconds):.0f} of {seconds:.0f} s"
        report(Progress.of(Stage.TRANSCRIPTION, done / seconds, message, lines=lines))

    return on_words


def _aligned_to(report: Report, seconds: float) -> Callable[[float], None]:
    def on_seconds(done: float) -> None:
        message = f"Aligning, {min(done, seconds):.0f} of {seconds:.0f} s"
        report(Progress.of(Stage.ALIGNMENT, done / seconds, message))

    return on_seconds
