"""Log lines: of the library into the host's logging; of our own processes onto stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from lyricpod.escape import escaped

NAME = "lyricpod"
BEFORE: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
)


def get_logger() -> structlog.stdlib.BoundLogger:
    """The library's logger: `logging.getLogger("lyricpod")`, with fields.

    Apart from the host's own configuration of structlog, and silent below WARNING where the
    host configures nothing: a library that prints can block its host on a full pipe.
    """
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(NAME),
        processors=[
            structlog.stdlib.filter_by_level,
            *BEFORE,
            _readable,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger


class _Event(dict[str, Any]):
    """One event: a dict for structlog's formatters, a line of text for all others."""

    def __str__(self) -> str:
        hidden = ("event", "level", "timestamp", "exception")  # the host's formatter has its own
        told = [f"{name}={value!r}" for name, value in self.items() if name not in hidden]
        said = " ".join([str(self.get("event", "")), *told])
        return f"{said}\n{self['exception']}" if "exception" in self else said


def _readable(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return _Event(event)


def configure(env: Mapping[str, str], *, level: int = logging.INFO) -> None:
    """Set up logging for a process of ours: JSON on stderr, readable lines on a terminal.

    Args:
        level: where `LOG_LEVEL` says none. Other libraries are heard from WARNING on.
    """
    named = logging.getLevelNamesMapping()
    level = named.get(env.get("LOG_LEVEL", "").strip().upper(), level)
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=False)
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=BEFORE,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                escaped(renderer),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    logging.getLogger(NAME).setLevel(level)
    # In an outage it warns twice a second; the loop's own line says it.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
