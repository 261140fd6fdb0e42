"""Structured log lines: JSON on RunPod, readable ones elsewhere; each carries the job's id."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

import structlog

from lyricpod.escape import escaped


def configure(env: Mapping[str, str]) -> None:
    """Set up logging for the process; `LOG_LEVEL` is INFO unless set."""
    level = logging.getLevelNamesMapping().get(env.get("LOG_LEVEL", "INFO").upper(), logging.INFO)
    on_runpod = bool(env.get("RUNPOD_ENDPOINT_ID"))
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if on_runpod
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            escaped(renderer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # The engine announces each recording on a line of its own, without the job's id.
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
