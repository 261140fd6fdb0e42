"""What may happen to one sending of a job, and what follows from it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where an attempt is."""

    SUBMITTING = "submitting"  # the intent is committed; the POST may have been sent or not
    UNKNOWN = "unknown"  # the POST's answer was lost
    QUEUED = "queued"
    RUNNING = "running"
    FINISHING = "finishing"  # the result is committed here, and not kept anywhere else yet
    ABANDONED = "abandoned"  # not wanted any more, being cancelled; its result may still win
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"  # the endpoint knows nothing of it any more


ACTIVE = (State.SUBMITTING, State.UNKNOWN, State.QUEUED, State.RUNNING, State.FINISHING)
ENDED = (State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMED_OUT, State.LOST)


class Event(StrEnum):
    """What was observed of an attempt."""

    ACCEPTED = "the endpoint took it and gave an id"
    REFUSED = "the endpoint certainly did not take it"
    REJECTED = "the endpoint will never take this body"
    UNCERTAIN = "the answer of the sending was lost"
    SENDER_GONE = "its sender's lease ended before an answer was noted"
    SEEN_QUEUED = "it waits in the endpoint's queue"
    SEEN_RUNNING = "a worker works on it"
    SEEN_COMPLETED = "it is done, and here is its result"
    SEEN_FAILED = "it failed, or its result can't be read"
    SEEN_CANCELLED = "it was cancelled at the endpoint"
    SEEN_TIMED_OUT = "it ran past its execution timeout"
    MISSING_EARLY = "the endpoint does not know it, soon after it was sent"
    MISSING = "the endpoint does not know it any more"
    UNREACHABLE = "the endpoint does not answer"
    GIVEN_UP = "the endpoint has not answered for long, and another could take it"
    INSTANCE_GONE = "the replica whose child the endpoint was is gone"
    COPY_FOUND = "the worker's durable copy is there"
    PATIENCE_OVER = "it was waited for as long as it may be expected to take"
    PUBLISHED = "the result is kept"
    UNPUBLISHED = "the result could not be kept"
    DEADLINE = "the job's deadline is over"
    UNWANTED = "the job was cancelled or deleted, or has ended otherwise"


class Action(StrEnum):
    """What is done beside the new state."""

    IGNORE = "nothing"
    WATCH = "look again later"
    WITHDRAW = "forget this sending; the job waits to be sent again, and it does not count"
    FINISH = "commit the result, then keep it"
    WIN = "take this result if the job is still open, and abandon the other sending"
    CLOSE = "close attempt and job as completed"
    RETRY = "look for the durable copy; else send again, or fail the job"
    END = "close the job as failed"
    STOP = "cancel it at the endpoint, and look again"
    SETTLE = "close the attempt alone"


@dataclass(frozen=True)
class Step:
    """What follows from an event: the attempt's new state and what is done."""

    state: State
    action: Action


def decide(state: State, event: Event) -> Step:
    """What follows when `event` is observed of an attempt in `state`."""
    return TABLE[state, event]


def _fill() -> dict[tuple[State, Event], Step]:
    table = {
        # An attempt that has ended stays as it is, whatever is heard of it later.
        (state, event): Step(state, Action.IGNORE)
        for state in ENDED
        for event in Event
    }
    for event, (submitting, unknown, watched, finishing, abandoned) in _ROWS.items():
        steps = {
            State.SUBMITTING: submitting,
            State.UNKNOWN: unknown,
            State.QUEUED: watched,
            State.RUNNING: watched,
            State.FINISHING: finishing,
            State.ABANDONED: abandoned,
        }
        for state, step in steps.items():
            table[state, event] = Step(step[0] or state, step[1]) if step else _ignored(state)
    return table


def _ignored(state: State) -> Step:
    return Step(state, Action.IGNORE)


_Cell = tuple[State | None, Action] | None  # None as state: it stays; None as cell: ignored
_FINISH: _Cell = (State.FINISHING, Action.FINISH)
_STOP: _Cell = (None, Action.STOP)
_WATCH: _Cell = (None, Action.WATCH)
_KEEP: _Cell = (None, Action.FINISH)  # goes on keeping the result it has
_DROP: _Cell = (State.ABANDONED, Action.END)


def _seen(state: State) -> _Cell:
    return state, Action.WATCH


def _failed(state: State) -> _Cell:
    return state, Action.RETRY


def _settled(state: State) -> _Cell:
    return state, Action.SETTLE


# event: submitting, unknown, queued and running, finishing, abandoned
_ROWS: dict[Event, tuple[_Cell, _Cell, _Cell, _Cell, _Cell]] = {
    Event.ACCEPTED: (_seen(State.QUEUED), _seen(State.QUEUED), _WATCH, _KEEP, _STOP),
    Event.REFUSED: ((State.FAILED, Action.WITHDRAW), None, None, None, None),
    Event.REJECTED: ((State.FAILED, Action.END), None, None, None, None),
    Event.UNCERTAIN: (_seen(State.UNKNOWN), _WATCH, None, None, None),
    Event.SENDER_GONE: (_seen(State.UNKNOWN), _WATCH, None, None, None),
    Event.SEEN_QUEUED: (
        _seen(State.QUEUED),
        _seen(State.QUEUED),
        _seen(State.QUEUED),  # from running too: the platform dispatches it again
        _KEEP,
        _STOP,
    ),
    Event.SEEN_RUNNING: (
        _seen(State.RUNNING),
        _seen(State.RUNNING),
        _seen(State.RUNNING),
        _KEEP,
        _STOP,
    ),
    Event.SEEN_COMPLETED: (_FINISH, _FINISH, _FINISH, _KEEP, (None, Action.WIN)),
    Event.SEEN_FAILED: (
        _failed(State.FAILED),
        _failed(State.FAILED),
        _failed(State.FAILED),
        _KEEP,
        _settled(State.FAILED),
    ),
    Event.SEEN_CANCELLED: (
        (State.CANCELLED, Action.END),
        (State.CANCELLED, Action.END),
        (State.CANCELLED, Action.END),
        _KEEP,
        _settled(State.CANCELLED),
    ),
    Event.SEEN_TIMED_OUT: (
        _failed(State.TIMED_OUT),
        _failed(State.TIMED_OUT),
        _failed(State.TIMED_OUT),
        _KEEP,
        _settled(State.TIMED_OUT),
    ),
    Event.MISSING_EARLY: (_WATCH, _WATCH, _WATCH, _KEEP, _STOP),
    Event.MISSING: (
        _failed(State.LOST),
        _failed(State.LOST),
        _failed(State.LOST),
        _KEEP,
        _settled(State.LOST),
    ),
    Event.UNREACHABLE: (_WATCH, _WATCH, _WATCH, _KEEP, _WATCH),
    Event.GIVEN_UP: (
        (State.ABANDONED, Action.RETRY),  # a webhook has told its id
        (State.ABANDONED, Action.RETRY),
        (State.ABANDONED, Action.RETRY),
        _KEEP,
        _WATCH,
    ),
    Event.INSTANCE_GONE: (
        _failed(State.LOST),
        _failed(State.LOST),
        _failed(State.LOST),
        _KEEP,
        _settled(State.LOST),
    ),
    Event.COPY_FOUND: (_FINISH, _FINISH, _FINISH, _KEEP, (None, Action.WIN)),
    # Its webhook may still come, so an unknown sending is abandoned and not lost.
    Event.PATIENCE_OVER: (
        None,
        (State.ABANDONED, Action.RETRY),
        None,
        None,
        _settled(State.LOST),
    ),
    Event.PUBLISHED: (None, None, None, (State.COMPLETED, Action.CLOSE), None),
    Event.UNPUBLISHED: (None, None, None, _WATCH, None),
    # A result that is there is kept for a later `retry`, even where the job fails.
    Event.DEADLINE: (_DROP, _DROP, _DROP, (State.FAILED, Action.END), _STOP),
    Event.UNWANTED: (
        (State.ABANDONED, Action.STOP),
        (State.ABANDONED, Action.STOP),
        (State.ABANDONED, Action.STOP),
        _settled(State.CANCELLED),
        _STOP,
    ),
}

TABLE = _fill()
