"""The endpoints as they are now: reachable, healthy, paused, paid for."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from lyricpod.errors import ConfigError
from orchestrator.config import Settings
from orchestrator.credit import Credit
from orchestrator.endpoint import (
    Endpoint,
    EndpointClient,
    Health,
    Look,
    Misconfigured,
    Refused,
    Sent,
    Uncertain,
    Unreachable,
)
from orchestrator.errors import OrchestratorError
from orchestrator.limits import Limits
from orchestrator.local import LOCAL, LocalPod
from orchestrator.log import get_logger
from orchestrator.router import Candidate

HEALTH_SECONDS = 30.0  # between two looks at a healthy endpoint
ILL_SECONDS = 5.0  # and at another
PAUSE_SECONDS = 60.0  # after an answer that says that the settings are wrong
STARVED_SECONDS = 180.0  # a queue without a single worker for so long: none will come
LOCAL_QUEUE = 1000  # jobs that the local endpoint takes
FAILED_TO_START = 60.0  # seconds until the local endpoint is tried again

log = get_logger()


@dataclass
class Pod:
    """One RunPod endpoint and what is known of it. Guarded by the fleet's lock."""

    endpoint: Endpoint
    client: EndpointClient
    limits: Limits
    unreachable_since: float | None = None
    reason: str | None = None
    paused_until: float = 0.0
    health: Health | None = None
    looked_at: float = field(default=float("-inf"))
    starved_since: float | None = None


class Fleet:
    """All endpoints of the settings, by name. Thread-safe.

    Args:
        instance: this replica, to which its local endpoint belongs.
    """

    def __init__(self, settings: Settings, instance: uuid.UUID, credit: Credit) -> None:
        self._settings = settings
        self._credit = credit
        self._instance = instance
        self._lock = threading.Lock()
        self._pods = {pod.endpoint.name: pod for pod in _pods(settings)}
        self._local_failed_at = float("-inf")
        self.local: LocalPod | None = None
        if settings.local_endpoint == "auto" and not LocalPod.missing():
            self.local = LocalPod(
                instance,
                workers=settings.local_workers,
                price=settings.local_price,
                seconds=settings.http_seconds,
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every endpoint that exists, RunPod's first."""
        return (*self._pods, *((LOCAL,) if self.local else ()))

    @property
    def status_rate(self) -> float:
        """Status calls a second that all replicas may make together."""
        pods = list(self._pods.values())
        rate = sum(pod.limits.status.rate_per_s for pod in pods) * self._settings.replicas
        return rate or 1000.0

    def instance_of(self, name: str) -> uuid.UUID | None:
        """The replica that an endpoint belongs to; None for RunPod's."""
        return self._instance if name == LOCAL else None

    def price(self, name: str) -> float | None:
        """USD per second."""
        if name == LOCAL:
            return self._settings.local_price
        return self._pods[name].endpoint.price if name in self._pods else None

    def limits(self, name: str) -> Limits | None:
        """The rate limits of an endpoint; None where there are none."""
        return self._pods[name].limits if name in self._pods else None

    def client(self, name: str) -> EndpointClient | None:
        """An endpoint's API, if it is there."""
        if name == LOCAL:
            return self.local.client if self.local else None
        return self._pods[name].client if name in self._pods else None

    def to_send(self, name: str) -> EndpointClient | None:
        """The same, with the local endpoint started if need be; None if it can't be."""
        if name != LOCAL or self.local is None:
            return self.client(name)
        try:
            return self.local.start()
        except (OrchestratorError, OSError) as error:
            log.error("the local endpoint can't be started", error=str(error))
            with self._lock:
                self._local_failed_at = time.monotonic()
            return None

    def candidates(self, in_flight: Mapping[str, tuple[int, int]]) -> list[Candidate]:
        """What the router chooses from.

        Args:
            in_flight: by endpoint, attempts that have not ended and how many of them wait.
        """
        credit_ok = self._credit.ok() if self._pods else True
        with self._lock:
            found = [self._candidate(pod, in_flight, credit_ok) for pod in self._pods.values()]
            if self.local:
                found.append(self._local_candidate(in_flight))
        return found

    def note(self, endpoint: str, answer: Sent | Look) -> None:
        """Learn from any answer whether an endpoint is reachable and its settings are right."""
        match answer:
            case Misconfigured():
                self.misconfigured(endpoint, answer)
            case Refused(reason, retry_after) | Unreachable(reason, retry_after):
                if retry_after is None:
                    self.missed(endpoint, reason)
            case Uncertain():
                pass  # one lost answer is no outage; the next look tells
            case _:
                self.reached(endpoint)

    def reached(self, name: str) -> None:
        """An endpoint answered."""
        with self._lock:
            if pod := self._pods.get(name):
                if pod.unreachable_since is not None:
                    log.info("the endpoint answers again", endpoint=name)
                pod.unreachable_since = None
                # A key that may look and not send: its looks are no reason to send again.
                if pod.paused_until <= time.monotonic():
                    pod.reason = None

    def missed(self, name: str, reason: str) -> None:
        """An endpoint did not answer."""
        with self._lock:
            if (pod := self._pods.get(name)) and pod.unreachable_since is None:
                log.warning("the endpoint does not answer", endpoint=name, reason=reason)
                pod.unreachable_since, pod.reason = time.monotonic(), reason

    def misconfigured(self, name: str, answer: Misconfigured) -> None:
        """An endpoint's answer says that the settings are wrong."""
        with self._lock:
            if pod := self._pods.get(name):
                reason = f"{answer.reason}; {answer.hint}"
                if pod.reason != reason:
                    log.error("the endpoint is paused", endpoint=name, reason=reason)
                pod.paused_until, pod.reason = time.monotonic() + PAUSE_SECONDS, reason

    def due(self) -> list[str]:
        """Endpoints whose health should be looked at now, by one call of `look` each."""
        now = time.monotonic()
        with self._lock:
            names = []
            for name, pod in self._pods.items():
                ill = pod.unreachable_since is not None or pod.starved_since is not None
                if now - pod.looked_at >= (ILL_SECONDS if ill else HEALTH_SECONDS):
                    pod.looked_at = float("inf")  # until it was looked at
                    names.append(name)
        return names

    def look(self, name: str) -> None:
        """Look at an endpoint's health."""
        try:
            answer = self._pods[name].client.health()
        finally:
            with self._lock:
                self._pods[name].looked_at = time.monotonic()
        if isinstance(answer, Unreachable):
            self.missed(name, answer.reason)
        elif isinstance(answer, Misconfigured):
            self.misconfigured(name, answer)
        else:
            self.reached(name)
            with self._lock:
                _note(self._pods[name], answer)

    def report(self) -> dict[str, dict[str, object]]:
        """For people: each endpoint's state in a few words."""
        now = time.monotonic()
        with self._lock:
            return {
                name: {
                    "reachable": pod.unreachable_since is None,
                    "paused": pod.paused_until > now,
                    "reason": pod.reason,
                    "jobs": pod.health.jobs if pod.health else None,
                    "workers": pod.health.workers if pod.health else None,
                }
                for name, pod in self._pods.items()
            }

    def close(self) -> None:
        """End the local endpoint, close connections."""
        if self.local:
            self.local.close()
        for pod in self._pods.values():
            pod.client.close()

    def _candidate(
        self, pod: Pod, in_flight: Mapping[str, tuple[int, int]], credit_ok: bool
    ) -> Candidate:
        now = time.monotonic()
        health = pod.health
        starved = pod.starved_since is not None and now - pod.starved_since > STARVED_SECONDS
        workers = health.workers if health else {}
        return Candidate(
            name=pod.endpoint.name,
            kind="runpod",
            price=pod.endpoint.price,
            healthy=pod.unreachable_since is None and not starved,
            in_flight=in_flight.get(pod.endpoint.name, (0, 0))[0],
            max_in_flight=pod.endpoint.max_in_flight,
            workers_ready=workers.get("idle", 0) + workers.get("running", 0) if health else None,
            queued=health.jobs.get("inQueue") if health else None,
            credit_ok=credit_ok,
            paused_reason=pod.reason if pod.paused_until > now else None,
        )

    def _local_candidate(self, in_flight: Mapping[str, tuple[int, int]]) -> Candidate:
        failed = time.monotonic() - self._local_failed_at < FAILED_TO_START
        return Candidate(
            name=LOCAL,
            kind="local",
            price=self._settings.local_price,
            healthy=not failed,
            in_flight=in_flight.get(LOCAL, (0, 0))[0],
            max_in_flight=LOCAL_QUEUE,
            workers_ready=self._settings.local_workers,
            queued=None,
            credit_ok=True,
            paused_reason="it did not start" if failed else None,
        )


def _note(pod: Pod, health: Health) -> None:
    pod.health = health
    workers = sum(health.workers.values())
    if workers or not health.jobs.get("inQueue"):
        pod.starved_since = None
    elif pod.starved_since is None:
        pod.starved_since = time.monotonic()


def _pods(settings: Settings) -> list[Pod]:
    if not settings.runpod_api_key:
        return []
    prices: tuple[float | None, ...] = settings.prices or (None,)
    if len(prices) < len(settings.endpoint_ids):
        prices = prices * len(settings.endpoint_ids)
    pods = []
    for endpoint_id, price in zip(settings.endpoint_ids, prices, strict=False):
        endpoint = Endpoint(
            name=f"runpod:{endpoint_id}",
            base_url=settings.runpod_endpoint_base_url,
            endpoint_id=endpoint_id,
            api_key=settings.runpod_api_key,
            price=price,
            max_in_flight=settings.max_in_flight,
        )
        limits = Limits(settings.replicas)
        try:
            client = EndpointClient(endpoint, seconds=settings.http_seconds, limits=limits)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        pods.append(Pod(endpoint, client, limits))
    return pods
