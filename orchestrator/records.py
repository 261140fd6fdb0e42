"""What rows are as objects, and errors as rows show them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from lyricpod.errors import JobError
from orchestrator.states import State

MAX_MESSAGE = 2000  # characters of an error in the backend's row
MAX_INTEGER = 2**31 - 1  # of PostgreSQL: what says more is no reason to lose a result


@dataclass(frozen=True)
class QueuedRow:
    """A row that the backend queued by itself; `request` is of an earlier round, if any."""

    job_id: str
    youtube_url: str | None
    request: dict[str, Any] | None


@dataclass(frozen=True)
class Waiting:
    """A job that waits to be sent; `status` is None where its row was deleted."""

    job_id: str
    request: dict[str, Any]
    fingerprint: str
    attempts_used: int
    blocked_on: list[str]
    failed_on: list[str]
    remaining: float  # seconds until its deadline
    status: str | None
    duration: int | None = None


@dataclass(frozen=True)
class Intent:
    """A sending that is about to be made."""

    job_id: str
    endpoint: str
    instance: uuid.UUID | None
    timeout_ms: int
    price: float | None
    digest: bytes
    method: str


@dataclass(frozen=True)
class Begun:
    """A committed intent, under this lease."""

    id: int
    job_id: str
    number: int
    lease_token: uuid.UUID


@dataclass(frozen=True)
class Claimed:
    """An attempt that is due, under this lease. Ages in seconds, by the database's clock."""

    id: int
    job_id: str
    number: int
    endpoint: str
    runpod_id: str | None
    state: State
    lease_token: uuid.UUID
    progress: dict[str, Any] | None
    price_usd: float | None
    execution_timeout_ms: int
    job_state: str
    fingerprint: str
    late: bool
    status: str | None
    attempts_used: int
    blocked_on: list[str]
    instance_gone: bool
    age: float
    unreachable: float | None
    patience_over: bool

    @property
    def unwanted(self) -> bool:
        """Whether its job was deleted, or ended otherwise."""
        return self.job_state == "done" or self.status not in ("queued", "processing")


@dataclass(frozen=True)
class Finishing:
    """An attempt whose result is committed and has to be kept."""

    id: int
    job_id: str
    number: int
    endpoint: str
    state: State
    lease_token: uuid.UUID
    result: bytes
    publish_tries: int
    job_state: str
    fingerprint: str
    late: bool
    status: str | None

    @property
    def unwanted(self) -> bool:
        """Whether its job was deleted, or ended otherwise."""
        return self.job_state == "done" or self.status not in ("queued", "processing")


@dataclass(frozen=True)
class JobRow:
    """A row of the backend's table, as its frontend sees it."""

    job_id: str
    status: str
    error_message: str | None
    results_url: str | None
    srt_url: str | None = None
    title: str | None = None
    duration: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    pct: int | None = None
    status_message: str | None = None
    current_stage: str | None = None
    processing_method: str | None = None
    processing_time_seconds: float | None = None


@dataclass(frozen=True)
class Account:
    """What the platform says of a finished sending, in milliseconds and USD."""

    delay_ms: int | None = None
    execution_ms: int | None = None
    worker_id: str | None = None
    cost: float | None = None

    def to_params(self) -> dict[str, Any]:
        return {
            "delay_ms": integer(self.delay_ms),
            "execution_ms": integer(self.execution_ms),
            "worker_id": self.worker_id,
            "cost": self.cost,
        }


def shown(error: JobError) -> str:
    """An error as the backend's frontend shows it."""
    text = error.message + (f" ({error.hint})" if error.hint else "")
    return text.replace("\x00", "")[:MAX_MESSAGE]


def error_json(error: JobError) -> Jsonb:
    """An error as an attempt keeps it."""
    return Jsonb(
        {
            "code": error.code.value,
            "message": error.message.replace("\x00", "")[:MAX_MESSAGE],
            "hint": error.hint,
            "retryable": error.retryable,
            "stage": error.stage,
        }
    )


def integer(value: float | None) -> int | None:
    """A number as an integer column takes it."""
    return None if value is None else round(max(-MAX_INTEGER, min(MAX_INTEGER, value)))
