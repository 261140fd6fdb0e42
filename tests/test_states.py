"""Every state times every event: each cell is decided and said here."""

from __future__ import annotations

import pytest

from orchestrator.states import ACTIVE, ENDED, TABLE, Action, Event, State, decide

# `state:action`, or the action alone where the state stays; `-` is ignored.
TABLE_SAID = """
event           submitting        unknown           queued            running           finishing         abandoned
accepted        queued:watch      queued:watch      watch             watch             finish            stop
refused         failed:withdraw   -                 -                 -                 -                 -
rejected        failed:end        -                 -                 -                 -                 -
uncertain       unknown:watch     watch             -                 -                 -                 -
sender_gone     unknown:watch     watch             -                 -                 -                 -
seen_queued     queued:watch      queued:watch      watch             queued:watch      finish            stop
seen_running    running:watch     running:watch     running:watch     watch             finish            stop
seen_completed  finishing:finish  finishing:finish  finishing:finish  finishing:finish  finish            win
seen_failed     failed:retry      failed:retry      failed:retry      failed:retry      finish            failed:settle
seen_cancelled  cancelled:end     cancelled:end     cancelled:end     cancelled:end     finish            cancelled:settle
seen_timed_out  timed_out:retry   timed_out:retry   timed_out:retry   timed_out:retry   finish            timed_out:settle
missing_early   watch             watch             watch             watch             finish            stop
missing         lost:retry        lost:retry        lost:retry        lost:retry        finish            lost:settle
unreachable     watch             watch             watch             watch             finish            watch
given_up        abandoned:retry   abandoned:retry   abandoned:retry   abandoned:retry   finish            watch
instance_gone   lost:retry        lost:retry        lost:retry        lost:retry        finish            lost:settle
copy_found      finishing:finish  finishing:finish  finishing:finish  finishing:finish  finish            win
patience_over   -                 abandoned:retry   -                 -                 -                 lost:settle
published       -                 -                 -                 -                 completed:close   -
unpublished     -                 -                 -                 -                 watch             -
deadline        abandoned:end     abandoned:end     abandoned:end     abandoned:end     failed:end        stop
unwanted        abandoned:stop    abandoned:stop    abandoned:stop    abandoned:stop    cancelled:settle  stop
"""  # noqa: E501 - a table


def said() -> list[tuple[State, Event, str]]:
    head, *rows = [line.split() for line in TABLE_SAID.strip().splitlines()]
    return [
        (State(state), Event[row[0].upper()], cell)
        for row in rows
        for state, cell in zip(head[1:], row[1:], strict=True)
    ]


@pytest.mark.parametrize(("state", "event", "cell"), said())
def test_a_cell_is_as_it_is_said(state: State, event: Event, cell: str) -> None:
    """What follows from an event in a state is what the table above says."""
    step = decide(state, event)
    stays = "" if step.state == state else f"{step.state.value}:"
    assert ("-" if step.action is Action.IGNORE else stays + step.action.name.lower()) == cell


def test_no_cell_is_missing() -> None:
    """All states, ended ones included, are decided for all events; the table above is whole."""
    assert set(TABLE) == {(state, event) for state in State for event in Event}
    assert {(s, e) for s, e, _ in said()} == {
        (s, e) for s in (*ACTIVE, State.ABANDONED) for e in Event
    }


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("event", Event)
def test_an_ended_attempt_stays_as_it_is(state: State, event: Event) -> None:
    """Nothing that is heard later changes an attempt that has ended."""
    assert decide(state, event).state == state
    assert decide(state, event).action is Action.IGNORE


@pytest.mark.parametrize(("state", "event"), list(TABLE))
def test_a_committed_result_is_never_thrown_away(state: State, event: Event) -> None:
    """Once a result is committed, only its job's end leads out of `finishing`."""
    if state is State.FINISHING:
        allowed = (Event.PUBLISHED, Event.DEADLINE, Event.UNWANTED)
        assert event in allowed or decide(state, event).state is State.FINISHING
