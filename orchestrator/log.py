"""Log lines of a process of ours on stderr: JSON for machines, readable ones on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

import structlog


def configure(env: Mapping[str, str], *, level: int = logging.INFO) -> None:
    """Set up logging for the process: `LOG_LEVEL`, else `level`. Libraries log like ourselves."""
    named = logging.getLevelNamesMapping()
    level = named.get(env.get("LOG_LEVEL", "").strip().upper(), level)
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=False)
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[*before, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
