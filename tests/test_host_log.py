"""The library's log lines, as a host's own logging shows them."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from orchestrator.log import BEFORE, NAME, get_logger


@pytest.fixture
def shown() -> io.StringIO:
    """What the host's handler writes."""
    return io.StringIO()


def tell(shown: io.StringIO, formatter: logging.Formatter) -> str:
    """Log a line and a failure through a handler with this formatter."""
    handler = logging.StreamHandler(shown)
    handler.setFormatter(formatter)
    logger = logging.getLogger(NAME)
    logger.addHandler(handler)
    try:
        get_logger().warning("sending again", job_id="a b", pause=5.0, said="100 %s\n2")
        try:
            raise ValueError("the cause")
        except ValueError as error:
            get_logger().error("a fault", exc_info=error)
    finally:
        logger.removeHandler(handler)
    return shown.getvalue()


def test_a_plain_formatter_shows_text(shown: io.StringIO) -> None:
    """Event and fields on one line, the traceback below its own, nothing said twice."""
    lines = tell(shown, logging.Formatter("%(levelname)s %(message)s")).splitlines()
    assert lines[0] == "WARNING sending again job_id='a b' pause=5.0 said='100 %s\\n2'"
    assert lines[1] == "ERROR a fault"
    assert lines[-1] == "ValueError: the cause"
    assert lines.count(lines[-1]) == 1


def test_a_host_with_structlog_gets_the_fields(shown: io.StringIO) -> None:
    """Its formatter renders the event as it renders its own."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=BEFORE,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
    first, second = map(json.loads, tell(shown, formatter).splitlines())
    assert (first["event"], first["pause"], first["level"]) == ("sending again", 5.0, "warning")
    assert "the cause" in second["exception"]
