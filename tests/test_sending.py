"""What is sent, how often it is looked at, and when it is sent again: three pure files."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import parse
from orchestrator.config import Settings
from orchestrator.pace import next_look
from orchestrator.policy import LONGEST_PAUSE, Again, again
from orchestrator.records import QueuedRow, Waiting
from orchestrator.sending import body, read_row
from orchestrator.states import State

URL = "https://youtu.be/dQw4w9WgXcQ"
JOB = Waiting(
    job_id="a",
    request={"youtube_url": URL, "language": "de"},
    fingerprint="",
    attempts_used=0,
    blocked_on=[],
    failed_on=[],
    remaining=3600.0,
    status="queued",
    duration=None,
)
ENDING = Settings(auto_terminate=True, auto_terminate_backlog=2)


def sent(job: Waiting = JOB, settings: Settings = ENDING, **more: object) -> dict:
    return body(job, settings, **{"kind": "runpod", "webhook": None, "backlog": 0, **more})


@pytest.mark.parametrize(("backlog", "ends"), [(0, True), (1, True), (2, False), (500, False)])
def test_auto_terminate_pauses_in_a_backlog(backlog: int, ends: bool) -> None:
    """A worker is not ended while others wait: the next job would pay for a cold start."""
    assert sent(backlog=backlog)["input"]["auto_terminate"] is ends


def test_auto_terminate_is_the_requests_first() -> None:
    """What the request says stands; without the setting, and for this machine, nothing is said."""
    wish = replace(JOB, request={**JOB.request, "auto_terminate": True})
    assert sent(wish, backlog=9)["input"]["auto_terminate"] is True
    assert "auto_terminate" not in sent(settings=Settings())["input"]
    assert "auto_terminate" not in sent(kind="local")["input"]


def test_the_body_is_what_a_worker_reads() -> None:
    """The input is a request of the contract, with the row's id and nothing unknown."""
    made = sent(webhook="https://backend.example/lyricpod/webhook/token")
    parsed = parse(made["input"], default_job_id="other")
    assert (parsed.unknown, parsed.request.job_id, parsed.request.language) == ((), "a", "de")
    assert made["webhook"].endswith("/token")
    assert "webhook" not in sent()


def test_the_platforms_memory_outlasts_the_deadline() -> None:
    """ttl is a hard delete: it covers the deadline and half an hour more, within what is taken."""
    assert sent()["policy"]["ttl"] == (3600 + 1800) * 1000
    late, far = replace(JOB, remaining=-9999.0), replace(JOB, remaining=1e9)
    assert sent(late)["policy"]["ttl"] == 10_000
    assert sent(far)["policy"]["ttl"] == 7 * 86400 * 1000


@given(st.one_of(st.none(), st.integers(-(10**9), 10**9)))
def test_the_execution_timeout_is_one_that_is_taken(duration: int | None) -> None:
    """Between 5 s and 7 days, and longer than the audio where that is known."""
    timeout = sent(replace(JOB, duration=duration))["policy"]["executionTimeout"]
    assert 5_000 <= timeout <= 7 * 86400 * 1000
    if duration and 0 < duration < 86400:
        assert timeout > duration * 1000


def test_a_row_keeps_the_request_it_was_submitted_with() -> None:
    """Unless the backend wrote another URL into it: then the row counts."""
    submitted = {"youtube_url": URL, "language": "de"}
    assert read_row(QueuedRow("a", URL, submitted))[0] == submitted
    other = "https://cdn.example/a.mp3"
    assert read_row(QueuedRow("a", other, submitted))[0] == {"audio_url": other}
    with pytest.raises(JobError, match="no http"):
        read_row(QueuedRow("a", None, None))


def tried(code: ErrorCode, state: State = State.FAILED, **more: object) -> Again | None:
    given_ = {"attempts_used": 1, "max_attempts": 5, "others": ["second"], "first_pause": 5.0}
    return again(JobError(code, "why"), state, **{**given_, **more})


def test_what_may_pass_is_sent_again_with_growing_pauses() -> None:
    """Each pause is longer than the one before, up to a limit; then the job has failed."""
    pauses = [tried(ErrorCode.NETWORK, attempts_used=n, max_attempts=9) for n in range(1, 9)]
    seconds = [plan.pause for plan in pauses if plan]
    assert seconds == sorted(seconds)
    assert seconds[:2] == [5.0, 15.0]
    assert seconds[-1] == LONGEST_PAUSE
    assert tried(ErrorCode.NETWORK, attempts_used=5) is None


def test_what_will_not_pass_is_sent_once() -> None:
    """A bad request fails; a blocked source needs another endpoint; a lost sending is no fault."""
    assert tried(ErrorCode.INVALID_INPUT) is None
    assert tried(ErrorCode.SOURCE_BLOCKED) == Again(0.0, blocked=True)
    assert tried(ErrorCode.SOURCE_BLOCKED, others=[]) is None
    assert tried(ErrorCode.INTERNAL, State.LOST) == Again(0.0)
    assert tried(ErrorCode.INTERNAL, State.TIMED_OUT, attempts_used=1) is not None
    assert tried(ErrorCode.INTERNAL, State.TIMED_OUT, attempts_used=2) is None


@given(
    st.sampled_from([State.QUEUED, State.RUNNING, State.UNKNOWN]),
    st.floats(0, 1e6),
    st.integers(0, 100_000),
    st.floats(1, 1000),
    st.booleans(),
)
def test_looks_stay_below_the_rate_limit(
    state: State, age: float, in_flight: int, rate: float, webhooks: bool
) -> None:
    """However many are in flight, their looks together need less than what is allowed."""
    wait = next_look(
        state, age, poll_seconds=2.0, in_flight=in_flight, rate=rate, webhooks=webhooks
    )
    assert wait > 0
    assert in_flight / wait <= rate * 0.91


def test_a_long_queue_is_looked_at_less_often() -> None:
    """Soon after the sending a look is near; an hour later in the queue it is not."""

    def wait(state: State, age: float) -> float:
        return next_look(state, age, poll_seconds=2.0, in_flight=5, rate=194.0, webhooks=False)

    assert wait(State.QUEUED, 0.0) <= 1.0
    assert wait(State.QUEUED, 3600.0) == 30.0
    assert wait(State.RUNNING, 3600.0) == 2.0
