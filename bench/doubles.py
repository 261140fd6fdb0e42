"""What measures of the orchestrator run against: the tests' doubles, and a PostgreSQL."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.worker import ROOT
from orchestrator.postgres import LocalPostgres

TESTS = ROOT / "tests"
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from lossy_proxy import LossyProxy, Odds, Sending  # noqa: E402 - found by the path above

__all__ = ["TESTS", "LossyProxy", "Odds", "Sending", "database"]


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """A PostgreSQL of its own, from the wheel; its URL."""
    server = LocalPostgres(folder)
    try:
        yield server.open()
    finally:
        server.stop()
