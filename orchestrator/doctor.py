"""Looks for what keeps jobs from being done, and says what to do about each thing it finds."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from lyricpod.cancel import Cancel
from lyricpod.errors import ConfigError, JobError
from lyricpod.storage import Cloudinary
from orchestrator import database, stats
from orchestrator.config import Settings
from orchestrator.credit import Balance, BalanceUnknown, Credit, RunPodBalance
from orchestrator.errors import DatabaseUnavailable, OrchestratorError
from orchestrator.exchange import Exchange, NotSent, Unanswered
from orchestrator.fleet import Fleet
from orchestrator.local import LOCAL, LocalPod
from orchestrator.store import Store
from orchestrator.tables import REQUIRED

CONNECT_SECONDS = 5
HTTP_SECONDS = 10.0
CLOCK_SECONDS = 5.0  # clocks of two machines that agree are closer
SIGNATURE_SECONDS = 3000.0  # Cloudinary takes signatures of the last hour
CREDIT_HOURS = 24.0  # credit for less than a day is said
LOOP_HOURS = 24.0 * 7  # RunPod keeps no job for longer
YT_DLP_DAYS = 90  # YouTube changes faster
SHOWN = 5  # ids of strange rows in a message

CONSOLE = "https://console.runpod.io/serverless"
OURS = ("lyricpod_jobs", "lyricpod_attempts", "lyricpod_replicas")


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"  # nothing is wrong, but somebody may wonder
    WARNING = "warning"  # jobs are done, and something will or may go wrong
    BROKEN = "broken"  # jobs are not done


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do about it."""

    check: str
    level: Level
    message: str
    remedy: str = ""


Check = Callable[[Settings], Iterator[Finding]]


def examine(env: Mapping[str, str]) -> list[Finding]:
    """Everything that is known to go wrong. No job is sent, no row is written."""
    try:
        settings = Settings.from_env(env)
    except ConfigError as error:
        return [_broken("settings", str(error), "set these variables right, or unset them")]
    found = [Finding("settings", Level.OK, "can be read")]
    with ThreadPoolExecutor(max_workers=len(CHECKS)) as threads:
        for findings in threads.map(lambda check: list(check(settings)), CHECKS):
            found += findings
    return found


# The database.


def check_database(settings: Settings) -> Iterator[Finding]:
    """Whether PostgreSQL answers, has the tables, and what is in them."""
    try:
        url = database.resolve(settings.database_url, Path(settings.state_dir))
    except OrchestratorError as error:
        yield _broken("database", str(error))
        return
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_SECONDS, autocommit=True) as connection:
            yield Finding("database", Level.OK, f"answers: {_place(url, settings)}")
            tables = list(_tables(connection))
            yield from tables
    except psycopg.Error as error:
        yield _broken(
            "database",
            f"can't be used: {_place(url, settings)}: {_reason(error, url)}",
            "check DATABASE_URL, and that the server runs and lets this machine in",
        )
        return
    if tables[-1].level == Level.OK:
        yield from _contents(url)


def _tables(connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    """Whether all tables are there; then the last finding is `ok`."""
    columns = _columns(connection, "jobs")
    if not columns:
        yield Finding(
            "tables",
            Level.NOTE,
            "there is no table jobs; `lyricpod run` makes one",
            "if your backend has one: DATABASE_URL names another database, or search_path "
            "another schema",
        )
        return
    if missing := REQUIRED - columns:
        yield _broken(
            "tables",
            f"the table jobs has no column {', '.join(sorted(missing))}",
            "let the backend's migrations run, or add them",
        )
        return
    if not all(_columns(connection, name) for name in OURS):
        yield Finding("tables", Level.NOTE, "ours are not there yet; `lyricpod run` makes them")
        return
    yield Finding("tables", Level.OK, "all are there")


def _columns(connection: psycopg.Connection[Any], table: str) -> frozenset[str]:
    query = (
        "SELECT attname::text FROM pg_attribute "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    )
    return frozenset(row[0] for row in connection.execute(query, (table,)).fetchall())


def _contents(url: str) -> Iterator[Finding]:
    with _opened(url) as (pool, store):
        try:
            store.prepare()
            yield from _clock(store.clock_offset(time.time()))
            yield from _strange(store.strange())
            yield from _loop(stats.read(pool, LOOP_HOURS))
        except (DatabaseUnavailable, psycopg.Error) as error:
            why = str(error) if isinstance(error, DatabaseUnavailable) else _reason(error, url)
            yield _broken("tables", why, "give the user of DATABASE_URL the right to use them")


@contextmanager
def _opened(url: str) -> Iterator[tuple[ConnectionPool[Any], Store]]:
    pool = database.pool(url, size=2, name="lyricpod-doctor")
    try:
        yield pool, Store(pool)
    finally:
        pool.close(timeout=1.0)


def _clock(offset: float) -> Iterator[Finding]:
    if abs(offset) <= CLOCK_SECONDS:
        yield Finding("clock", Level.OK, "agrees with the database's")
        return
    level = Level.BROKEN if abs(offset) > SIGNATURE_SECONDS else Level.WARNING
    which = "behind" if offset > 0 else "ahead of"
    yield Finding(
        "clock",
        level,
        f"this machine is {abs(offset):.0f} s {which} the database",
        "set both by NTP; Cloudinary refuses signatures that are an hour off",
    )


def _strange(rows: list[tuple[str, str]]) -> Iterator[Finding]:
    if not rows:
        yield Finding("rows", Level.OK, "every row in work is known to us")
        return
    shown = ", ".join(f"{job_id} ({status})" for job_id, status in rows[:SHOWN])
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    yield Finding(
        "rows",
        Level.WARNING,
        f"shown as in work, and nobody of ours knows them: {shown}{more}",
        "another system works on them, or died over them; to do them here: `lyricpod retry ID`",
    )


def _loop(seen: stats.Stats) -> Iterator[Finding]:
    if seen.replicas:
        processes = "process runs" if seen.replicas == 1 else "processes run"
        yield Finding("loop", Level.OK, f"{seen.replicas} {processes} it")
        return
    begun = any(route.open for route in seen.routes)
    waits = begun or seen.waiting > 0 or seen.oldest_seconds > stats.SILENCE_SECONDS
    yield Finding(
        "loop",
        Level.BROKEN if waits else Level.NOTE,
        "jobs wait and nothing runs the loop" if waits else "nothing runs the loop now",
        "start `lyricpod run`, or call Orchestrator.start() in the backend",
    )


def _place(url: str, settings: Settings) -> str:
    if not settings.database_url:
        return f"the local one in {settings.state_dir}/postgres"
    given = conninfo_to_dict(url)
    port = f":{given['port']}" if "port" in given else ""
    return f"{given.get('dbname', '')} on {given.get('host', 'this machine')}{port}"


def _reason(error: psycopg.Error, url: str) -> str:
    """The last line of what libpq says, which is the reason; without questions and the password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.endswith("?")] or lines
    said = error.diag.message_primary or (lines[-1] if lines else type(error).__name__)
    password = conninfo_to_dict(url).get("password")
    return said.replace(str(password), "***") if password else said


# RunPod.


def check_endpoints(settings: Settings) -> Iterator[Finding]:
    """Whether there is a way to RunPod, and workers at its end."""
    if not settings.runpod_api_key or not settings.endpoint_ids:
        yield from _unconfigured(settings)
        return
    try:
        fleet = Fleet(settings, uuid.uuid4(), Credit(None, 0))
    except ConfigError as error:
        yield _broken("runpod", str(error), "copy RUNPOD_API_KEY and the endpoint's address anew")
        return
    try:
        for name in fleet.names:
            if name != LOCAL:
                fleet.look(name)
        for name, state in fleet.report().items():
            yield from _endpoint(name, state)
    finally:
        fleet.close()
    if not settings.prices:
        yield Finding(
            "price",
            Level.NOTE,
            "the cost of jobs is not known",
            "set RUNPOD_PRICE to the USD per second of the endpoint's GPU",
        )


def _unconfigured(settings: Settings) -> Iterator[Finding]:
    missing = "RUNPOD_ENDPOINT_ID" if settings.runpod_api_key else "RUNPOD_API_KEY"
    local = settings.local_endpoint == "auto" and not LocalPod.missing()
    half = bool(settings.runpod_api_key) != bool(settings.endpoint_ids)
    level = Level.BROKEN if not local else (Level.WARNING if half else Level.NOTE)
    rest = "jobs are done on this machine" if local else "no job can be done"
    yield Finding("runpod", level, f"{missing} is not set: {rest}", f"set it, from {CONSOLE}")


def _endpoint(name: str, state: Mapping[str, Any]) -> Iterator[Finding]:
    if state["paused"] or not state["reachable"]:
        reason, _, remedy = str(state["reason"]).partition("; ")
        remedy = remedy or "check the network and RunPod's status page; jobs wait meanwhile"
        yield _broken(name, reason, remedy)
        return
    jobs, workers = state["jobs"] or {}, state["workers"] or {}
    queued = jobs.get("inQueue", 0)
    alive = sum(workers.get(kind, 0) for kind in ("idle", "ready", "running", "initializing"))
    if alive:
        counts = ", ".join(f"{count} {kind}" for kind, count in workers.items() if count)
        yield Finding(name, Level.OK, f"answers; workers: {counts}; {queued} jobs in its queue")
    elif not sum(workers.values()):
        yield Finding(
            name,
            Level.BROKEN if queued else Level.WARNING,
            f"has no worker at all, and {queued} jobs in its queue",
            f"raise max workers at {CONSOLE}: RunPod sets them to 0 after 7 idle days; "
            "with flex workers only, none may be there until a job comes",
        )
    yield from _ill(name, workers, queued=queued, alive=bool(alive))


def _ill(name: str, workers: Mapping[str, int], *, queued: int, alive: bool) -> Iterator[Finding]:
    bad = Level.BROKEN if queued and not alive else Level.WARNING
    if throttled := workers.get("throttled", 0):
        yield Finding(
            name,
            bad,
            f"{throttled} workers are throttled: RunPod has no free GPU of this kind there",
            f"allow more kinds of GPU, or more regions, at {CONSOLE}",
        )
    if unhealthy := workers.get("unhealthy", 0):
        yield Finding(
            name,
            bad,
            f"{unhealthy} workers are unhealthy: the image does not start, or takes over 7 minutes",
            f"read their logs at {CONSOLE}",
        )


def check_credit(settings: Settings) -> Iterator[Finding]:
    """What is left on the account."""
    if not settings.runpod_api_key:
        return
    try:
        balance = RunPodBalance(settings.runpod_graphql_url, settings.runpod_api_key).balance()
    except (BalanceUnknown, ValueError) as error:
        message = f"not known: {error}" if isinstance(error, BalanceUnknown) else "not known"
        yield Finding("credit", Level.WARNING, message, "look at https://console.runpod.io/user")
        return
    yield _credit(balance, settings.min_credit_usd)


def _credit(balance: Balance, least: float) -> Finding:
    remedy = "add credit at https://console.runpod.io/user/billing, or let it recharge by itself"
    left = f"${balance.usd:.2f} are left"
    if balance.usd <= 0 or balance.usd < least:
        below = f", below MIN_CREDIT_USD ({least:g}): no job is sent to RunPod"
        return _broken("credit", left + (below if least else ""), remedy)
    if balance.usd_per_hour and balance.usd < CREDIT_HOURS * balance.usd_per_hour:
        hours = balance.usd / balance.usd_per_hour
        return Finding("credit", Level.WARNING, f"{left}: {hours:.1f} h as things go now", remedy)
    return Finding("credit", Level.OK, left)


def check_public_url(settings: Settings) -> Iterator[Finding]:
    """Whether webhooks can come in."""
    url = settings.public_url
    if not url:
        why = "not set: RunPod's jobs are polled, which takes a little longer"
        remedy = "set it to the backend's address, with a route POST /lyricpod/webhook/{token}"
        if settings.runpod_api_key:
            yield Finding("public url", Level.NOTE, why, remedy)
        return
    if _is_private(url):
        remedy = "set PUBLIC_URL to the backend's public address"
        yield Finding("public url", Level.WARNING, "RunPod can't reach a private address", remedy)
    # A token that none is: the route answers 404 and changes nothing.
    exchange = Exchange({"User-Agent": "lyricpod"}, seconds=HTTP_SECONDS, limit=65536)
    try:
        status = exchange.send("POST", f"{url}/lyricpod/webhook/doctor", b"{}").status
    except (NotSent, Unanswered) as error:
        remedy = "check PUBLIC_URL, and that the backend runs; jobs are polled meanwhile"
        yield Finding("public url", Level.WARNING, f"does not answer: {error.reason}", remedy)
        return
    finally:
        exchange.close()
    yield _webhook_route(status)


def _webhook_route(status: int) -> Finding:
    if status == 404:
        return Finding("public url", Level.OK, "answers 404 for an unknown token, as it should")
    why = f"answers {status} for an unknown token, not 404"
    remedy = "the route POST /lyricpod/webhook/{token} must call handle_webhook, without redirects"
    return Finding("public url", Level.WARNING, why, remedy)


def _is_private(url: str) -> bool:
    host = (urlsplit(url).hostname or "").rstrip(".")
    with suppress(ValueError):
        return not ip_address(host).is_global
    return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))


# Where results go, and the local route.


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Whether results can be kept."""
    if settings.cloudinary_url:
        yield _cloudinary(settings)
    elif settings.storage_dir:
        yield _folder(Path(settings.storage_dir))
    else:
        yield Finding(
            "storage",
            Level.NOTE,
            "results that no worker keeps stay in the database, with an empty results_url",
            "set CLOUDINARY_URL (here and on the workers), or STORAGE_DIR on a single machine",
        )


def _cloudinary(settings: Settings) -> Finding:
    """A signed look-up of an asset that isn't there: no admin call, which are few an hour."""
    name = f"doctor-{uuid.uuid4().hex}"
    remedy = "copy CLOUDINARY_URL anew, from https://console.cloudinary.com/settings/api-keys"
    try:
        Cloudinary(settings.cloudinary_url, HTTP_SECONDS).look(name, "", Cancel())
    except ConfigError as error:
        return _broken("cloudinary", str(error), remedy)
    except JobError as error:
        return _broken("cloudinary", error.message, remedy)
    return Finding("cloudinary", Level.OK, "takes our signature")


def _folder(folder: Path) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = f"STORAGE_DIR {folder} can't be written to: {error.strerror}"
        return _broken("storage", why, "give this user the right to write there")
    return Finding("storage", Level.OK, f"results go to {folder.resolve()}")


def check_local(settings: Settings) -> Iterator[Finding]:
    """Whether jobs can be done on this machine."""
    if settings.local_endpoint == "off":
        yield Finding("local", Level.NOTE, "LOCAL_ENDPOINT=off: nothing is done on this machine")
        return
    if missing := LocalPod.missing():
        yield Finding(
            "local",
            Level.NOTE,
            f"no jobs are done on this machine: {', '.join(missing)} not installed",
            "pip install 'lyricpod[worker]', if it should take what RunPod can't",
        )
        return
    yield Finding("local", Level.OK, "this machine can take what RunPod can't")


def check_yt_dlp(settings: Settings) -> Iterator[Finding]:
    """Whether yt-dlp is of these months; its version is its date."""
    try:
        installed = version("yt-dlp")
        parts = [int(part) for part in installed.split(".")[:3]]
        age = date.today() - date(parts[0], parts[1], parts[2])
    except (PackageNotFoundError, ValueError, IndexError):
        return
    if age > timedelta(days=YT_DLP_DAYS):
        yield Finding(
            "yt-dlp",
            Level.WARNING,
            f"{installed} is {age.days} days old, and YouTube changes often",
            "pip install --upgrade 'yt-dlp[default]'; build the workers' image anew as well",
        )
    else:
        yield Finding("yt-dlp", Level.OK, f"{installed} is {age.days} days old")


def _broken(check: str, message: str, remedy: str = "") -> Finding:
    return Finding(check, Level.BROKEN, message, remedy)


CHECKS: tuple[Check, ...] = (
    check_database,
    check_endpoints,
    check_credit,
    check_public_url,
    check_storage,
    check_local,
    check_yt_dlp,
)
