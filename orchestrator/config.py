"""The orchestrator's settings: one frozen object, read from the environment once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lyricpod.errors import ConfigError

EXECUTION_LEAST, EXECUTION_MOST = 5.0, 7 * 86400.0  # what RunPod takes as executionTimeout, s


class Settings(BaseModel):
    """What the operator decides. Each field is the environment variable of the same name.

    Attributes:
        database_url: PostgreSQL; empty: one from a wheel, kept in `state_dir`.
        runpod_endpoint_id: one endpoint, or several, separated by commas.
        runpod_price: USD per second of worker time: one number, or one for each endpoint.
        cloudinary_url: where results go if the worker could not upload them.
        storage_dir: a folder for them instead, on one machine.
        public_url: the backend's own address, for webhooks; its route
            `POST /lyricpod/webhook/{token}` calls `handle_webhook`. Empty: polling only.
        local_endpoint: `auto` starts a local worker for what RunPod can't take; `off` never.
        local_workers: how many of them at most.
        replicas: how many processes run the loop: they share RunPod's rate limits.
        max_in_flight: jobs sent to one RunPod endpoint and not ended yet.
        min_credit_usd: below this balance nothing is sent to RunPod; 0 never asks.
        auto_terminate: ask each worker to end after its job ...
        auto_terminate_backlog: ... unless at least so many jobs are waiting: then the next job
            would pay for a cold start that a living worker spares.
        execution_seconds: execution timeout of a job whose duration is not known.
        deadline_seconds: from the job's arrival to its end, all attempts together.
        max_attempts: how often a job is sent at most.
        lease_seconds: how long a replica may be silent about work before another takes it.
        unknown_seconds: how long a sending whose answer was lost is waited for, at most.
        poll_seconds: between two looks at a running job, while there are few.
        max_queued: rows taken from the table and not sent yet; the rest stay `queued`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    database_url: str = Field(default="", repr=False)
    state_dir: str = ".lyricpod"
    runpod_api_key: str = Field(default="", repr=False)
    runpod_endpoint_id: str = ""
    runpod_endpoint_base_url: str = "https://api.runpod.ai/v2"
    runpod_graphql_url: str = "https://api.runpod.io/graphql"
    runpod_price: str = ""
    cloudinary_url: str = Field(default="", repr=False)
    storage_dir: str = ""
    public_url: str = ""
    local_endpoint: Literal["auto", "off"] = "auto"
    local_workers: int = Field(default=1, ge=1, le=64)
    local_price: float = Field(default=0.0, ge=0)
    replicas: int = Field(default=1, ge=1)
    max_in_flight: int = Field(default=10_000, ge=1)
    min_credit_usd: float = Field(default=0.0, ge=0)
    auto_terminate: bool = False
    auto_terminate_backlog: int = Field(default=2, ge=1)
    execution_seconds: float = Field(default=1800, ge=EXECUTION_LEAST, le=EXECUTION_MOST)
    deadline_seconds: float = Field(default=6 * 3600, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    retry_seconds: float = Field(default=5.0, gt=0)
    shutdown_seconds: float = Field(default=3.0, gt=0)
    http_seconds: float = Field(default=20.0, gt=0)
    lease_seconds: float = Field(default=60.0, gt=0)
    unknown_seconds: float = Field(default=600.0, gt=0)
    http_threads: int = Field(default=32, ge=1, le=256)
    database_pool: int = Field(default=10, ge=2, le=200)
    poll_seconds: float = Field(default=2.0, gt=0)
    upload_seconds: float = Field(default=60.0, gt=0)

    @field_validator("runpod_price")
    @classmethod
    def _prices_are_numbers(cls, value: str) -> str:
        try:
            prices = [float(part) for part in value.split(",") if part.strip()]
        except ValueError:
            prices = [-1.0]
        if not all(0 <= price < math.inf for price in prices):
            # Not quoted: what is here by mistake may be a key.
            raise ValueError("must be USD per second, like 0.00019, or several with commas")
        return value

    @field_validator("runpod_endpoint_base_url", "runpod_graphql_url", "public_url")
    @classmethod
    def _no_slash_at_the_end(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("http", "https"):
            raise ValueError("must be an http or https URL")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.lease_seconds < 2 * self.http_seconds:
            raise ValueError("LEASE_SECONDS must be at least twice HTTP_SECONDS")
        if len(self.prices) not in (0, 1, len(self.endpoint_ids)):
            raise ValueError("RUNPOD_PRICE needs one number, or one for each RUNPOD_ENDPOINT_ID")
        return self

    @property
    def endpoint_ids(self) -> tuple[str, ...]:
        """RUNPOD_ENDPOINT_ID, split."""
        return tuple(part.strip() for part in self.runpod_endpoint_id.split(",") if part.strip())

    @property
    def prices(self) -> tuple[float, ...]:
        """RUNPOD_PRICE, split: USD per second."""
        return tuple(float(part) for part in self.runpod_price.split(",") if part.strip())

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the settings; an empty variable counts as not set.

        Raises:
            ConfigError: naming each variable that can't be used, never its value.
        """
        env = os.environ if env is None else env
        given = {
            name: env[name.upper()].strip()
            for name in cls.model_fields
            if env.get(name.upper(), "").strip()
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            reasons = "; ".join(_reason(json.loads(error.json(include_input=False))))
            raise ConfigError(f"unusable settings: {reasons}") from None


def _reason(items: list[dict[str, object]]) -> list[str]:
    reasons = []
    for item in items:
        place = item["loc"]
        where = str(place[0]).upper() + ": " if isinstance(place, list) and place else ""
        reasons.append(where + str(item["msg"]).removeprefix("Value error, "))
    return reasons
