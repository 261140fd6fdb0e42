"""Finds Whisper models and keeps them loaded."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handler.config import MODELS, Settings
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

NANO = "nano"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
RUNPOD_CACHE = Path("/runpod-volume/huggingface-cache/hub")  # RunPod's cached models, read-only
GPU_MODEL = "large-v3-turbo"
CPU_MODEL = "small"


@dataclass(frozen=True)
class Loaded:
    """A model in memory: faster-whisper's object, and what was asked for."""

    name: str
    whisper: Any
    device: str
    compute_type: str

    @property
    def english_only(self) -> bool:
        """Whether it can neither detect nor transcribe other languages."""
        return not self.whisper.model.is_multilingual


class Models:
    """The worker's models: the configured one stays, and at most one other beside it.

    Each is loaded in a thread of its own, one at a time, so that a cancelled job need not
    wait: the load goes on for the next one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # of the two below
        self._loaded: dict[str, Loaded] = {}
        self._loading: dict[str, Future[Loaded]] = {}
        self._turn = threading.Lock()

    def get(
        self,
        name: str | None,
        cancel: Cancel | None = None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Loaded:
        """The model a job asks for, loaded if need be; None is the configured one.

        Args:
            on_wait: called if it is not there yet.

        Raises:
            JobError: `model_unavailable`, `out_of_memory` or, at once, `cancelled`.
        """
        device = self.device()
        default = self._settings.model or (GPU_MODEL if device == "cuda" else CPU_MODEL)
        wanted = name or default
        with self._lock:
            if wanted in self._loaded:
                return self._loaded[wanted]
            loading = self._loading.get(wanted) or self._begin(wanted, default, device)
        on_wait()
        try:
            return _waited(loading, cancel or Cancel())
        except JobError:
            if wanted != default:  # nobody else waits for it: if it hasn't begun, it needn't
                self._drop(wanted, loading)
            raise

    def import_engine(self) -> None:
        """Import all that loading the configured model takes."""
        import faster_whisper  # noqa: F401

        if self._settings.model != NANO and not Path(self._settings.model or "?").is_dir():
            from huggingface_hub import snapshot_download  # noqa: F401  # imported when named

    def _begin(self, wanted: str, default: str, device: str) -> Future[Loaded]:
        loading = self._loading[wanted] = Future()
        arguments = (loading, wanted, default, device)
        # A daemon: a download that goes on for minutes must not hold the process.
        threading.Thread(target=self._fill, args=arguments, name="load", daemon=True).start()
        return loading

    def _drop(self, wanted: str, loading: Future[Loaded]) -> None:
        with self._lock:
            if loading.cancel() and self._loading.get(wanted) is loading:
                del self._loading[wanted]

    def _fill(self, loading: Future[Loaded], wanted: str, default: str, device: str) -> None:
        with self._turn:
            if not loading.set_running_or_notify_cancel():
                return
            if wanted != default:  # memory for one visitor, not for all that ever came
                with self._lock:
                    self._loaded = {k: v for k, v in self._loaded.items() if k == default}
            try:
                loaded = self._load(wanted, device, trusted=wanted == default)
            except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
                with self._lock:
                    del self._loading[wanted]  # the next job tries again
                loading.set_exception(error)
                return
            with self._lock:
                del self._loading[wanted]
                self._loaded[wanted] = loaded
            loading.set_result(loaded)

    def device(self) -> str:
        """`cuda` or `cpu`, by DEVICE and by what is there."""
        if self._settings.device != "auto":
            return self._settings.device
        import ctranslate2

        return "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"

    def _load(self, name: str, device: str, *, trusted: bool) -> Loaded:
        from faster_whisper import WhisperModel

        compute = self._settings.compute_type
        if compute == "auto":
            compute = "float16" if device == "cuda" else "int8"
        path = find(name, trusted=trusted)
        try:
            whisper = WhisperModel(
                path, device=device, compute_type=compute, cpu_threads=self._settings.cpu_threads
            )
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            if out_of_memory(error):
                raise memory_error(name) from error
            raise JobError(
                ErrorCode.MODEL_UNAVAILABLE,
                f"model {name!r} can't be loaded on {device} as {compute}: {error}",
                hint="check MODEL, DEVICE and COMPUTE_TYPE; a GPU needs libcublas.so.12",
            ) from error
        return Loaded(name, whisper, device, compute)


def _waited(loading: Future[Loaded], cancel: Cancel) -> Loaded:
    """The model once it is loaded, or `cancelled` as soon as the job is."""
    over = threading.Event()
    loading.add_done_callback(lambda done: over.set())
    with cancel.interrupting(over.set):
        over.wait()
    cancel.check()
    return loading.result()


def find(name: str, *, trusted: bool) -> str:
    """The folder of a model's files.

    Args:
        name: `nano`, a faster-whisper name, a Hugging Face id or, where trusted, a folder.
        trusted: the operator named it: folders are taken, and a download is made if the
            files are not there. A job's own wish is met from what is installed alone.

    Raises:
        JobError: `model_unavailable`, with the remedy.
    """
    if name == NANO:
        return _folder(MODELS / NANO, name)
    if trusted and (os.sep in name or name.startswith(".")) and Path(name).is_dir():
        return _folder(Path(name), name)
    if not NAME.fullmatch(name):
        raise _unavailable(name, "it is neither a model's name nor a folder that exists")
    return _runpod_cached(name) or _hub(name, download=trusted)


def _folder(path: Path, name: str) -> str:
    if not (path / "model.bin").is_file():
        raise _unavailable(name, f"there is no model.bin in {path}")
    return str(path)


def _repository(name: str) -> str | None:
    from faster_whisper.utils import _MODELS

    return name if "/" in name else _MODELS.get(name)


def _runpod_cached(name: str) -> str | None:
    repository = _repository(name)
    if repository is None:
        return None
    folder = RUNPOD_CACHE / f"models--{repository.replace('/', '--')}"
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return str(snapshot) if (snapshot / "model.bin").is_file() else None


def _hub(name: str, *, download: bool) -> str:
    from faster_whisper.utils import download_model

    if _repository(name) is None:
        raise _unavailable(name, "faster-whisper knows no model of this name")
    for local in (True, False) if download else (True,):
        try:
            path = Path(str(download_model(name, local_files_only=local)))
        # The hub's client lets its HTTP library's errors through, and changes that library.
        except Exception as error:  # noqa: BLE001
            cause = error
            continue
        if (path / "model.bin").is_file():
            return str(path)
        cause = FileNotFoundError("its files are not complete")
    why = (
        f"it is not on this machine, and its download failed ({type(cause).__name__})"
        if download
        else "it is not installed on this worker"
    )
    raise _unavailable(name, why) from cause


def _unavailable(name: str, why: str) -> JobError:
    return JobError(
        ErrorCode.MODEL_UNAVAILABLE,
        f"model {name[:80]!r} is not available: {why}",
        hint="bake it into the image, select it as the endpoint's cached model, or set MODEL "
        "to an installed name or folder",
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an engine's error says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "bad_alloc" in text


@contextmanager
def memory_for(name: str) -> Iterator[None]:
    """Turn an engine's fault in the block into `out_of_memory`, if that is what it says."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise memory_error(name) from error
        raise


def memory_error(name: str) -> JobError:
    """The contract's `out_of_memory` for a model."""
    return JobError(
        ErrorCode.OUT_OF_MEMORY,
        f"memory ran out with model {name!r}",
        hint="use a smaller model, a smaller beam_size, COMPUTE_TYPE=int8_float16, or a larger GPU",
    )
