"""The one table that a run prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

HEAD = ("measure", "ours", "bare/peer", "ratio or figure", "target", "met?")


@dataclass(frozen=True)
class Row:
    """One measure. `met` is None where there is no target."""

    measure: str
    ours: str
    bare: str
    figure: str
    target: str
    met: bool | None


def render(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table with aligned columns."""
    verdict = {True: "yes", False: "NO", None: "-"}
    cells = [HEAD, *((*astuple(row)[:-1], verdict[row.met]) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
