"""Failure as data: what crosses the wire instead of a traceback."""

from __future__ import annotations

import json
from enum import StrEnum


class ErrorCode(StrEnum):
    """Every way a job can fail, as the contract names them."""

    INVALID_INPUT = "invalid_input"
    SOURCE_NOT_FOUND = "source_not_found"
    SOURCE_UNAVAILABLE = "source_unavailable"
    SOURCE_BLOCKED = "source_blocked"
    SOURCE_TOO_LARGE = "source_too_large"
    SOURCE_TOO_LONG = "source_too_long"
    SOURCE_NOT_AUDIO = "source_not_audio"
    NETWORK = "network"
    MODEL_UNAVAILABLE = "model_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    RESULT_TOO_LARGE = "result_too_large"
    UPLOAD_FAILED = "upload_failed"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


# A retry can help where the cause lies outside the job itself.
RETRYABLE = frozenset(
    {
        ErrorCode.SOURCE_BLOCKED,
        ErrorCode.NETWORK,
        ErrorCode.OUT_OF_MEMORY,
        ErrorCode.UPLOAD_FAILED,
        ErrorCode.INTERNAL,
    }
)


class ConfigError(Exception):
    """A setting in the environment that can't be used."""


class JobError(Exception):
    """A job's failure: what happened, to what, and what to do.

    Args:
        code: one of the contract's codes.
        message: what happened and to what; never a secret or a traceback.
        hint: the remedy, if there is one.
        stage: where in the job it happened; filled in by the pipeline.
        retryable: whether the same job may succeed later; by the code if not given.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        hint: str = "",
        stage: str = "",
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.stage = stage
        self.retryable = code in RETRYABLE if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" ({self.hint})" if self.hint else "")

    def at(self, stage: str) -> JobError:
        """The same error, with the stage filled in if it had none."""
        self.stage = self.stage or stage
        return self

    def to_json(self) -> str:
        """The `error` string of an answer: `{code, message, hint, retryable, stage}`."""
        return json.dumps(
            {
                "code": self.code.value,
                "message": self.message,
                "hint": self.hint,
                "retryable": self.retryable,
                "stage": self.stage,
            },
            ensure_ascii=False,
        )
