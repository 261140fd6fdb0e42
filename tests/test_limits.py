"""orchestrator/limits.py: how many calls a replica makes, and how long it waits after a 429."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.limits import Backoff, Bucket, Limits


class Clock:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def make(rate: float, burst: int) -> tuple[Bucket, Clock]:
    clock = Clock()
    return Bucket(rate, burst, clock=clock, sleep=clock.sleep), clock


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_bucket_that_never_gives_is_refused(rate, burst):
    """Who takes from it would wait for ever."""
    with pytest.raises(ValueError, match="burst"):
        Bucket(rate, burst)


def test_a_burst_is_given_at_once_and_then_the_rate():
    """Tokens come one by one after the burst."""
    bucket, clock = make(10, 3)
    assert bucket.try_take(5) == 3
    assert bucket.try_take() == 0
    clock.sleep(0.25)
    assert bucket.try_take(5) == 2
    clock.sleep(100)
    assert bucket.try_take(5) == 3


@pytest.mark.parametrize("n", [0, -2])
def test_taking_nothing_gives_nothing(n):
    """And puts nothing in."""
    bucket, _ = make(10, 3)
    assert bucket.try_take(n) == 0
    assert bucket.try_take(5) == 3


def test_take_waits_exactly_for_its_token():
    """One sleep, no spinning."""
    bucket, clock = make(4, 1)
    assert bucket.take()
    assert clock.slept == []
    assert bucket.take()
    assert clock.slept == [pytest.approx(0.25)]


def test_take_gives_up_at_its_timeout():
    """It has waited that long, and the token that came later is still there."""
    bucket, clock = make(1, 1)
    assert bucket.take(0)
    assert not bucket.take(0.5)
    assert clock.now == pytest.approx(1000.5)
    assert not bucket.take(0)
    assert bucket.take(0.5)


def test_nobody_gets_a_token_in_a_pause_and_no_burst_follows():
    """A 429 is answered with silence, then with the steady rate."""
    bucket, clock = make(10, 5)
    bucket.pause(3)
    assert bucket.try_take() == 0
    assert bucket.delay() == pytest.approx(3.1)
    clock.sleep(3)
    assert bucket.try_take() == 0
    clock.sleep(0.1)
    assert bucket.try_take(5) == 1


def test_a_shorter_pause_does_not_end_a_longer_one():
    """Of several 429s the longest wait counts; a pause of nothing is none."""
    bucket, _clock = make(10, 5)
    bucket.pause(0)
    bucket.pause(-1)
    assert bucket.try_take() == 1
    bucket.pause(10)
    bucket.pause(2)
    assert bucket.delay() == pytest.approx(10.1)
    assert not bucket.take(5)
    assert bucket.take(6)


def test_a_waiter_is_held_up_by_a_pause_that_comes_meanwhile():
    """It looks again after its sleep, and sleeps on."""
    bucket, clock = make(1, 1)
    bucket.take()

    def sleep(seconds: float) -> None:
        if not clock.slept:
            bucket.pause(20)
        clock.sleep(seconds)

    bucket._sleep = sleep
    assert bucket.take()
    assert clock.now == pytest.approx(1021)


@given(
    rate=st.floats(0.1, 500),
    burst=st.integers(1, 50),
    steps=st.lists(
        st.tuples(st.floats(0, 3), st.integers(1, 80), st.sampled_from([0.0, 0.0, 0.0, 0.7])),
        max_size=40,
    ),
)
def test_no_window_holds_more_than_burst_and_rate_allow(rate, burst, steps):
    """Whatever the calls and pauses, in each stretch of time."""
    bucket, clock = make(rate, burst)
    given_at: list[tuple[float, int]] = []
    for wait, n, pause in steps:
        clock.sleep(wait)
        bucket.pause(pause)
        given_at.append((clock.now, bucket.try_take(n)))
    for first in range(len(given_at)):
        for last in range(first, len(given_at)):
            span = given_at[last][0] - given_at[first][0]
            total = sum(n for _, n in given_at[first : last + 1])
            assert total <= burst + rate * span + 1e-3


def test_threads_together_get_no_more_than_there_is():
    """Each token goes to one of them."""
    bucket, _ = make(0.001, 40)
    granted: list[int] = []
    threads = [
        threading.Thread(target=lambda: granted.append(sum(bucket.try_take() for _ in range(20))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 40


def test_waiting_threads_each_get_a_token():
    """They queue behind the one that sleeps; none is forgotten."""
    bucket = Bucket(1000, 1)
    granted: list[bool] = []
    threads = [threading.Thread(target=lambda: granted.append(bucket.take(60))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert granted == [True] * 16


def test_a_waiter_behind_another_gives_up_at_its_own_timeout():
    """The one before it may wait for ever."""
    asleep, wake = threading.Event(), threading.Event()

    def sleep(_seconds: float) -> None:
        asleep.set()
        wake.wait(60)

    clock = Clock()
    bucket = Bucket(1, 1, clock=clock, sleep=sleep)
    bucket.take()
    first: list[bool] = []
    thread = threading.Thread(target=lambda: first.append(bucket.take(120)), daemon=True)
    thread.start()
    assert asleep.wait(60)
    try:
        assert not bucket.take(0.01)
    finally:
        clock.now += 1
        wake.set()
    thread.join(60)
    assert first == [True]


@given(replicas=st.integers(1, 50))
def test_all_replicas_together_stay_below_runpods_limits(replicas):
    """1000 runs, 2000 looks and 100 cancels in 10 s, with 1% to spare."""
    limits = Limits(replicas)
    for bucket, limit in ((limits.run, 1000), (limits.status, 2000), (limits.cancel, 100)):
        assert replicas * (bucket.burst + 10 * bucket.rate_per_s) <= 0.99 * limit + 1e-6
        assert bucket.rate_per_s > 0


def test_one_replica_alone_uses_nearly_all_of_the_limit():
    """95 submissions a second are the aim, and a look and a half for each."""
    limits = Limits(1)
    assert limits.run.rate_per_s >= 95
    assert limits.status.rate_per_s >= 150


def test_very_many_replicas_still_may_cancel():
    """Slowly; a 429 tells when it was too much."""
    assert Limits(1000).cancel.try_take() == 1


@pytest.mark.parametrize("replicas", [0, -1])
def test_no_replicas_are_refused(replicas):
    """There is at least this one."""
    with pytest.raises(ValueError, match="replicas"):
        Limits(replicas)


def test_waits_without_retry_after_double_up_to_half_a_minute():
    """While refusals go on, each after the wait before it."""
    clock = Clock()
    backoff = Backoff(clock=clock)
    waits = []
    for _ in range(8):
        waits.append(backoff.refused())
        clock.sleep(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_refusals_at_the_same_time_are_one():
    """32 calls that were under way together don't make the wait 30 s."""
    clock = Clock()
    backoff = Backoff(clock=clock)
    assert backoff.refused() == 1
    clock.sleep(0.25)
    assert [backoff.refused() for _ in range(31)] == [0.75] * 31
    clock.sleep(0.75)
    assert backoff.refused() == 2


def test_a_call_that_gets_through_ends_the_growth():
    """But not one that was accepted before the refusal and only answered after it."""
    clock = Clock()
    backoff = Backoff(clock=clock)
    backoff.refused()
    clock.sleep(1)
    backoff.refused()
    backoff.accepted()
    clock.sleep(2)
    assert backoff.refused() == 4
    clock.sleep(4)
    backoff.accepted()
    assert backoff.refused() == 1


@pytest.mark.parametrize(("asked", "wait"), [(7.5, 7.5), (0.01, 0.01), (9999, 300), (0, 1)])
def test_a_wait_that_is_asked_for_is_kept_within_reason(asked, wait):
    """Zero asks for nothing; five minutes are the most."""
    assert Backoff(clock=Clock()).refused(asked) == wait
