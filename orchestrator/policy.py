"""Whether a failed sending is worth another, when, and where. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lyricpod.errors import ErrorCode, JobError
from orchestrator.states import State

GROWTH = 3.0  # each pause over the one before
LONGEST_PAUSE = 300.0  # seconds
TIMEOUTS_TAKEN = 2  # a job that ran past its timeout twice would do so a third time


@dataclass(frozen=True)
class Again:
    """Send again after `pause` seconds; `blocked`: not to this endpoint."""

    pause: float
    blocked: bool = False


def again(
    error: JobError,
    state: State,
    *,
    attempts_used: int,
    max_attempts: int,
    others: Collection[str],
    first_pause: float,
) -> Again | None:
    """What to do after a sending that ended in `state` with `error`; None: the job has failed.

    Args:
        attempts_used: sendings of this round, this one included.
        others: endpoints that exist and have not blocked this job's source.
        first_pause: seconds; it grows with each attempt.
    """
    if attempts_used >= max_attempts or (
        state == State.TIMED_OUT and attempts_used >= TIMEOUTS_TAKEN
    ):
        return None
    if error.code == ErrorCode.SOURCE_BLOCKED:  # the same exit would be refused again
        return Again(0.0, blocked=True) if others else None
    if state in (State.LOST, State.ABANDONED):  # it says nothing about the job itself
        return Again(0.0)
    if not error.retryable:
        return None
    return Again(min(LONGEST_PAUSE, first_pause * GROWTH ** (attempts_used - 1)))
