"""A small chaos: replicas are killed and answers lost while jobs run; see `bench/chaos.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from bench.chaos import KEY, Plan, resent, run


@pytest.mark.timeout(240)
@pytest.mark.parametrize("webhooks", [True, False])
def test_no_job_is_lost_or_ended_twice(webhooks: bool) -> None:
    """All rows complete, each once, none is touched after its end; replicas end in time."""
    plan = Plan(
        jobs=24,
        kills=3,
        webhooks=webhooks,
        seed=11,
        kill_seconds=1.0,
        workers=4,
        expired=0.0,
        unknown_seconds=5.0,
    )
    # Not pytest's folder: PostgreSQL's user must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="lyricpod-chaos-") as folder:
        seen = run(plan, Path(folder))
    assert seen.kills == plan.kills
    assert seen.verdict.statuses == {"completed": plan.jobs}
    assert seen.verdict.more_than_once == []
    assert seen.verdict.touched == []
    assert sum(len(ids) for ids in resent(seen).values()) <= (1 if webhooks else 2)
    assert [status for status, _ in seen.stops] == [0] * plan.replicas
    assert "Traceback" not in seen.logs
    assert KEY not in seen.logs
