"""Every code of the contract, provoked for real through one worker process."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import SAMPLES, StartWorker, WorkerProcess, running
from jobserver import JobServer
from webserver import WebServer

from handler.config import MODELS
from handler.models import memory_error, out_of_memory
from handler.worker import MAX_BYTES, answer
from lyricpod.errors import ErrorCode, JobError
from lyricpod.result import JobResult, Word

KEY = "planted-key-5f1c"


@pytest.fixture(scope="module")
def job_server() -> Iterator[JobServer]:
    with JobServer() as server:
        yield server


@pytest.fixture(scope="module")
def worker(
    job_server: JobServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    limits = {"MAX_AUDIO_MB": "2", "MAX_AUDIO_SECONDS": "60", "DOWNLOAD_SECONDS": "3"}
    proxy = {"YOUTUBE_PROXIES": "http://127.0.0.1:9", "RUNPOD_AI_API_KEY": KEY}
    folder = tmp_path_factory.mktemp("errors")
    with running(job_server, folder, **limits, **proxy) as process:
        yield process


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def fail(jobs: JobServer, worker: WorkerProcess, data: Any) -> dict[str, Any]:
    """Run a job that must fail; nothing of ours may leak, no file may be left."""
    body = jobs.wait_result(jobs.submit(data))
    assert "output" not in body
    error = json.loads(body["error"])
    assert set(error) == {"code", "message", "hint", "retryable", "stage"}
    assert error["message"]
    assert "Traceback" not in body["error"]
    assert KEY not in body["error"]
    assert KEY not in worker.log
    assert worker.left_files() == []
    return dict(error)


LINE = str(SAMPLES / "line.flac")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"audio_url": 3}, "audio_url"),
        ({"audio_url": LINE, "beam_size": "5"}, "beam_size"),
        ({"audio_url": LINE, "beam_size": 0}, "beam_size"),
        ({"audio_url": LINE, "vad": "yes"}, "vad"),
        ({"audio_url": LINE, "formats": ["mp3"]}, "formats"),
        ({"audio_url": LINE, "task": "sing"}, "task"),
        ({"audio_url": LINE, "youtube_url": "https://youtu.be/dQw4w9WgXcQ"}, "exactly one"),
        ({"language": "en"}, "exactly one"),
        ({"audio_url": LINE, "job_id": "../../etc/passwd"}, "job_id"),
        ({"audio_url": LINE, "job_id": "x" * 129}, "job_id"),
        ({"audio_url": LINE, "language": "klingon"}, "language"),
        ({"audio_url": "https://e.com/" + "x" * 10_000}, "audio_url"),
        ({"audio_url": "ftp://example.com/a.mp3"}, "http"),
        ({"audio_url": "http://[broken"}, "link"),
        ({"audio_url": f"http://1.2.3.4:99999/x?token={KEY}"}, "link"),
        ({"audio_url": f"http://user:{KEY}@[broken/x"}, "link"),
        ({"audio_base64": "not base64!"}, "base64"),
        ({"youtube_url": "https://example.com/watch?v=dQw4w9WgXcQ"}, "YouTube"),
        ({"youtube_url": "https://www.youtube.com/playlist?list=PL123"}, "playlist"),
    ],
)
def test_invalid_input(
    job_server: JobServer, worker: WorkerProcess, data: dict[str, Any], names: str
) -> None:
    """Wrong input is refused with the name of what is wrong, and never tried again."""
    error = fail(job_server, worker, data)
    assert error["code"] == "invalid_input"
    assert names in error["message"]
    assert error["retryable"] is False


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("missing", "source_not_found"),
        ("closed", "source_unavailable"),
        ("busy", "source_blocked"),
        ("down", "network"),
        ("broken", "network"),
        ("silent", "network"),
        ("loop", "network"),
        ("astray", "invalid_input"),
        ("large", "source_too_large"),
        ("endless", "source_too_large"),
        ("empty", "source_not_audio"),
        ("text", "source_not_audio"),
    ],
)
def test_a_bad_server(
    job_server: JobServer, worker: WorkerProcess, web: WebServer, path: str, code: str
) -> None:
    """Each way a server can fail has its code, within the deadline."""
    error = fail(job_server, worker, {"audio_url": f"{web.url}/{path}?token={KEY}"})
    assert error["code"] == code
    assert error["stage"] == "download"


def test_a_refused_connection_is_network(job_server: JobServer, worker: WorkerProcess) -> None:
    """A server that is not there is a network fault that may pass."""
    error = fail(job_server, worker, {"audio_url": "http://127.0.0.1:9/a.mp3"})
    assert error["code"] == "network"
    assert error["retryable"] is True


def test_youtube_out_of_reach_is_network(job_server: JobServer, worker: WorkerProcess) -> None:
    """The real yt-dlp, cut off from YouTube by a dead proxy, is a network fault."""
    error = fail(job_server, worker, {"youtube_url": "https://youtu.be/dQw4w9WgXcQ"})
    assert error["code"] == "network"
    assert "dQw4w9WgXcQ" in error["message"]


def test_a_password_in_a_link_is_not_logged(
    job_server: JobServer, worker: WorkerProcess, web: WebServer
) -> None:
    """User and password of a link stay out of the log and the error."""
    url = web.url.replace("http://", f"http://user:{KEY}@")
    error = fail(job_server, worker, {"audio_url": f"{url}/missing#{KEY}"})
    assert error["code"] == "source_not_found"


def test_odd_names_of_files_and_fields(job_server: JobServer, worker: WorkerProcess) -> None:
    """A file name too long is not found; a field named by half a surrogate loses no result."""
    assert fail(job_server, worker, {"audio_url": "x" * 400})["code"] == "source_not_found"
    output = job_server.wait_result(job_server.submit({"audio_url": LINE, "\ud800": 1}))["output"]
    assert output["words"]


def test_unusable_settings_end_the_worker_at_once(start_worker: StartWorker) -> None:
    """A CLOUDINARY_URL that is none ends the process with the reason, and without the value."""
    worker = start_worker(CLOUDINARY_URL=f"http://key:{KEY}@cloud")
    assert worker.wait() != 0
    assert "CLOUDINARY_URL must look like" in worker.log
    assert KEY not in worker.log


def test_odd_files(job_server: JobServer, worker: WorkerProcess, tmp_path: Path) -> None:
    """Empty, text, cut and silent files are `source_not_audio`, each with its reason."""
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "text.mp3").write_text("these are words, not sound\n" * 100)
    (tmp_path / "header.flac").write_bytes((SAMPLES / "line.flac").read_bytes()[:60])
    _silent_video(tmp_path / "video.mp4")
    for name in ("empty.mp3", "text.mp3", "header.flac", "video.mp4"):
        error = fail(job_server, worker, {"audio_url": str(tmp_path / name)})
        assert error["code"] == "source_not_audio", name


def test_a_truncated_mp3_gives_what_it_holds(
    job_server: JobServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    """Half an MP3 is transcribed as far as it goes; it harms nobody."""
    path = tmp_path / "half.mp3"
    _mp3(SAMPLES / "verse.flac", path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    output = job_server.wait_result(job_server.submit({"audio_url": str(path)}))["output"]
    assert 8 < output["duration"] < 12
    assert output["words"]


def test_base64_audio_is_taken(job_server: JobServer, worker: WorkerProcess) -> None:
    """A file sent inside the request is transcribed like any other."""
    text = base64.b64encode((SAMPLES / "line.flac").read_bytes()).decode()
    output = job_server.wait_result(job_server.submit({"audio_base64": text}))["output"]
    assert "believe me" in output["plain"]


def test_too_long(job_server: JobServer, worker: WorkerProcess) -> None:
    """Audio above MAX_AUDIO_SECONDS is refused before it is decoded."""
    error = fail(job_server, worker, {"audio_url": str(SAMPLES / "song.flac")})
    assert error["code"] == "source_too_long"
    assert "MAX_AUDIO_SECONDS" in error["hint"]


def test_too_large(job_server: JobServer, worker: WorkerProcess, tmp_path: Path) -> None:
    """A file above MAX_AUDIO_MB is refused, inline ones too."""
    (tmp_path / "large.wav").write_bytes(b"\0" * 2_000_001)
    sources = (
        {"audio_url": str(tmp_path / "large.wav")},
        {"audio_base64": base64.b64encode(b"\0" * 2_000_010).decode()},
    )
    for source in sources:
        assert fail(job_server, worker, source)["code"] == "source_too_large"


@pytest.mark.parametrize("name", ["large-v3", "no-such-model", "../secrets", "someone/something"])
def test_model_unavailable(job_server: JobServer, worker: WorkerProcess, name: str) -> None:
    """A model that is not installed is said to be so, with the remedy; nothing is downloaded."""
    error = fail(job_server, worker, {"audio_url": LINE, "model": name})
    assert error["code"] == "model_unavailable"
    assert "MODEL" in error["hint"]


def test_files_need_leave(jobs: JobServer, start_worker: StartWorker) -> None:
    """Without ALLOW_FILE_SOURCES no file of the worker can be read."""
    worker = start_worker(ALLOW_FILE_SOURCES="0")
    for url in (LINE, f"file://{LINE}", "/etc/passwd"):
        assert fail(jobs, worker, {"audio_url": url})["code"] == "invalid_input"


def test_internal_addresses_need_leave(
    jobs: JobServer, start_worker: StartWorker, web: WebServer
) -> None:
    """Without ALLOW_PRIVATE_NETWORK no internal address is reached, however it is spelled."""
    worker = start_worker(ALLOW_PRIVATE_NETWORK="0")
    web.requests.clear()
    port = web.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
        error = fail(jobs, worker, {"audio_url": f"http://{host}:{port}/text"})
        # Some resolvers don't know the odd spellings: then nothing is reached either.
        assert error["code"] in ("invalid_input", "network"), host
    assert web.requests == []


def test_an_unforeseen_fault_is_internal(jobs: JobServer, start_worker: StartWorker) -> None:
    """With the temporary folder gone the job fails as `internal`, with an id the log has too."""
    worker = start_worker()
    jobs.wait_result(jobs.submit({"audio_url": LINE}))
    shutil.rmtree(worker.temporary)
    body = jobs.wait_result(jobs.submit({"audio_url": LINE}))
    error = json.loads(body["error"])
    assert error["code"] == "internal"
    assert "Traceback" not in body["error"]
    fault = error["message"].rpartition(" ")[2].rstrip(")")
    assert fault in worker.log
    worker.temporary.mkdir()


def test_memory_that_runs_out(jobs: JobServer, start_worker: StartWorker, tmp_path: Path) -> None:
    """A model that no machine could hold is `out_of_memory`, with the remedy; others still run."""
    model = tmp_path / "huge"
    shutil.copytree(MODELS / "nano", model)
    settings = model / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "feature_size": 10**15}))
    worker = start_worker(MODEL=str(model))
    error = fail(jobs, worker, {"audio_url": LINE})
    assert error["code"] == "out_of_memory"
    assert "smaller model" in error["hint"]
    assert jobs.wait_result(jobs.submit({"audio_url": LINE, "model": "nano"}))["output"]["words"]


def test_a_long_result_leaves_the_words_to_the_url() -> None:
    """Above 5 MB with a URL the words are left out; above 10 MB without one it is an error."""
    words = tuple(Word(word="word", start=i, end=i) for i in range(200_000))
    kept = JobResult(words=words, srt="s", plain="p", result_url="https://example.com/r")
    lean = answer(kept)
    assert "words" not in lean
    assert "srt" not in lean
    assert any("resultUrl" in warning for warning in lean["warnings"])
    with pytest.raises(JobError) as caught:
        answer(kept.model_copy(update={"result_url": None}))
    assert caught.value.code is ErrorCode.RESULT_TOO_LARGE
    assert MAX_BYTES == 10_000_000


def test_out_of_memory_is_told_from_other_faults() -> None:
    """CUDA's and the allocator's words for it are recognised."""
    assert out_of_memory(RuntimeError("CUDA failed with error out of memory"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("CUDA driver version is insufficient"))
    assert memory_error("small").code is ErrorCode.OUT_OF_MEMORY


def _mp3(source: Path, target: Path) -> None:
    with av.open(str(source)) as given, av.open(str(target), "w", format="mp3") as made:
        stream = made.add_stream("libmp3lame", rate=16000)
        for frame in given.decode(audio=0):
            frame.pts = None
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))


def _silent_video(target: Path) -> None:
    with av.open(str(target), "w") as made:
        stream = made.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(10):
            image = np.zeros((64, 64, 3), np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        made.mux(stream.encode(None))
