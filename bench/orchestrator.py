"""Measure 5: the orchestrator at RunPod's own limits, with thousands of jobs in flight.

PostgreSQL, the double of RunPod's job API and one backend process (loop and webhook route), each a
process of its own on the same machine.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.audit import Audit
from bench.doubles import TESTS, database
from bench.processes import Process, cpu_seconds, family_cpu_seconds, memory_mb
from bench.table import Row
from bench.worker import ROOT

RATE = 95.0  # jobs a second
IN_FLIGHT = (100, 1_000, 10_000)
SECONDS = 60.0  # of the window, when as many jobs end as are sent
QUICK: dict[str, Any] = {"in_flight": (100, 1_000), "seconds": 15.0}
WORDS = 60  # of each result: a short song's verse; the whole answer is about 12 kB
CPU_MS, MEMORY_MB, LATENCY_S, IMPORT_S = 10.0, 150.0, 1.0, 0.5
FILL_SECONDS = 240.0
IMPORTS = 5
HEAVY = ("runpod", "torch", "faster_whisper", "ctranslate2", "av", "localpod", "handler")


@dataclass(frozen=True)
class Window:
    """What was counted while as many jobs ended as were sent. Seconds, unless said."""

    asked: int  # jobs in flight
    in_flight: int  # at the window's end
    seconds: float
    sent: int
    ended: int
    cpu_ms: float  # of the backend process, per job ended
    database_ms: float  # of all PostgreSQL processes, per job ended
    memory_mb: float
    peak_mb: float
    latencies: list[float]  # from the end at RunPod to the row
    refused: dict[str, int]  # 429s, by operation
    calls: dict[str, int]
    wrong: int  # rows that ended as anything but completed

    def latency(self, share: float) -> float:
        """By nearest rank."""
        ordered = sorted(self.latencies)
        return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.inf


def measure(
    folder: Path, *, in_flight: Sequence[int] = IN_FLIGHT, seconds: float = SECONDS
) -> list[Row]:
    """Growth with webhooks, then the largest without, then the import."""
    rows: list[Row] = []
    windows = []
    for count in in_flight:
        windows.append(_window(folder / f"webhooks{count}", count, seconds, webhooks=True))
        print(f"  {_summary(windows[-1])}", file=sys.stderr)
    largest = windows[-1]
    rows += _rows("webhooks", largest, LATENCY_S)
    polling = _window(folder / "polling", in_flight[-1], seconds, webhooks=False)
    print(f"  {_summary(polling)}", file=sys.stderr)
    rows += _rows("polling", polling, None)
    rows.append(
        Row(
            "5 CPU per job at " + ", ".join(f"{w.asked:,}" for w in windows) + " in flight",
            ", ".join(f"{w.cpu_ms:.1f}" for w in windows) + " ms",
            "PostgreSQL: " + ", ".join(f"{w.database_ms:.1f}" for w in windows),
            ", ".join(f"{w.peak_mb:.0f}" for w in windows) + " MB peak",
            "",
            None,
        )
    )
    return [*rows, _import_row()]


def _rows(mode: str, window: Window, latency: float | None) -> list[Row]:
    sent, ended = window.sent / window.seconds, window.ended / window.seconds
    p50, p95 = window.latency(0.5), window.latency(0.95)
    refused = sum(window.refused.values())
    return [
        Row(
            f"5 {mode}, {window.asked:,} in flight for {window.seconds:.0f} s",
            f"{sent:.1f} sent, {ended:.1f} ended /s",
            "",
            f"{refused} x 429, {window.wrong} errors, {window.in_flight} in flight at its end",
            f">= {RATE:g} /s each; 0, 0",
            min(sent, ended) >= RATE and refused == 0 and window.wrong == 0,
        ),
        Row(
            "5 ... end at RunPod to the row",
            f"p50 {p50:.2f} s, p95 {p95:.2f} s",
            "",
            f"{window.calls.get('status', 0)} status calls in all",
            f"p95 <= {latency:g} s" if latency else "",
            p95 <= latency if latency else None,
        ),
        Row(
            "5 ... CPU per job",
            f"{window.cpu_ms:.1f} ms",
            f"PostgreSQL {window.database_ms:.1f} ms",
            "",
            f"<= {CPU_MS:g} ms",
            window.cpu_ms <= CPU_MS,
        ),
        Row(
            "5 ... memory",
            f"{window.memory_mb:.0f} MB, peak {window.peak_mb:.0f} MB",
            "",
            "",
            f"<= {MEMORY_MB:g} MB",
            window.peak_mb <= MEMORY_MB,
        ),
    ]


def _window(folder: Path, in_flight: int, seconds: float, *, webhooks: bool) -> Window:
    """Queue everything at once; count when as many jobs end as are sent."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        url = stack.enter_context(database(folder / "database"))
        audit = stack.enter_context(Audit(url))
        double = stack.enter_context(Process(_double(in_flight), {}, folder / "double.log"))
        env = dict(double.ready())
        control = env.pop("url")
        env |= _settings(url, folder, in_flight)
        rows = int(in_flight * 2 + RATE * seconds * 1.2 + 1000)  # more than the window needs
        audit.insert(f"job{number:06}" for number in range(rows))
        port = _free_port()
        if webhooks:
            env["PUBLIC_URL"] = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "bench.backend", "--port", str(port)]
        backend = stack.enter_context(Process(command, env, folder / "backend.log"))
        backend.ready()
        # Half a generation has ended: by then what is slow to be noticed is noticed as it goes on.
        if not audit.wait(max(100, in_flight // 2), FILL_SECONDS + 3 * in_flight / RATE):
            raise RuntimeError(f"too few jobs ended; see {folder}: {_report(control)}")
        return _count(audit, control, backend.pid, in_flight, seconds)


def _count(audit: Audit, control: str, pid: int, in_flight: int, seconds: float) -> Window:
    before, ended, at = _report(control), audit.count(), time.time()
    cpu, base = cpu_seconds(pid), family_cpu_seconds(audit.postmaster())
    audit.wait(10**9, seconds)  # that many never end: the window's length
    cpu, base = cpu_seconds(pid) - cpu, family_cpu_seconds(audit.postmaster()) - base
    spent, ended = time.time() - at, audit.count() - ended
    after = _report(control, "?full")
    memory, peak = memory_mb(pid)
    finished = {job_id: wall for job_id, status, wall in after["ends"]}
    seen = {job_id: when for job_id, when in audit.seen.items() if when >= at}
    waiting = [time.time() - wall for job_id, wall in finished.items() if job_id not in audit.seen]
    return Window(
        in_flight,
        after["in_flight"],
        spent,
        after["submitted"] - before["submitted"],
        ended,
        1000 * cpu / max(1, ended),
        1000 * base / max(1, ended),
        memory,
        peak,
        [when - finished[job_id] for job_id, when in seen.items() if job_id in finished] + waiting,
        after["refused"],
        after["calls"],
        audit.verdict().statuses.get("error", 0),
    )


def _double(in_flight: int) -> list[str]:
    lasts = in_flight / RATE
    return [
        sys.executable,
        str(TESTS / "runpod_double.py"),
        "--queued",
        f"{0.4 * lasts:.3f}",
        "--seconds",
        f"{0.57 * lasts:.3f},{0.63 * lasts:.3f}",
        "--words",
        str(WORDS),
    ]


def _settings(url: str, folder: Path, in_flight: int) -> dict[str, str]:
    return {
        "DATABASE_URL": url,
        "STATE_DIR": str(folder / "state"),
        "REPLICAS": "1",
        # Above what is asked for, so that RunPod's limit is what holds it back, and nothing else.
        "MAX_IN_FLIGHT": str(int(in_flight * 1.1) + 100),
    }


def _report(control: str, query: str = "") -> Any:
    with urllib.request.urlopen(f"{control}/double/report{query}", timeout=60) as answer:
        return json.loads(answer.read())


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _summary(window: Window) -> str:
    return (
        f"{window.asked} in flight ({window.in_flight} at the end): "
        f"{window.sent / window.seconds:.1f} sent/s, "
        f"{window.ended / window.seconds:.1f} ended/s, p95 {window.latency(0.95):.2f} s, "
        f"{window.cpu_ms:.1f} ms, {window.peak_mb:.0f} MB, 429: {window.refused}, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def _import_row() -> Row:
    program = (
        "import json, sys, time; began, cpu = time.perf_counter(), time.process_time(); "
        "import orchestrator; "
        "spent = [time.perf_counter() - began, time.process_time() - cpu]; "
        f"print(json.dumps([*spent, sorted(set({HEAVY!r}) & set(sys.modules))]))"
    )
    command = [sys.executable, "-c", program]
    answers = []
    for _ in range(IMPORTS):
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        answers.append(json.loads(done.stdout))
    spent, cpu, heavy = median(a[0] for a in answers), median(a[1] for a in answers), answers[0][2]
    return Row(
        f"5 import orchestrator (n={IMPORTS})",
        f"{spent:.2f} s",
        "",
        f"{cpu:.2f} s of CPU; heavy modules: {', '.join(heavy) or 'none'}",
        f"<= {IMPORT_S:g} s, none",
        spent <= IMPORT_S and not heavy,
    )
