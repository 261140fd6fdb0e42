"""`python -m bench.chaos`: replicas are killed and answers lost; no job may be.

PostgreSQL, localpod with scripted workers, a lossy proxy in front of its job API, another in front
of the webhook routes, and replicas that are killed with kill -9 and started again. In the end the
database, the proxy's record and localpod say what happened to each job.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.audit import Audit, Verdict
from bench.doubles import LossyProxy, Odds, Sending, database
from bench.processes import Process, base_env
from bench.table import Row, render
from bench.worker import ROOT
from orchestrator import Orchestrator

ENDPOINT_ID = "chaos"
KEY = "chaos-planted-secret"
LEAST, MOST = 5.0, 60.0  # seconds of a job at scale 1
FIRST_SHARE = 0.1  # of the jobs is there before the first kill; the rest comes with the kills
SUBMITTED = 5  # each such job goes through `submit`, the others are rows of the backend's
DEATHS, EXPIRED, LOST = 0.05, 0.01, 0.05
WEBHOOK_ODDS = Odds(twice=0.05, late=0.05, late_seconds=2.0)
PAUSED = 0.05  # with this chance another replica is stopped at a kill, until its leases are over
LEASE_SECONDS = 4
WEBHOOK_PAUSE = (5.0, 15.0)  # seconds between two tries, as RunPod has it
WEBHOOK_SCALE = 0.2  # at least: a replica's start is not scaled either
RETENTION_SECONDS = 86400  # so that localpod can say in the end how each job ended
SHUTDOWN_SECONDS = 3.0
QUICK: dict[str, int] = {"jobs": 200, "kills": 20}


@dataclass(frozen=True)
class Plan:
    """What is asked for; `scale` shortens the jobs and RunPod's pauses alike."""

    jobs: int = 1000
    replicas: int = 2
    kills: int = 200
    webhooks: bool = True
    storage: bool = True
    seed: int = 1
    scale: float = 0.02
    kill_seconds: float = 1.5
    workers: int = 8
    unknown_seconds: float = 20.0
    patience: float = 180.0
    odds: Odds = field(default_factory=Odds)
    expired: float = EXPIRED  # such a job ends a minute late: a 404 counts only then

    @property
    def least(self) -> float:
        """Seconds of the shortest job."""
        return LEAST * self.scale

    @property
    def most(self) -> float:
        """Seconds of the longest job."""
        return MOST * self.scale

    def env(self, database_url: str, api: str, public: str, folder: Path) -> dict[str, str]:
        """A replica's settings: deadlines short enough for a run of minutes."""
        return {
            "DATABASE_URL": database_url,
            "RUNPOD_API_KEY": KEY,
            "RUNPOD_ENDPOINT_ID": ENDPOINT_ID,
            "RUNPOD_ENDPOINT_BASE_URL": f"{api}/v2",
            "LOCAL_ENDPOINT": "off",
            "REPLICAS": str(self.replicas),
            "HTTP_SECONDS": "2",
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "RETRY_SECONDS": "0.5",
            "POLL_SECONDS": "0.5",
            "MAX_ATTEMPTS": "8",
            "UNKNOWN_SECONDS": str(self.unknown_seconds),
            "STATE_DIR": str(folder / "state"),
            **({"PUBLIC_URL": public} if self.webhooks else {}),
            **({"STORAGE_DIR": str(folder / "storage")} if self.storage else {}),
        }


@dataclass
class Seen:
    """What a run left behind."""

    verdict: Verdict
    attempts: dict[str, int]
    sendings: list[Sending]
    ends: dict[str, str]  # localpod's last word on each RunPod id
    expired: set[str]
    api_fates: Counter[str]
    webhook_fates: Counter[str]
    kills: int
    stops: list[tuple[int, float]]  # exit status and seconds of each SIGTERM at the end
    seconds: float
    logs: str


def run(plan: Plan, folder: Path) -> Seen:
    """One run, in `folder`, which must be empty."""
    with ExitStack() as stack:
        url = stack.enter_context(database(folder / "database"))
        audit = stack.enter_context(Audit(url))
        pod = stack.enter_context(Process(_localpod(plan, folder), _pod_env(), folder / "pod.log"))
        pod_url = str(pod.ready()["url"]).removesuffix("/v2")
        api = stack.enter_context(
            LossyProxy([pod_url], plan.odds, seed=plan.seed, expired=plan.expired)
        )
        hooks = stack.enter_context(LossyProxy([api.url], WEBHOOK_ODDS, seed=plan.seed))
        env = plan.env(url, api.url, hooks.url, folder)
        fleet = stack.enter_context(Fleet(plan.replicas, env, folder))
        hooks.targets = fleet.urls
        face = Orchestrator.from_env({**base_env(), **env})  # runs no loop: it only submits
        stack.callback(face.close)
        started = time.monotonic()
        kills = _work(plan, audit, fleet, face)
        spent = time.monotonic() - started
        stops = fleet.stop()
        return Seen(
            audit.verdict(),
            audit.attempts(),
            list(api.sendings),
            {s.runpod_id: _end(pod_url, s.runpod_id) for s in api.sendings if s.runpod_id},
            set(api.expired_ids),
            api.fates,
            hooks.fates,
            kills,
            stops,
            spent,
            "".join(log.read_text(errors="replace") for log in folder.glob("replica*.log")),
        )


def _localpod(plan: Plan, folder: Path) -> list[str]:
    least = max(plan.scale, WEBHOOK_SCALE)
    worker = [sys.executable, str(ROOT / "tests" / "scripted_worker.py")]
    worker += ["--seconds", f"{plan.least},{plan.most}", "--die", str(DEATHS)]
    worker += ["--seed", str(plan.seed)]
    worker += ["--storage", str(folder / "storage")] if plan.storage else []
    command = [sys.executable, "-m", "localpod", "--workers", str(plan.workers)]
    command += ["--endpoint-id", ENDPOINT_ID, "--retention-seconds", str(RETENTION_SECONDS)]
    command += ["--webhook-pause", *(f"{pause * least:.2f}" for pause in WEBHOOK_PAUSE)]
    return [*command, "--worker-command", shlex.join(worker)]


def _pod_env() -> dict[str, str]:
    return {"LOCALPOD_KEY": KEY}


class Fleet:
    """The replicas: each keeps its port over its deaths."""

    def __init__(self, count: int, env: dict[str, str], folder: Path) -> None:
        self._env, self._folder = env, folder
        self._replicas: list[Process] = []
        self._ports: list[int] = []
        for number in range(count):
            replica = self._start(number, 0)
            self._replicas.append(replica)
            self._ports.append(int(replica.ready()["port"]))

    @property
    def urls(self) -> list[str]:
        """Where their webhook routes are."""
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exc: object) -> None:
        for replica in self._replicas:
            replica.kill()

    def kill(self, number: int) -> None:
        """kill -9 and start again at once, without waiting until it works."""
        self._replicas[number].kill()
        self._replicas[number] = self._start(number, self._ports[number])

    def pause(self, number: int, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later: it wakes without knowing how long it slept."""
        replica = self._replicas[number]
        replica.send(signal.SIGSTOP)
        wake = threading.Timer(seconds, replica.send, [signal.SIGCONT])
        wake.daemon = True
        wake.start()

    def stop(self) -> list[tuple[int, float]]:
        """SIGTERM to each, when it works; exit status and seconds."""
        stops = []
        for replica in self._replicas:
            replica.send(signal.SIGCONT)
            replica.ready()
            began = time.monotonic()
            stops.append((replica.stop(), time.monotonic() - began))
        return stops

    def _start(self, number: int, port: int) -> Process:
        command = [sys.executable, "-m", "bench.backend", "--port", str(port)]
        return Process(command, self._env, self._folder / f"replica{number}.log")


def _work(plan: Plan, audit: Audit, fleet: Fleet, face: Orchestrator) -> int:
    """Queue the jobs, kill at random moments, wait for the last end; how often it killed."""
    chance = random.Random(plan.seed)
    ids = _ids(plan)
    first = math.ceil(plan.jobs * (FIRST_SHARE if plan.kills else 1))
    _queue([next(ids) for _ in range(first)], audit, face)
    queued = first
    for number in range(1, plan.kills + 1):
        # The moment is random; a run whose jobs all ended early goes on to the next batch.
        audit.wait(plan.jobs, chance.expovariate(1 / plan.kill_seconds))
        victim = chance.randrange(plan.replicas)
        fleet.kill(victim)
        if chance.random() < PAUSED:
            fleet.pause((victim + 1) % plan.replicas, 1.5 * LEASE_SECONDS)
        until = first + (plan.jobs - first) * number // plan.kills
        _queue([next(ids) for _ in range(until - queued)], audit, face)
        queued = until
        if number % 20 == 0:
            print(f"  {number} kills, {queued} queued, {audit.count()} ended", file=sys.stderr)
    if not audit.wait(plan.jobs, plan.patience):
        print(f"  gave up: {audit.count()} of {plan.jobs} ended", file=sys.stderr)
        print("\n".join(f"  open: {line}" for line in audit.open()[:20]), file=sys.stderr)
    return plan.kills


def _ids(plan: Plan) -> Iterator[str]:
    for number in range(plan.jobs):
        yield f"chaos-{plan.seed}-{number:05}"


def _queue(ids: list[str], audit: Audit, face: Orchestrator) -> None:
    """Most as rows of the backend's, some through the public face."""
    ours = [job_id for job_id in ids if int(job_id[-5:]) % SUBMITTED == 0]
    audit.insert(job_id for job_id in ids if job_id not in ours)
    for job_id in ours:
        face.submit(job_id=job_id, audio_url=f"https://example.org/{job_id}.mp3")


def _end(pod_url: str, runpod_id: str) -> str:
    """What localpod itself, without the proxy, says of a job."""
    request = urllib.request.Request(
        f"{pod_url}/v2/{ENDPOINT_ID}/status/{runpod_id}",
        headers={"Authorization": f"Bearer {KEY}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return str(json.loads(answer.read())["status"])
    except urllib.error.HTTPError as error:
        return str(error.code)


def resent(seen: Seen) -> dict[str, list[str]]:
    """Jobs sent again although an earlier sending was accepted and ran to its end; by why."""
    by_job: dict[str, list[Sending]] = {}
    for sending in seen.sendings:
        if sending.runpod_id:
            by_job.setdefault(sending.job_id, []).append(sending)
    found: dict[str, list[str]] = {}
    for job_id, sendings in by_job.items():
        whole = [s for s in sendings[:-1] if seen.ends[s.runpod_id] == "COMPLETED"]
        if whole:
            why = "expired" if whole[0].runpod_id in seen.expired else whole[0].fate
            found.setdefault(why, []).append(job_id)
    return found


def table(plan: Plan, seen: Seen) -> list[Row]:
    """The figures and their targets."""
    verdict = seen.verdict
    ended = sum(verdict.statuses.get(status, 0) for status in ("completed", "error"))
    again = resent(seen)
    # Without storage a result that has expired is nowhere: to make it anew is the only way.
    free = () if plan.storage else ("expired",)
    twice = sum(len(jobs) for why, jobs in again.items() if why not in free)
    allowed = plan.jobs * (0.01 if plan.webhooks else LOST)
    mode = "webhooks" if plan.webhooks else "polling"
    slowest = max((seconds for _, seconds in seen.stops), default=0.0)
    secrets = KEY in seen.logs
    return [
        _row(
            f"chaos, {mode}: {plan.jobs} jobs of {plan.least:g} to {plan.most:g} s, "
            f"{plan.replicas} replicas, {seen.kills} kills, seed {plan.seed}",
            f"{ended} ended in {seen.seconds:.0f} s",
            _counts(verdict.statuses),
            f"{plan.jobs} ended",
            ended == plan.jobs == sum(verdict.statuses.values()),
        ),
        _row(
            "... ended as completed",
            str(verdict.statuses.get("completed", 0)),
            "; ".join(f"{job}: {why[:80]}" for job, why in verdict.errors[:3]),
            f"{plan.jobs}",
            verdict.statuses.get("completed") == plan.jobs,
        ),
        _row(
            "... finished more than once",
            str(len(verdict.more_than_once)),
            ", ".join(verdict.more_than_once[:3]),
            "0",
            not verdict.more_than_once,
        ),
        _row(
            "... touches of a row after its end",
            str(len(verdict.touched)),
            ", ".join(verdict.touched[:3]),
            "0",
            not verdict.touched,
        ),
        _row(
            "... sent again though the first sending ran to its end",
            str(twice),
            "; ".join(f"{why}: {len(jobs)}" for why, jobs in again.items()),
            f"<= {allowed:g}",
            twice <= allowed,
        ),
        _row(
            "... SIGTERM to exit 0",
            f"{slowest:.2f} s",
            ", ".join(str(status) for status, _ in seen.stops),
            f"0 within {SHUTDOWN_SECONDS:g} s",
            all(status == 0 for status, _ in seen.stops) and slowest <= SHUTDOWN_SECONDS,
        ),
        _row(
            "... tracebacks, and the key, in the replicas' logs",
            f"{seen.logs.count('Traceback')}, {'yes' if secrets else 'no'}",
            "",
            "0, no",
            "Traceback" not in seen.logs and not secrets,
        ),
        _row("... attempts", str(sum(seen.attempts.values())), _counts(seen.attempts), "", None),
        _row("... sendings", str(len(seen.sendings)), _fates(seen.api_fates, "run"), "", None),
        _row("... status calls", "", _fates(seen.api_fates, "status"), "", None),
        _row("... webhook calls", "", _fates(seen.webhook_fates, "webhook"), "", None),
    ]


def _row(measure: str, ours: str, figure: str, target: str, met: bool | None) -> Row:
    return Row(measure, ours, "", figure, target, met)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _fates(fates: Counter[str], operation: str) -> str:
    mine = {k.split()[2]: v for k, v in fates.items() if k.split()[1] == operation}
    return _counts(mine)


def measure(folder: Path, *, jobs: int = 1000, kills: int = 200) -> list[Row]:
    """Both ways to learn of an end, one after the other."""
    rows: list[Row] = []
    for webhooks in (True, False):
        plan = Plan(jobs=jobs, kills=kills, webhooks=webhooks)
        place = folder / ("webhooks" if webhooks else "polling")
        place.mkdir()
        seen = run(plan, place)
        rows += [replace(row, measure=f"6 {row.measure}") for row in table(plan, seen)]
    return rows


def main() -> None:
    """Run it and print the table; exit 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--webhooks", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--storage", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--scale", type=float, default=0.02, help="of 5 to 60 s: 1 is hours of work"
    )
    parser.add_argument("--kill-seconds", type=float, default=1.5, help="between kills, on average")
    parser.add_argument("--workers", type=int, help="default: enough for the time the kills take")
    parser.add_argument("--unknown-seconds", type=float, help="default: 20, or 10 long jobs")
    parser.add_argument("--patience", type=float, default=180.0, help="after the last kill")
    parser.add_argument("--folder", type=Path, help="an empty folder that is kept, logs and all")
    asked = parser.parse_args()
    most = MOST * asked.scale
    work = asked.jobs * asked.scale * (LEAST + MOST) / 2
    enough = math.ceil(2 * work / max(30.0, asked.kills * asked.kill_seconds))
    plan = Plan(
        jobs=asked.jobs,
        replicas=asked.replicas,
        kills=asked.kills,
        webhooks=asked.webhooks,
        storage=asked.storage,
        seed=asked.seed,
        scale=asked.scale,
        kill_seconds=asked.kill_seconds,
        workers=asked.workers or min(96, max(4, enough)),
        unknown_seconds=asked.unknown_seconds or max(20.0, min(600.0, 10 * most)),
        patience=asked.patience,
    )
    with tempfile.TemporaryDirectory(prefix="lyricpod-chaos-") as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = table(plan, run(plan, folder))
    print(render(rows))
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            print(f"left behind: {thread.name}", file=sys.stderr)
    sys.exit(any(row.met is False for row in rows))


if __name__ == "__main__":
    main()
