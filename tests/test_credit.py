"""orchestrator/credit.py: the balance, cached, and never in the way when it isn't known."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import requests
import responses

from orchestrator.credit import Balance, BalanceUnknown, Credit, RunPodBalance

URL = "https://api.runpod.example/graphql"
KEY = "planted-key-4711"


class Purse:
    """A balance source that gives what a test puts in: USD, or an error for None."""

    def __init__(self, usd: float | None) -> None:
        self.usd = usd
        self.looks = 0

    def balance(self) -> Balance:
        self.looks += 1
        if self.usd is None:
            raise BalanceUnknown("the purse is shut")
        return Balance(self.usd)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def at_once(look: Callable[[], None]) -> None:
    look()


def make(usd: float | None, min_usd: float = 5.0) -> tuple[Credit, Purse, Clock]:
    purse, clock = Purse(usd), Clock()
    return Credit(purse, min_usd, clock=clock, spawn=at_once), purse, clock


@pytest.mark.parametrize(("usd", "ok"), [(100, True), (5, True), (4.99, False), (-1, False)])
def test_credit_is_there_down_to_the_minimum(usd, ok):
    """The minimum itself is enough."""
    credit, _, _ = make(usd)
    assert credit.ok() is ok
    assert credit.known() == Balance(usd)


def test_the_balance_is_read_once_a_minute():
    """Not for each job."""
    credit, purse, clock = make(100)
    for _ in range(50):
        assert credit.ok()
    assert purse.looks == 1
    purse.usd = 1
    clock.now = 59
    assert credit.ok()
    clock.now = 60
    assert not credit.ok()
    assert purse.looks == 2


def test_an_unknown_balance_never_stops_work(caplog):
    """And a source that fails is asked once a minute, not more."""
    credit, purse, clock = make(None)
    assert all(credit.ok() for _ in range(10))
    assert credit.known() is None
    assert purse.looks == 1
    clock.now = 61
    assert credit.ok()
    assert purse.looks == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_a_low_balance_is_remembered_through_a_short_outage_only():
    """After 5 minutes without a look that worked it isn't known any more."""
    credit, purse, clock = make(1)
    assert not credit.ok()
    purse.usd = None
    clock.now = 240
    assert not credit.ok()
    clock.now = 301
    assert credit.ok()
    purse.usd = 1
    clock.now = 400
    assert not credit.ok()


def test_without_a_source_or_a_minimum_nothing_is_asked():
    """The operator who sets no minimum makes no calls."""
    credit, purse, _ = make(0, min_usd=0)
    assert credit.ok()
    assert purse.looks == 0
    assert Credit(None, 5).ok()


def test_a_low_balance_is_logged_when_it_becomes_low(caplog):
    """Once, not each minute."""
    credit, purse, clock = make(10)
    for usd in (10, 1, 0.5, 20, 2):
        purse.usd = usd
        credit.ok()
        clock.now += 60
    assert [record.msg["balance_usd"] for record in caplog.records] == [1, 2]


def test_asking_does_not_wait_for_a_slow_source():
    """The first answer is "unknown", and one look is enough for all who ask meanwhile."""
    asked, answer, noted = threading.Event(), threading.Event(), threading.Event()
    looks: list[int] = []

    class Slow:
        def balance(self) -> Balance:
            looks.append(1)
            asked.set()
            answer.wait(60)
            return Balance(1)

    def spawn(look: Callable[[], None]) -> None:
        def work() -> None:
            look()
            noted.set()

        threading.Thread(target=work, daemon=True).start()

    credit = Credit(Slow(), 5, spawn=spawn)
    assert credit.ok()
    assert asked.wait(60)
    assert credit.ok()
    answer.set()
    assert noted.wait(60)
    assert not credit.ok()
    assert looks == [1]


def test_a_look_that_cannot_be_started_is_an_unknown_balance():
    """No thread to be had is no reason to stop."""

    def spawn(_look: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    assert Credit(Purse(1), 5, spawn=spawn).ok()


def test_by_default_a_look_runs_in_a_thread_of_its_own():
    """The caller's thread never asks."""
    asked_in: list[threading.Thread] = []
    asked = threading.Event()

    class Source:
        def balance(self) -> Balance:
            asked_in.append(threading.current_thread())
            asked.set()
            return Balance(1)

    Credit(Source(), 5).ok()
    assert asked.wait(60)
    assert asked_in[0] is not threading.current_thread()
    assert asked_in[0].daemon


# --- RunPod's GraphQL API


def test_runpods_balance_is_read_with_the_key_in_a_header():
    """Not in the URL, which proxies log."""
    with responses.RequestsMock() as api:
        shown = {"data": {"myself": {"clientBalance": 12.5, "currentSpendPerHr": 0.4}}}
        api.post(URL, json=shown)
        assert RunPodBalance(URL, KEY).balance() == Balance(12.5, 0.4)
        sent = api.calls[0].request
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in sent.url
    assert "clientBalance" in json.loads(sent.body)["query"]


@pytest.mark.parametrize("spend", [None, "x", True])
def test_an_odd_spend_does_not_hide_the_balance(spend):
    """It is only shown, never decided by."""
    with responses.RequestsMock() as api:
        shown = {"data": {"myself": {"clientBalance": 3, "currentSpendPerHr": spend}}}
        api.post(URL, json=shown)
        assert RunPodBalance(URL, KEY).balance() == Balance(3.0, None)


@pytest.mark.parametrize(
    "given",
    [
        {"status": 401, "body": KEY},
        {"status": 429},
        {"status": 500, "body": KEY},
        {"status": 302, "headers": {"Location": "https://elsewhere.example"}},
        {"body": "<html>planted-key-4711</html>"},
        {"body": ""},
        {"body": "[" * 60_000},
        {"body": "x" * 100_000},
        {"body": "{}", "headers": {"Content-Length": "100"}},
        {"json": []},
        {"json": None},
        {"json": {"data": None, "errors": [{"message": KEY}]}},
        {"json": {"data": {"myself": None}}},
        {"json": {"data": {"myself": {"currentSpendPerHr": 1}}}},
        {"json": {"data": {"myself": {"clientBalance": None}}}},
        {"json": {"data": {"myself": {"clientBalance": "12"}}}},
        {"json": {"data": {"myself": {"clientBalance": True}}}},
        {"body": '{"data": {"myself": {"clientBalance": NaN}}}'},
        {"body": requests.ReadTimeout(KEY)},
        {"body": requests.ConnectTimeout(KEY)},
        {"body": requests.ConnectionError(KEY)},
    ],
)
def test_any_other_answer_is_an_unknown_balance(given: dict[str, Any]):
    """The reason doesn't repeat what the server said."""
    with responses.RequestsMock() as api:
        api.post(URL, **given)
        with pytest.raises(BalanceUnknown) as caught:
            RunPodBalance(URL, KEY).balance()
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[bad", "nothing", "http://", "gopher://x"])
def test_a_malformed_address_is_an_unknown_balance(url):
    """A slip in RUNPOD_GRAPHQL_URL stops no job."""
    with pytest.raises(BalanceUnknown):
        RunPodBalance(url, KEY).balance()
