"""A worker that speaks the platform's worker protocol without the SDK and does jobs by script.

Small (about 20 MB) and quick to start, so that many can run and die: for localpod's
`--worker-command`. `python tests/scripted_worker.py --seconds 0.1,1.2 --die 0.05 --seed 7`.
A job's own script wins: the query of its source URL, as in `https://example.org/a.mp3?seconds=3`.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlsplit

Json: TypeAlias = dict[str, Any]

WORD_SECONDS = 0.25
LINE_WORDS = 6
POLL_SECONDS = 60.0  # longer than any long poll of the platform
STEP_SECONDS = 0.5  # between two progress posts, as the contract allows
TRIES, PAUSE = 3, 0.2  # of one post; the SDK also tries three times
# The defaults of `lyricpod.request.JobRequest` that its fingerprint hashes: importing it would
# cost each worker pydantic, 25 MB. tests/test_doubles_runpod.py holds the two together.
DEFAULTS: Json = {
    "youtube_url": None,
    "audio_url": None,
    "audio_base64": None,
    "language": None,
    "model": None,
    "task": "transcribe",
    "lyrics": None,
    "formats": ["srt"],
    "vad": False,
    "beam_size": 5,
    "initial_prompt": None,
}


@dataclass(frozen=True)
class Script:
    """What happens to one job.

    Attributes:
        seconds: how long it takes.
        die: the chance, 0 to 1, that the process kills itself in the middle.
        error: a code of the contract to answer with; empty for a result.
        words: how many words the result has.
        stop_after: end the process after the job, as `auto_terminate` does.
    """

    seconds: float = 0.1
    die: float = 0.0
    error: str = ""
    words: int = 40
    stop_after: bool = False


def script_of(input: Json, given: Script) -> Script:
    """The script with what the source URL's query says about it."""
    source = str(input.get("audio_url") or input.get("youtube_url") or "")
    said = dict(parse_qsl(urlsplit(source).query))
    changes: Json = {
        name: read(said[name])
        for name, read in (("seconds", float), ("die", float), ("error", str), ("words", int))
        if name in said
    }
    if input.get("auto_terminate") or input.get("autoTerminate"):
        changes["stop_after"] = True
    return replace(given, **changes)


def fingerprint(input: Json) -> str:
    """The fingerprint of a request written in snake_case, as `JobRequest` computes it."""
    what = {
        name: default if input.get(name) is None else input[name]
        for name, default in DEFAULTS.items()
    }
    if what["audio_base64"] is not None:
        what["audio_base64"] = hashlib.sha256(what["audio_base64"].encode()).hexdigest()
    canonical = json.dumps([1, what], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def result(input: Json, platform_id: str, words: int = 40) -> Json:
    """A valid result of the contract, not published: `words` words in lines of six."""
    timed = [
        {
            "word": f"la{number}",
            "start": number * WORD_SECONDS,
            "end": round(number * WORD_SECONDS + 0.2, 3),
            "probability": 0.9,
        }
        for number in range(words)
    ]
    lines = [_line(timed[at : at + LINE_WORDS]) for at in range(0, words, LINE_WORDS)]
    return {
        "words": timed,
        "lines": lines,
        "plain": "\n".join(line["text"] for line in lines),
        "srt": "\n".join(_srt(number, line) for number, line in enumerate(lines, 1)),
        "language": "en",
        "language_probability": 0.98,
        "duration": words * WORD_SECONDS,
        "title": "Scripted",
        "model": "scripted",
        "warnings": [],
        "job_id": input.get("job_id") or platform_id,
        "fingerprint": fingerprint(input),
    }


def publish(result: Json, root: Path) -> Json:
    """Keep it as `lyricpod.storage.Folder` does; the result with its two URLs."""
    folder = root / "transcriptions" / result["job_id"]
    folder.mkdir(parents=True, exist_ok=True)
    srt, document = folder / "subtitles.srt", folder / "results.json"
    _write(srt, result["srt"])
    kept = {**result, "srtUrl": srt.resolve().as_uri()}
    _write(document, json.dumps(kept))
    return {**kept, "resultUrl": document.resolve().as_uri()}


def _write(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(name, path)


def _line(words: list[Json]) -> Json:
    text = " ".join(word["word"] for word in words)
    return {"text": text, "start": words[0]["start"], "end": words[-1]["end"], "words": words}


def _srt(number: int, line: Json) -> str:
    return f"{number}\n{_clock(line['start'])} --> {_clock(line['end'])}\n{line['text']}\n"


def _clock(seconds: float) -> str:
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{ms:03}"


class Platform:
    """The worker's side of the protocol, by the URLs in its environment; one for each thread."""

    def __init__(self) -> None:
        self._worker = os.environ["RUNPOD_POD_ID"]
        self._headers = {"Authorization": os.environ.get("RUNPOD_AI_API_KEY", "")}
        self._connection: http.client.HTTPConnection | None = None

    def take(self) -> Json | None:
        """The next job, waited for; None if there was none this time."""
        url = os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", self._worker)
        status, body = self._call("GET", f"{url}&job_in_progress=0")
        if status >= 400:
            raise OSError(f"the platform answers {status}")
        return json.loads(body) if status == 200 and body else None

    def stops(self) -> list[str]:
        """The ids of the jobs to stop, waited for."""
        url = os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", self._worker)
        status, body = self._call("GET", url.replace("/job-take/", "/job-stop/"))
        return json.loads(body)["jobsToStop"] if status == 200 and body else []

    def ping(self, job_id: str) -> None:
        """One heartbeat."""
        url = os.environ["RUNPOD_WEBHOOK_PING"].replace("$RUNPOD_POD_ID", self._worker)
        self._call("GET", f"{url}&job_id={job_id}&runpod_version=1.12.0")

    def post(self, platform_id: str, body: Json) -> None:
        """A result or a progress report, tried three times."""
        url = os.environ["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$RUNPOD_POD_ID", self._worker)
        url = url.replace("$ID", platform_id) + "&isStream=false"
        for attempt in range(TRIES):
            try:
                if self._call("POST", url, json.dumps(body))[0] < 500:
                    return
            except OSError:
                if attempt == TRIES - 1:
                    return
            time.sleep(PAUSE)

    def _call(self, method: str, url: str, body: str | None = None) -> tuple[int, bytes]:
        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}"
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        for fresh in (False, True):  # a kept connection may have been closed meanwhile
            connection = self._connection
            if connection is None or fresh:
                connection = http.client.HTTPConnection(parts.netloc, timeout=POLL_SECONDS)
                self._connection = connection
            try:
                connection.request(method, target, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                if fresh or isinstance(error, TimeoutError):
                    raise OSError(str(error)) from error
        raise AssertionError("the loop ends by itself")


class Worker:
    """Takes one job after another, until it is killed or nobody answers any more."""

    def __init__(self, given: Script, longest: float, seed: str, storage: Path | None) -> None:
        self._given, self._longest, self._seed, self._storage = given, longest, seed, storage
        self._platform = Platform()
        self._job_id = ""
        self._stopped = threading.Event()

    def run(self) -> None:
        """The loop; returns when the platform is gone or the script ends the worker."""
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            try:
                job = self._platform.take()
            except OSError:
                return
            if job is not None and self._do(job):
                return

    def _do(self, job: Json) -> bool:
        """Do one job; whether the worker ends after it."""
        self._stopped.clear()
        self._job_id = platform_id = str(job["id"])
        # By the process too: a job sent once more is not bound to die once more.
        chance = random.Random(f"{self._seed}/{platform_id}/{os.getpid()}")
        seconds = chance.uniform(self._given.seconds, self._longest)
        script = script_of(job["input"], replace(self._given, seconds=seconds))
        dies_at = chance.random() * script.seconds if chance.random() < script.die else None
        body = self._work(job, script, dies_at)
        self._job_id = ""
        if script.stop_after:
            body["stopPod"] = True
        self._platform.post(platform_id, body)
        return script.stop_after

    def _work(self, job: Json, script: Script, dies_at: float | None) -> Json:
        start = time.monotonic()
        seq = 0
        while (spent := time.monotonic() - start) < script.seconds:
            if dies_at is not None and spent >= dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seq += 1
            self._report(str(job["id"]), spent / script.seconds, seq)
            last = script.seconds if dies_at is None else dies_at
            left = last - (time.monotonic() - start)
            if self._stopped.wait(max(0.0, min(STEP_SECONDS, left))):
                return _error("cancelled", "the job was cancelled")
        if script.error:
            return _error(script.error, f"the script says {script.error}")
        done = result(job["input"], str(job["id"]), script.words)
        return {"output": publish(done, self._storage) if self._storage else done}

    def _report(self, platform_id: str, share: float, seq: int) -> None:
        output = {
            "pct": 15 + int(70 * share),
            "status": "Transcribing",
            "stage": "transcription",
            "seq": seq,
            "lines": [],
        }
        self._platform.post(platform_id, {"status": "IN_PROGRESS", "output": output})

    def _listen(self) -> None:
        channel = Platform()
        while True:
            try:
                stops = channel.stops()  # before the look at the job: this call waits
                if self._job_id in stops:
                    self._stopped.set()
            except OSError:
                time.sleep(1)

    def _beat(self) -> None:
        channel = Platform()
        pause = int(os.environ.get("RUNPOD_PING_INTERVAL", "10000")) / 1000
        while True:
            with suppress(OSError):
                channel.ping(self._job_id)
            time.sleep(pause)


def _error(code: str, message: str) -> Json:
    retryable = code in ("source_blocked", "network", "out_of_memory", "upload_failed", "internal")
    known = {"code": code, "message": message, "hint": "", "retryable": retryable, "stage": ""}
    return {"error": json.dumps(known)}


def main() -> None:
    """Read the arguments and work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", default="0.1", help="of a job: SECONDS, or LEAST,MOST")
    parser.add_argument("--die", type=float, default=0.0, help="chance of dying in a job")
    parser.add_argument("--error", default="", help="answer every job with this code")
    parser.add_argument("--words", type=int, default=40, help="of a result")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--storage", type=Path, help="publish results in this folder")
    asked = parser.parse_args()
    least, _, most = asked.seconds.partition(",")
    script = Script(float(least), asked.die, asked.error, asked.words)
    Worker(script, float(most or least), asked.seed, asked.storage).run()
    sys.exit(0)


if __name__ == "__main__":
    main()
