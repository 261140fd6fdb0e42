"""orchestrator/endpoint.py: what each answer, and each missing answer, of the job API becomes."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import responses
from hypothesis import given
from hypothesis import strategies as st
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import (
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from orchestrator import endpoint as module
from orchestrator.endpoint import (
    Accepted,
    Endpoint,
    EndpointClient,
    Health,
    Misconfigured,
    Missing,
    Phase,
    Refused,
    Rejected,
    Seen,
    Uncertain,
    Unreachable,
    retry_after,
)
from orchestrator.limits import Limits

BASE = "https://api.runpod.example/v2"
KEY = "planted-key-4711"
BODY = {
    "input": {"youtube_url": "https://youtu.be/planted-input"},
    "webhook": "https://backend.example/lyricpod/webhook/planted-token",
}
LINGER_ZERO = struct.pack("ii", 1, 0)  # close sends RST instead of FIN


def make(**changes: Any) -> Endpoint:
    """An endpoint that the mocked answers below belong to."""
    values = {"name": "a", "base_url": BASE, "endpoint_id": "abc123", "api_key": KEY, **changes}
    return Endpoint(**values)


@pytest.fixture
def client() -> Iterator[EndpointClient]:
    client = EndpointClient(make())
    yield client
    client.close()


@pytest.fixture
def api() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


def connection() -> HTTPSConnection:
    return HTTPSConnection("api.runpod.example")


def exhausted(reason: Exception) -> requests.ConnectionError:
    """How requests wraps a connection that urllib3 could not make."""
    return requests.ConnectionError(MaxRetryError(None, "/v2", reason))  # type: ignore[arg-type]


def refused_port() -> requests.ConnectionError:
    error = NewConnectionError(connection(), "planted-key-4711")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    return exhausted(error)


UNSENT = {
    "connect timeout": requests.ConnectTimeout(),
    "refused": refused_port(),
    "no such host": exhausted(NameResolutionError("x", connection(), socket.gaierror())),
    "no route": exhausted(NewConnectionError(connection(), "planted-key-4711")),
}
UNANSWERED = {
    "read timeout": requests.ReadTimeout("planted-key-4711"),
    "read timeout, wrapped": requests.ConnectionError(ReadTimeoutError(None, "/v2", "")),  # type: ignore[arg-type]
    "reset": requests.ConnectionError(ProtocolError("aborted", ConnectionResetError(104, ""))),
    "closed": requests.ConnectionError(ProtocolError("aborted", EOFError("planted-key-4711"))),
    "tls broke": requests.exceptions.SSLError(exhausted(SSLError("planted-key-4711"))),
    "unknown": requests.RequestException("planted-key-4711"),
}
UNTRUSTED = requests.exceptions.SSLError(
    MaxRetryError(None, "/v2", SSLError(ssl.SSLCertVerificationError("planted-key-4711")))  # type: ignore[arg-type]
)
UNREADABLE = {
    "html": "<html>planted-key-4711</html>",
    "empty": "",
    "list": "[]",
    "number": "7",
    "null": "null",
    "other shape": '{"ok": true}',
    "cut short": '{"id": "x", "status": ',
    "not utf-8": b"\xff\xfe\xfd",
    "bottomless": "[" * 200_000,
    "endless digits": '{"id": ' + "9" * 10_000 + "}",
}
ODD_IDS = ["", 7, None, "a b", "x" * 201, "a/../b", "ä", "a\n"]


def no_secret_in(answer: object) -> None:
    """Nothing that was planted in key, body or foreign texts shows."""
    assert "planted" not in repr(answer)


def test_a_run_sends_the_body_and_the_key_and_gives_the_id(api, client):
    """The request is the caller's body as JSON, with the bearer key."""
    api.post(f"{BASE}/abc123/run", json={"id": "job-1-u1", "status": "IN_QUEUE"})
    assert client.run(BODY) == Accepted("job-1-u1")
    sent = api.calls[0].request
    assert json.loads(sent.body) == BODY
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert sent.headers["Content-Length"] == str(len(sent.body))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (300, Misconfigured),
        (302, Misconfigured),
        (400, Rejected),
        (401, Misconfigured),
        (402, Misconfigured),
        (403, Misconfigured),
        (404, Misconfigured),
        (405, Misconfigured),
        (408, Uncertain),
        (409, Refused),
        (413, Rejected),
        (418, Refused),
        (422, Rejected),
        (429, Refused),
        (500, Uncertain),
        (502, Uncertain),
        (503, Uncertain),
        (504, Uncertain),
        (524, Uncertain),
    ],
)
def test_each_status_of_a_run_has_one_meaning(api, client, status, kind):
    """Only what is certainly not acted on is refused; only what will never do is rejected."""
    headers = {"Location": "https://elsewhere.example/run"}
    api.post(f"{BASE}/abc123/run", status=status, body="planted-key-4711", headers=headers)
    sent = client.run(BODY)
    assert type(sent) is kind
    assert str(status) in sent.reason
    assert sent.reason.startswith("endpoint a: ")
    no_secret_in(sent)
    assert len(api.calls) == 1  # no redirect followed, nothing tried again


@pytest.mark.parametrize("case", UNSENT)
def test_a_run_that_was_never_sent_is_refused(api, client, case):
    """Without a connection nothing can have been acted on."""
    api.post(f"{BASE}/abc123/run", body=UNSENT[case])
    sent = client.run(BODY)
    assert type(sent) is Refused
    assert sent.retry_after is None
    no_secret_in(sent)


@pytest.mark.parametrize("case", UNANSWERED)
def test_a_run_without_an_answer_is_uncertain(api, client, case):
    """Once the connection stood, the job may have been taken."""
    api.post(f"{BASE}/abc123/run", body=UNANSWERED[case])
    sent = client.run(BODY)
    assert type(sent) is Uncertain
    no_secret_in(sent)


@pytest.mark.parametrize("status", [200, 201, 204])
@pytest.mark.parametrize("case", UNREADABLE)
def test_a_run_whose_answer_says_nothing_is_uncertain(api, client, case, status):
    """A 2xx means it was taken; without an id, nobody knows as what."""
    api.post(f"{BASE}/abc123/run", body=UNREADABLE[case], status=status)
    sent = client.run(BODY)
    assert type(sent) is Uncertain
    no_secret_in(sent)


@pytest.mark.parametrize("odd", ODD_IDS)
def test_a_run_that_answers_with_an_odd_id_is_uncertain(api, client, odd):
    """An id that can't stand in a URL or a row isn't taken over."""
    api.post(f"{BASE}/abc123/run", json={"id": odd, "status": "IN_QUEUE"})
    assert type(client.run(BODY)) is Uncertain


def test_a_run_whose_answer_is_truncated_is_uncertain(api, client):
    """Fewer bytes than announced: the job was taken, its id is lost."""
    api.post(f"{BASE}/abc123/run", body='{"id": "job-1"}', headers={"Content-Length": "400"})
    sent = client.run(BODY)
    assert sent == Uncertain("endpoint a: the connection broke in the middle of its answer")


def test_a_truncated_429_is_still_a_429(api, client):
    """The status decides; a broken body after it changes nothing."""
    headers = {"Content-Length": "400", "Retry-After": "3"}
    api.post(f"{BASE}/abc123/run", status=429, body="busy", headers=headers)
    assert client.run(BODY) == Refused("endpoint a: too many requests (429)", 3.0)


def test_a_body_above_runpods_limit_is_not_even_sent(api, client):
    """A server that hangs up in the middle of it would leave the sending uncertain for ever."""
    sent = client.run({"input": {"audio_base64": "x" * module.MAX_RUN_BYTES}})
    assert type(sent) is Rejected
    assert len(api.calls) == 0


def test_an_untrusted_certificate_is_a_matter_of_settings(api, client):
    """The handshake failed before anything was sent, and sending again won't help."""
    api.post(f"{BASE}/abc123/run", body=UNTRUSTED)
    api.get(f"{BASE}/abc123/status/j", body=UNTRUSTED)
    for answer in (client.run(BODY), client.status("j")):
        assert type(answer) is Misconfigured
        assert "certificate" in answer.reason
        no_secret_in(answer)


@pytest.mark.parametrize("base", ["http://[bad", "http://", "gopher://x/v2", "nothing", ""])
def test_a_malformed_base_url_is_refused_at_once(base):
    """It is said where the settings are read, not at each job."""
    with pytest.raises(ValueError, match="URL"):
        EndpointClient(make(base_url=base))


@pytest.mark.parametrize("key", ["two\nlines", "smart\u2019quote", "bell\a"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_at_once(key):
    """The error doesn't repeat the key."""
    with pytest.raises(ValueError, match="API key of endpoint a") as caught:
        EndpointClient(make(api_key=key))
    assert key not in str(caught.value)


def test_an_endpoint_does_not_show_its_key():
    """Not in a repr, which is what logs and tracebacks print."""
    assert KEY not in repr(make())


def test_the_endpoints_id_and_the_jobs_id_are_quoted_in_the_url(api):
    """Nothing in an id can lead to another path."""
    api.get(f"{BASE}/a%2Fb%3F/status/..%2Fpurge-queue%3Fx", json={"status": "IN_QUEUE"})
    looked = EndpointClient(make(endpoint_id="a/b?")).status("../purge-queue?x")
    assert isinstance(looked, Seen)


# --- status and cancel


LOOKS = {
    "status": ("GET", f"{BASE}/abc123/status/job-1", EndpointClient.status),
    "cancel": ("POST", f"{BASE}/abc123/cancel/job-1", EndpointClient.cancel),
}
looks = pytest.mark.parametrize("look", LOOKS)


@pytest.mark.parametrize(
    ("word", "phase"),
    [
        ("IN_QUEUE", Phase.QUEUED),
        ("IN_PROGRESS", Phase.RUNNING),
        ("RUNNING", Phase.RUNNING),
        ("COMPLETED", Phase.COMPLETED),
        ("FAILED", Phase.FAILED),
        ("CANCELLED", Phase.CANCELLED),
        ("TIMED_OUT", Phase.TIMED_OUT),
        ("completed", Phase.COMPLETED),
    ],
)
@looks
def test_each_word_of_runpods_becomes_a_phase(api, client, look, word, phase):
    """Both words for a running job are one phase."""
    method, url, call = LOOKS[look]
    api.add(method, url, json={"id": "job-1", "status": word})
    assert call(client, "job-1") == Seen("job-1", phase)


def test_a_status_that_nobody_knows_counts_as_running_and_is_logged_once(api, client, caplog):
    """A new word of RunPod's must not end a job, nor fill the log with each poll."""
    api.get(LOOKS["status"][1], json={"status": "PONDERING"})
    assert [client.status("job-1").phase for _ in range(3)] == [Phase.RUNNING] * 3
    [record] = caplog.records
    assert (record.levelname, record.msg["status"]) == ("WARNING", "PONDERING")


def test_everything_a_status_tells_is_taken_over(api, client):
    """Output, error, times, worker and retries."""
    shown = {
        "id": "job-1",
        "status": "FAILED",
        "output": {"pct": 40},
        "error": '{"code": "network"}',
        "delayTime": 120,
        "executionTime": 4500.7,
        "workerId": "w-9",
        "retries": 1,
        "webhook": BODY["webhook"],
        "input": BODY["input"],
    }
    api.get(LOOKS["status"][1], json=shown)
    looked = client.status("job-1")
    assert looked == Seen(
        "job-1", Phase.FAILED, {"pct": 40}, '{"code": "network"}', 120, 4500, "w-9", 1
    )
    no_secret_in(looked)


@pytest.mark.parametrize(
    ("shown", "error"),
    [
        ({"error": {"code": "x"}}, '{"code": "x"}'),
        ({"error": ["a", 1]}, '["a", 1]'),
        ({"error": ""}, None),
        ({"error": None}, None),
        ({"error": "half \ud800 pair and \0 nul"}, "half ? pair and  nul"),
    ],
)
def test_an_error_is_always_a_text_that_a_database_takes(api, client, shown, error):
    """Whatever shape the worker or RunPod gave it."""
    api.get(LOOKS["status"][1], json={"status": "FAILED", **shown})
    assert client.status("job-1").error == error


@pytest.mark.parametrize("odd", [None, "12", -5, True, 1e30, {}, [1]])
def test_odd_times_are_left_out(api, client, odd):
    """Figures that are none don't stop a result."""
    api.get(
        LOOKS["status"][1],
        json={"status": "COMPLETED", "delayTime": odd, "executionTime": odd, "retries": odd},
    )
    assert client.status("job-1") == Seen("job-1", Phase.COMPLETED)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, Misconfigured),
        (400, Unreachable),
        (401, Misconfigured),
        (402, Misconfigured),
        (403, Misconfigured),
        (404, Missing),
        (405, Misconfigured),
        (408, Unreachable),
        (409, Unreachable),
        (410, Missing),
        (413, Unreachable),
        (422, Unreachable),
        (429, Unreachable),
        (500, Unreachable),
        (502, Unreachable),
        (503, Unreachable),
        (504, Unreachable),
    ],
)
@looks
def test_each_status_of_a_look_has_one_meaning(api, client, look, status, kind):
    """Only a 404 or 410 says that the job is not there."""
    method, url, call = LOOKS[look]
    api.add(method, url, status=status, body="planted-key-4711")
    looked = call(client, "job-1")
    assert type(looked) is kind
    assert isinstance(looked, Missing) or str(status) in looked.reason
    no_secret_in(looked)


@pytest.mark.parametrize("case", UNSENT | UNANSWERED)
@looks
def test_a_look_without_an_answer_learns_nothing(api, client, look, case):
    """Neither a refused connection nor a timeout says anything of the job."""
    method, url, call = LOOKS[look]
    api.add(method, url, body=(UNSENT | UNANSWERED)[case])
    looked = call(client, "job-1")
    assert type(looked) is Unreachable
    no_secret_in(looked)


@pytest.mark.parametrize("case", UNREADABLE)
@looks
def test_a_look_whose_answer_is_unreadable_learns_nothing(api, client, look, case):
    """A page of HTML in a 200 is an outage, not an end."""
    method, url, call = LOOKS[look]
    api.add(method, url, body=UNREADABLE[case])
    looked = call(client, "job-1")
    assert type(looked) is Unreachable
    no_secret_in(looked)


def test_an_answer_about_another_job_is_not_believed(api, client):
    """A mixed-up answer must not finish this job with that result."""
    api.get(LOOKS["status"][1], json={"id": "job-2", "status": "COMPLETED", "output": {}})
    assert client.status("job-1") == Unreachable("endpoint a: its answer is about another job")


def test_a_truncated_result_is_fetched_again(api, client):
    """A result is taken whole or not at all."""
    body = json.dumps({"status": "COMPLETED", "output": "https://x.example/r.json"})
    api.get(LOOKS["status"][1], body=body, headers={"Content-Length": str(len(body) + 1)})
    assert type(client.status("job-1")) is Unreachable


def test_an_answer_above_the_limit_is_not_read(api, monkeypatch):
    """No endpoint can fill the memory."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 1000)
    body = json.dumps({"status": "COMPLETED", "output": "x" * 1000})
    api.get(LOOKS["status"][1], body=body)
    api.post(f"{BASE}/abc123/run", body=json.dumps({"id": "job-1", "x": "x" * 1000}))
    client = EndpointClient(make())
    assert client.status("job-1") == Unreachable("endpoint a: its answer is longer than 1000 bytes")
    assert type(client.run(BODY)) is Uncertain


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from("id status output error delayTime retries jobs workers".split())
                | st.text(max_size=5),
                inner,
                max_size=6,
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_whatever_its_shape_raises(shown):
    """Each call gives one of its objects for anything that an endpoint may answer."""
    client = EndpointClient(make())
    with responses.RequestsMock() as api:
        body = json.dumps(shown)
        api.post(f"{BASE}/abc123/run", body=body)
        api.get(f"{BASE}/abc123/status/j", body=body)
        api.get(f"{BASE}/abc123/health", body=body)
        assert isinstance(client.run(BODY), Accepted | Uncertain)
        assert isinstance(client.status("j"), Seen | Unreachable)
        assert isinstance(client.health(), Health | Unreachable)


# --- health


def test_health_gives_the_counts_by_their_names(api, client):
    """What is no count is left out."""
    shown = {
        "jobs": {"completed": 5, "inQueue": 2, "odd": "x"},
        "workers": {"ready": 1, "throttled": 0, "unhealthy": None},
    }
    api.get(f"{BASE}/abc123/health", json=shown)
    assert client.health() == Health({"completed": 5, "inQueue": 2}, {"ready": 1, "throttled": 0})


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Misconfigured), (404, Misconfigured), (429, Unreachable), (503, Unreachable)],
)
def test_health_tells_a_wrong_address_from_an_outage(api, client, status, kind):
    """Here a 404 is no job that is gone: there is no such endpoint."""
    api.get(f"{BASE}/abc123/health", status=status)
    assert type(client.health()) is kind


@pytest.mark.parametrize("case", UNREADABLE)
def test_health_that_is_unreadable_is_an_outage(api, client, case):
    """A 200 alone is not health."""
    api.get(f"{BASE}/abc123/health", body=UNREADABLE[case])
    assert type(client.health()) is Unreachable


def test_a_hint_names_what_to_change(api):
    """The key, the endpoint's id, or for the local endpoint neither."""
    api.get(f"{BASE}/abc123/health", status=401)
    api.get(f"{BASE}/abc123/health", status=404)
    api.get(f"{BASE}/abc123/health", status=401)
    remote, local = EndpointClient(make()), EndpointClient(make(kind="local"))
    assert "RUNPOD_API_KEY" in remote.health().hint
    assert "RUNPOD_ENDPOINT_ID" in remote.health().hint
    assert "RUNPOD" not in local.health().hint


# --- 429


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        (
            {
                "Retry-After": "Mon, 23 Nov 2026 12:00:09 GMT",
                "Date": "Mon, 23 Nov 2026 12:00:00 GMT",
            },
            9.0,
        ),
        ({"Retry-After": "Mon, 23 Nov 1926 12:00:09 GMT"}, None),
        ({"Retry-After": "0"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Mon, 99 Nov 2026 12:00:09 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_servers_own_clock(headers, seconds):
    """Anything else asks for nothing."""
    assert retry_after(headers) == seconds


def test_a_date_without_the_servers_clock_is_taken_by_ours():
    """A date far ahead asks for a long wait."""
    assert retry_after({"Retry-After": "Fri, 23 Nov 2096 12:00:09 GMT"}) > 1e6
    headers = {"Retry-After": "Fri, 23 Nov 2096 12:00:09 GMT", "Date": "now"}
    assert retry_after(headers) > 1e6


@pytest.mark.parametrize(
    ("method", "path", "call", "name"),
    [
        ("POST", "run", lambda client: client.run(BODY), "run"),
        ("GET", "status/j", lambda client: client.status("j"), "status"),
        ("POST", "cancel/j", lambda client: client.cancel("j"), "cancel"),
    ],
)
def test_a_429_pauses_its_own_bucket_alone(api, method, path, call, name):
    """As long as the answer says; the other operations have limits of their own."""
    limits = Limits(1)
    api.add(method, f"{BASE}/abc123/{path}", status=429, headers={"Retry-After": "100"})
    answer = call(EndpointClient(make(), limits=limits))
    assert answer.retry_after == 100
    for other in ("run", "status", "cancel"):
        assert getattr(limits, other).try_take() == (0 if other == name else 1)


def test_a_429_is_not_obeyed_beyond_reason(api, client):
    """A wait of a day would be a job lost."""
    api.get(f"{BASE}/abc123/status/j", status=429, headers={"Retry-After": "86400"})
    assert client.status("j").retry_after == 300


def test_a_429_without_retry_after_waits_a_second(api, client):
    """The first one; the growth is a test of `Backoff`."""
    api.post(f"{BASE}/abc123/run", status=429)
    assert client.run(BODY).retry_after == 1.0


def test_a_503_tells_when_to_ask_again(api, client):
    """Retry-After counts on a 5xx too."""
    api.get(f"{BASE}/abc123/status/j", status=503, headers={"Retry-After": "12"})
    assert client.status("j").retry_after == 12


# --- over a real connection


Script = Callable[[socket.socket], None]


@contextmanager
def server(*scripts: Script) -> Iterator[str]:
    """A loopback server that treats each connection by the next script; gives its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for script in scripts:
            conn, _ = listener.accept()
            with conn:
                conn.settimeout(30)
                script(conn)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v2"
        thread.join(30)
        assert not thread.is_alive()
    finally:
        listener.close()


def read_request(conn: socket.socket) -> bytes:
    """One request's head and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += conn.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        body += conn.recv(65536)
    return data


def reset(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, *headers, b"", body])


def local(base_url: str, seconds: float = 20) -> EndpointClient:
    return EndpointClient(make(base_url=base_url), seconds=seconds)


def test_a_refused_port_is_refused():
    """Nobody listens: certainly not sent, and the reason says so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = local(f"http://127.0.0.1:{port}/v2")
    assert client.run(BODY) == Refused("endpoint a: no connection: Connection refused")
    assert client.status("j") == Unreachable("endpoint a: no connection: Connection refused")


def test_a_name_that_does_not_exist_is_refused():
    """`.invalid` is reserved for never being resolved."""
    client = local("http://runpod.invalid/v2")
    assert type(client.run(BODY)) is Refused
    assert type(client.status("j")) is Unreachable


def test_a_reset_before_the_answer_is_uncertain():
    """The request was read; what came of it is not known."""

    def script(conn: socket.socket) -> None:
        read_request(conn)
        reset(conn)

    with server(script, script) as url:
        client = local(url)
        assert type(client.run(BODY)) is Uncertain
        assert type(client.status("j")) is Unreachable


def test_a_reset_in_the_middle_of_the_answer_is_uncertain():
    """With a length announced, and in chunks."""

    def plain(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id": "job-1"')
        reset(conn)

    def chunked(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{"id": "job-1"}')

    with server(plain, chunked) as url:
        client = local(url)
        assert type(client.run(BODY)) is Uncertain
        assert type(client.run(BODY)) is Uncertain


def test_a_kept_connection_that_the_server_closes_is_uncertain_and_not_sent_again():
    """It can't be told from one that closed after acting on the job."""
    requests_seen: list[bytes] = []

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(answer(b'{"id": "job-1"}'))
        requests_seen.append(read_request(conn))
        reset(conn)

    with server(script) as url:
        client = local(url)
        assert client.run(BODY) == Accepted("job-1")
        assert type(client.run(BODY)) is Uncertain
    assert len(requests_seen) == 1


def test_a_connection_is_kept_for_the_next_call_after_any_status():
    """Even after an error's page or a 204: a new TLS handshake each time would be costly."""

    def script(conn: socket.socket) -> None:
        for page in (
            answer(b"gone", status=b"404 Not Found"),
            answer(b"x" * 5000, status=b"500 Oops"),
            answer(b"", status=b"200 OK"),
            answer(b'{"id": "j", "status": "IN_QUEUE"}'),
        ):
            read_request(conn)
            conn.sendall(page)

    with server(script) as url:
        client = local(url)
        kinds = [type(client.status("j")) for _ in range(4)]
    assert kinds == [Missing, Unreachable, Unreachable, Seen]


def test_a_silent_server_is_left_at_the_deadline():
    """Accepted and read, never answered."""
    over = threading.Event()

    def script(conn: socket.socket) -> None:
        read_request(conn)
        over.wait(30)

    with server(script) as url:
        try:
            sent = local(url, seconds=0.4).run(BODY)
        finally:
            over.set()
    assert sent == Uncertain("endpoint a: no answer within 0.3 s")


@pytest.mark.parametrize("header", ["Connection: keep-alive", "Connection: close"])
def test_a_server_that_drips_its_answer_is_left_at_the_deadline(header):
    """Each byte comes in time and the answer never does: a lease must not end meanwhile."""
    over = threading.Event()

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n%b\r\n\r\n" % header.encode())
        while not over.wait(0.05):
            conn.sendall(b" ")

    with server(script) as url:
        try:
            looked = local(url, seconds=0.4).status("j")
        finally:
            over.set()
    assert looked == Unreachable("endpoint a: its answer was not complete within 0.4 s")


def test_silence_in_mid_answer_gets_only_what_is_left_of_the_deadline(monkeypatch):
    """Not a whole further wait: the time that the answer's head took counts."""
    hours = iter([0.0, 39.8])
    clock = SimpleNamespace(monotonic=lambda: next(hours, 39.9))
    monkeypatch.setattr("orchestrator.exchange.time", clock)
    over = threading.Event()

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id"')
        over.wait(10)  # a client that waits longer sees the connection break instead

    with server(script) as url:
        looked = local(url, seconds=40).status("j")
        over.set()
    assert looked == Unreachable("endpoint a: its answer was not complete within 40 s")


def test_an_endless_answer_is_cut_off(monkeypatch):
    """Its connection is dropped, not read to an end that never comes."""
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 500_000)
    dropped = threading.Event()

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        try:
            while True:
                conn.sendall(b"x" * 65536)
        except OSError:
            dropped.set()

    with server(script) as url:
        looked = local(url).status("j")
    assert looked == Unreachable("endpoint a: its answer is longer than 500000 bytes")
    assert dropped.is_set()


def test_what_is_no_http_is_uncertain():
    """Something else listens there."""

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    with server(script, script) as url:
        client = local(url)
        assert type(client.run(BODY)) is Uncertain
        assert type(client.status("j")) is Unreachable


def test_the_environment_has_no_say(monkeypatch):
    """No proxy gets the key, and a netrc's password doesn't replace it."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    heads: list[bytes] = []

    def script(conn: socket.socket) -> None:
        heads.append(read_request(conn))
        conn.sendall(answer(b'{"id": "j", "status": "IN_QUEUE"}', b"Set-Cookie: a=b"))
        heads.append(read_request(conn))
        conn.sendall(answer(b'{"id": "j", "status": "IN_QUEUE"}'))

    with server(script) as url:
        client = local(url)
        assert isinstance(client.status("j"), Seen)
        assert isinstance(client.status("j"), Seen)
    assert all(f"Authorization: Bearer {KEY}".encode() in head for head in heads)
    assert b"cookie" not in heads[1].lower()


def test_many_threads_share_one_client():
    """Each gets the answer to its own question."""

    def script(conn: socket.socket) -> None:
        path = read_request(conn).split(b" ")[1]
        job = path.rsplit(b"/", 1)[1].decode()
        body = json.dumps({"id": job, "status": "RUNNING", "workerId": job}).encode()
        conn.sendall(answer(body, b"Connection: close"))

    seen: dict[int, Any] = {}
    with server(*[script] * 24) as url:
        client = local(url)

        def ask(number: int) -> None:
            seen[number] = client.status(f"job-{number}")

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert {n: looked.worker_id for n, looked in seen.items()} == {n: f"job-{n}" for n in range(24)}
