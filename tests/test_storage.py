"""Storage used by many threads of a process that is not ours alone: faults stay JobErrors."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cloudinary import uploader
from cloudinary_double import CLOUD_NAME, CloudinaryDouble
from webserver import WebServer

from lyricpod.cancel import Cancel
from lyricpod.errors import ConfigError, ErrorCode, JobError
from lyricpod.result import JobResult
from lyricpod.storage import Cloudinary, Folder, Storage

THREADS = 32
RESULT = JobResult(srt="1\n", plain="a\n", job_id="song", fingerprint="f" * 64)


def named(job_id: str) -> JobResult:
    return RESULT.model_copy(update={"job_id": job_id})


def test_many_threads_keep_their_connections(
    cloudinary: CloudinaryDouble, caplog: pytest.LogCaptureFixture
) -> None:
    """32 uploads at once throw no connection away, and each lands."""
    storage = Cloudinary(cloudinary.cloudinary_url, 30)
    start = threading.Barrier(THREADS)

    def publish(number: int) -> JobResult:
        start.wait(30)
        return storage.publish(named(f"song-{number}"), Cancel())

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(THREADS) as threads:
        results = list(threads.map(publish, range(THREADS)))
    assert caplog.records == []
    assert len({result.result_url for result in results}) == THREADS
    assert len(cloudinary.assets) == 2 * THREADS


def test_the_hosts_own_use_of_the_sdk_is_left_alone(cloudinary: CloudinaryDouble) -> None:
    """A backend that uses the cloudinary SDK itself keeps its own connections."""
    before = uploader._http
    storage = Cloudinary(cloudinary.cloudinary_url, 10)
    storage.publish(RESULT, Cancel())
    storage.find("song", RESULT.fingerprint, Cancel())
    assert uploader._http is before


def test_the_hosts_own_settings_don_t_reach_an_upload(
    cloudinary: CloudinaryDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the backend set for its own uploads (a preset, a login token) is not used for ours."""
    import cloudinary as sdk

    for name, value in (("upload_preset", "theirs"), ("oauth_token", "theirs")):
        monkeypatch.setitem(sdk.config().__dict__, name, value)
    Cloudinary(cloudinary.cloudinary_url, 5).publish(RESULT, Cancel())
    assert all("upload_preset" not in request.params for request in cloudinary.requests)


def test_a_cancel_ends_its_own_exchange_only(cloudinary: CloudinaryDouble) -> None:
    """Cancelling one of two uploads that hang leaves the other one waiting for its answer."""
    storage = Cloudinary(cloudinary.cloudinary_url, 30)
    cloudinary.fail(("hang", 60), ("hang", 60))
    cancels = {"first": Cancel(), "second": Cancel()}
    with ThreadPoolExecutor(2) as threads:
        uploads = {
            name: threads.submit(storage.publish, named(name), cancel)
            for name, cancel in cancels.items()
        }
        try:
            cloudinary.wait_requests(2)
            cancels["first"].set()
            with pytest.raises(JobError) as caught:
                uploads["first"].result(timeout=20)
            assert caught.value.code is ErrorCode.CANCELLED
            # Hung up as well, the second would try again after a quarter of a second, and be done.
            with pytest.raises(TimeoutError):
                uploads["second"].result(timeout=1)
        finally:
            cancels["second"].set()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://key:pl4nted@cloud",
        "cloudinary://key:pl4nted@",
        "cloudinary://key@pl4nted",
        "cloudinary://key:pl4[nted@cloud",
        "cloudinary://key:pl4nted\u2100@cloud",
        "cloudinary://key:pl4nted@cloud?signature_algorithm=md5",
        "cloudinary://key:pl4nted@cloud?upload_prefix=nowhere",
    ],
)
def test_an_unusable_url_is_said_at_once_without_its_secret(url: str) -> None:
    """A CLOUDINARY_URL that can't work ends in a ConfigError that doesn't quote it."""
    with pytest.raises(ConfigError, match="CLOUDINARY_URL") as caught:
        Cloudinary(url, 1)
    assert "pl4" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("path", ["missing", "down", "text", "busy"])
def test_a_server_that_is_not_cloudinary(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of any other kind are JobErrors of an upload, and no copy for a look-up."""
    monkeypatch.setattr("lyricpod.storage.LOOKUP_SECONDS", 0.3)
    with WebServer() as web:
        url = f"cloudinary://key:secret@cloud?upload_prefix={web.url}/{path}?"
        storage = Cloudinary(url, 0.5)
        with pytest.raises(JobError) as caught:
            storage.publish(RESULT, Cancel())
        assert caught.value.code is ErrorCode.UPLOAD_FAILED
        assert "secret" not in str(caught.value)
        assert storage.find("song", RESULT.fingerprint, Cancel()) is None


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection and a name that is none are JobErrors; a look says it can't tell."""
    monkeypatch.setattr("lyricpod.storage.LOOKUP_SECONDS", 0.3)
    for host in ("127.0.0.1:9", "a" * 70 + ".example", "[::1]:9"):
        storage = Cloudinary(f"cloudinary://k:secret@cloud?upload_prefix=http://{host}", 0.3)
        with pytest.raises(JobError) as caught:
            storage.publish(RESULT, Cancel())
        assert caught.value.code is ErrorCode.UPLOAD_FAILED
        with pytest.raises(JobError) as caught:
            storage.look("song", RESULT.fingerprint, Cancel())
        assert caught.value.code is ErrorCode.NETWORK
        assert storage.find("song", RESULT.fingerprint, Cancel()) is None


def test_a_look_tells_no_copy_from_no_answer(cloudinary: CloudinaryDouble) -> None:
    """Not there and of other work are None; faults are tried again, then said, never None."""
    storage = Cloudinary(cloudinary.cloudinary_url, 1)
    assert storage.look("song", RESULT.fingerprint, Cancel()) is None
    storage.publish(RESULT, Cancel())
    assert storage.look("song", "other", Cancel()) is None
    cloudinary.fail("reset", 503)
    assert storage.look("song", RESULT.fingerprint, Cancel()) is not None
    cloudinary.refuse_always(401)
    with pytest.raises(JobError) as caught:
        storage.look("song", RESULT.fingerprint, Cancel())
    assert caught.value.code is ErrorCode.NETWORK
    assert caught.value.retryable is False
    cloudinary.refuse_always(None)
    assert storage.look("song", RESULT.fingerprint, Cancel()) is not None


def test_a_damaged_copy_is_no_copy(cloudinary: CloudinaryDouble, tmp_path: Path) -> None:
    """Half a document, or one of another kind, is not adopted."""
    storage = Cloudinary(cloudinary.cloudinary_url, 5)
    storage.publish(RESULT, Cancel())
    for data in (b"", b"[]", b'{"words": [', b"\xff\xfe", b"[" * 100_000):
        uploader.upload(
            data or b"\n",
            public_id="transcriptions/song/results",
            resource_type="raw",
            **cloudinary.options(),
        )
        assert storage.look("song", RESULT.fingerprint, Cancel()) is None
    folder = Folder(tmp_path)
    folder.publish(RESULT, Cancel())
    (tmp_path / "transcriptions/song/results.json").write_bytes(b'{"words": [')
    assert folder.look("song", RESULT.fingerprint, Cancel()) is None


@pytest.mark.parametrize("job_id", ["../x", "a/b", "", "a\0b", "x" * 300, "."])
def test_an_unsafe_job_id_reaches_no_file(job_id: str, tmp_path: Path) -> None:
    """No id leads out of the folder: nothing is found, nothing is written."""
    url = f"cloudinary://k:s@{CLOUD_NAME}?upload_prefix=http://127.0.0.1:9"
    storages: list[Storage] = [Folder(tmp_path / "kept"), Cloudinary(url, 1)]
    for storage in storages:
        assert storage.find(job_id, RESULT.fingerprint, Cancel()) is None
        with pytest.raises(JobError) as caught:
            storage.publish(named(job_id), Cancel())
        assert caught.value.code is ErrorCode.INVALID_INPUT
    assert list(tmp_path.iterdir()) == []


def test_half_a_surrogate_pair_costs_no_result(
    cloudinary: CloudinaryDouble, tmp_path: Path
) -> None:
    """A title that no file can hold is kept with a question mark in its place."""
    odd = RESULT.model_copy(update={"title": "a\ud800b", "srt": "\ud800"})
    for storage in (Cloudinary(cloudinary.cloudinary_url, 5), Folder(tmp_path)):
        storage.publish(odd, Cancel())
        kept = storage.look("song", RESULT.fingerprint, Cancel())
        assert kept is not None
        assert kept.title == "a?b"


def test_a_folder_that_can_t_be_read_is_said(tmp_path: Path) -> None:
    """A file where a folder should be: an upload fails as one, a look finds nothing."""
    (tmp_path / "transcriptions").write_text("")
    folder = Folder(tmp_path)
    with pytest.raises(JobError) as caught:
        folder.publish(RESULT, Cancel())
    assert caught.value.code is ErrorCode.UPLOAD_FAILED
    assert folder.look("song", RESULT.fingerprint, Cancel()) is None
    (tmp_path / "transcriptions").unlink()
    (tmp_path / "transcriptions/song/results.json").mkdir(parents=True)
    with pytest.raises(JobError) as caught:
        folder.look("song", RESULT.fingerprint, Cancel())
    assert caught.value.code is ErrorCode.NETWORK
    assert folder.find("song", RESULT.fingerprint, Cancel()) is None


def test_a_folder_takes_many_threads(tmp_path: Path) -> None:
    """32 threads that keep the same job leave one whole result."""
    folder = Folder(tmp_path)
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda _: folder.publish(RESULT, Cancel()), range(THREADS)))
    files = sorted(path.name for path in (tmp_path / "transcriptions/song").iterdir())
    assert files == ["results.json", "subtitles.srt"]
    assert json.loads((tmp_path / "transcriptions/song/results.json").read_text())["srt"] == "1\n"
