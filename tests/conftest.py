"""What the tests share: a worker process, a running loop, and the doubles they talk to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from cloudinary_double import CloudinaryDouble
from jobserver import JobServer
from postgres import Postgres, postgres
from rows import ADDED_LATER, ORIGINAL, Rows
from runpod_double import HELD, RunPodDouble

from orchestrator import Orchestrator

# Under nohup, or in the background of a script, both are ignored, by our children too: tests that
# send them would wait for ever.
for ignored in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"


class WorkerProcess:
    """The real worker, started as the image starts it; its log is in `log`."""

    def __init__(self, env: dict[str, str], log: Path, temporary: Path, tree: Path = ROOT) -> None:
        self.log_path = log
        self.temporary = temporary
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "handler.py"],
                cwd=tree,
                env={**env, "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait(self, timeout: float = 30) -> int:
        return self.process.wait(timeout)

    def group_is_empty(self) -> bool:
        """Whether every process it started, its heartbeat included, is gone."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def left_files(self) -> list[str]:
        """Temporary files of jobs that are still there."""
        return [p.name for p in self.temporary.iterdir() if p.name.startswith("lyricpod-")]


@pytest.fixture
def jobs() -> Iterator[JobServer]:
    with JobServer() as server:
        yield server


@pytest.fixture
def cloudinary() -> Iterator[CloudinaryDouble]:
    with CloudinaryDouble() as double:
        yield double


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(jobs: JobServer, tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers against the job server; they are killed at the test's end."""
    started: list[WorkerProcess] = []

    def start(**env: str) -> WorkerProcess:
        number = len(started)
        temporary = tmp_path / f"tmp{number}"
        temporary.mkdir()
        worker = WorkerProcess(worker_env(jobs, **env), tmp_path / f"worker{number}.log", temporary)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()


def worker_env(jobs: JobServer, **more: str) -> dict[str, str]:
    """A worker's environment: the nano model, files of this machine, no network."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/tmp"),
        "MODEL": "nano",
        "DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "ALLOW_FILE_SOURCES": "1",
        "ALLOW_PRIVATE_NETWORK": "1",
        **jobs.env(),
        **more,
    }


@contextmanager
def running(jobs: JobServer, folder: Path, **env: str) -> Iterator[WorkerProcess]:
    """One worker for a whole module's tests."""
    (folder / "tmp").mkdir()
    worker = WorkerProcess(worker_env(jobs, **env), folder / "worker.log", folder / "tmp")
    try:
        yield worker
    finally:
        worker.kill()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A real PostgreSQL, for all tests; one that stops it starts it again."""
    # Not in pytest's own folder: each start of pytest closes that to PostgreSQL's user.
    with (
        tempfile.TemporaryDirectory(prefix="lyricpod-test-") as folder,
        postgres(Path(folder)) as server,
    ):
        yield server


@pytest.fixture
def database_url(postgres_server: Postgres) -> str:
    """The URL of an empty database, this test's alone."""
    return postgres_server.create()


# What makes a loop quick enough for a test: looks are near, deadlines are short.
QUICK = {
    "POLL_SECONDS": "0.1",
    "RETRY_SECONDS": "0.05",
    "HTTP_SECONDS": "2",
    "LEASE_SECONDS": "4",
    "UNKNOWN_SECONDS": "2",
}

StartLoop = Callable[..., Orchestrator]


@pytest.fixture
def runpod() -> Iterator[RunPodDouble]:
    with RunPodDouble(decide=lambda body: HELD, webhook_pauses=(0.1, 0.1)) as double:
        yield double


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    """The backend's table, with all its columns."""
    with Rows(database_url) as backend:
        backend.run(ORIGINAL)
        backend.run(ADDED_LATER)
        yield backend.watch()


@pytest.fixture
def start(database_url: str, runpod: RunPodDouble) -> Iterator[StartLoop]:
    """Opens orchestrators on the test's database and starts their loops."""
    with ExitStack() as stack:

        def begin(*, loop: bool = True, **env: str) -> Orchestrator:
            given = {**runpod.env(), **QUICK, "DATABASE_URL": database_url, **env}
            orchestrator = stack.enter_context(Orchestrator.from_env(given))
            if loop:
                orchestrator.start()
            return orchestrator

        yield begin
