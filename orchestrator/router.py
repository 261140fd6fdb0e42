"""Which endpoint takes a job. Pure: what is known goes in, a choice comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

JOB_SECONDS = 30.0  # what one job takes of a worker, for comparing queues
COLD_SECONDS = 60.0  # until a first worker is there, where none is
NEAR_SECONDS = 30.0  # waits that differ by less are equal: the price decides
LONG_SECONDS = 1800.0  # a queue this much longer than at home lets the local endpoint help


@dataclass(frozen=True)
class Candidate:
    """An endpoint as it is known now.

    Args:
        price: USD per second; None if unknown, which counts as the dearest.
        healthy: it answers, and its workers work.
        in_flight: jobs that we sent it and that have not ended.
        workers_ready: idle or running ones; None if unknown.
        queued: jobs of everybody in its queue; None if unknown.
        credit_ok: what it bills can be paid; without effect on a local one.
        paused_reason: why nothing is sent to it for now, else None.
    """

    name: str
    kind: Literal["runpod", "local"]
    price: float | None
    healthy: bool
    in_flight: int
    max_in_flight: int
    workers_ready: int | None
    queued: int | None
    credit_ok: bool
    paused_reason: str | None


@dataclass(frozen=True)
class Wish:
    """What a job asks of its endpoint.

    Args:
        blocked_on: endpoints on which its source was blocked: never again.
        failed_on: endpoints on which it failed otherwise, one entry each time: rather not.
        price_limit: USD per second at most; None for any.
    """

    blocked_on: frozenset[str] = frozenset()
    failed_on: tuple[str, ...] = ()
    price_limit: float | None = None


@dataclass(frozen=True)
class Choice:
    """The endpoint's name; or None: wait, or give up if `final`."""

    name: str | None
    reason: str
    final: bool = False


def choose(candidates: Sequence[Candidate], wish: Wish) -> Choice:
    """Pick the endpoint for one job.

    The rule:

    1. Out for this job is one that blocked its source or is too dear; if that is all of them,
       the choice is final. Out for now is one that is unhealthy, paused, without credit or full.
    2. RunPod before local. Among RunPod's endpoints: the fewest failures of this job, then the
       shortest expected wait, where waits within 30 s are equal, then the price, then the wait,
       then the fewest jobs in flight.
    3. Local takes what RunPod can't: there is none, or each is out. A full one is busy, not out:
       then, and where RunPod's queue is half an hour longer, local helps with a free worker
       only, and the other jobs wait for RunPod.

    The expected wait is the queue (everybody's as the endpoint told it, or ours by what we sent,
    whichever is longer) times 30 s, shared by the ready workers; without a ready worker it is a
    cold start and no more, as RunPod starts as many as the queue needs.
    """
    possible = [c for c in candidates if _never(c, wish) is None]
    if not possible:
        return _nowhere(candidates, wish)
    usable = [c for c in possible if _not_now(c) is None]
    remote = [c for c in usable if c.kind == "runpod"]
    local = [c for c in usable if c.kind == "local"]
    best = _best([c for c in remote if not _full(c)], wish)
    helper = _best([c for c in local if not _full(c)], wish)
    if remote and helper and not _helps(helper, best):
        helper = None
    picked = helper or best
    if picked is None:
        return Choice(None, "; ".join(f"{c.name}: {_not_now(c) or 'full'}" for c in possible))
    return Choice(picked.name, _because(picked, remote, wish))


def expected_wait(candidate: Candidate) -> float:
    """Seconds until a job that is sent now would start."""
    workers = candidate.workers_ready
    if workers is None or workers < 1:
        return COLD_SECONDS
    waiting = max(candidate.queued or 0, candidate.in_flight - workers + 1, 0)
    return JOB_SECONDS * waiting / workers


def _never(candidate: Candidate, wish: Wish) -> str | None:
    if candidate.name in wish.blocked_on:
        return "the source is blocked there"
    limit, price = wish.price_limit, candidate.price
    if limit is not None and price is not None and price > limit:
        return "it costs more than the job may"
    return None


def _not_now(candidate: Candidate) -> str | None:
    if candidate.paused_reason is not None:
        return candidate.paused_reason or "paused"
    if not candidate.healthy:
        return "unhealthy"
    return "no credit" if candidate.kind == "runpod" and not candidate.credit_ok else None


def _full(candidate: Candidate) -> bool:
    return candidate.in_flight >= candidate.max_in_flight


def _best(candidates: Sequence[Candidate], wish: Wish) -> Candidate | None:
    if not candidates:
        return None
    fewest = min(wish.failed_on.count(c.name) for c in candidates)
    good = [c for c in candidates if wish.failed_on.count(c.name) == fewest]
    shortest = min(map(expected_wait, good))
    near = [c for c in good if expected_wait(c) <= shortest + NEAR_SECONDS]
    return min(near, key=lambda c: (_price(c), expected_wait(c), c.in_flight, c.name))


def _price(candidate: Candidate) -> float:
    return math.inf if candidate.price is None else candidate.price


def _helps(local: Candidate, remote: Candidate | None) -> bool:
    """Whether a local endpoint should relieve RunPod: only with a worker that is free."""
    if local.in_flight >= max(local.workers_ready or 0, 1):
        return False
    return remote is None or expected_wait(remote) >= expected_wait(local) + LONG_SECONDS


def _because(picked: Candidate, remote: Sequence[Candidate], wish: Wish) -> str:
    if picked.kind == "local":
        return "RunPod is busy" if remote else "RunPod can't take it"
    if len(remote) == 1:
        return "the only RunPod endpoint that can take it"
    if any(c.name in wish.failed_on for c in remote) and picked.name not in wish.failed_on:
        return "it has not failed there"
    return f"expected wait {expected_wait(picked):.0f} s, and its price"


def _nowhere(candidates: Sequence[Candidate], wish: Wish) -> Choice:
    if not candidates:
        return Choice(None, "no endpoint is configured")
    return Choice(None, "; ".join(f"{c.name}: {_never(c, wish)}" for c in candidates), final=True)
