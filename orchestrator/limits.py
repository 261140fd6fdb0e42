"""Token buckets that keep one replica below its share of RunPod's rate limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WINDOW_SECONDS = 10.0  # RunPod counts calls in windows of this length
RUN_LIMIT = 1000  # calls in a window, for one endpoint, all replicas together
STATUS_LIMIT = 2000
CANCEL_LIMIT = 100
USED_SHARE = 0.99  # the rest is for calls that were held up on their way and arrive together
BURST_SHARE = 0.02  # of the limit: small, as each token of it is taken from the steady rate

FIRST_PAUSE = 1.0  # seconds after a 429 that doesn't say how long to wait
LONGEST_PAUSE = 30.0  # seconds such pauses grow to
LONGEST_ASKED = 300.0  # seconds at most, whatever a Retry-After says

Clock = Callable[[], float]


class Bucket:
    """Hands out `rate_per_s` tokens a second, and up to `burst` at once; thread-safe.

    In any window of `t` seconds at most `burst + t * rate_per_s` tokens are given.
    """

    def __init__(
        self,
        rate_per_s: float,
        burst: int,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate_per_s <= 0 or burst < 1:
            raise ValueError("a bucket needs a rate above 0 and a burst of at least 1")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()  # guards the two below
        self._tokens = float(burst)
        self._since = clock()  # when `_tokens` was counted; in a pause, the pause's end
        self._turn = threading.Lock()  # one waiter sleeps, the others queue behind it

    def take(self, timeout: float | None = None) -> bool:
        """Wait for one token, `timeout` seconds at most (None: for ever). False: none came."""
        end = None if timeout is None else self._clock() + timeout
        if self.try_take():
            return True
        if not self._turn.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            return False
        try:
            while not self.try_take():
                wait = self.delay()
                if end is not None:
                    wait = min(wait, end - self._clock())
                    if wait <= 0:
                        return False
                self._sleep(wait)
            return True
        finally:
            self._turn.release()

    def try_take(self, n: int = 1) -> int:
        """Take up to `n` tokens without waiting; returns how many."""
        with self._lock:
            self._refill()
            granted = max(0, min(n, int(self._tokens)))
            self._tokens -= granted
            return granted

    def delay(self) -> float:
        """Seconds until there is a token; 0 if there is one."""
        with self._lock:
            self._refill()
            if self._tokens >= 1:
                return 0.0
            blocked = max(0.0, self._since - self._clock())
            return blocked + (1 - self._tokens) / self.rate_per_s

    def pause(self, seconds: float) -> None:
        """Give nobody a token for `seconds`; then start from none, so that no burst follows."""
        with self._lock:
            self._refill()
            until = self._clock() + seconds
            if seconds > 0 and until > self._since:
                self._tokens, self._since = 0.0, until

    def _refill(self) -> None:
        now = self._clock()
        if now > self._since:
            grown = self._tokens + (now - self._since) * self.rate_per_s
            # A wait of exactly the missing time must be enough, whatever the rounding.
            self._tokens = min(float(self.burst), round(grown, 9))
            self._since = now


class Limits:
    """The buckets of one endpoint: this replica's share of what RunPod allows.

    Up to 50 replicas all windows hold; beyond, cancels alone may exceed theirs together.

    Args:
        replicas: how many processes share the endpoint.
    """

    def __init__(self, replicas: int = 1) -> None:
        if replicas < 1:
            raise ValueError("replicas must be at least 1")
        self.run = _share(RUN_LIMIT, replicas)
        self.status = _share(STATUS_LIMIT, replicas)
        self.cancel = _share(CANCEL_LIMIT, replicas)


def _share(limit: int, replicas: int) -> Bucket:
    share = limit / replicas
    burst = max(1, int(share * BURST_SHARE))
    rate = (share * USED_SHARE - burst) / WINDOW_SECONDS
    return Bucket(max(rate, share * BURST_SHARE / WINDOW_SECONDS), burst)


class Backoff:
    """How long to wait after a 429: as long as it asks for, else longer each time; thread-safe.

    Refusals that arrive while a wait is on are the same event and don't make it longer.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pause = 0.0
        self._until = 0.0

    def refused(self, asked: float | None = None) -> float:
        """Seconds to wait; `asked` is what the answer says, None or 0 if nothing."""
        with self._lock:
            now = self._clock()
            if asked:
                wait = min(asked, LONGEST_ASKED)
            elif now < self._until:
                return self._until - now
            else:
                self._pause = min(LONGEST_PAUSE, self._pause * 2) or FIRST_PAUSE
                wait = self._pause
            self._until = max(self._until, now + wait)
            return wait

    def accepted(self) -> None:
        """A call got through: the next refusal starts small again."""
        if self._pause and self._clock() >= self._until:  # not one that was under way before
            with self._lock:
                self._pause = 0.0
