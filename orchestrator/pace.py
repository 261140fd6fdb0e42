"""How often a sending is looked at. Pure."""

from __future__ import annotations

from orchestrator.states import State

STATUS_SHARE = 0.45  # of the allowed status calls; the rest is for webhooks and what is new
FIRST_LOOK = 1.0  # seconds after it was sent: a repeated job is answered at once
QUEUED_GROWTH = 0.1  # of the time it has waited: a long queue moves slowly
QUEUED_LONGEST = 30.0  # seconds
WEBHOOK_FACTOR = 2.0  # where a webhook tells the end, looks are for the progress alone


def next_look(
    state: State,
    age: float,
    *,
    poll_seconds: float,
    in_flight: int,
    rate: float,
    webhooks: bool,
) -> float:
    """Seconds until the next look.

    Args:
        age: seconds since it was sent.
        in_flight: sendings that all replicas look at.
        rate: status calls a second that all replicas may make together.
    """
    wanted = poll_seconds * (WEBHOOK_FACTOR if webhooks else 1.0)
    if state in (State.QUEUED, State.UNKNOWN):
        wanted = max(wanted, min(QUEUED_LONGEST, age * QUEUED_GROWTH))
    if age <= 0:
        wanted = min(wanted, FIRST_LOOK)
    share = STATUS_SHARE if webhooks else 2 * STATUS_SHARE
    return max(wanted, in_flight / (rate * share))
