"""The RunPod SDK, imported without what serving never looks at."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")


def serverless() -> Any:
    """`runpod.serverless`, imported without its probe of the CPU.

    The SDK asks py-cpuinfo for the processor's name, which `--rp_debugger` shows. That starts
    another Python and measures the clock there: 1.1 s of each start, paid for. The name alone
    is told at once; whatever else may ask py-cpuinfo later gets its full answer.
    """
    with _named_at_once():
        return importlib.import_module("runpod.serverless")


@contextmanager
def _named_at_once() -> Iterator[None]:
    try:
        cpuinfo: Any = importlib.import_module("cpuinfo")
    except ImportError:  # an SDK without it: there is no probe to avoid
        yield
        return
    probe = getattr(cpuinfo, "get_cpu_info", None)
    cpuinfo.get_cpu_info = _cpu
    try:
        yield
    finally:
        cpuinfo.get_cpu_info = probe


def _cpu() -> dict[str, str]:
    """What the SDK looks at: the name; none makes it say that it doesn't know."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return {}
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, "")
    return {"brand_raw": name} if name else {}
