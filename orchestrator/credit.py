"""What is left on the RunPod account, so that no job is sent that nobody can pay for."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.exchange import Exchange, NotSent, Unanswered
from orchestrator.log import get_logger

FRESH_SECONDS = 60.0  # between two looks
KNOWN_SECONDS = 300.0  # a balance older than this, as looks fail, is not known any more
LOOK_SECONDS = 10.0
MAX_ANSWER_BYTES = 64 * 1024
QUERY = b'{"query": "query { myself { clientBalance currentSpendPerHr } }"}'

log = get_logger()


@dataclass(frozen=True)
class Balance:
    """USD on the account, and USD per hour that it spends now (None if not told)."""

    usd: float
    usd_per_hour: float | None = None


class BalanceUnknown(Exception):
    """The balance could not be read; the message says why and never holds the key."""


class BalanceSource(Protocol):
    """Where the balance is read."""

    def balance(self) -> Balance:
        """The balance now. Raises BalanceUnknown."""


class RunPodBalance:
    """The balance by RunPod's GraphQL API, which is announced to retire early in 2027.

    Source: https://graphql-spec.runpod.io, `myself { clientBalance currentSpendPerHr }`.
    """

    def __init__(self, url: str, api_key: str, *, seconds: float = LOOK_SECONDS) -> None:
        self._url = url
        headers = {
            "Authorization": f"Bearer {api_key}",
            "Content-Type": "application/json",
            "User-Agent": "lyricpod",
        }
        self._exchange = Exchange(headers, seconds=seconds, limit=MAX_ANSWER_BYTES)

    def balance(self) -> Balance:
        """See `BalanceSource`."""
        try:
            answer = self._exchange.send("POST", self._url, QUERY)
        except (NotSent, Unanswered) as error:
            raise BalanceUnknown(f"RunPod's GraphQL API: {error.reason}") from error
        if answer.status != 200:
            raise BalanceUnknown(f"RunPod's GraphQL API answered {answer.status}")
        return _read(answer.body)


def _read(body: bytes) -> Balance:
    try:
        shown = json.loads(body)["data"]["myself"]
        usd, per_hour = _usd(shown["clientBalance"]), _usd(shown.get("currentSpendPerHr"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BalanceUnknown("RunPod's GraphQL API answered in another shape") from error
    if usd is None:
        raise BalanceUnknown("RunPod's GraphQL API shows no balance to this key")
    return Balance(usd, per_hour)


def _usd(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


class Credit:
    """Whether there is credit for another job; thread-safe, and asking never waits.

    A balance that isn't known never stops work. One that was seen counts for 5 minutes while
    looks fail: a short outage of the balance's API must not open the tap again.

    Args:
        source: None: unknown for ever.
        min_usd: below this there is no credit; 0 never asks.
        spawn: runs a look beside the caller; by default in a daemon thread.
    """

    def __init__(
        self,
        source: BalanceSource | None,
        min_usd: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._source = source if min_usd > 0 else None
        self._min_usd = min_usd
        self._clock = clock
        self._spawn = spawn or _in_thread
        self._lock = threading.Lock()  # guards all below
        self._looking = False
        self._looked_at = -math.inf
        self._seen_at = -math.inf
        self._seen: Balance | None = None

    def ok(self) -> bool:
        """True unless the balance is known to be below the minimum."""
        balance = self.known()
        return balance is None or balance.usd >= self._min_usd

    def known(self) -> Balance | None:
        """The last balance seen, or None; starts a look if the last one is a minute ago."""
        if self._is_due():
            try:
                self._spawn(self._look)
            except RuntimeError:  # no thread to be had, or the interpreter ends
                self._note(None)
        with self._lock:
            return self._seen if self._clock() - self._seen_at < KNOWN_SECONDS else None

    def _is_due(self) -> bool:
        with self._lock:
            age = self._clock() - self._looked_at
            due = self._source is not None and not self._looking and age >= FRESH_SECONDS
            self._looking = self._looking or due
            return due

    def _look(self) -> None:
        balance = None
        try:
            if self._source:
                balance = self._source.balance()
        except BalanceUnknown as error:
            log.warning("the credit balance is not known", reason=str(error))
        finally:
            self._note(balance)

    def _note(self, balance: Balance | None) -> None:
        with self._lock:
            self._looking = False
            self._looked_at = self._clock()
            was_low = self._seen is not None and self._seen.usd < self._min_usd
            if balance:
                self._seen, self._seen_at = balance, self._looked_at
        if balance and balance.usd < self._min_usd and not was_low:
            log.warning(
                "the credit is below its minimum: no new jobs are sent to RunPod",
                balance_usd=round(balance.usd, 2),
                min_usd=self._min_usd,
            )


def _in_thread(look: Callable[[], None]) -> None:
    threading.Thread(target=look, name="lyricpod-credit", daemon=True).start()
