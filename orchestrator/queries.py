"""Named queries from the files in sql/, fitted to the columns that the table jobs has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
OPTIONAL = re.compile(r"^(.*?)\s*--\? (\w+)$")


@cache
def named(file: str) -> Mapping[str, str]:
    """The queries of a file by name, as they are written."""
    parts = NAME.split(files(__package__).joinpath("sql", file).read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def fitted(file: str, columns: frozenset[str]) -> dict[str, bytes]:
    """The same, without the lines whose optional column is missing."""
    return {name: _fit(text, columns).encode() for name, text in named(file).items()}


def _fit(text: str, columns: frozenset[str]) -> str:
    lines = []
    for line in text.splitlines():
        optional = OPTIONAL.match(line)
        if optional is None:
            lines.append(line.split("  -- ")[0] if "--?" not in line else line)
        elif optional[2] in columns:
            lines.append(optional[1])
    kept = [line for line in lines if line.strip() and not line.lstrip().startswith("--")]
    return "\n".join(kept).strip().rstrip(";")
