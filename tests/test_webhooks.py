"""A webhook's token and body: nobody's bytes can do more than start a look at RunPod."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.webhooks import MAX_BODY, digest, new_token, runpod_id_of, url

ID = "c80ffee4-f315-4e25-a146-0f3d98cf024b-u1"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "input"]), inner),
    max_leaves=10,
)


def test_a_token_is_unguessable_and_only_its_digest_is_stored() -> None:
    """256 random bits, safe in a URL, another one each time; the digest is SHA-256."""
    token, stored = new_token()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    assert stored == digest(token) == hashlib.sha256(token.encode()).digest()
    assert new_token()[0] != token


@given(st.text(st.characters()))
def test_any_text_has_a_digest(token: str) -> None:
    """Whatever a URL's path holds can be looked up, half surrogates too."""
    assert len(digest(token)) == 32


@pytest.mark.parametrize("public_url", ["https://app.example.com", "https://app.example.com/"])
def test_the_url_ends_in_the_token(public_url: str) -> None:
    """The route is the backend's, whether or not PUBLIC_URL ends in a slash."""
    assert url(public_url, "t0k-en") == "https://app.example.com/lyricpod/webhook/t0k-en"


@pytest.mark.parametrize(
    "body",
    [
        {"id": ID, "status": "COMPLETED", "input": {"id": "x"}},
        json.dumps({"id": ID}),
        json.dumps({"id": ID}).encode(),
        bytearray(json.dumps({"id": ID, "output": [1]}).encode()),
        json.dumps({"id": ID}).encode("utf-16"),
    ],
)
def test_the_id_is_read_from_every_form_of_body(body: object) -> None:
    """Bytes, text and parsed JSON name the same id."""
    assert runpod_id_of(body) == ID


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        b"\xff\xfe\x00",
        "not json",
        "[" * 200_000,
        "1" * 10_000,
        [{"id": ID}],
        {"id": None},
        {"id": 7},
        {"id": ""},
        {"id": "../../purge-queue"},
        {"id": f"{ID}\n"},
        {"id": "x" * 129},
        {"ID": ID},
        memoryview(b"{}"),
    ],
)
def test_a_body_without_an_id_names_nobody(body: object) -> None:
    """What isn't a RunPod id is none: it would become part of a URL."""
    assert runpod_id_of(body) is None


def test_a_huge_body_is_not_parsed() -> None:
    """Above the limit the body is not looked into, however right its start is."""
    body = b'{"id": "%s", "x": "' % ID.encode()
    assert runpod_id_of(body + b"x" * MAX_BODY + b'"}') is None


@given(st.binary() | st.text() | JSON | JSON.map(json.dumps) | JSON.map(lambda j: str(j).encode()))
def test_no_body_raises(body: object) -> None:
    """Arbitrary bytes, text and JSON give an id or None."""
    found = runpod_id_of(body)
    assert found is None or re.fullmatch(r"[A-Za-z0-9_-]+", found)
