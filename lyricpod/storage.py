"""Where results are kept: Cloudinary, or a local folder. The only import of cloudinary.

Both halves publish: the worker, and the orchestrator where the worker could not.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import certifi
import urllib3
from pydantic import ValidationError
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from lyricpod.cancel import Cancel
from lyricpod.errors import ConfigError, ErrorCode, JobError
from lyricpod.result import JobResult

ATTEMPT_SECONDS = 20.0  # one HTTP exchange; the SDK's own default is to wait for ever
LOOKUP_SECONDS = 10.0
CONNECT_SECONDS = 5.0
URL_OPTIONS = frozenset({"upload_prefix", "api_proxy", "signature_algorithm"})
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0  # seconds between tries


class Storage(Protocol):
    """Keeps a job's result under its id."""

    def find(self, job_id: str, fingerprint: str, cancel: Cancel) -> JobResult | None:
        """The kept result of this job, if it is of the same work. Any doubt means None."""

    def publish(self, result: JobResult, cancel: Cancel) -> JobResult:
        """Keep the result and say where.

        Returns:
            The result with `result_url` and `srt_url`.

        Raises:
            JobError: `upload_failed` or `cancelled`.
        """


def storage(cloudinary_url: str, storage_dir: str, upload_seconds: float) -> Storage | None:
    """The storage that the settings name, if any; Cloudinary wins over a folder.

    Raises:
        ConfigError: CLOUDINARY_URL has another form.
    """
    if cloudinary_url:
        return Cloudinary(cloudinary_url, upload_seconds)
    return Folder(Path(storage_dir)) if storage_dir else None


def public_ids(job_id: str) -> tuple[str, str]:
    """The ids of a job's JSON and SRT, as the backend knows them."""
    return f"transcriptions/{job_id}/results", f"transcriptions/{job_id}/subtitles"


def read_kept(data: bytes, fingerprint: str) -> JobResult | None:
    """A kept result read back, if it is whole and of the same work."""
    try:
        result = JobResult.model_validate_json(data)
    except ValidationError:
        return None
    return result if result.fingerprint == fingerprint else None


class Folder:
    """Results as files: `{root}/transcriptions/{job_id}/results.json` and `subtitles.srt`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, job_id: str, fingerprint: str, cancel: Cancel) -> JobResult | None:
        """See `Storage`."""
        path = self._paths(job_id)[0]
        try:
            kept = read_kept(path.read_bytes(), fingerprint)
        except OSError:
            return None
        return kept.model_copy(update={"result_url": path.resolve().as_uri()}) if kept else None

    def publish(self, result: JobResult, cancel: Cancel) -> JobResult:
        """See `Storage`. Each file appears whole or not at all."""
        json_path, srt_path = self._paths(result.job_id)
        try:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            _write(srt_path, (result.srt or "").encode())
            kept = result.model_copy(update={"srt_url": srt_path.resolve().as_uri()})
            _write(json_path, _document(kept))
        except OSError as error:
            raise JobError(
                ErrorCode.UPLOAD_FAILED,
                f"the result can't be written to STORAGE_DIR: {error.strerror}",
                hint="check that the folder exists, is writable and has room",
            ) from error
        return kept.model_copy(update={"result_url": json_path.resolve().as_uri()})

    def _paths(self, job_id: str) -> tuple[Path, Path]:
        folder = self._root / "transcriptions" / job_id
        return folder / "results.json", folder / "subtitles.srt"


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _document(result: JobResult) -> bytes:
    return result.model_dump_json(by_alias=True, exclude_none=True).encode()


# Connections in use, so that a cancel can end an exchange that waits for its server.
_open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()


class _Plain(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _open.add(self)


class _Secure(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _open.add(self)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


class _Pool(urllib3.PoolManager):
    def __init__(self) -> None:
        # No retries of its own: a deadline for all tries together is kept here.
        super().__init__(cert_reqs="CERT_REQUIRED", ca_certs=certifi.where(), retries=False)
        self.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}


def _hang_up() -> None:
    for connection in list(_open):
        with suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)


class Cloudinary:
    """Results as two raw assets, by ids made from the job's id.

    Args:
        url: `cloudinary://key:secret@cloud?option=value`.
        seconds: the deadline for one job's uploads, all tries together.
    """

    def __init__(self, url: str, seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme != "cloudinary" or not (parts.hostname and parts.username):
            raise ConfigError("CLOUDINARY_URL must look like cloudinary://key:secret@cloud")
        self._seconds = seconds
        self._pool = _Pool()
        self._options: dict[str, Any] = {
            # The URL's own options, but none that an upload here decides by itself.
            **{name: value for name, value in parse_qsl(parts.query) if name in URL_OPTIONS},
            "cloud_name": parts.hostname,
            "api_key": unquote(parts.username),
            "api_secret": unquote(parts.password or ""),
            "secure": True,
        }

    def find(self, job_id: str, fingerprint: str, cancel: Cancel) -> JobResult | None:
        """See `Storage`. Asks for the current version: unversioned URLs stay cached for days."""
        import cloudinary.exceptions
        from cloudinary import uploader

        uploader._http = self._pool
        with (
            cancel.interrupting(_hang_up),
            suppress(
                cloudinary.exceptions.Error, urllib3.exceptions.HTTPError, KeyError, TypeError
            ),
        ):
            asset = uploader.explicit(
                public_ids(job_id)[0],
                type="upload",
                resource_type="raw",
                timeout=_timeout(LOOKUP_SECONDS),
                **self._options,
            )
            url = str(asset["secure_url"])
            answer = self._pool.request("GET", url, timeout=_timeout(LOOKUP_SECONDS))
            kept = read_kept(answer.data, fingerprint) if answer.status == 200 else None
            return kept.model_copy(update={"result_url": url}) if kept else None
        cancel.check()
        return None

    def publish(self, result: JobResult, cancel: Cancel) -> JobResult:
        """See `Storage`. The JSON goes last: where it is, everything is."""
        json_id, srt_id = public_ids(result.job_id)
        end = time.monotonic() + self._seconds
        # The SDK sends no file at all where there are no bytes, and Cloudinary refuses that.
        srt_url = self._upload((result.srt or "\n").encode(), srt_id, end, cancel)
        kept = result.model_copy(update={"srt_url": srt_url})
        url = self._upload(_document(kept), json_id, end, cancel)
        return kept.model_copy(update={"result_url": url})

    def _upload(self, data: bytes, public_id: str, end: float, cancel: Cancel) -> str:
        from cloudinary import uploader

        def attempt(seconds: float) -> str:
            uploader._http = self._pool
            asset = uploader.upload(
                data,
                public_id=public_id,
                resource_type="raw",
                type="upload",
                overwrite=True,
                invalidate=True,
                tags=["lyricpod", "transcription"],
                timeout=_timeout(seconds),
                **self._options,
            )
            return str(asset["secure_url"])

        with cancel.interrupting(_hang_up):
            return _until(end, attempt, cancel)


def _timeout(seconds: float) -> urllib3.Timeout:
    return urllib3.Timeout(connect=min(CONNECT_SECONDS, seconds), read=seconds)


def _until(end: float, attempt: Callable[[float], str], cancel: Cancel) -> str:
    """Try until it works, is refused for good, or `end` (monotonic seconds) is reached."""
    from cloudinary import exceptions

    refused = (
        exceptions.BadRequest,
        exceptions.AuthorizationRequired,
        exceptions.NotAllowed,
        exceptions.NotFound,
    )
    pause = FIRST_PAUSE
    while True:
        try:
            return attempt(min(ATTEMPT_SECONDS, max(1.0, end - time.monotonic())))
        except refused as error:
            cancel.check()
            raise _failed(f"it was refused ({type(error).__name__})", retryable=False) from error
        except (exceptions.Error, KeyError, TypeError) as error:  # or JSON of another shape
            cancel.check()
            if time.monotonic() + pause >= end:
                raise _failed("it did not succeed before its deadline", retryable=True) from error
        cancel.wait(pause)
        pause = min(LONGEST_PAUSE, pause * 2)


def _failed(why: str, *, retryable: bool) -> JobError:
    return JobError(
        ErrorCode.UPLOAD_FAILED,
        f"the result was not uploaded to Cloudinary: {why}",
        hint="check CLOUDINARY_URL and Cloudinary's status; the answer itself holds the result",
        retryable=retryable,
    )
