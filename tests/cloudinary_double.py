"""A loopback double of Cloudinary's upload API and delivery, for the cloudinary SDK 1.46.3.

Chunked uploads (`upload_large`) are not served. The CDN's purge is not either: `invalidate` is
stored, and the unversioned URL stays stale, as it does for minutes in reality.
"""

import hashlib
import hmac
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from aiohttp import web
from jobserver import LoopbackServer, abort

CLOUD_NAME = "demo"
API_KEY = "key"
API_SECRET = "secret"
UNSIGNED = frozenset({"file", "cloud_name", "resource_type", "api_key", "signature"})
HASHES = {40: hashlib.sha1, 64: hashlib.sha256}  # hex digits of a signature: its algorithm

Fault: TypeAlias = Literal["reset"] | int | tuple[Literal["hang"], float]
"""What happens to one API call, which then stores nothing: `hang` ends in a reset."""


@dataclass(frozen=True)
class Asset:
    """One version of a public id, with what its upload asked for."""

    public_id: str
    version: int
    data: bytes
    tags: tuple[str, ...]
    overwrite: bool | None
    invalidate: bool | None


@dataclass(frozen=True)
class Request:
    """One call: `status` is None where the connection was reset, `at` a monotonic second."""

    method: str
    path: str
    params: dict[str, str]
    status: int | None
    at: float


class CloudinaryDouble(LoopbackServer):
    """Stores raw assets; `assets` has every version of a public id, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.assets: dict[str, list[Asset]] = {}
        self.requests: list[Request] = []
        self._cdn: dict[str, Asset] = {}  # what the unversioned URL served first
        self._faults: deque[Fault] = deque()
        self._refusal: int | None = None
        self._version = int(time.time())

    def __repr__(self) -> str:
        return f"CloudinaryDouble(assets={list(self.assets)}, requests={self.requests})"

    @property
    def cloudinary_url(self) -> str:
        """The value for CLOUDINARY_URL."""
        return f"cloudinary://{API_KEY}:{API_SECRET}@{CLOUD_NAME}?upload_prefix={self.url}"

    def options(self) -> dict[str, str]:
        """The same as explicit options of an SDK call."""
        return {
            "cloud_name": CLOUD_NAME,
            "api_key": API_KEY,
            "api_secret": API_SECRET,
            "upload_prefix": self.url,
        }

    def fail(self, *faults: Fault) -> None:
        """Queue faults: each one is used up by one upload or explicit call."""
        with self._changed:
            self._faults.extend(faults)

    def refuse_always(self, status: int | None) -> None:
        """Answer each upload or explicit call with this status, until None."""
        with self._changed:
            self._refusal = status

    def wait_requests(self, count: int, timeout: float = 60) -> list[Request]:
        """Wait until `count` calls were answered or reset; returns all of them."""
        self.wait_until(lambda: len(self.requests) >= count, timeout)
        return list(self.requests)

    def _routes(self) -> list[web.RouteDef]:
        delivery = f"/{CLOUD_NAME}/raw/upload/"
        return [
            web.post(f"/v1_1/{CLOUD_NAME}/raw/{{action:upload|explicit}}", self._call),
            web.get(delivery + r"v{version:\d+}/{public_id:.+}", self._deliver),
            web.get(delivery + "{public_id:.+}", self._deliver),
        ]

    async def _call(self, request: web.Request) -> web.Response:
        params, data = await read_form(request)
        fault = self._next_fault()
        if isinstance(fault, (tuple, str)):
            self._note(request, params, None)  # before a hang: the caller may leave during it
            await self._pause(fault[1] if isinstance(fault, tuple) else 0)
            return abort(request)
        response = refusal(fault) if fault is not None else self._act(request, params, data)
        self._note(request, params, response.status)
        return response

    def _next_fault(self) -> Fault | None:
        with self._changed:
            return self._faults.popleft() if self._faults else self._refusal

    def _act(
        self, request: web.Request, params: dict[str, str], data: bytes | None
    ) -> web.Response:
        refused = check_signature(params)
        if refused is not None:
            return refused
        with self._changed:
            if request.match_info["action"] == "explicit":
                return self._explicit(params)
            return self._upload(params, data)

    def _upload(self, params: dict[str, str], data: bytes | None) -> web.Response:
        if data is None:
            return error(400, "Missing required parameter - file")
        public_id = params.get("public_id") or uuid.uuid4().hex
        versions = self.assets.setdefault(public_id, [])
        overwrite = flag(params, "overwrite")
        if versions and overwrite is False:
            return web.json_response({**self._description(versions[-1]), "existing": True})
        self._version = max(self._version + 1, int(time.time()))  # a version is a unix second
        tags = tuple(filter(None, params.get("tags", "").split(",")))
        invalidate = flag(params, "invalidate")
        versions.append(Asset(public_id, self._version, data, tags, overwrite, invalidate))
        return web.json_response(self._description(versions[-1]))

    def _explicit(self, params: dict[str, str]) -> web.Response:
        public_id = params.get("public_id", "")
        if not params.get("type"):
            return error(400, "Missing required parameter - type")
        versions = self.assets.get(public_id)
        if not versions or params["type"] != "upload":
            return error(404, f"Resource not found - {public_id}")
        return web.json_response(self._description(versions[-1]))

    def _description(self, asset: Asset) -> dict[str, Any]:
        path = f"{CLOUD_NAME}/raw/upload/v{asset.version}/{quote(asset.public_id)}"
        return {
            "asset_id": hashlib.md5(asset.public_id.encode()).hexdigest(),
            "public_id": asset.public_id,
            "version": asset.version,
            "resource_type": "raw",
            "type": "upload",
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(asset.version)),
            "tags": list(asset.tags),
            "bytes": len(asset.data),
            "etag": hashlib.md5(asset.data).hexdigest(),
            "url": f"{self.url}/{path}",
            "secure_url": f"{self.url}/{path}",
        }

    async def _deliver(self, request: web.Request) -> web.Response:
        with self._changed:
            asset = self._delivered(request.match_info["public_id"], request.match_info)
        if asset is None:
            response = web.Response(status=404, headers={"x-cld-error": "Resource not found"})
        else:
            response = web.Response(body=asset.data, content_type="application/octet-stream")
        self._note(request, {}, response.status)
        return response

    def _delivered(self, public_id: str, match: web.UrlMappingMatchInfo) -> Asset | None:
        versions = self.assets.get(public_id, [])
        if "version" in match:
            wanted = int(match["version"])
            return next((asset for asset in versions if asset.version == wanted), None)
        return self._cdn.setdefault(public_id, versions[-1]) if versions else None

    def _note(self, request: web.Request, params: dict[str, str], status: int | None) -> None:
        with self._changed:
            call = Request(request.method, request.path, params, status, time.monotonic())
            self.requests.append(call)
            self._changed.notify_all()


async def read_form(request: web.Request) -> tuple[dict[str, str], bytes | None]:
    """The text fields, a repeated `name[]` joined by commas under `name`, and the file's bytes."""
    values: dict[str, list[str]] = {}
    data: bytes | None = None
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            with value.file as file:
                data = file.read()
        elif name == "file":
            data = value.encode() if isinstance(value, str) else bytes(value)
        else:
            text = value if isinstance(value, str) else bytes(value).decode()
            values.setdefault(name.removesuffix("[]"), []).append(text)
    return {name: ",".join(parts) for name, parts in values.items()}, data


def check_signature(params: dict[str, str]) -> web.Response | None:
    """None for the right signature, else Cloudinary's refusal.

    Source: https://cloudinary.com/documentation/authentication_signatures; the SDK's signature
    version 2 writes the "&" of a value as "%26".
    """
    if params.get("api_key") != API_KEY:
        return error(401, f"Unknown API key {params.get('api_key')}")
    given = params.get("signature", "")
    signed = sorted(
        f"{name}={value}".replace("&", "%26")
        for name, value in params.items()
        if value and name not in UNSIGNED
    )
    text = "&".join(signed)
    algorithm = HASHES.get(len(given), hashlib.sha1)
    if not hmac.compare_digest(algorithm((text + API_SECRET).encode()).hexdigest(), given):
        return error(401, f"Invalid Signature {given}. String to sign - '{text}'.")
    return None


def flag(params: dict[str, str], name: str) -> bool | None:
    """A boolean as the SDK sends it (1 or 0) or as the documentation writes it; None if absent."""
    return params[name] in ("1", "true") if params.get(name) else None


def refusal(status: int) -> web.Response:
    """An injected failure."""
    return error(status, f"The double refuses with {status}")


def error(status: int, message: str) -> web.Response:
    """Cloudinary's error body."""
    return web.json_response({"error": {"message": message}}, status=status)
