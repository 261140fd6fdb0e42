"""`lyricpod doctor`: each thing that goes wrong is found, with its remedy."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import psycopg
import pytest
from cloudinary_double import CloudinaryDouble
from runpod_double import RunPodDouble
from webserver import WebServer

from orchestrator import Orchestrator, doctor
from orchestrator.doctor import Finding, Level, examine
from orchestrator.local import LocalPod

Environment = dict[str, str]


@pytest.fixture
def runpod() -> Iterator[RunPodDouble]:
    """RunPod, in good health."""
    with RunPodDouble() as double:
        yield double


@pytest.fixture
def env(runpod: RunPodDouble, database_url: str) -> Environment:
    """The settings of a system that works."""
    return {**runpod.env(), "DATABASE_URL": database_url, "RUNPOD_PRICE": "0.0002"}


def found(env: Environment, check: str, name: str = "") -> Finding:
    """What one check finds, the worst of it."""
    settings = doctor.Settings.from_env(env)
    findings = list(getattr(doctor, f"check_{check}")(settings))
    named = [finding for finding in findings if finding.check == (name or check)]
    return max(named, key=lambda finding: list(Level).index(finding.level))


def test_all_is_well(env: Environment, runpod: RunPodDouble) -> None:
    """A system that works has nothing broken, and each check says what it saw."""
    Orchestrator.from_env(env).close()
    with CloudinaryDouble() as cloudinary:
        findings = examine({**env, "CLOUDINARY_URL": cloudinary.cloudinary_url})
        assert [call.params["type"] for call in cloudinary.requests] == ["upload"]
    levels = {finding.check: finding.level for finding in findings}
    well = {"settings", "database", "tables", "clock", "rows", "credit", "cloudinary"}
    assert {levels[name] for name in well | {f"runpod:{runpod.endpoint_id}"}} == {Level.OK}
    assert Level.BROKEN not in levels.values()


def test_what_is_not_well_has_a_remedy_and_no_secret(env: Environment, tmp_path: Path) -> None:
    """With every address dead, doctor still ends, and says what to do without a password."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
    findings = examine(
        {
            "DATABASE_URL": f"postgresql://me:planted-1@{dead}/jobs",
            "RUNPOD_API_KEY": "planted-2",
            "RUNPOD_ENDPOINT_ID": "e",
            "RUNPOD_ENDPOINT_BASE_URL": f"http://{dead}/v2",
            "RUNPOD_GRAPHQL_URL": f"http://{dead}/graphql",
            "CLOUDINARY_URL": f"cloudinary://key:planted-3@demo?upload_prefix=ftp://{dead}",
            "PUBLIC_URL": f"http://{dead}",
        }
    )
    levels = {finding.check: finding.level for finding in findings}
    [database] = [finding.message for finding in findings if finding.check == "database"]
    assert dead in database
    assert database.endswith("Connection refused")
    for name in ("database", "runpod:e", "cloudinary"):
        assert levels[name] == Level.BROKEN
    assert levels["credit"] == levels["public url"] == Level.WARNING
    assert "planted" not in repr(findings)
    assert all(finding.remedy for finding in findings if finding.level != Level.OK)


def test_unusable_settings_are_all_that_is_said() -> None:
    """A setting that can't be read is named, and nothing is tried with it."""
    [finding] = examine({"LEASE_SECONDS": "soon"})
    assert (finding.level, "LEASE_SECONDS" in finding.message) == (Level.BROKEN, True)


def test_a_wrong_key_is_found(env: Environment) -> None:
    """The key's remedy is another key."""
    finding = found({**env, "RUNPOD_API_KEY": "wrong"}, "endpoints", "runpod:endpoint-double")
    assert finding.level == Level.BROKEN
    assert "RUNPOD_API_KEY" in finding.remedy
    assert found({**env, "RUNPOD_API_KEY": "kéy"}, "endpoints", "runpod").level == Level.BROKEN


def test_an_endpoint_without_workers_is_found(env: Environment, runpod: RunPodDouble) -> None:
    """Max workers of 0 stop nothing while nobody queues, and all once somebody does."""
    runpod.workers = dict.fromkeys(runpod.workers, 0)
    finding = found(env, "endpoints", "runpod:endpoint-double")
    assert (finding.level, "7 idle days" in finding.remedy) == (Level.WARNING, True)


@pytest.mark.parametrize(("kind", "said"), [("throttled", "GPU"), ("unhealthy", "logs")])
def test_ill_workers_are_found(
    env: Environment, runpod: RunPodDouble, kind: str, said: str
) -> None:
    """Throttled and unhealthy workers each have a remedy of their own."""
    runpod.workers = {**dict.fromkeys(runpod.workers, 0), kind: 2}
    finding = found(env, "endpoints", "runpod:endpoint-double")
    assert finding.level == Level.WARNING
    assert "2 workers" in finding.message
    assert said in finding.remedy


@pytest.mark.parametrize(
    ("balance", "least", "level"),
    [(25.0, "0", Level.OK), (3.0, "5", Level.BROKEN), (0.0, "0", Level.BROKEN)],
)
def test_the_credit_is_looked_at(
    env: Environment, runpod: RunPodDouble, balance: float, least: str, level: Level
) -> None:
    """Too little credit stops jobs, and is said before somebody wonders."""
    runpod.balance = balance
    assert found({**env, "MIN_CREDIT_USD": least}, "credit").level == level


def test_an_unknown_credit_is_only_a_warning(env: Environment, runpod: RunPodDouble) -> None:
    """RunPod's balance API may go away; jobs don't."""
    runpod.balance = None
    assert found(env, "credit").level == Level.WARNING


def test_what_is_wrong_with_the_tables_is_found(env: Environment, database_url: str) -> None:
    """No table, one of somebody else's shape, and ours missing: three findings, nothing made."""
    assert "there is no table jobs" in found(env, "database", "tables").message
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE jobs (id text, youtube_url text, status text)")
        finding = found(env, "database", "tables")
        assert (finding.level, "results_url" in finding.message) == (Level.BROKEN, True)
        connection.execute(
            "ALTER TABLE jobs ADD results_url text, ADD error_message text,"
            " ADD created_at timestamptz"
        )
        assert "ours are not there yet" in found(env, "database", "tables").message
        made = connection.execute("SELECT to_regclass('lyricpod_jobs')").fetchone()
    assert made == (None,)


def test_strange_rows_and_a_missing_loop_are_found(env: Environment) -> None:
    """A row that nobody works on is named; jobs that wait for a loop nobody runs are broken."""
    with Orchestrator.from_env(env) as orchestrator:
        orchestrator.submit(youtube_url="https://youtu.be/dQw4w9WgXcQ")
    with psycopg.connect(env["DATABASE_URL"]) as connection:
        connection.execute(
            "INSERT INTO jobs (id, youtube_url, status) VALUES ('stray', 'u', 'processing')"
        )
    rows = found(env, "database", "rows")
    assert (rows.level, "stray (processing)" in rows.message) == (Level.WARNING, True)
    loop = found(env, "database", "loop")
    assert (loop.level, "lyricpod run" in loop.remedy) == (Level.BROKEN, True)


@pytest.mark.parametrize(
    ("offset", "level"), [(0.2, Level.OK), (-60.0, Level.WARNING), (4000.0, Level.BROKEN)]
)
def test_a_clock_that_is_off_is_found(offset: float, level: Level) -> None:
    """Minutes are a warning; an hour breaks the signatures of uploads."""
    [finding] = doctor._clock(offset)
    assert finding.level == level


def test_a_refused_signature_is_found(env: Environment) -> None:
    """Cloudinary's credentials are tried by a signed call."""
    with CloudinaryDouble() as cloudinary:
        url = cloudinary.cloudinary_url.replace(":secret@", ":planted@")
        finding = found({**env, "CLOUDINARY_URL": url}, "storage", "cloudinary")
    assert finding.level == Level.BROKEN
    assert "AuthorizationRequired" in finding.message
    assert "planted" not in repr(finding)


def test_a_folder_for_results_is_tried(tmp_path: Path) -> None:
    """A folder that can be made is well; a file in its place is not."""
    assert found({"STORAGE_DIR": str(tmp_path / "out")}, "storage").level == Level.OK
    (tmp_path / "file").touch()
    finding = found({"STORAGE_DIR": str(tmp_path / "file")}, "storage")
    assert (finding.level, "can't be written" in finding.message) == (Level.BROKEN, True)


def test_the_webhooks_address_is_tried(env: Environment) -> None:
    """A private address, one that redirects, and a route that is there."""
    with WebServer() as web:
        finding = found({**env, "PUBLIC_URL": web.url}, "public_url", "public url")
    assert (finding.level, "private address" in finding.message) == (Level.WARNING, True)
    assert doctor._webhook_route(404).level == Level.OK
    assert "without redirects" in doctor._webhook_route(308).remedy
    assert not doctor._is_private("https://api.example.org")


def test_a_way_that_leads_nowhere_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without RunPod and without the worker's packages no job can be done."""
    monkeypatch.setattr(LocalPod, "missing", staticmethod(lambda: ("faster_whisper",)))
    assert found({}, "endpoints", "runpod").level == Level.BROKEN
    assert "faster_whisper" in found({}, "local").message
    monkeypatch.setattr(LocalPod, "missing", staticmethod(lambda: ()))
    assert found({}, "endpoints", "runpod").level == Level.NOTE
    assert found({"RUNPOD_API_KEY": "k"}, "endpoints", "runpod").level == Level.WARNING


@pytest.mark.parametrize(("days", "level"), [(10, Level.OK), (91, Level.WARNING)])
def test_an_old_yt_dlp_is_found(monkeypatch: pytest.MonkeyPatch, days: int, level: Level) -> None:
    """Its version is its date."""
    shown = (date.today() - timedelta(days=days)).strftime("%Y.%m.%d")
    monkeypatch.setattr(doctor, "version", lambda name: shown)
    assert found({}, "yt_dlp", "yt-dlp").level == level


def test_every_check_is_made() -> None:
    """A check that is written is not forgotten in the list."""
    written = {getattr(doctor, name) for name in dir(doctor) if name.startswith("check_")}
    assert written == set(doctor.CHECKS)
