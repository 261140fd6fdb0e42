"""What the orchestrator raises."""

from __future__ import annotations


class OrchestratorError(Exception):
    """Something that this library could not do; the message says what, to what, and the remedy."""


class UnknownJob(OrchestratorError):
    """There is no such row in the table `jobs`."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id[:140]!r} in the table jobs")


class NotFinished(OrchestratorError):
    """The job has no result yet, or none any more."""


class DatabaseUnavailable(OrchestratorError):
    """PostgreSQL did not answer; nothing was changed, or the change can't be known."""
