"""Odd, damaged and hostile files: each gives sound or an error, and none gets out or stays."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
from conftest import ROOT, SAMPLES, running
from corpus import RATE, Corpus, Odd, Samples, read
from jobserver import JobServer

from handler import decoder as decoder_module
from handler.audio import Pcm, decode
from handler.decoder import Decoder, DecoderFault
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

MAX_SECONDS = 60.0
ENCODER_SECONDS = 0.3  # what raw AAC and MP3 add at both ends
WORKERS = 3
LIKE = 0.9  # the lowest correlation of two envelopes that hold the same
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, pidfd and prctl")

Seconds = Callable[[float, float | None], None]


class Trap:
    """An address that nobody may reach."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def was_reached(self) -> bool:
        try:
            self._socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True)
class Files:
    """The corpus, and what its luring files point to."""

    odd: tuple[Odd, ...]
    trap: Trap
    line: Samples

    def path(self, name: str) -> Path:
        return next(odd.path for odd in self.odd if odd.path.name == name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    folder, trap = tmp_path_factory.mktemp("corpus"), Trap()
    secret = tmp_path_factory.mktemp("secret") / "secret.wav"
    line = SAMPLES / "line.flac"
    corpus = Corpus(folder, line, trap.url, secret)
    corpus.loud(secret)
    yield Files(tuple(corpus.files()), trap, read(line))
    trap.close()


@pytest.mark.timeout(300)
def test_every_file_gives_sound_or_an_error(files: Files, tmp_path: Path) -> None:
    """Whole files sound like the line they hold, in each format; the others do no harm."""
    wrong = [fault for odd in files.odd if (fault := _decoded(odd, files.line, tmp_path))]
    assert wrong == []
    assert len(files.odd) >= 40
    assert sum(odd.seconds is not None for odd in files.odd) >= 40
    assert not files.trap.was_reached()
    assert [path.name for path in tmp_path.iterdir()] == ["audio.pcm"]


def _decoded(odd: Odd, line: Samples, folder: Path) -> str:
    """What is wrong with the outcome of a file; nothing, mostly."""
    try:
        pcm = _decode(odd.path, folder)
    except JobError as error:
        return "" if error.code.value in odd.codes else f"{odd.path.name}: {error}"
    if not odd.decodes:
        return f"{odd.path.name}: decoded"
    likeness = _likeness(pcm, line) if odd.seconds else 1.0
    if odd.seconds and abs(pcm.seconds - odd.seconds) > ENCODER_SECONDS:
        return f"{odd.path.name}: {pcm.seconds} s"
    return "" if likeness > LIKE else f"{odd.path.name}: {likeness:.2f} like the line"


@pytest.mark.timeout(300)
def test_no_worker_is_lost(files: Files, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every job is answered with words or an error of the contract, and leaves nothing.

    Three workers share them, as the SDK takes a second between two jobs of one worker.
    """
    chosen = files.odd[::4]  # some of each kind: a job takes far longer than its decoding
    assert len(chosen) >= 40
    settings = {"MAX_AUDIO_SECONDS": f"{MAX_SECONDS}", "CPU_THREADS": "1"}
    with JobServer() as jobs, ExitStack() as stack:
        folders = [tmp_path_factory.mktemp("worker") for _ in range(WORKERS)]
        workers = [stack.enter_context(running(jobs, path, **settings)) for path in folders]
        wish = {"beam_size": 1, "language": "en"}
        ids = [jobs.submit({"audio_url": str(odd.path), **wish}) for odd in chosen]
        bodies = [jobs.wait_result(job_id) for job_id in ids]
        answers = zip(chosen, bodies, strict=True)
        assert [fault for pair in answers if (fault := _answered(*pair))] == []
        for worker in workers:
            assert worker.process.poll() is None  # one that was started, and no other
            assert worker.left_files() == []
            assert "Traceback" not in worker.log
    assert not files.trap.was_reached()


def _answered(odd: Odd, body: dict[str, Any]) -> str:
    """What is wrong with a job's answer; nothing, mostly."""
    if "error" in body:
        known = json.loads(body["error"])["code"] in odd.codes
        return "" if known else f"{odd.path.name}: {body['error']}"
    if not odd.decodes:
        return f"{odd.path.name}: transcribed"
    return "" if not odd.seconds or body["output"]["words"] else f"{odd.path.name}: no words"


def _likeness(pcm: Pcm, line: Samples) -> float:
    """How much each repetition of the line runs like it; 1 is the same."""
    samples = np.fromfile(pcm.path, np.int16)
    parts = np.array_split(samples, round(pcm.length / len(line)))
    return min(_correlation(_envelope(part), _envelope(line)) for part in parts)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """At the delay where it is best."""
    one, other = one - one.mean(), other - other.mean()
    best = np.correlate(one, other, "full").max()
    return float(best / np.linalg.norm(one) / np.linalg.norm(other))


def _envelope(samples: Samples) -> np.ndarray:
    """Loudness in steps of 20 ms."""
    step = RATE // 50
    loud = np.abs(samples.astype(float))[: len(samples) // step * step]
    return np.asarray(loud.reshape(-1, step).mean(1))


def _decode(
    source: Path,
    folder: Path,
    *,
    max_seconds: float = MAX_SECONDS,
    cancel: Cancel | None = None,
    on_seconds: Seconds = lambda done, total: None,
    decoder: Decoder | None = None,
) -> Pcm:
    return decode(
        source,
        folder / "audio.pcm",
        max_seconds=max_seconds,
        cancel=cancel or Cancel(),
        on_seconds=on_seconds,
        decoder=decoder,
    )


def test_the_lures_work_where_nothing_guards(files: Files) -> None:
    """libav does follow the playlist and the film's reference: the tests above can fail."""
    listed = {"protocol_whitelist": "file,http,tcp", "extension_picky": "0"}
    with suppress(av.error.FFmpegError):
        av.open(str(files.path("network-list.m3u8")), options=listed, timeout=(0.3, 0.3))
    assert files.trap.was_reached()
    referred = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(files.path("elsewhere.mov")), options=referred) as container:
        frame = next(container.decode(audio=0))
    assert np.abs(frame.to_ndarray()).max() > 10_000


def test_hours_in_a_few_bytes_end_at_the_limit(files: Files, tmp_path: Path) -> None:
    """A file that hides its length is written no further than the limit."""
    for name in ("undeclared.flac", "undeclared.webm"):
        with pytest.raises(JobError) as caught:
            _decode(files.path(name), tmp_path)
        assert caught.value.code is ErrorCode.SOURCE_TOO_LONG
        assert (tmp_path / "audio.pcm").stat().st_size < 1.2 * MAX_SECONDS * RATE * 2


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Path]:
    """A folder where a decoder gets stuck: its `audio.pcm` is a pipe that nobody empties."""
    os.mkfifo(tmp_path / "audio.pcm")
    reader = os.open(tmp_path / "audio.pcm", os.O_RDONLY | os.O_NONBLOCK)
    yield tmp_path
    os.close(reader)


def test_a_cancel_ends_the_decoder(stuck: Path) -> None:
    """In the middle of its work the process is gone at once, and the job is `cancelled`."""
    cancel, decoder = Cancel(), Decoder()

    def on_seconds(done: float, total: float | None) -> None:
        threading.Thread(target=cancel.set).start()

    with pytest.raises(JobError) as caught:
        _decode(
            SAMPLES / "song.flac",
            stuck,
            max_seconds=600,
            cancel=cancel,
            on_seconds=on_seconds,
            decoder=decoder,
        )
    assert caught.value.code is ErrorCode.CANCELLED
    assert _is_gone(decoder.pid)


def test_a_decoder_without_headway_is_ended(stuck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that keeps the decoder busy for ever is `source_not_audio`."""
    monkeypatch.setattr(decoder_module, "GRACE_SECONDS", 0.5)
    decoder = Decoder()
    with pytest.raises(JobError) as caught:
        _decode(SAMPLES / "song.flac", stuck, max_seconds=600, decoder=decoder)
    assert caught.value.code is ErrorCode.SOURCE_NOT_AUDIO
    assert "in time" in caught.value.message
    assert _is_gone(decoder.pid)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_the_files_fault(tmp_path: Path, number: signal.Signals) -> None:
    """A decoder that dies is `source_not_audio`, with the signal; it leaves no dump."""
    decoder = Decoder()
    os.kill(decoder.pid, number)
    with pytest.raises(JobError) as caught:
        _decode(SAMPLES / "line.flac", tmp_path, decoder=decoder)
    assert caught.value.code is ErrorCode.SOURCE_NOT_AUDIO
    assert number.name in caught.value.message


def test_a_fault_of_the_worker_is_not_the_files(tmp_path: Path) -> None:
    """No place to write to is a fault of ours, and the file is not blamed."""
    with pytest.raises(DecoderFault, match="No such file"):
        _decode(SAMPLES / "line.flac", tmp_path / "missing")


@LINUX
def test_the_decoder_is_confined(stuck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it decodes it has no secret, no socket, no way to open one, and limits."""
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "planted-key-77")
    decoder, cancel = Decoder(), Cancel()
    proc, seen = Path(f"/proc/{decoder.pid}"), dict[str, str]()

    def on_seconds(done: float, total: float | None) -> None:
        limits = (proc / "limits").read_text().splitlines()[1:]
        seen.update((line[:26].strip(), line[26:].split()[0]) for line in limits)
        seen["open"] = str(len(list((proc / "fd").iterdir())))
        seen["environment"] = (proc / "environ").read_text()
        cancel.set()

    with pytest.raises(JobError):
        _decode(
            SAMPLES / "song.flac",
            stuck,
            max_seconds=600,
            cancel=cancel,
            on_seconds=on_seconds,
            decoder=decoder,
        )
    assert seen["Max open files"] == seen["open"]
    assert int(seen["Max address space"]) <= 1 << 30
    assert int(seen["Max cpu time"]) < 120
    assert int(seen["Max file size"]) < 25_000_000
    assert seen["Max core file size"] == "0"
    assert "planted-key-77" not in seen["environment"]


@LINUX
def test_the_decoder_ends_with_its_parent(stuck: Path) -> None:
    """A worker that is killed leaves no decoder behind, not even a busy one."""
    code = f"""if True:
        from pathlib import Path
        from handler.decoder import Decoder
        from lyricpod.cancel import Cancel
        decoder = Decoder()
        decoder.decode(
            Path({str(SAMPLES / "song.flac")!r}),
            Path({str(stuck / "audio.pcm")!r}),
            rate=16000,
            max_seconds=600,
            cancel=Cancel(),
            on_seconds=lambda done, total: print(decoder.pid, flush=True),
        )
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = os.pidfd_open(int(parent.stdout.readline()))
        assert not select.select([child], [], [], 0)[0]
        parent.kill()
        assert select.select([child], [], [], 30)[0]
    os.close(child)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
