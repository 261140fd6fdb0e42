"""From a queued row to a finished row: the loop against a real PostgreSQL and RunPod's double."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from aiohttp import web
from cloudinary_double import CloudinaryDouble
from conftest import StartLoop
from jobserver import LoopbackServer
from rows import ORIGINAL, Rows, dump
from runpod_double import HELD, RunPodDouble, Script

from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import parse
from orchestrator import JobProgress, NotFinished, Orchestrator, OrchestratorError, UnknownJob

URL = "https://www.youtube.com/watch?v=dQw4w9WgXcQ"


class Backend(LoopbackServer):
    """The backend's webhook route."""

    def __init__(self) -> None:
        super().__init__()
        self.orchestrator: Orchestrator | None = None
        self.came: list[int] = []

    def _routes(self) -> list[web.RouteDef]:
        return [web.post("/lyricpod/webhook/{token}", self._webhook)]

    async def _webhook(self, request: web.Request) -> web.Response:
        assert self.orchestrator is not None
        body, token = await request.read(), request.match_info["token"]
        known = await self._loop.run_in_executor(
            None, self.orchestrator.handle_webhook, token, body
        )
        status = 200 if known else 404
        with self._changed:
            self.came.append(status)
            self._changed.notify_all()
        return web.Response(status=status)


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as server:
        yield server


def error(code: ErrorCode, message: str = "it went wrong", hint: str = "do this") -> str:
    return JobError(code, message, hint=hint).to_json()


def progress(seq: int, pct: int, stage: str, *lines: str) -> dict:
    shown = [{"text": text, "start": 0.0, "end": 1.0} for text in lines]
    return {"pct": pct, "status": f"{stage} {pct}", "stage": stage, "seq": seq, "lines": shown}


def test_the_row_shows_each_step(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, cloudinary: CloudinaryDouble
) -> None:
    """queued, processing with stage, percentage and message, completed with URLs of Cloudinary."""
    orchestrator = start(CLOUDINARY_URL=cloudinary.cloudinary_url)
    job = orchestrator.submit(youtube_url=URL, language="en")
    row = rows.until(job, lambda r: r["current_stage"] == "initialization")
    assert row["status"] == "processing"
    assert row["youtube_url"] == URL
    assert row["processing_method"] == "runpod"
    runpod.start(job)
    runpod.progress(job, progress(1, 9, "download"))
    row = rows.until(job, lambda r: r["current_stage"] == "download")
    assert (row["pct"], row["status_message"]) == (9, "download 9")
    runpod.progress(job, progress(2, 40, "transcription", "one line"))
    rows.until(job, lambda r: r["pct"] == 40)
    shown = orchestrator.progress(job)
    assert [line.text for line in shown.lines] == ["one line"]
    assert (shown.status, shown.pct, shown.stage) == ("processing", 40, "transcription")
    runpod.finish(job)
    row = rows.ended(job)
    assert (row["status"], row["pct"]) == ("completed", 100)
    assert row["results_url"].endswith(f"transcriptions/{job}/results")
    assert row["srt_url"].endswith(f"transcriptions/{job}/subtitles")
    assert row["processing_time_seconds"] > 0
    assert row["completed_at"]
    assert row["error_message"] is None
    steps = [(step["status"], step["percentage"]) for step in row["progress_log"]]
    assert steps[0] == ("initialization", 0)
    assert [name for name, _ in steps] == [
        "initialization",
        "download",
        "transcription",
        "finalization",
        "completed",
    ]
    assert all(step["timestamp"] and step["message"] for step in row["progress_log"])
    kept = json.loads(cloudinary.assets[f"transcriptions/{job}/results"][-1].data)
    result = orchestrator.result(job)
    assert result.plain == kept["plain"]
    assert result.words
    assert orchestrator.progress(job).ended


def test_a_row_that_the_backend_queued_is_picked_up(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """An INSERT of the backend's is enough; the request carries the row's id and its URL."""
    runpod.decide = lambda body: Script()
    rows.queue("from-the-backend", URL)
    start()
    assert rows.ended("from-the-backend")["status"] == "completed"
    sent = runpod.of("from-the-backend")[0].body
    assert sent["input"]["youtube_url"] == URL
    assert sent["policy"]["executionTimeout"] == 1_800_000
    assert sent["policy"]["ttl"] >= (6 * 3600 + 1800 - 60) * 1000


def test_the_rows_duration_sets_the_execution_timeout(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """An hour of audio gets more than an hour, three minutes get some minutes."""
    runpod.decide = lambda body: Script()
    start()
    for job, seconds in (("long", 3600), ("short", 180)):
        rows.queue(job, duration=seconds)
        rows.ended(job)
    timeouts = [runpod.of(job)[0].body["policy"]["executionTimeout"] for job in ("long", "short")]
    assert timeouts == [3_720_000, 300_000]


def test_the_original_table_without_later_columns_serves(
    database_url: str, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Optional columns are tolerated, and none is added."""
    runpod.decide = lambda body: Script(queued=0.1, progress=(progress(1, 5, "download"),))
    with Rows(database_url) as rows:
        rows.run(ORIGINAL)
        before = set(rows.get(rows.queue("plain")))
        rows.watch()
        orchestrator = start()
        assert rows.ended("plain")["status"] == "completed"
        assert set(rows.get("plain")) == before
        assert orchestrator.progress("plain").pct == 100
        rows.queue("bad", "nonsense")
        assert "nonsense" in rows.ended("bad")["error_message"]


def test_rows_of_other_states_are_left_alone(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Only `queued` is ours: old, finished and unknown rows stay byte for byte."""
    runpod.decide = lambda body: Script()
    for status in ("processing", "completed", "error", "done", "paused"):
        rows.queue(f"old-{status}", status=status)
    before = rows.run("SELECT * FROM jobs ORDER BY id")
    orchestrator = start()
    rows.queue("new")
    rows.ended("new")
    assert rows.run("SELECT * FROM jobs WHERE id <> 'new' ORDER BY id") == before
    assert orchestrator.progress("old-done").status == "completed"
    assert orchestrator.store.strange() == [
        ("old-processing", "processing"),
        ("old-paused", "paused"),
    ]


@pytest.mark.parametrize(
    ("job_id", "url", "reason"),
    [
        ("empty", "", "youtube_url"),
        ("other-scheme", "ftp://example.org/a.mp3", "ftp://"),
        ("too-long", "https://youtu.be/" + "x" * 10_000, "4096"),
        ("odd/../id", URL, "job_id"),
        ("späce id", URL, "job_id"),
        ("controls", "https://youtu.be/a\tb", "control characters"),
    ],
)
def test_a_bad_row_says_why_and_the_loop_goes_on(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, job_id: str, url: str, reason: str
) -> None:
    """The row says `error` with the reason; the next row is done."""
    runpod.decide = lambda body: Script()
    start()
    rows.queue(job_id, url)
    row = rows.ended(job_id)
    assert row["status"] == "error"
    assert reason in row["error_message"]
    rows.queue("good")
    assert rows.ended("good")["status"] == "completed"
    assert [job.job_id for job in runpod.jobs.values()] == ["good"]


def test_submit_refuses_what_nobody_knows(rows: Rows, start: StartLoop) -> None:
    """An unknown field, two sources and a taken id are told at once; the same again is no fault."""
    orchestrator = start(loop=False)
    with pytest.raises(JobError, match="beam"):
        orchestrator.submit(youtube_url=URL, beam=3)
    with pytest.raises(JobError, match="exactly one"):
        orchestrator.submit(youtube_url=URL, audio_url="https://example.org/a.mp3")
    job = orchestrator.submit(job_id="mine", youtube_url=URL)
    assert orchestrator.submit(job_id=job, youtube_url=URL) == job
    with pytest.raises(OrchestratorError, match="another request"):
        orchestrator.submit(job_id=job, youtube_url=URL, language="de")
    for ask in (
        orchestrator.progress,
        orchestrator.cancel,
        orchestrator.retry,
        orchestrator.result,
    ):
        with pytest.raises(UnknownJob, match="nowhere"):
            ask("nowhere")
    with pytest.raises(NotFinished, match="queued"):
        orchestrator.result(job)


def test_a_request_for_a_row_that_the_backend_made(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """`submit` with the id of a queued row adds what the row can't say."""
    orchestrator = start(loop=False)
    rows.queue("theirs", URL)
    orchestrator.submit(job_id="theirs", youtube_url=URL, language="de", lyrics="la la")
    runpod.decide = lambda body: Script()
    orchestrator.start()
    rows.ended("theirs")
    assert runpod.of("theirs")[0].body["input"]["language"] == "de"


@pytest.mark.parametrize("fault", ["lose", 503])
def test_a_lost_answer_is_resolved_by_the_webhook(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, backend: Backend, fault: str | int
) -> None:
    """A sending whose answer was lost is not sent again while its webhook may come."""
    orchestrator = backend.orchestrator = start(PUBLIC_URL=backend.url, UNKNOWN_SECONDS="3")
    runpod.decide = lambda body: Script(queued=0.1, seconds=0.3)
    runpod.fail("run", fault)
    job = orchestrator.submit(youtube_url=URL)
    assert rows.ended(job)["status"] == "completed"
    accepted = [s for s in runpod.submissions if s.job_id == job]
    assert len(accepted) == 1  # a 503 did not act: it is sent again, once
    assert len(rows.attempts(job)) == (1 if fault == "lose" else 2)


def test_a_lost_answer_is_resolved_by_the_durable_copy(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, cloudinary: CloudinaryDouble
) -> None:
    """Without webhooks, the copy that the worker kept is adopted."""
    orchestrator = start(CLOUDINARY_URL=cloudinary.cloudinary_url, UNKNOWN_SECONDS="60")
    runpod.fail("run", "lose")
    other = start(loop=False, CLOUDINARY_URL=cloudinary.cloudinary_url)
    request = parse({"youtube_url": URL}, default_job_id="adopted").request
    from lyricpod.result import JobResult, Word

    words = (Word(word="kept", start=0.0, end=1.0),)
    kept = JobResult(words=words, plain="kept", job_id="adopted", fingerprint=request.fingerprint)
    other._publisher.publish(kept)
    job = orchestrator.submit(job_id="adopted", youtube_url=URL)
    row = rows.ended(job)
    assert row["status"] == "completed"
    assert orchestrator.result(job).plain.strip() == "kept"
    assert len(runpod.submissions) == 1


def test_a_stale_copy_is_not_adopted(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, cloudinary: CloudinaryDouble
) -> None:
    """A copy of another request, or the CDN's older one, is never taken for this job's."""
    from lyricpod.result import JobResult, Word

    orchestrator = start(CLOUDINARY_URL=cloudinary.cloudinary_url)
    words = (Word(word="old", start=0.0, end=1.0),)
    for fingerprint in ("0" * 64, "1" * 64):
        stale = JobResult(words=words, plain="old", job_id="again", fingerprint=fingerprint)
        orchestrator._publisher.publish(stale)
    job = orchestrator.submit(job_id="again", youtube_url=URL)
    runpod.last(job)
    runpod.start(job)
    runpod.finish(job, output={})  # "look at the durable copy"
    rows.attempt_until(job, lambda a: a["number"] == 2)
    runpod.wait_until(lambda: len(runpod.submissions) == 2)
    runpod.finish(job)
    assert rows.ended(job)["status"] == "completed"
    assert orchestrator.result(job).plain != "old"


def test_a_refused_sending_is_sent_again(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """429 means: not taken. It is sent again, and no attempt is counted."""
    orchestrator = start(MAX_ATTEMPTS="1")
    runpod.decide = lambda body: Script()
    runpod.fail("run", 429, 429)
    job = orchestrator.submit(youtube_url=URL)
    assert rows.ended(job)["status"] == "completed"
    assert len(runpod.submissions) == 1


def test_a_wrong_key_makes_jobs_wait_and_is_told(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """401 fails no job: it waits, its row and `health` say what to do."""
    orchestrator = start(RUNPOD_API_KEY="rpa-wrong")
    job = orchestrator.submit(youtube_url=URL)
    row = rows.until(job, lambda r: "RUNPOD_API_KEY" in (r["status_message"] or ""))
    assert row["status"] in ("queued", "processing")
    health = orchestrator.health()
    assert health.status == "degraded"
    assert "RUNPOD_API_KEY" in str(health.endpoints)


def test_a_failure_that_may_pass_is_tried_again(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """A retryable error is sent again, within the limit; the row then says the last reason."""
    orchestrator = start(MAX_ATTEMPTS="3")
    reasons = [error(ErrorCode.NETWORK, f"no answer {n}") for n in range(3)]
    outcomes = iter([Script(error=reason) for reason in reasons])
    runpod.decide = lambda body: next(outcomes)
    job = orchestrator.submit(youtube_url=URL)
    row = rows.ended(job)
    assert row["status"] == "error"
    assert "no answer 2" in row["error_message"]
    attempts = rows.attempts(job)
    assert [a["state"] for a in attempts] == ["failed"] * 3
    assert attempts[0]["error"]["code"] == "network"


@pytest.mark.parametrize(
    "code", [ErrorCode.INVALID_INPUT, ErrorCode.SOURCE_UNAVAILABLE, ErrorCode.SOURCE_BLOCKED]
)
def test_a_failure_that_will_not_pass_ends_the_job(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, code: ErrorCode
) -> None:
    """It is sent once; the row has message and hint. A blocked source needs another exit."""
    orchestrator = start()
    runpod.decide = lambda body: Script(error=error(code, "the reason", "the remedy"))
    job = orchestrator.submit(youtube_url=URL)
    row = rows.ended(job)
    assert row["status"] == "error"
    assert "the reason (the remedy)" in row["error_message"]
    assert len(runpod.submissions) == 1


def test_an_endpoint_that_is_blocked_leaves_the_job_to_another(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """`source_blocked` goes to another endpoint at once, and never back."""
    with RunPodDouble(decide=lambda body: Script(), endpoint_id="second") as second:
        runpod.decide = lambda body: Script(error=error(ErrorCode.SOURCE_BLOCKED, "bot check"))
        # Both are one base URL for the settings: the second double answers for its own id alone.
        orchestrator = start(loop=False, RUNPOD_ENDPOINT_ID="endpoint-double,second")
        pod = orchestrator._fleet._pods["runpod:second"]
        pod.client._base = f"{second.base_url}/second"
        orchestrator.start()
        job = orchestrator.submit(youtube_url=URL)
        assert rows.ended(job)["status"] == "completed"
        endpoints = [a["endpoint"] for a in rows.attempts(job)]
        assert endpoints[-1] == "runpod:second"
        assert endpoints.count("runpod:endpoint-double") <= 1


def test_ends_at_the_endpoint_end_the_job(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """CANCELLED ends it as it is; TIMED_OUT is tried twice."""
    orchestrator = start()
    job = orchestrator.submit(youtube_url=URL)
    runpod.last(job)
    runpod.finish(job, status="CANCELLED")
    assert "cancelled at the endpoint" in rows.ended(job)["error_message"]
    assert len(runpod.of(job)) == 1
    runpod.decide = lambda body: Script(status="TIMED_OUT", output=None)
    job = orchestrator.submit(youtube_url=URL)
    assert "execution timeout" in rows.ended(job)["error_message"]
    assert [a["state"] for a in rows.attempts(job)] == ["timed_out", "timed_out"]


def test_an_expired_result_is_made_again(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late 404 is LOST, not FAILED: without a durable copy the job is sent again."""
    monkeypatch.setattr("orchestrator.observe.EARLY_SECONDS", 0.5)
    orchestrator = start()
    job = orchestrator.submit(youtube_url=URL)
    rows.attempt_until(job, lambda a: a["state"] == "queued")
    runpod.forget(job)
    rows.attempt_until(job, lambda a: a["number"] == 2)
    runpod.last(job)
    runpod.finish(job)
    assert rows.ended(job)["status"] == "completed"
    assert [a["state"] for a in rows.attempts(job)] == ["lost", "completed"]


def test_an_early_404_is_waited_through(rows: Rows, runpod: RunPodDouble, start: StartLoop) -> None:
    """A replica of RunPod's that lags is no loss."""
    orchestrator = start()
    runpod.decide = lambda body: Script(early_404=3)
    job = orchestrator.submit(youtube_url=URL)
    assert rows.ended(job)["status"] == "completed"
    assert len(runpod.submissions) == 1


def test_a_cancel_ends_the_row_at_once_and_the_job_at_runpod(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """`error`, "Cancelled"; RunPod is told; what comes later is ignored."""
    orchestrator = start()
    job = orchestrator.submit(youtube_url=URL)
    runpod.last(job)
    runpod.start(job)
    rows.attempt_until(job, lambda a: a["state"] == "running")
    assert orchestrator.cancel(job) is True
    row = rows.get(job)
    assert (row["status"], row["error_message"]) == ("error", "Cancelled")
    rows.attempt_until(job, lambda a: a["state"] == "cancelled")
    assert runpod.of(job)[0].status == "CANCELLED"
    assert orchestrator.cancel(job) is False
    assert rows.get(job) == row


def test_a_cancel_before_the_sending_sends_nothing(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """A queued job, submitted or the backend's own, is over without a sending."""
    orchestrator = start(loop=False)
    job = orchestrator.submit(youtube_url=URL)
    rows.queue("theirs")
    assert orchestrator.cancel(job)
    assert orchestrator.cancel("theirs")
    runpod.decide = lambda body: Script()
    orchestrator.start()
    rows.ended(rows.queue("last"))
    assert [s.job_id for s in runpod.submissions] == ["last"]
    assert rows.get("theirs")["error_message"] == "Cancelled"


def test_a_cancel_while_it_is_sent_cancels_what_was_accepted(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """The id that comes after the cancel is kept, so that the job can be cancelled at RunPod."""
    orchestrator = start()
    runpod.fail("run", ("delay", 1.0))
    job = orchestrator.submit(youtube_url=URL)
    runpod.last(job)
    assert orchestrator.cancel(job)
    rows.attempt_until(job, lambda a: a["state"] == "cancelled")
    assert runpod.of(job)[0].status == "CANCELLED"
    assert rows.get(job)["error_message"] == "Cancelled"


def test_a_result_that_was_earlier_than_the_cancel_stays(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Whichever transaction closes the job first is final."""
    orchestrator = start()
    runpod.decide = lambda body: Script()
    job = orchestrator.submit(youtube_url=URL)
    row = rows.ended(job)
    assert orchestrator.cancel(job) is False
    assert rows.get(job) == row


def test_a_deleted_row_cancels_its_job(rows: Rows, runpod: RunPodDouble, start: StartLoop) -> None:
    """The backend deletes a row in mid-job: cancelled at RunPod, closed, no retry."""
    orchestrator = start()
    job = orchestrator.submit(youtube_url=URL)
    runpod.last(job)
    runpod.start(job)
    rows.attempt_until(job, lambda a: a["state"] == "running")
    rows.run("DELETE FROM jobs WHERE id = %s", job)
    rows.attempt_until(job, lambda a: a["state"] == "cancelled")
    assert runpod.of(job)[0].status == "CANCELLED"
    assert rows.run("SELECT state FROM lyricpod_jobs WHERE job_id = %s", job) == [{"state": "done"}]
    assert len(runpod.submissions) == 1


def test_a_row_that_someone_else_ended_is_left_alone(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """The backend's own end of a row stands; the job is cancelled at RunPod."""
    orchestrator = start()
    job = orchestrator.submit(youtube_url=URL)
    runpod.last(job)
    rows.run("UPDATE jobs SET status = 'error', error_message = 'theirs' WHERE id = %s", job)
    rows.attempt_until(job, lambda a: a["state"] == "cancelled")
    assert rows.get(job)["error_message"] == "theirs"


def test_a_webhook_before_the_commit_of_the_id(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, backend: Backend
) -> None:
    """The job is done before its sending's answer arrives: the webhook is not forgotten."""
    orchestrator = backend.orchestrator = start(PUBLIC_URL=backend.url, POLL_SECONDS="30")
    runpod.decide = lambda body: Script()
    runpod.fail("run", ("delay", 0.7))
    job = orchestrator.submit(youtube_url=URL)
    assert rows.ended(job, timeout=10)["status"] == "completed"
    assert backend.came == [200]
    assert len(runpod.submissions) == 1


def test_webhooks_are_believed_nothing(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, backend: Backend
) -> None:
    """Twice, late, of a foreign token or with a lying body: no row changes by a webhook alone."""
    orchestrator = backend.orchestrator = start(PUBLIC_URL=backend.url, POLL_SECONDS="30")
    job = orchestrator.submit(youtube_url=URL)
    first = runpod.last(job)
    token = first.body["webhook"].rsplit("/", 1)[1]
    rows.attempt_until(job, lambda a: a["state"] == "queued")
    calls = runpod.calls["status"]
    lie = json.dumps({"id": "other", "status": "COMPLETED", "output": {"words": []}}).encode()
    assert orchestrator.handle_webhook(token, lie) is True
    runpod.wait_until(lambda: runpod.calls["status"] > calls)
    assert rows.get(job)["status"] == "processing"
    assert orchestrator.handle_webhook("made-up", lie) is False
    runpod.start(job)
    runpod.finish(job)
    row = rows.ended(job, timeout=10)
    runpod.deliver(job)
    backend.wait_until(lambda: backend.came == [200, 200])
    assert rows.get(job) == row
    assert orchestrator.handle_webhook(token, lie) is True


def test_an_abandoned_sending_whose_result_comes_first_wins(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, backend: Backend
) -> None:
    """It was sent again too early: the first result counts, the other sending is cancelled."""
    orchestrator = backend.orchestrator = start(
        PUBLIC_URL=backend.url, UNKNOWN_SECONDS="0.2", CLOUDINARY_URL=""
    )
    runpod.fail("run", "lose")
    job = orchestrator.submit(youtube_url=URL)
    rows.attempt_until(job, lambda a: a["number"] == 2 and a["state"] == "queued", timeout=40)
    first, second = runpod.of(job)
    runpod._do(lambda: runpod._end(first, replace(HELD).output, None, None))
    assert rows.ended(job)["status"] == "completed"
    rows.attempt_until(job, lambda a: a["state"] == "cancelled")
    assert second.status == "CANCELLED"
    assert rows.statuses(job).count("completed") == 1


def test_retry_begins_anew(rows: Rows, runpod: RunPodDouble, start: StartLoop) -> None:
    """A failed job is queued again, with its request; one under way is left as it is."""
    orchestrator = start()
    runpod.decide = lambda body: Script(error=error(ErrorCode.SOURCE_UNAVAILABLE))
    job = orchestrator.submit(youtube_url=URL, language="de")
    rows.ended(job)
    runpod.decide = lambda body: Script()
    orchestrator.retry(job)
    row = rows.until(job, lambda r: r["status"] == "completed")
    assert row["error_message"] is None
    assert runpod.of(job)[-1].body["input"]["language"] == "de"
    orchestrator.retry(job)  # a completed one too: the caller wants it anew
    rows.until(job, lambda r: len(rows.attempts(job)) == 3 and r["status"] == "completed")


def test_a_backend_that_queues_again_is_served_again(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Setting a finished row back to `queued` is a new round."""
    start()
    runpod.decide = lambda body: Script()
    rows.ended(rows.queue("twice"))
    rows.run("UPDATE jobs SET status = 'queued' WHERE id = 'twice'")
    rows.until("twice", lambda r: len(rows.attempts("twice")) == 2 and r["status"] == "completed")


def test_results_of_older_workers_become_one_result(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """A bare URL, words without probability or srt: the row and `result` know no difference."""
    orchestrator = start()
    outputs = {
        "bare": "https://res.cloudinary.com/demo/raw/upload/transcriptions/x/results",
        "words": {"words": [{"word": "la", "start": 0.0, "end": 0.5}]},
    }
    runpod.decide = lambda body: Script(output=outputs[body["input"]["job_id"]])
    for job in outputs:
        orchestrator.submit(job_id=job, youtube_url=URL)
    assert rows.ended("bare")["results_url"] == outputs["bare"]
    assert rows.ended("words")["status"] == "completed"
    assert "la" in (orchestrator.result("words").srt or "")


def test_a_result_outlives_cloudinarys_outage(
    rows: Rows,
    runpod: RunPodDouble,
    start: StartLoop,
    cloudinary: CloudinaryDouble,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cloudinary is away for longer than RunPod remembers: `result` serves, the row ends later."""
    monkeypatch.setattr("orchestrator.turn.PUBLISH_FIRST", 0.1)
    cloudinary.refuse_always(503)
    orchestrator = start(CLOUDINARY_URL=cloudinary.cloudinary_url, UPLOAD_SECONDS="1")
    runpod.decide = lambda body: Script(kept=0.2)
    job = orchestrator.submit(youtube_url=URL)
    rows.attempt_until(job, lambda a: a["state"] == "finishing" and a["publish_tries"] > 0)
    runpod.wait_until(lambda: not runpod.jobs)
    assert rows.get(job)["status"] == "processing"
    assert orchestrator.result(job).words
    cloudinary.refuse_always(None)
    row = rows.ended(job)
    assert row["status"] == "completed"
    assert row["results_url"]
    assert len(runpod.submissions) == 1


def test_a_deadline_ends_a_job_that_hangs(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Nothing runs for ever: past its deadline the row says so, and RunPod is told to stop."""
    orchestrator = start(DEADLINE_SECONDS="1")
    job = orchestrator.submit(youtube_url=URL)
    row = rows.ended(job)
    assert "deadline" in row["error_message"]
    rows.attempt_until(job, lambda a: a["state"] == "cancelled")


def test_two_replicas_send_each_job_once(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Claims skip what the other holds: forty jobs, forty sendings."""
    runpod.decide = lambda body: Script()
    jobs = [rows.queue(f"job-{n}") for n in range(40)]
    start(REPLICAS="2")
    start(REPLICAS="2")
    assert {rows.ended(job)["status"] for job in jobs} == {"completed"}
    assert sorted(s.job_id for s in runpod.submissions) == sorted(jobs)
    for job in jobs:
        assert rows.statuses(job).count("completed") == 1


def test_any_replica_shows_the_progress(rows: Rows, runpod: RunPodDouble, start: StartLoop) -> None:
    """Progress is read from the database: no call to RunPod, and a wait ends with the job."""
    working, watching = start(), start(loop=False)
    job = working.submit(youtube_url=URL)
    runpod.last(job)
    runpod.start(job)
    runpod.progress(job, progress(1, 33, "transcription"))
    rows.until(job, lambda r: r["pct"] == 33)
    assert watching.progress(job).pct == 33
    assert watching.wait(job, timeout=0.1).status == "processing"
    runpod.finish(job)
    shown: JobProgress = watching.wait(job, timeout=20)
    assert (shown.status, shown.pct) == ("completed", 100)


def test_audio_base64_never_enters_the_database(
    rows: Rows,
    database_url: str,
    runpod: RunPodDouble,
    start: StartLoop,
    cloudinary: CloudinaryDouble,
) -> None:
    """It is uploaded first, and the job carries its URL; without a storage it is refused."""
    runpod.decide = lambda body: Script()
    orchestrator = start(CLOUDINARY_URL=cloudinary.cloudinary_url)
    job = orchestrator.submit(audio_base64="UklGRgplantedAudio==")
    row = rows.ended(job)
    assert row["status"] == "completed"
    assert runpod.of(job)[0].body["input"]["audio_url"] == row["youtube_url"]
    assert "plantedAudio" not in dump(database_url)
    with pytest.raises(JobError, match="CLOUDINARY_URL"):
        start(loop=False).submit(audio_base64="UklGRg==")


def test_a_low_credit_keeps_jobs_waiting(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Below MIN_CREDIT_USD nothing is sent: the job waits, and its row says why."""
    runpod.balance = 1.0
    orchestrator = start(loop=False, MIN_CREDIT_USD="5")
    orchestrator._fleet._credit._look()
    job = orchestrator.submit(youtube_url=URL)
    orchestrator.start()
    row = rows.until(job, lambda r: "credit" in (r["status_message"] or ""))
    assert row["status"] == "queued"
    assert runpod.submissions == []
