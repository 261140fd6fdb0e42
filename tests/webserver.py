"""A loopback web server that serves audio badly, each path in its own way."""

from __future__ import annotations

import asyncio

from aiohttp import web
from jobserver import LoopbackServer

CHUNK = b"\0" * 65536


class WebServer(LoopbackServer):
    """`/missing` is 404, `/broken` stops mid-body, `/silent` never answers, `/endless` never
    ends, `/empty` has no body, `/large` announces a gigabyte, `/loop` redirects to itself,
    `/astray` to a malformed link, `/text` is a page, `/busy` is 429, `/closed` is 403,
    `/down` is 503."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []

    def _routes(self) -> list[web.RouteDef]:
        return [web.get("/{name}", self._serve_one)]

    async def _serve_one(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.requests.append(name)
        statuses = {"missing": 404, "busy": 429, "closed": 403, "down": 503}
        if name in statuses:
            return web.Response(status=statuses[name])
        if name == "empty":
            return web.Response(body=b"")
        if name == "text":
            return web.Response(text="<html>a page about a song</html>" * 50)
        if name == "loop":
            return web.Response(status=302, headers={"Location": "/loop"})
        if name == "astray":
            return web.Response(status=302, headers={"Location": "http://[bad?token=planted-key"})
        if name == "silent":
            await asyncio.wait_for(self._closing.wait(), 60)
            return web.Response()
        return await self._stream(request, name)

    async def _stream(self, request: web.Request, name: str) -> web.StreamResponse:
        response = web.StreamResponse()
        if name == "broken":
            response.content_length = 1_000_000
        if name == "large":
            response.content_length = 1_000_000_000
        await response.prepare(request)
        await response.write(CHUNK)
        if name == "endless":
            while not self._closing.is_set():
                await response.write(CHUNK)
        if request.transport is not None:
            request.transport.abort()
        return response
