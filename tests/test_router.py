"""orchestrator/router.py: which endpoint takes a job, case by case and in general."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.router import Candidate, Choice, Wish, choose, expected_wait

A = Candidate(
    name="a",
    kind="runpod",
    price=0.00019,
    healthy=True,
    in_flight=0,
    max_in_flight=100,
    workers_ready=2,
    queued=0,
    credit_ok=True,
    paused_reason=None,
)
B = replace(A, name="b", price=0.00034)
LOCAL = replace(A, name="local", kind="local", price=0.0, max_in_flight=2, workers_ready=1)
DOWN = {"healthy": False}
PAUSED = {"paused_reason": "check RUNPOD_API_KEY"}
BROKE = {"credit_ok": False}
FULL = {"in_flight": 100}
LONG = {"queued": 200}  # 50 minutes for two workers
COLD = {"workers_ready": 0}


def a(**changes):
    return replace(A, **changes)


def b(**changes):
    return replace(B, **changes)


def local(**changes):
    return replace(LOCAL, **changes)


CASES = {
    "RunPod before local, though local is free of charge": ([LOCAL, A], Wish(), "a"),
    "the cheaper of two equal ones": ([B, A], Wish(), "a"),
    "an unknown price is the dearest": ([a(price=None), B], Wish(), "b"),
    "an unknown price is no obstacle": ([a(price=None)], Wish(), "a"),
    "a little longer queue is worth the lower price": ([a(queued=2), B], Wish(), "a"),
    "a much longer queue is not": ([a(queued=20), B], Wish(), "b"),
    "our own jobs count where the queue isn't told": (
        [a(queued=None, in_flight=40), B],
        Wish(),
        "b",
    ),
    "our own jobs count where the queue was told too early": ([a(in_flight=40), B], Wish(), "b"),
    "a warm worker before a cold start": ([a(**COLD), B], Wish(), "b"),
    "a cold start before a long queue": ([a(**COLD, queued=50), b(queued=50)], Wish(), "a"),
    "unknown workers are a cold start": ([a(workers_ready=None), B], Wish(), "b"),
    "equal in all: the one with fewer jobs": ([a(in_flight=1), replace(A, name="c")], Wish(), "c"),
    "equal in all: by name": ([replace(A, name="c"), A], Wish(), "a"),
    "the dearer one where the cheaper is down": ([a(**DOWN), B, LOCAL], Wish(), "b"),
    "... is paused": ([a(**PAUSED), B, LOCAL], Wish(), "b"),
    "... is full": ([a(**FULL), B, LOCAL], Wish(), "b"),
    "... blocked the source": ([A, B, LOCAL], Wish(frozenset("a")), "b"),
    "... failed with this job": ([A, B, LOCAL], Wish(failed_on=("a",)), "b"),
    "the one that failed less often": ([A, B], Wish(failed_on=("a", "b", "a")), "b"),
    "one that failed rather than local": ([A, LOCAL], Wish(failed_on=("a", "a")), "a"),
    "local where RunPod is down": ([a(**DOWN), LOCAL], Wish(), "local"),
    "local where RunPod is paused": ([a(**PAUSED), LOCAL], Wish(), "local"),
    "local where there is no credit": ([a(**BROKE), b(**BROKE), LOCAL], Wish(), "local"),
    "credit is no matter of a local one": ([a(**BROKE), local(**BROKE)], Wish(), "local"),
    "local where RunPod blocked the source": ([A, LOCAL], Wish(frozenset("a")), "local"),
    "local where there is nothing else": ([LOCAL], Wish(), "local"),
    "local's own queue where there is nothing else": ([local(in_flight=1)], Wish(), "local"),
    "RunPod's queue before local": ([a(queued=40), LOCAL], Wish(), "a"),
    "local helps where RunPod's queue is half an hour longer": (
        [a(**LONG), LOCAL],
        Wish(),
        "local",
    ),
    "... not with a worker that is busy": ([a(**LONG), local(in_flight=1)], Wish(), "a"),
    "... not where RunPod starts workers yet": ([a(**LONG | COLD), LOCAL], Wish(), "a"),
    "local helps where RunPod is full": ([a(**FULL), LOCAL], Wish(), "local"),
    "... not with a worker that is busy: wait": ([a(**FULL), local(in_flight=1)], Wish(), None),
    "a local one that has not been started may be": (
        [a(**DOWN), local(workers_ready=None)],
        Wish(),
        "local",
    ),
    "too dear": ([A, B], Wish(price_limit=0.0002), "a"),
    "as dear as it may be": ([B], Wish(price_limit=0.00034), "b"),
    "nothing is there: wait": ([], Wish(), None),
    "everything is out for now: wait": ([a(**DOWN), b(**PAUSED), local(**DOWN)], Wish(), None),
    "local is full: wait": ([a(**DOWN), local(in_flight=2)], Wish(), None),
    "one is blocked, one is down: wait": ([A, b(**DOWN)], Wish(frozenset("a")), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rule_case_by_case(case):
    """Each line says which endpoint is chosen, or that the job waits; none of these is final."""
    candidates, wish, name = CASES[case]
    choice = choose(candidates, wish)
    assert (choice.name, choice.final) == (name, False)
    assert choice.reason


@pytest.mark.parametrize(
    ("candidates", "wish"),
    [
        ([A], Wish(frozenset("a"))),
        ([A, a(name="b", **DOWN), LOCAL], Wish(frozenset(["a", "b", "local"]))),
        ([A, B], Wish(price_limit=0.0001)),
        ([A, B], Wish(frozenset("a"), price_limit=0.0002)),
    ],
)
def test_it_is_final_where_nobody_will_ever_take_it(candidates, wish):
    """The job fails now, not at its deadline."""
    choice = choose(candidates, wish)
    assert choice.name is None
    assert choice.final


def test_a_choice_says_why():
    """The operator reads it in the log."""
    assert choose([a(**PAUSED), b(**FULL)], Wish()) == Choice(
        None, "a: check RUNPOD_API_KEY; b: full"
    )
    assert choose([A], Wish(frozenset("a"))).reason == "a: the source is blocked there"
    assert choose([a(**DOWN), LOCAL], Wish()).reason == "RunPod can't take it"
    assert choose([a(**FULL), LOCAL], Wish()).reason == "RunPod is busy"
    assert choose([], Wish()).reason == "no endpoint is configured"


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 0),
        ({"queued": 4}, 60),
        ({"queued": None, "in_flight": 1}, 0),
        ({"queued": None, "in_flight": 2}, 15),
        ({"queued": 4, "in_flight": 41}, 600),
        ({"workers_ready": 0, "queued": 900}, 60),
        ({"workers_ready": None}, 60),
    ],
)
def test_the_expected_wait_is_the_queue_shared_by_the_workers(changes, seconds):
    """In seconds; a cold start where no worker is ready."""
    assert expected_wait(a(**changes)) == seconds


counts = st.integers(0, 60)
candidate = st.builds(
    Candidate,
    name=st.just(""),
    kind=st.sampled_from(["runpod", "runpod", "local"]),
    price=st.none() | st.sampled_from([0.0, 0.0001, 0.0002, 0.0003]),
    healthy=st.sampled_from([True, True, False]),
    in_flight=counts,
    max_in_flight=st.integers(0, 60),
    workers_ready=st.none() | st.integers(0, 5),
    queued=st.none() | counts,
    credit_ok=st.sampled_from([True, True, False]),
    paused_reason=st.sampled_from([None, None, "", "why"]),
)
several = st.lists(candidate, max_size=5).map(
    lambda some: [replace(c, name=f"e{i}") for i, c in enumerate(some)]
)
names = st.sampled_from([f"e{i}" for i in range(5)])
wishes = st.builds(
    Wish,
    blocked_on=st.frozensets(names, max_size=3),
    failed_on=st.lists(names, max_size=4).map(tuple),
    price_limit=st.none() | st.sampled_from([0.0001, 0.0002]),
)


def may_take(one: Candidate, wish: Wish) -> bool:
    """Whether nothing forbids to send this job there, in words of the design."""
    affordable = wish.price_limit is None or one.price is None or one.price <= wish.price_limit
    return (
        one.healthy
        and one.in_flight < one.max_in_flight
        and one.paused_reason is None
        and (one.credit_ok or one.kind == "local")
        and one.name not in wish.blocked_on
        and affordable
    )


@given(several, wishes)
def test_what_is_chosen_may_take_the_job(candidates, wish):
    """Never an unhealthy, full, paused, blocked, unpaid or too dear one."""
    choice = choose(candidates, wish)
    if choice.name is not None:
        assert not choice.final
        assert may_take(next(c for c in candidates if c.name == choice.name), wish)


@given(several, wishes)
def test_no_job_waits_while_a_runpod_endpoint_can_take_it(candidates, wish):
    """And it is given up only where every endpoint is out for ever."""
    choice = choose(candidates, wish)
    if any(c.kind == "runpod" and may_take(c, wish) for c in candidates):
        assert choice.name is not None
    if choice.final:
        limit = wish.price_limit
        assert candidates
        assert all(
            c.name in wish.blocked_on or (limit is not None and (c.price or 0) > limit)
            for c in candidates
        )


@given(several, wishes)
def test_local_is_the_fallback_only(candidates, wish):
    """It is chosen where no RunPod endpoint can take the job, or with a wait far shorter."""
    choice = choose(candidates, wish)
    chosen = next((c for c in candidates if c.name == choice.name), None)
    remote = [c for c in candidates if c.kind == "runpod" and may_take(c, wish)]
    if chosen and chosen.kind == "local" and remote:
        fewest = min(wish.failed_on.count(c.name) for c in remote)
        good = [c for c in remote if wish.failed_on.count(c.name) == fewest]
        longest = max(map(expected_wait, good))
        assert longest >= expected_wait(chosen) + 1800
        assert chosen.in_flight < max(chosen.workers_ready or 0, 1)


@given(several, st.lists(st.sampled_from([0.0001, 0.0002, 0.0003]), min_size=5, max_size=5))
def test_the_cheapest_wins_among_equals(candidates, prices):
    """Where two differ in name and price alone, the dearer one is never chosen."""
    if not candidates:
        return
    equals = [replace(candidates[0], name=f"e{i}", price=price) for i, price in enumerate(prices)]
    choice = choose(equals, Wish())
    if choice.name is not None:
        assert prices[int(choice.name[1:])] == min(prices)


@given(several, wishes, st.randoms())
def test_the_order_of_the_candidates_does_not_matter(candidates, wish, random):
    """All replicas choose alike."""
    shuffled = random.sample(candidates, len(candidates))
    assert choose(shuffled, wish).name == choose(candidates, wish).name
