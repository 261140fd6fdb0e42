"""Where results are kept: Cloudinary, or a local folder. The only import of cloudinary.

Both halves publish: the worker, and the orchestrator where the worker could not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import urllib3
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from lyricpod.cancel import Cancel
from lyricpod.connections import Pool, interruptible
from lyricpod.errors import ConfigError, ErrorCode, JobError
from lyricpod.request import JOB_ID
from lyricpod.result import JobResult

ATTEMPT_SECONDS = 20.0  # one HTTP exchange; the SDK's own default is to wait for ever
LOOKUP_SECONDS = 10.0  # a whole look-up, all tries together
CONNECT_SECONDS = 5.0
URL_OPTIONS = frozenset({"upload_prefix", "api_proxy", "signature_algorithm"})
SIGNATURES = ("sha1", "sha256")
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0  # seconds between tries

T = TypeVar("T")
Fault = Callable[[str, bool], JobError]  # from the reason, and whether a retry may help


class Storage(ABC):
    """Keeps a job's result under its id."""

    @abstractmethod
    def look(self, job_id: str, fingerprint: str, cancel: Cancel) -> JobResult | None:
        """The kept result of this job, if it is of the same work.

        Raises:
            JobError: `network`, the storage could not be asked; `cancelled`.
        """

    @abstractmethod
    def publish(self, result: JobResult, cancel: Cancel) -> JobResult:
        """Keep the result and say where.

        Returns:
            The result with `result_url` and `srt_url`.

        Raises:
            JobError: `upload_failed` or `cancelled`; `invalid_input` for an unsafe job id.
        """

    @abstractmethod
    def keep_audio(self, data: bytes, job_id: str, cancel: Cancel) -> str:
        """Keep the audio that a job's `audio_base64` held; the URL it then has.

        Raises:
            JobError: as in `publish`.
        """

    def find(self, job_id: str, fingerprint: str, cancel: Cancel) -> JobResult | None:
        """`look`, for those to whom "can't tell" is as good as "isn't there".

        Raises:
            JobError: `cancelled`.
        """
        try:
            return self.look(job_id, fingerprint, cancel)
        except JobError as error:
            if error.code is ErrorCode.CANCELLED:
                raise
            return None


def storage(cloudinary_url: str, storage_dir: str, upload_seconds: float) -> Storage | None:
    """The storage that the settings name, if any; Cloudinary wins over a folder.

    Raises:
        ConfigError: CLOUDINARY_URL has another form.
    """
    if cloudinary_url:
        return Cloudinary(cloudinary_url, upload_seconds)
    return Folder(Path(storage_dir)) if storage_dir else None


def account(url: str) -> dict[str, Any]:
    """What CLOUDINARY_URL says, as options of the SDK: cloud_name, api_key, api_secret, ...

    Raises:
        ConfigError: it has another form; its text is never quoted.
    """
    try:
        parts = urlsplit(url)
        given = (parts.hostname, parts.username, parts.password)
    except ValueError:
        given = (None, None, None)
    if not url.startswith("cloudinary://") or not all(given):
        raise ConfigError(
            "CLOUDINARY_URL must look like cloudinary://key:secret@cloud; "
            "percent-encode special characters in the secret"
        ) from None
    cloud_name, api_key, api_secret = given
    # The URL's own options, but none that an upload here decides by itself.
    own = {name: value for name, value in parse_qsl(parts.query) if name in URL_OPTIONS}
    if own.get("signature_algorithm", SIGNATURES[0]) not in SIGNATURES:
        raise ConfigError("CLOUDINARY_URL: signature_algorithm must be sha1 or sha256") from None
    if not own.get("upload_prefix", "https://").startswith(("http://", "https://")):
        raise ConfigError("CLOUDINARY_URL: upload_prefix must be an http or https URL") from None
    return {
        **own,
        "cloud_name": cloud_name,
        "api_key": unquote(api_key or ""),
        "api_secret": unquote(api_secret or ""),
    }


def public_ids(job_id: str) -> tuple[str, str]:
    """The ids of a job's JSON and SRT, as the backend knows them.

    Raises:
        JobError: `invalid_input`, the job's id could lead elsewhere.
    """
    if not JOB_ID.fullmatch(job_id):
        raise JobError(ErrorCode.INVALID_INPUT, "job_id: must be 1 to 128 of A-Z a-z 0-9 _ -")
    return f"transcriptions/{job_id}/results", f"transcriptions/{job_id}/subtitles"


def audio_id(job_id: str) -> str:
    """The id of the audio that came with a job.

    Raises:
        JobError: `invalid_input`, as in `public_ids`.
    """
    return public_ids(job_id)[0].removesuffix("results") + "audio"


def read_kept(data: bytes, fingerprint: str) -> JobResult | None:
    """A kept result read back, if it is whole and of the same work."""
    try:
        result = JobResult.model_validate_json(data)
    except ValidationError:
        return None
    return result if result.fingerprint == fingerprint else None


class Folder(Storage):
    """Results as files: `{root}/transcriptions/{job_id}/results.json` and `subtitles.srt`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def look(self, job_id: str, fingerprint: str, cancel: Cancel) -> JobResult | None:
        """See `Storage`."""
        path = self._paths(job_id)[0]
        try:
            kept = read_kept(path.read_bytes(), fingerprint)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise JobError(
                ErrorCode.NETWORK,
                f"STORAGE_DIR can't be read: {error.strerror}",
                hint="check that the folder is there and readable",
            ) from error
        return kept.model_copy(update={"result_url": path.resolve().as_uri()}) if kept else None

    def publish(self, result: JobResult, cancel: Cancel) -> JobResult:
        """See `Storage`. Each file appears whole or not at all."""
        json_path, srt_path = self._paths(result.job_id)
        try:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            _write(srt_path, _encoded(result.srt or ""))
            kept = result.model_copy(update={"srt_url": srt_path.resolve().as_uri()})
            _write(json_path, _document(kept))
        except OSError as error:
            raise _not_written(error) from error
        return kept.model_copy(update={"result_url": json_path.resolve().as_uri()})

    def keep_audio(self, data: bytes, job_id: str, cancel: Cancel) -> str:
        """See `Storage`. A worker reads it only where files are allowed as sources."""
        path = self._root / audio_id(job_id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data)
        except OSError as error:
            raise _not_written(error) from error
        return path.resolve().as_uri()

    def _paths(self, job_id: str) -> tuple[Path, Path]:
        json_id, srt_id = public_ids(job_id)
        return self._root / f"{json_id}.json", self._root / f"{srt_id}.srt"


def _not_written(error: OSError) -> JobError:
    return JobError(
        ErrorCode.UPLOAD_FAILED,
        f"STORAGE_DIR can't be written to: {error.strerror}",
        hint="check that the folder exists, is writable and has room",
    )


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
    try:
        return result.model_dump_json(by_alias=True, exclude_none=True).encode()
    except PydanticSerializationError:  # half a surrogate pair in a title
        wire = result.model_dump(by_alias=True, exclude_none=True)
        return _encoded(json.dumps(wire, ensure_ascii=False))


def _encoded(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which UTF-8 has no bytes for, becomes a question mark."""
    return text.encode("utf-8", "replace")


class Cloudinary(Storage):
    """Results as two raw assets, by ids made from the job's id; for any number of threads.

    Args:
        url: `cloudinary://key:secret@cloud?option=value`.
        seconds: the deadline for one job's uploads, all tries together.

    Raises:
        ConfigError: the URL can't be used.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self._options = {
            **account(url),
            "secure": True,
            # Named, so that what the host program set for its own uploads stays out of ours.
            "oauth_token": None,
            "upload_preset": None,
        }
        self._seconds = seconds
        self._pool = Pool()
        self._uploader = _private_uploader(self._pool)

    def look(self, job_id: str, fingerprint: str, cancel: Cancel) -> JobResult | None:
        """See `Storage`. Asks for the current version: unversioned URLs stay cached for days."""
        from cloudinary.exceptions import NotFound

        json_id = public_ids(job_id)[0]

        def attempt(seconds: float) -> JobResult | None:
            try:
                asset = self._uploader.explicit(
                    json_id,
                    type="upload",
                    resource_type="raw",
                    timeout=_timeout(seconds),
                    **self._options,
                )
            except NotFound:
                return None
            return self._download(str(asset["secure_url"]), fingerprint, seconds)

        end = time.monotonic() + LOOKUP_SECONDS
        with interruptible(cancel):
            return _until(end, attempt, cancel, _not_asked)

    def publish(self, result: JobResult, cancel: Cancel) -> JobResult:
        """See `Storage`. The JSON goes last: where it is, everything is."""
        json_id, srt_id = public_ids(result.job_id)
        end = time.monotonic() + self._seconds
        # The SDK sends no file at all where there are no bytes, and Cloudinary refuses that.
        srt_url = self._upload(_encoded(result.srt or "\n"), srt_id, end, cancel)
        kept = result.model_copy(update={"srt_url": srt_url})
        url = self._upload(_document(kept), json_id, end, cancel)
        return kept.model_copy(update={"result_url": url})

    def keep_audio(self, data: bytes, job_id: str, cancel: Cancel) -> str:
        """See `Storage`."""
        return self._upload(data, audio_id(job_id), time.monotonic() + self._seconds, cancel)

    def _download(self, url: str, fingerprint: str, seconds: float) -> JobResult | None:
        answer = self._pool.request("GET", url, timeout=_timeout(seconds))
        if answer.status == 429 or answer.status >= 500:
            raise urllib3.exceptions.HTTPError(f"delivery answered {answer.status}")
        kept = read_kept(answer.data, fingerprint) if answer.status == 200 else None
        return kept.model_copy(update={"result_url": url}) if kept else None

    def _upload(self, data: bytes, public_id: str, end: float, cancel: Cancel) -> str:
        def attempt(seconds: float) -> str:
            asset = self._uploader.upload(
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

        with interruptible(cancel):
            return _until(end, attempt, cancel, _not_uploaded)


def _private_uploader(pool: Pool) -> Any:
    """The SDK's uploader with these connections.

    It takes its connections from a global of its module, and a host program may use that module
    too: so this is a second copy of it, which nobody else sees.
    """
    spec = importlib.util.find_spec("cloudinary.uploader")
    if spec is None or spec.loader is None:
        raise ConfigError("CLOUDINARY_URL is set, but the package cloudinary is not installed")
    uploader: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(uploader)
    uploader._http = pool
    return uploader


def _timeout(seconds: float) -> urllib3.Timeout:
    return urllib3.Timeout(connect=min(CONNECT_SECONDS, seconds), read=seconds)


def _until(end: float, attempt: Callable[[float], T], cancel: Cancel, fault: Fault) -> T:
    """Try until it works, is refused for good, or `end` (monotonic seconds) is reached."""
    from cloudinary import exceptions

    refused = (
        exceptions.BadRequest,
        exceptions.AuthorizationRequired,
        exceptions.NotAllowed,
        exceptions.NotFound,
    )
    # The last three: JSON of another shape, and addresses in it that are none.
    passing = (exceptions.Error, urllib3.exceptions.HTTPError, KeyError, TypeError, ValueError)
    pause = FIRST_PAUSE
    while True:
        cancel.check()
        try:
            return attempt(min(ATTEMPT_SECONDS, max(1.0, end - time.monotonic())))
        except refused as error:
            cancel.check()
            raise fault(f"it was refused ({type(error).__name__})", False) from error
        except passing as error:
            cancel.check()
            if time.monotonic() + pause >= end:
                raise fault("it did not succeed before its deadline", True) from error
        cancel.wait(pause)
        pause = min(LONGEST_PAUSE, pause * 2)


def _not_uploaded(why: str, retryable: bool) -> JobError:
    return JobError(
        ErrorCode.UPLOAD_FAILED,
        f"the result was not uploaded to Cloudinary: {why}",
        hint="check CLOUDINARY_URL and Cloudinary's status; the answer itself holds the result",
        retryable=retryable,
    )


def _not_asked(why: str, retryable: bool) -> JobError:
    return JobError(
        ErrorCode.NETWORK,
        f"Cloudinary could not be asked for the durable copy: {why}",
        hint="check CLOUDINARY_URL and Cloudinary's status",
        retryable=retryable,
    )
