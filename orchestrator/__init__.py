"""Jobs from a queued row to a finished row: the library that a backend imports."""

from lyricpod.errors import ConfigError, ErrorCode, JobError
from lyricpod.result import JobResult, Line, Word
from orchestrator.config import Settings
from orchestrator.errors import (
    DatabaseUnavailable,
    NotFinished,
    OrchestratorError,
    UnknownJob,
)
from orchestrator.records import JobRow
from orchestrator.service import Health, JobProgress, Orchestrator

__all__ = [
    "ConfigError",
    "DatabaseUnavailable",
    "ErrorCode",
    "Health",
    "JobError",
    "JobProgress",
    "JobResult",
    "JobRow",
    "Line",
    "NotFinished",
    "Orchestrator",
    "OrchestratorError",
    "Settings",
    "UnknownJob",
    "Word",
]
