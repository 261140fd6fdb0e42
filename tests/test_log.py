"""Log lines: whatever strangers name their songs, a line stays one line and is read as it is."""

from __future__ import annotations

import json

import pytest
import structlog

from handler import log

# A job's title or language, as a site or a caller may send it.
HOSTILE = "a\x9b2Jb\u2028c\u202ed\x1b[31me\x7ff\rg\nh\u0085i\u200bj\ufeffk\ud800"
ORDINARY = "Für Élise – 夜に駆ける 🎵 שלום"


@pytest.fixture(params=["", "an-endpoint"])
def said(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> str:
    """What is written for a person, and on RunPod."""
    before = structlog.get_config()
    log.configure({"RUNPOD_ENDPOINT_ID": request.param})
    structlog.get_logger().info("found", title=HOSTILE, other=ORDINARY, id=HOSTILE.split("\n")[0])
    structlog.configure(**before)
    return capsys.readouterr().err


def test_nothing_in_a_line_acts_on_a_terminal(said: str) -> None:
    """One line, no control character, no reversal; ordinary letters of any script as they are."""
    line = said.removesuffix("\n")
    assert len(line.splitlines()) == 1
    assert [c for c in line if not c.isprintable()] == []
    assert ORDINARY in line


def test_on_runpod_the_text_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON holds the very title that came."""
    before = structlog.get_config()
    log.configure({"RUNPOD_ENDPOINT_ID": "an-endpoint"})
    structlog.get_logger().info("found", title=HOSTILE)
    structlog.configure(**before)
    assert json.loads(capsys.readouterr().err)["title"] == HOSTILE
