"""Log lines that show what is foreign in them, and let none of it act on who reads them."""

from __future__ import annotations

import re
from typing import Any

import structlog

# What a terminal obeys or an editor takes for a line's end: C0, C1, breaks, joiners, reversals,
# byte order marks and halves of surrogate pairs. A traceback's own line breaks stay.
ACTING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)


def escaped(renderer: structlog.typing.Processor) -> structlog.typing.Processor:
    """The same renderer, each character that could act written as `\\uXXXX`, as JSON has it."""

    def render(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
        return ACTING.sub(_code, str(renderer(logger, method, event)))

    return render


def _code(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
