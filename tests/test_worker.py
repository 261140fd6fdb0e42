"""The worker from outside: the real SDK as a process against a job server on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jiwer
import pysubs2
import pytest
from cloudinary_double import CloudinaryDouble
from conftest import ROOT, SAMPLES, StartWorker, worker_env
from jobserver import JobServer

VERSE = str(SAMPLES / "verse.flac")


def truth(name: str) -> str:
    return " ".join(w["word"] for w in json.loads((SAMPLES / f"{name}.json").read_text())["words"])


def heard(output: dict) -> str:
    return " ".join(w["word"].strip(".,").lower() for w in output["words"])


def test_a_job_gives_the_words_with_their_times(jobs: JobServer, start_worker: StartWorker) -> None:
    """Real audio in, the true words out; words, lines, srt and plain agree."""
    start_worker()
    job = jobs.submit({"audio_url": VERSE, "language": "en"})
    output = jobs.wait_result(job)["output"]
    assert jiwer.wer(truth("verse").lower(), heard(output)) < 0.1
    times = [t for w in output["words"] for t in (w["start"], w["end"])]
    assert times == sorted(times)
    assert times[-1] <= output["duration"]
    assert output["plain"].split() == [w["word"] for w in output["words"]]
    cues = pysubs2.SSAFile.from_string(output["srt"], format_="srt")
    assert [(c.start, c.end) for c in cues] == [
        (round(line["start"] * 1000), round(line["end"] * 1000)) for line in output["lines"]
    ]
    assert any("nano" in warning for warning in output["warnings"])
    assert any("kept nowhere" in warning for warning in output["warnings"])
    assert "resultUrl" not in output


def test_word_ends_are_near_the_truth(jobs: JobServer, start_worker: StartWorker) -> None:
    """Half of the words of a song end within 50 ms of where they truly end."""
    start_worker()
    job = jobs.submit({"audio_url": str(SAMPLES / "song.flac"), "language": "en"})
    output = jobs.wait_result(job)["output"]
    true = json.loads((SAMPLES / "song.json").read_text())["words"]
    ends = {}
    for word in output["words"]:
        ends.setdefault(word["word"].strip(".").lower(), []).append(word["end"])
    errors = sorted(
        min(abs(word["end"] - end) for end in ends[word["word"].lower()])
        for word in true
        if word["word"].lower() in ends
    )
    assert len(errors) > 0.9 * len(true)
    assert errors[len(errors) // 2] < 0.05


def test_progress_never_follows_the_result(jobs: JobServer, start_worker: StartWorker) -> None:
    """However slowly progress is answered, no progress arrives after the result."""
    jobs.delay_progress(1.0)
    start_worker()
    job = jobs.submit({"audio_url": str(SAMPLES / "song.flac")})
    jobs.wait_result(job)
    second = jobs.submit({"audio_url": VERSE})
    jobs.wait_result(second)
    for each in (job, second):
        posts = [post for post in jobs.posts if post.job_id == each]
        assert len(posts) > 1
        assert [post.progress for post in posts] == [True] * (len(posts) - 1) + [False]
        seqs = [post.body["output"]["seq"] for post in posts[:-1]]
        assert seqs == sorted(set(seqs))


def test_auto_terminate_ends_the_process_after_the_result(
    jobs: JobServer, start_worker: StartWorker
) -> None:
    """The result lands with stopPod, the process and its heartbeat go, no second job is taken."""
    worker = start_worker()
    first = jobs.submit({"audio_url": VERSE, "auto_terminate": True})
    second = jobs.submit({"audio_url": VERSE})
    assert jobs.wait_result(first)["stopPod"] is True
    assert worker.wait() == 0
    assert worker.group_is_empty()
    assert jobs.taken == [first]
    assert second not in [post.job_id for post in jobs.posts]
    assert worker.left_files() == []


def test_auto_terminate_holds_for_a_failed_job(jobs: JobServer, start_worker: StartWorker) -> None:
    """A job that fails ends the worker as well, after its error was posted."""
    worker = start_worker()
    job = jobs.submit({"audio_url": "/nowhere.mp3", "auto_terminate": True})
    body = jobs.wait_result(job)
    assert json.loads(body["error"])["code"] == "source_not_found"
    assert body["stopPod"] is True
    assert worker.wait() == 0


@pytest.mark.parametrize("fault", ["reset", "502"])
def test_a_refused_result_is_posted_again(
    jobs: JobServer, start_worker: StartWorker, fault: str
) -> None:
    """A result that the server refuses at first still lands before the process ends."""
    jobs.fail_results(fault)
    worker = start_worker(AUTO_TERMINATE="1")
    job = jobs.submit({"audio_url": VERSE})
    assert jobs.wait_result(job)["output"]["words"]
    assert worker.wait() == 0


def test_a_stop_ends_the_work_and_posts_nothing(jobs: JobServer, start_worker: StartWorker) -> None:
    """A stopped job posts no result and leaves no file; the worker then serves the next job."""
    worker = start_worker()
    job = jobs.submit({"audio_url": str(SAMPLES / "song.flac"), "beam_size": 20})
    jobs.wait_progress(job, lambda body: body["output"]["stage"] == "transcription")
    jobs.stop(job)
    following = jobs.submit({"audio_url": VERSE})
    jobs.wait_result(following)
    assert [post.job_id for post in jobs.posts if not post.progress] == [following]
    assert worker.left_files() == []


def test_a_stop_with_auto_terminate_ends_the_process(
    jobs: JobServer, start_worker: StartWorker
) -> None:
    """A stopped job ends the worker too; it posts nothing and takes no other job."""
    worker = start_worker(AUTO_TERMINATE="1")
    job = jobs.submit({"audio_url": str(SAMPLES / "song.flac"), "beam_size": 20})
    jobs.wait_progress(job, lambda body: body["output"]["stage"] == "transcription")
    jobs.submit({"audio_url": VERSE})
    jobs.stop(job)
    assert worker.wait() == 0
    assert worker.group_is_empty()
    assert jobs.taken == [job]
    assert [post for post in jobs.posts if not post.progress] == []


def test_results_go_to_cloudinary(
    jobs: JobServer, start_worker: StartWorker, cloudinary: CloudinaryDouble
) -> None:
    """Both raw ids hold the result, and a repeated job is answered from them."""
    start_worker(CLOUDINARY_URL=cloudinary.cloudinary_url)
    jobs.submit({"audio_url": VERSE, "job_id": "song-1"}, "run-1")
    output = jobs.wait_result("run-1")["output"]
    (kept,) = cloudinary.assets["transcriptions/song-1/results"]
    (subtitles,) = cloudinary.assets["transcriptions/song-1/subtitles"]
    assert kept.overwrite
    assert kept.invalidate
    assert kept.tags
    assert json.loads(kept.data)["words"] == output["words"]
    assert subtitles.data.decode() == output["srt"]
    assert f"/v{kept.version}/" in output["resultUrl"]
    jobs.submit({"audio_url": VERSE, "job_id": "song-1"}, "run-2")
    again = jobs.wait_result("run-2")["output"]
    assert again["words"] == output["words"]
    assert again["resultUrl"] == output["resultUrl"]
    assert len(cloudinary.assets["transcriptions/song-1/results"]) == 1


def test_other_work_under_the_same_id_is_done_anew(
    jobs: JobServer, start_worker: StartWorker, cloudinary: CloudinaryDouble
) -> None:
    """A durable copy made from another request is not taken for this one's."""
    start_worker(CLOUDINARY_URL=cloudinary.cloudinary_url)
    jobs.submit({"audio_url": VERSE, "job_id": "s"}, "run-1")
    jobs.wait_result("run-1")
    jobs.submit({"audio_url": str(SAMPLES / "line.flac"), "job_id": "s"}, "run-2")
    assert jobs.wait_result("run-2")["output"]["duration"] < 6
    assert len(cloudinary.assets["transcriptions/s/results"]) == 2


def test_an_upload_is_tried_again(
    jobs: JobServer, start_worker: StartWorker, cloudinary: CloudinaryDouble
) -> None:
    """A reset and a 503 from Cloudinary are survived (the first call is the look-up)."""
    cloudinary.fail(503, "reset", 503)
    start_worker(CLOUDINARY_URL=cloudinary.cloudinary_url)
    job = jobs.submit({"audio_url": VERSE})
    assert "resultUrl" in jobs.wait_result(job)["output"]


def test_an_upload_refused_for_good_loses_no_words(
    jobs: JobServer, start_worker: StartWorker, cloudinary: CloudinaryDouble
) -> None:
    """With Cloudinary refusing, the answer holds words, srt and plain, a warning and no URL."""
    cloudinary.refuse_always(401)
    worker = start_worker(CLOUDINARY_URL=cloudinary.cloudinary_url)
    job = jobs.submit({"audio_url": VERSE})
    output = jobs.wait_result(job)["output"]
    assert output["words"]
    assert output["srt"]
    assert output["plain"]
    assert "resultUrl" not in output
    assert any("not uploaded" in warning for warning in output["warnings"])
    assert "secret" not in worker.log


def test_a_stop_ends_an_upload_at_once(
    jobs: JobServer, start_worker: StartWorker, cloudinary: CloudinaryDouble
) -> None:
    """A job stopped while Cloudinary doesn't answer ends without waiting for it."""
    cloudinary.fail(404, ("hang", 60))
    start_worker(CLOUDINARY_URL=cloudinary.cloudinary_url)
    job = jobs.submit({"audio_url": VERSE})
    cloudinary.wait_requests(2)
    jobs.stop(job)
    following = jobs.submit({"audio_url": VERSE, "upload": False})
    jobs.wait_result(following, timeout=10)


def test_a_folder_keeps_results(jobs: JobServer, start_worker: StartWorker, tmp_path: Path) -> None:
    """With STORAGE_DIR the result is a file, and resultUrl names it."""
    start_worker(STORAGE_DIR=str(tmp_path / "kept"))
    job = jobs.submit({"audio_url": VERSE})
    output = jobs.wait_result(job)["output"]
    path = tmp_path / "kept" / "transcriptions" / job / "results.json"
    assert output["resultUrl"] == path.as_uri()
    assert json.loads(path.read_text())["srt"] == output["srt"]


def test_the_log_carries_the_job_id_and_no_words(
    jobs: JobServer, start_worker: StartWorker
) -> None:
    """At INFO every line of ours is JSON with the job's id, and no result body is in the log."""
    worker = start_worker()
    job = jobs.submit({"audio_url": VERSE})
    output = jobs.wait_result(job)["output"]
    lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    assert {"job started", "job done"} <= {
        line.get("event") for line in lines if line.get("job_id") == job
    }
    assert output["lines"][0]["text"] not in worker.log


def test_the_command_line_works_as_typed(jobs: JobServer, tmp_path: Path) -> None:
    """`python handler.py --test_input '...'` prints the lines and names its files."""
    given = json.dumps({"input": {"audio_url": VERSE, "model": "nano"}})
    env = {k: v for k, v in worker_env(jobs).items() if not k.startswith("RUNPOD_")}
    run = subprocess.run(
        [sys.executable, "handler.py", "--test_input", given],
        cwd=ROOT,
        env={**env, "STORAGE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "0:00" in run.stdout
    assert (tmp_path / "transcriptions/local_test/results.json").as_uri() in run.stdout


def test_the_log_names_the_source(jobs: JobServer, start_worker: StartWorker) -> None:
    """A file is logged by its path, a video by its id, a link without its query."""
    worker = start_worker(https_proxy="http://127.0.0.1:9")
    sources = {
        "file": {"audio_url": "/nowhere/song.mp3"},
        "video": {"youtube_url": "https://www.youtube.com/watch?v=dQw4w9WgXcQ&list=PL1"},
        "link": {"audio_url": "http://127.0.0.1:9/a.mp3?token=planted"},
        "bare": {"audio_url": "example.com/a.mp3?token=planted"},
    }
    for job, source in sources.items():
        jobs.submit(source, job)
        jobs.wait_result(job)
    lines = [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]
    assert {
        line["job_id"]: line["request"]["source"]
        for line in lines
        if line.get("event") == "job started"
    } == {
        "file": "/nowhere/song.mp3",
        "video": "youtu.be/dQw4w9WgXcQ",
        "link": "http://127.0.0.1:9/a.mp3",
        "bare": "example.com/a.mp3",
    }


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_transcription_loads_no_torch(jobs: JobServer, start_worker: StartWorker) -> None:
    """The engine is in the process after a job, torch is not: its import takes over a second."""
    worker = start_worker()
    jobs.wait_result(jobs.submit({"audio_url": VERSE}))
    maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
    assert "ctranslate2" in maps
    assert "torch" not in maps


def test_an_upload_that_gets_no_answer_loses_no_words(
    jobs: JobServer, start_worker: StartWorker, cloudinary: CloudinaryDouble
) -> None:
    """With a Cloudinary silent until the deadline, the answer holds the words and a warning."""
    cloudinary.fail(404, *[("hang", 60)] * 9)  # the first call is the look-up
    start_worker(CLOUDINARY_URL=cloudinary.cloudinary_url, UPLOAD_SECONDS="1")
    job = jobs.submit({"audio_url": VERSE})
    output = jobs.wait_result(job, timeout=20)["output"]
    assert output["words"]
    assert output["srt"]
    assert "resultUrl" not in output
    assert any("before its deadline" in warning for warning in output["warnings"])
