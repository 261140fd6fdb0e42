"""Webhooks: RunPod signs nothing, so an unguessable token in the URL says whose call it is."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from typing import Any

TOKEN_BYTES = 32  # 256 random bits
MAX_BODY = 64_000_000  # bytes; RunPod's own limits (10 MB of input, 20 MB of output) stay below it
# It becomes part of a URL, so nothing else is an id.
RUNPOD_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def new_token() -> tuple[str, bytes]:
    """A token for one attempt's URL, and the digest that is stored in its place."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return token, digest(token)


def digest(token: str) -> bytes:
    """The token's SHA-256, by which its attempt is looked up.

    An index look-up doesn't take constant time, and need not: what its time could tell is about
    the digest, and no token can be made from a part of its digest. A slow hash would add nothing
    to 256 random bits either.
    """
    # A web framework may hand on half a surrogate pair from a URL: no token, but no crash.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def url(public_url: str, token: str) -> str:
    """Where RunPod reports this attempt: a route of the backend at `public_url`."""
    return f"{public_url.rstrip('/')}/lyricpod/webhook/{token}"


def runpod_id_of(body: object) -> str | None:
    """The RunPod id that a webhook's body names, or None; nothing else in it is believed.

    Args:
        body: as the backend's framework gives it: bytes, text, or JSON that is parsed already.
    """
    data = _parsed(body) if isinstance(body, str | bytes | bytearray) else body
    runpod_id: Any = data.get("id") if isinstance(data, dict) else None
    if isinstance(runpod_id, str) and RUNPOD_ID.fullmatch(runpod_id):
        return runpod_id
    return None


def _parsed(body: str | bytes | bytearray) -> object:
    if len(body) > MAX_BODY:
        return None
    try:
        parsed: object = json.loads(body)
    except (ValueError, RecursionError):  # not JSON, not text, or a tower of brackets
        return None
    return parsed
