"""What the README shows is what there is."""

from __future__ import annotations

import asyncio
import re
import textwrap
from typing import Any

import pytest
from conftest import ROOT
from fastapi import Body, FastAPI, Response
from pydantic import BaseModel
from typer.main import get_command

import handler.config
import orchestrator.config
from orchestrator import webhooks
from orchestrator.cli import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
JOB = b'{"id": "abc-1", "status": "COMPLETED"}'


class Backend:
    """Stands for the orchestrator behind the route; knows one token."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []

    def handle_webhook(self, token: str, body: object = b"") -> bool:
        """Note the id that the body names."""
        self.heard.append(webhooks.runpod_id_of(body))
        return token == "known"


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "text/plain"]
)
def test_the_webhook_route_takes_what_runpod_posts(kind: str) -> None:
    """The route of the README, run as it stands: 200 for a known token, 404 for others."""
    block = re.search(r"(?m)^    @app\.post\(.*\n(?:    .*\n)+", README)
    assert block
    backend, fastapi = Backend(), FastAPI()
    names = {"app": fastapi, "orch": backend, "Any": Any, "Body": Body, "Response": Response}
    exec(textwrap.dedent(block[0]), names)
    assert _post(fastapi, "known", kind) == 200
    assert _post(fastapi, "strange", kind) == 404
    assert backend.heard == ["abc-1", "abc-1"]


def _post(fastapi: FastAPI, token: str, kind: str) -> int:
    path = f"/lyricpod/webhook/{token}"
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", kind.encode())],
    }
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": JOB}

    async def send(message: Any) -> None:
        said.append(message)

    asyncio.run(fastapi(scope, receive, send))
    return int(said[0]["status"])


@pytest.mark.parametrize("settings", [orchestrator.config.Settings, handler.config.Settings])
def test_every_setting_is_explained(settings: type[BaseModel]) -> None:
    """Each field of the settings is in the README as a variable."""
    assert [name for name in settings.model_fields if f"`{name.upper()}`" not in README] == []


def test_every_command_is_shown() -> None:
    """Each command of `lyricpod` is in the README."""
    commands = getattr(get_command(app), "commands", {})
    assert len(commands) >= 9
    assert [name for name in commands if not re.search(rf"`{name}[ `]", README)] == []
