"""How far a job is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lyricpod.result import Line


class Stage(StrEnum):
    """The stages that the backend's frontend knows."""

    INITIALIZATION = "initialization"
    DOWNLOAD = "download"
    TRANSCRIPTION = "transcription"
    ALIGNMENT = "alignment"
    FINALIZATION = "finalization"


# Where each stage begins and ends on the job's scale of 0 to 100 percent.
# Transcription is most of a job's time, so it has most of the bar.
SPAN: dict[Stage, tuple[int, int]] = {
    Stage.INITIALIZATION: (0, 2),
    Stage.DOWNLOAD: (2, 15),
    Stage.TRANSCRIPTION: (15, 88),
    Stage.ALIGNMENT: (88, 94),
    Stage.FINALIZATION: (94, 99),
}


@dataclass(frozen=True)
class Progress:
    """One report: `pct` 0 to 99 (100 is the result itself), `seq` counts up within a job."""

    stage: Stage
    pct: int
    message: str
    seq: int = 0
    lines: tuple[Line, ...] = field(default=())

    @classmethod
    def of(
        cls,
        stage: Stage,
        fraction: float,
        message: str,
        *,
        seq: int = 0,
        lines: tuple[Line, ...] = (),
    ) -> Progress:
        """A report from how much of a stage is done, `fraction` 0 to 1."""
        low, high = SPAN[stage]
        done = min(1.0, max(0.0, fraction))
        return cls(stage, low + int((high - low) * done), message, seq, lines)

    def to_wire(self) -> dict[str, Any]:
        """`{pct, status, stage, seq, lines}`; `status` is the message."""
        return {
            "pct": self.pct,
            "status": self.message,
            "stage": self.stage.value,
            "seq": self.seq,
            "lines": [line.model_dump(mode="json", exclude={"words"}) for line in self.lines],
        }
