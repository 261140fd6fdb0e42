"""Results at the seam: whatever older workers returned becomes one JobResult or a clear failure."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cloudinary_double import CloudinaryDouble
from conftest import SAMPLES
from hypothesis import given
from hypothesis import strategies as st

from lyricpod.errors import ErrorCode, JobError
from lyricpod.lines import lay_out
from lyricpod.result import JobResult, Origin, Timings, Word
from lyricpod.storage import Cloudinary, Folder
from lyricpod.subtitles import plain, srt
from lyricpod.timeline import timeline
from orchestrator.results import (
    MAX_TEXT,
    MAX_URL,
    Publisher,
    compress,
    decompress,
    failure,
    normalise,
)

JOB, PRINT = "song-1", "f" * 64
URL = "https://res.cloudinary.com/demo/raw/upload/v1/transcriptions/song-1/results"
WORDS = [{"word": "Oh", "start": 0.5, "end": 1.0}, {"word": "my", "start": 1.0, "end": 1.25}]
SRT = "1\n00:00:00,500 --> 00:00:01,250\nOh my\n\n"


def read(output: Any) -> JobResult | None:
    return normalise(output, job_id=JOB, fingerprint=PRINT)


def made(words: list[Word], starts: set[int], **more: Any) -> JobResult:
    """A result as the worker of today makes it."""
    ordered = timeline(words, more.get("duration"))
    lines = lay_out(ordered, starts)
    return JobResult(
        words=ordered, lines=lines, srt=srt(lines), plain=plain(lines), job_id=JOB, **more
    )


FULL = made(
    [
        Word(word=w, start=i * 0.4, end=i * 0.4 + 0.3)
        for i, w in enumerate("oh my oh my oh".split())
    ],
    {2},
    resultUrl=URL,
    srtUrl=URL + ".srt",
    language="en",
    language_probability=0.98,
    duration=3.0,
    title="Oh My",
    video_id="dQw4w9WgXcQ",
    model="large-v3",
    artist="The Ohs",
    track="Oh My",
    source=Origin(kind="youtube", language="en", duration=3.0, format="140"),
    timings=Timings(total=2.5),
    warnings=("made with care",),
    fingerprint=PRINT,
)


@pytest.mark.parametrize(
    "output",
    [
        URL,
        f"  {URL}\n",
        json.dumps(URL),
        [URL],
        {"resultUrl": URL},
        {"result_url": URL},
        {"results_url": URL},
        {"url": URL},
        {"output": URL},
        {"output": {"url": URL}},
        {"result": {"result_url": URL}},
        [{"output": [{"url": URL}]}],
        json.dumps({"url": URL}),
        {"url": URL, "resultUrl": None},
        {"url": URL, "error": None},
    ],
)
def test_a_url_in_any_place_is_the_result(output: Any) -> None:
    """A bare URL, every name it had, lists and wrappers: a result kept elsewhere, words unknown."""
    result = read(output)
    assert result is not None
    assert result.result_url == URL
    assert result.words is result.lines is result.srt is None
    assert (result.job_id, result.fingerprint, result.warnings) == (JOB, PRINT, ())


@pytest.mark.parametrize(
    "output",
    [
        {"words": WORDS},
        {"words": [{"text": w["word"], "start": w["start"], "end": w["end"]} for w in WORDS]},
        {"words": [{**w, "start": str(w["start"]), "end": str(w["end"])} for w in WORDS]},
        {"words": [{**w, "end": f"00:00:0{w['end']:.3f}".replace(".", ",")} for w in WORDS]},
        {"words": [{**w, "word": f" {w['word']}"} for w in reversed(WORDS)]},
        {"words": [{**WORDS[0], "end": 1.1}, WORDS[1]]},
        {"words": json.dumps(WORDS)},
        {"words": WORDS, "srt": "nonsense", "plain": "other words"},
        {"words": WORDS, "lines": [{"text": "other", "start": 0, "end": 9}]},
        {"words": WORDS, "lines": "none"},
        {"words": WORDS, "duration": 0},
        {"segments": [{"start": 0.5, "end": 1.25, "words": WORDS}]},
        {"words": [], "segments": [{"words": WORDS[:1]}, {"words": WORDS[1:]}]},
        [{"start": 0.5, "words": WORDS}],
        WORDS,
        [{"words": WORDS}],
        {"output": {"words": WORDS}},
        json.dumps({"words": WORDS}),
    ],
)
def test_words_in_any_form_make_the_contract_s_words(output: Any) -> None:
    """Words of every old form end as the same timeline, with srt and plain laid out from it."""
    result = read(output)
    assert result is not None
    assert [w.model_dump() for w in result.words or ()] == [
        {**w, "probability": 1.0} for w in WORDS
    ]
    assert (result.srt, result.plain) == (SRT, "Oh my\n")
    assert [line.text for line in result.lines or ()] == ["Oh my"]
    assert result.warnings == ()
    assert (result.job_id, result.fingerprint) == (JOB, PRINT)


@pytest.mark.parametrize(
    "output",
    [None, {}, [], "", [None], {"output": None}, {"title": "a"}, {"plain": "la"}, {"words": None},
     {"resultUrl": "javascript:alert(1)"}, {**FULL.to_wire(), "fingerprint": "another"}],
)  # fmt: skip
def test_no_words_and_no_url_point_to_the_durable_copy(output: Any) -> None:
    """An empty answer, or one of other work, says nothing: the durable copy decides."""
    assert read(output) is None


@pytest.mark.parametrize(
    ("output", "code", "says"),
    [
        ({"error": JobError(ErrorCode.SOURCE_BLOCKED, "bot check").to_json()},
         ErrorCode.SOURCE_BLOCKED, "bot check"),
        ({"error": "it broke", "words": WORDS}, ErrorCode.INTERNAL, "it broke"),
        ({"error": {"code": "network", "message": "no route"}}, ErrorCode.NETWORK, "no route"),
        ({"error": {"code": ["network"], "message": 7}}, ErrorCode.INTERNAL, "no reason"),
        ({"error": True, "message": "it broke"}, ErrorCode.INTERNAL, "it broke"),
        ({"output": {"error": "it broke"}}, ErrorCode.INTERNAL, "it broke"),
        ([{"error": "it broke"}], ErrorCode.INTERNAL, "it broke"),
        ({"error_message": "it broke", "error_traceback": "Traceback"}, ErrorCode.INTERNAL,
         "it broke"),
        (7, ErrorCode.INTERNAL, "a number"),
        (True, ErrorCode.INTERNAL, "true or false"),
        ("done", ErrorCode.INTERNAL, "text"),
        ("ftp://example.com/result", ErrorCode.INTERNAL, "text"),
        ({"words": "Oh my"}, ErrorCode.INTERNAL, "can't be read"),
        ({"words": {"0": WORDS[0]}}, ErrorCode.INTERNAL, "an object"),
        ({"words": ["Oh", "my"]}, ErrorCode.INTERNAL, "a list"),
        ([[[[[[[[[["deep"]]]]]]]]]], ErrorCode.INTERNAL, "a list"),
    ],
)  # fmt: skip
def test_failures_and_riddles_are_clear(output: Any, code: ErrorCode, says: str) -> None:
    """An error inside an answer is its failure; what nobody can read is one too, and says so."""
    with pytest.raises(JobError) as caught:
        read(output)
    assert caught.value.code is code
    assert says in caught.value.message


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "ftp://e.com/x", "//e.com/x", "https://", "http://[broken",
     "https://e.com/a b", "https://e.com/\x00", "file:relative", "https://e.com/" + "x" * MAX_URL,
     7, ["https://e.com"], "\ud800https://e.com"],
)  # fmt: skip
def test_a_url_that_is_none_is_ignored_with_a_warning(url: Any) -> None:
    """The frontend follows this link: only http, https and files, of a sane length."""
    result = read({"words": WORDS, "resultUrl": url, "srtUrl": url})
    assert result is not None
    assert result.result_url is result.srt_url is None
    assert [w.split()[0] for w in result.warnings] == ["resultUrl", "srtUrl"]


def test_files_and_plain_http_are_links_too() -> None:
    """A local route keeps its results in files."""
    for url in ("file:///srv/out/results.json", "http://127.0.0.1:8080/x"):
        result = read({"url": url})
        assert result is not None
        assert result.result_url == url


def test_the_contract_s_own_answer_passes_unchanged() -> None:
    """What the worker of today sends is read back as it was, lines included."""
    assert read(json.loads(json.dumps(FULL.to_wire()))) == FULL
    assert read({"output": FULL.to_wire(), "refresh_worker": True}) == FULL


def test_a_real_answer_passes_unchanged() -> None:
    """The true words of a sample song survive with their times."""
    words = json.loads((SAMPLES / "song.json").read_text())["words"]
    result = read({"words": words})
    assert result is not None
    assert [w.word for w in result.words or ()] == [w["word"] for w in words]


def test_an_instrumental_has_no_words_and_is_a_result() -> None:
    """An empty list of words is an answer, not a missing one."""
    result = read({"words": [], "srt": "", "plain": ""})
    assert result is not None
    assert (result.words, result.lines, result.srt, result.plain) == ((), (), "", "")


def test_an_answer_too_long_for_words_keeps_the_rest() -> None:
    """Words left to the URL: plain and the rest are kept, lines and srt are unknown."""
    lean = FULL.model_copy(update={"words": None, "lines": None, "srt": None})
    assert read(lean.to_wire()) == lean


def test_lines_begin_where_the_answer_s_segments_did() -> None:
    """An old answer's segments give the lines, though it says nothing of lines."""
    segments = [{"start": w["start"], "words": [w]} for w in WORDS]
    result = read({"words": WORDS, "segments": segments})
    assert result is not None
    assert [line.text for line in result.lines or ()] == ["Oh", "my"]


def test_unreadable_words_are_left_out_with_a_warning() -> None:
    """A few odd items cost themselves only; odd times are put in order."""
    odd = [None, "la", {"start": 1}, {"word": 5}, {"word": "la", "start": [], "end": 10**400}]
    result = read({"words": [*WORDS, *odd]})
    assert result is not None
    assert [w.word for w in result.words or ()] == ["Oh", "my", "la"]
    assert "4 of the answer's 7 words" in result.warnings[0]


def test_nothing_in_a_result_that_a_row_can_t_hold() -> None:
    """NUL, half surrogate pairs and endless text don't reach PostgreSQL."""
    result = read({"url": URL, "title": "a\0b\ud800", "model": "x" * 10**6, "language": 3,
                   "warnings": ["w\0", 5], "plain": "la\0", "duration": "nan"})  # fmt: skip
    assert result is not None
    assert (result.title, result.plain, result.warnings) == ("ab", "la", ("w",))
    assert len(result.model or "") <= MAX_TEXT
    assert result.language is result.duration is None


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (JobError(ErrorCode.NETWORK, "m", hint="h", stage="s").to_json(), ErrorCode.NETWORK, "m"),
        ("the pod died", ErrorCode.INTERNAL, "the pod died"),
        ("", ErrorCode.INTERNAL, "no reason was given"),
        (None, ErrorCode.INTERNAL, "the worker failed and gave no reason"),
        ("[" * 100_000, ErrorCode.INTERNAL, "[" * 2000),
        ('Traceback (most recent call last):\n  File "x.py"\nKeyError: 1\n', ErrorCode.INTERNAL,
         "KeyError: 1"),
        (json.dumps({"error_type": "<class 'KeyError'>", "error_message": "1",
                     "error_traceback": "Traceback ..."}), ErrorCode.INTERNAL, "1"),
    ],
)  # fmt: skip
def test_every_form_of_error_becomes_a_job_error(error: Any, code: ErrorCode, message: str) -> None:
    """Ours, the SDK's and free text: a code and a message, never a traceback."""
    read_back = failure(error)
    assert (read_back.code, read_back.message) == (code, message)


NAMES = st.sampled_from(
    "words word text start end lines segments output result url resultUrl srtUrl error message "
    "code plain duration title warnings timings total probability fingerprint language artist "
    "source kind format model lyrics".split()
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from([URL, "1.5", "00:01,5", "\ud800", "[]", json.dumps(WORDS), 10**400])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=25,
)
ITEMS = st.dictionaries(st.sampled_from(["word", "text", "start", "end"]), LEAVES)


@given(JSON | st.fixed_dictionaries({"words": st.lists(ITEMS)}, optional={"duration": LEAVES}))
def test_arbitrary_json_gives_a_result_none_or_a_job_error(output: Any) -> None:
    """Nothing else ever leaves; a result keeps the contract, and can be stored and written."""
    try:
        result = read(output)
    except JobError as error:
        assert_storable(error)
        return
    if result is not None:
        assert_keeps_the_contract(result)


def assert_storable(error: JobError) -> None:
    error.to_json().encode()
    assert "\0" not in error.message


def assert_keeps_the_contract(result: JobResult) -> None:
    assert decompress(compress(result)) == result
    assert read(result.to_wire()) == result
    assert "\\u0000" not in json.dumps(result.to_wire())
    assert (result.words is None) == (result.srt is None) == (result.lines is None)
    times = [t for word in result.words or () for t in (word.start, word.end)]
    assert times == sorted(times)
    for line in result.lines or ():
        assert line.text
    assert [w for line in result.lines or () for w in line.words] == list(result.words or ())


SPANS = st.tuples(st.text(min_size=1), st.floats(0, 100), st.floats(0, 100))


@given(st.lists(SPANS), st.sets(st.integers(0, 20)))
def test_any_result_of_today_s_worker_passes_unchanged(
    spans: list[tuple[str, float, float]], starts: set[int]
) -> None:
    """Reading back loses nothing: words, line breaks, srt and plain."""
    words = [Word(word=text, start=start, end=end) for text, start, end in spans]
    result = made(words, starts, duration=100.0, fingerprint=PRINT)
    assert read(result.to_wire()) == result


def test_compressing_shrinks_a_result_and_keeps_absence() -> None:
    """A result is read back equal, None included, from far fewer bytes."""
    words = [Word(word=f"w{i % 50}", start=i, end=i + 0.5) for i in range(1000)]
    result = made(words, set())
    assert decompress(compress(result)) == result
    assert len(compress(result)) < len(result.model_dump_json()) / 5
    lean = FULL.model_copy(update={"words": None, "lines": None, "srt": None})
    assert decompress(compress(lean)) == lean


@pytest.mark.parametrize("data", [b"", b"junk", compress(FULL)[:-9], compress(FULL)[9:]])
def test_damaged_bytes_are_said_to_be_so(data: bytes) -> None:
    """A stored result that can't be read is a JobError, nothing else."""
    with pytest.raises(JobError, match="damaged"):
        decompress(data)


BARE = FULL.model_copy(update={"result_url": None, "srt_url": None})


def test_a_worker_s_upload_is_adopted(cloudinary: CloudinaryDouble) -> None:
    """A result that has its URL is not uploaded again."""
    publisher = Publisher(Cloudinary(cloudinary.cloudinary_url, 5))
    assert publisher.publish(FULL) is FULL
    assert cloudinary.requests == []


def test_results_go_where_the_settings_say(cloudinary: CloudinaryDouble, tmp_path: Path) -> None:
    """Cloudinary and a folder: published, found again with its words, not for other work."""
    for storage in (Cloudinary(cloudinary.cloudinary_url, 5), Folder(tmp_path)):
        publisher = Publisher(storage)
        assert publisher.find(JOB, PRINT) is None
        published = publisher.publish(BARE)
        assert published.result_url
        assert published.srt_url
        assert publisher.find(JOB, PRINT) == published
        assert publisher.find(JOB, "other") is None


def test_a_stale_copy_on_the_cdn_is_not_found_for_the_new_one(cloudinary: CloudinaryDouble) -> None:
    """Published anew, the current version is found, whatever an unversioned URL still serves."""
    publisher = Publisher(Cloudinary(cloudinary.cloudinary_url, 5))
    publisher.publish(BARE.model_copy(update={"fingerprint": "old"}))
    assert publisher.find(JOB, PRINT) is None
    publisher.publish(BARE)
    found = publisher.find(JOB, PRINT)
    assert found is not None
    assert found.words == BARE.words
    assert publisher.find(JOB, "old") is None


def test_without_a_storage_results_stay_as_they_are() -> None:
    """Nowhere to keep it: the same result, and no copy to be found."""
    publisher = Publisher(None)
    assert publisher.publish(BARE) is BARE
    assert publisher.find(JOB, PRINT) is None


def test_an_upload_that_fails_is_upload_failed(cloudinary: CloudinaryDouble) -> None:
    """Cloudinary down past the deadline: a retryable failure, and no claim that there's no copy."""
    cloudinary.refuse_always(503)
    publisher = Publisher(Cloudinary(cloudinary.cloudinary_url, 0.5))
    with pytest.raises(JobError) as caught:
        publisher.publish(BARE)
    assert caught.value.code is ErrorCode.UPLOAD_FAILED
    assert caught.value.retryable


def test_a_look_that_gets_no_answer_is_not_taken_for_no_copy(
    cloudinary: CloudinaryDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Cloudinary is down nobody knows of the copy: an error, so that no job is done twice."""
    monkeypatch.setattr("lyricpod.storage.LOOKUP_SECONDS", 0.3)
    publisher = Publisher(Cloudinary(cloudinary.cloudinary_url, 5))
    publisher.publish(BARE)
    cloudinary.refuse_always(503)
    with pytest.raises(JobError) as caught:
        publisher.find(JOB, PRINT)
    assert caught.value.code is ErrorCode.NETWORK
    cloudinary.refuse_always(None)
    assert publisher.find(JOB, PRINT) is not None


def test_closing_ends_uploads_that_hang(cloudinary: CloudinaryDouble) -> None:
    """A shutdown doesn't wait for Cloudinary: every upload under way ends as cancelled."""
    cloudinary.fail(("hang", 60), ("hang", 60))
    publisher = Publisher(Cloudinary(cloudinary.cloudinary_url, 60))
    with ThreadPoolExecutor(2) as threads:
        uploads = [threads.submit(publisher.publish, BARE) for _ in range(2)]
        cloudinary.wait_requests(2)
        publisher.close()
        for upload in uploads:
            with pytest.raises(JobError, match="cancelled"):
                upload.result(timeout=20)


def test_many_threads_publish_at_once(
    cloudinary: CloudinaryDouble, caplog: pytest.LogCaptureFixture
) -> None:
    """32 threads, twice each: every result lands under its own id, and nothing is logged."""
    publisher = Publisher(Cloudinary(cloudinary.cloudinary_url, 30))
    start = threading.Barrier(32)

    def publish(number: int) -> None:
        start.wait(30)
        for round_ in "ab":
            job_id = f"song-{number}-{round_}"
            published = publisher.publish(BARE.model_copy(update={"job_id": job_id}))
            assert publisher.find(job_id, PRINT) == published

    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(32) as threads:
        list(threads.map(publish, range(32)))
    assert caplog.records == []
    assert len(cloudinary.assets) == 128


def own_answer(**changes: Any) -> dict[str, Any]:
    """What a worker of today answers, with changes."""
    words = [
        {"word": "la", "start": 0.5, "end": 1.0, "probability": 0.9},
        {"word": "lo", "start": 1.0, "end": 1.5, "probability": 0.8},
    ]
    own = {
        "words": words,
        "lines": [{"text": "la lo", "start": 0.5, "end": 1.5, "words": words}],
        "srt": "1\n00:00:00,500 --> 00:00:01,500\nla lo\n",
        "plain": "la lo\n",
        "duration": 2.0,
        "title": "A song",
        "job_id": "job",
        "fingerprint": "f" * 64,
        "timings": {"total": 1.0},
        "artist": "Somebody",
    }
    return {**own, **changes}


def test_an_answer_of_today_comes_through_as_it_is() -> None:
    """Whole and in order, nothing of it is laid out anew."""
    answer = own_answer(plain="as the worker laid it out\n", resultUrl="https://example.org/r")
    result = normalise(answer, job_id="job", fingerprint="f" * 64)
    assert result is not None
    assert result.plain == "as the worker laid it out\n"
    assert (result.artist, result.result_url) == ("Somebody", "https://example.org/r")
    assert decompress(compress(result)) == result


@pytest.mark.parametrize(
    "changes",
    [
        {"words": [{"word": "la", "start": 3.0, "end": 1.0}]},
        {"words": [{"word": "la", "start": float("nan"), "end": 1.0}]},
        {"words": [{"word": "la", "start": 0.0, "end": 9.0}]},
        {"words": [{"word": "la", "start": 0.0, "end": 1.0, "probability": 7.0}]},
        {"lines": None},
        {"plain": None},
        {"title": "nul\x00"},
        {"resultUrl": "javascript:alert(1)"},
        {"duration": float("inf")},
        {"timings": {"total": float("inf")}},
        {"job_id": "another"},
    ],
)
def test_an_answer_of_today_that_is_not_whole_is_mended(changes: dict[str, Any]) -> None:
    """Whatever is out of the contract's order is laid out anew, cleaned or ignored."""
    result = normalise(own_answer(**changes), job_id="job", fingerprint="f" * 64)
    assert result is not None
    assert result.job_id == "job"
    assert "\x00" not in (result.title or "")
    assert (result.result_url or "https:").startswith("https:")
    times = [time for word in result.words or () for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(time <= 2.0 or changes.get("duration") for time in times)
    assert all(0 <= word.probability <= 1 for word in result.words or ())
    assert decompress(compress(result)) == result
