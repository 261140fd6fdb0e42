"""What `--json` prints: our objects as JSON with stable keys."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from orchestrator.doctor import Finding, Level
from orchestrator.records import JobRow
from orchestrator.service import JobProgress
from orchestrator.stats import Stats

Json = dict[str, Any]


def of_progress(progress: JobProgress) -> Json:
    """A job as `submit --wait` and `watch` leave it."""
    lines = [line.model_dump(mode="json", exclude={"words"}) for line in progress.lines]
    return {**_plain(progress), "lines": lines}


def of_row(row: JobRow) -> Json:
    """A row of `list`."""
    return _plain(row)


def of_stats(stats: Stats) -> Json:
    """The figures of `stats`; seconds, USD, and rates from 0 to 1."""
    shown = dataclasses.asdict(stats)
    counts = ("queued", "processing", "completed", "failed", "cancelled")
    return {
        "hours": stats.hours,
        "success_rate": stats.success_rate,
        "cost_usd": stats.cost_usd,
        "jobs": {name: shown[name] for name in counts},
        "total_seconds": shown["total"],
        "routes": [
            {**_in_seconds(dataclasses.asdict(route)), "success_rate": route.success_rate}
            for route in stats.routes
        ],
        "errors": dict(stats.errors),
        "replicas": stats.replicas,
        "waiting": stats.waiting,
        "oldest_seconds": stats.oldest_seconds,
    }


def of_findings(findings: list[Finding]) -> Json:
    """What `doctor` found."""
    return {
        "ok": all(finding.level != Level.BROKEN for finding in findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _in_seconds(route: Json) -> Json:
    spreads = ("total", "delay", "execution")
    return {(f"{key}_seconds" if key in spreads else key): route[key] for key in route}


def _plain(shown: JobProgress | JobRow) -> Json:
    fields = {field.name: getattr(shown, field.name) for field in dataclasses.fields(shown)}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
    }
