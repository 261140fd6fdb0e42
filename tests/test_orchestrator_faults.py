"""What should not happen, and yet must neither stop the loop nor lose, double or mix up a job."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from conftest import StartLoop
from psycopg_pool import ConnectionPool
from rows import Rows
from runpod_double import HELD, RunPodDouble, Script
from test_orchestrator import URL, progress

from lyricpod.errors import ErrorCode, JobError
from lyricpod.result import JobResult, Word
from orchestrator import NotFinished, UnknownJob, database, sync, turn
from orchestrator.config import Settings
from orchestrator.credit import Credit
from orchestrator.endpoint import Misconfigured
from orchestrator.fleet import Fleet
from orchestrator.records import Account, Claimed, Intent, QueuedRow
from orchestrator.results import compress
from orchestrator.states import State
from orchestrator.store import Store

OTHER = "https://www.youtube.com/watch?v=aaaaaaaaaaa"
RESULT = JobResult(words=(Word(word="la", start=0.0, end=0.5),), plain="la")
HOUR = 3600.0


@pytest.fixture
def pool(database_url: str) -> Iterator[ConnectionPool]:
    with database.pool(database_url, size=4, name="test") as opened:
        yield opened


@pytest.fixture
def store(rows: Rows, pool: ConnectionPool) -> Store:
    """The tables, without a loop that works on them."""
    opened = Store(pool)
    opened.prepare()
    return opened


def read(row: QueuedRow) -> tuple[dict[str, object], str]:
    return {"youtube_url": row.youtube_url}, f"of {row.youtube_url}"


def take_in(store: Store, rows: Rows, job_id: str, url: str = URL) -> str:
    rows.queue(job_id, url)
    assert store.find_queued(10, read, HOUR) == 1
    return job_id


def send(store: Store, job_id: str, endpoint: str = "runpod:a") -> None:
    """Commit an intent, and have it accepted."""
    intent = Intent(job_id, endpoint, None, 60_000, None, uuid.uuid4().bytes, "runpod")
    with store.waiting(100) as (jobs, batch):
        assert job_id in [job.job_id for job in jobs]
        begun = batch.begin([intent], 60.0)
    assert store.sent(begun[0], f"{job_id}-{begun[0].number}", 0.0)


def claim(store: Store, job_id: str, number: int = 1) -> Claimed:
    due = store.claim(100, uuid.uuid4(), lease=60.0, silence=60.0)
    return next(a for a in due if (a.job_id, a.number) == (job_id, number))


def retry(store: Store, attempt: Claimed, state: State) -> None:
    lost = JobError(ErrorCode.INTERNAL, "lost")
    blocked, pause = False, 0.0
    assert store.retry(attempt, state, lost, Account(), pause=pause, message="", blocked=blocked)


def state_of(rows: Rows, job_id: str) -> str:
    return rows.run("SELECT state FROM lyricpod_jobs WHERE job_id = %s", job_id)[0]["state"]


# Two replicas.


def test_a_row_that_another_replica_has_just_sent_is_not_taken_in_again(
    rows: Rows, store: Store
) -> None:
    """A look that began before the other's commit finds the row still new: it changes nothing."""
    rows.queue("job")

    def meanwhile(row: QueuedRow) -> tuple[dict[str, object], str]:
        rows.run(
            "INSERT INTO lyricpod_jobs (job_id, request, state, deadline, attempts_used)"
            " VALUES ('job', '{}', 'active', now() + interval '1 hour', 1)"
        )
        return read(row)

    store.find_queued(10, meanwhile, HOUR)
    assert state_of(rows, "job") == "active"
    assert rows.run("SELECT attempts_used FROM lyricpod_jobs")[0]["attempts_used"] == 1


def test_a_cancel_that_races_the_taking_in_is_no_refusal(
    rows: Rows, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is taken in between the cancel's two looks: it is cancelled all the same."""
    rows.queue("job")
    write = store._count

    def counting(connection: object, name: str, params: dict[str, object]) -> int:
        if name == "cancel_row" and not rows.run("SELECT FROM lyricpod_jobs"):
            store.find_queued(10, read, HOUR)
        return write(connection, name, params)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_count", counting)
    assert store.cancel("job") is True
    assert rows.get("job")["error_message"] == "Cancelled"
    assert state_of(rows, "job") == "done"


def test_a_win_without_a_lease_leaves_the_other_sending(rows: Rows, store: Store) -> None:
    """Who lost its lease over an abandoned result must not stop the sending that goes on."""
    send(store, take_in(store, rows, "job"))
    retry(store, claim(store, "job"), State.ABANDONED)
    late = claim(store, "job")
    send(store, "job")
    store.release({late.lease_token: late.id})
    assert store.win(late, compress(RESULT), Account()) is False
    assert [a["state"] for a in rows.attempts("job")] == ["abandoned", "queued"]


# One bad row.


def test_jobs_that_no_endpoint_takes_hold_up_no_other(rows: Rows, store: Store) -> None:
    """Postponed jobs go to the end of the line, however old they are."""
    for number in range(5):
        take_in(store, rows, f"stuck{number}")
    with store.waiting(5) as (jobs, batch):
        batch.postpone([job.job_id for job in jobs], "nobody takes it", 0.0)
    take_in(store, rows, "young")
    with store.waiting(5) as (jobs, batch):
        batch.postpone([job.job_id for job in jobs], "nobody takes it", 0.0)
    with store.waiting(1) as (jobs, _):
        assert [job.job_id for job in jobs] == ["young"]


def test_rows_are_sent_in_the_order_in_which_they_were_queued(rows: Rows, store: Store) -> None:
    """A batch that is taken in at once keeps its order."""
    names = [f"job{number}" for number in range(20)]
    for name in names:
        rows.queue(name)
    store.find_queued(20, read, HOUR)
    with store.waiting(20) as (jobs, _):
        assert [job.job_id for job in jobs] == names


def test_a_waiting_job_with_an_active_sending_stops_no_other(rows: Rows, store: Store) -> None:
    """However it came to that: it stays with its sending, and its batch is sent."""
    send(store, take_in(store, rows, "odd"))
    rows.run("UPDATE lyricpod_jobs SET state = 'waiting'")
    take_in(store, rows, "good")
    with store.waiting(10) as (jobs, batch):
        begun = batch.begin(
            [
                Intent(job.job_id, "runpod:a", None, 60_000, None, uuid.uuid4().bytes, "runpod")
                for job in jobs
            ],
            60.0,
        )
    assert [b.job_id for b in begun] == ["good"]
    assert state_of(rows, "odd") == "active"


def test_a_row_that_nobody_foresaw_ends_alone(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault at reading or at sending a row is told in that row; the next row is done."""
    intend, foreseen = sync.Loop._intend, sync.read_row

    def fragile(row: QueuedRow) -> object:
        return foreseen(row) if row.job_id != "unreadable" else [][0]

    def brittle(loop: sync.Loop, job: object, name: str) -> object:
        return intend(loop, job, name) if job.job_id != "unsendable" else [][0]  # type: ignore

    monkeypatch.setattr(sync, "read_row", fragile)
    monkeypatch.setattr(sync.Loop, "_intend", brittle)
    runpod.decide = lambda body: Script()
    start()
    for job in ("unreadable", "unsendable", "good"):
        rows.queue(job)
    assert "IndexError" in rows.ended("unreadable")["error_message"]
    assert "IndexError" in rows.ended("unsendable")["error_message"]
    assert rows.ended("good")["status"] == "completed"


def test_a_part_of_the_round_that_fails_holds_up_no_other(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows can't be taken in: jobs that were submitted are done all the same."""

    def broken(*_: object) -> int:
        raise psycopg.errors.CheckViolation("a trigger of the backend's")

    monkeypatch.setattr(Store, "find_queued", broken)
    runpod.decide = lambda body: Script()
    orchestrator = start()
    assert rows.ended(orchestrator.submit(youtube_url=URL))["status"] == "completed"


def test_a_fault_at_rest_does_not_end_the_loop(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look for what is due next fails: the loop goes on."""
    failed = threading.Event()

    def broken(_: Store) -> float:
        failed.set()
        raise psycopg.errors.InsufficientPrivilege("for a moment")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "next_due", broken)
        runpod.decide = lambda body: Script()
        orchestrator = start()
        assert failed.wait(30)
    assert rows.ended(orchestrator.submit(youtube_url=URL))["status"] == "completed"


@pytest.mark.parametrize(
    "report",
    [
        {"pct": math.inf, "stage": "download", "status": "x", "seq": 1},
        {**progress(1, 20, "transcription"), "status": "half \ud83d and \x00"},
        progress(1, 20, "transcription", "a \x00 line"),
        progress(1, 20, "transcription", "half \ud83d"),
        {**progress(1, 20, "download"), "lines": [{"text": "x", "start": math.nan, "end": 1}]},
    ],
    ids=["infinite", "message", "NUL", "surrogate", "NaN"],
)
def test_a_report_that_no_table_takes_delays_nothing(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, report: dict
) -> None:
    """It is shown as far as it can be; the looks go on, and the next one counts."""
    orchestrator = start()
    job = orchestrator.submit(youtube_url=URL)
    runpod.start(job)
    runpod.progress(job, report)
    seen = runpod.calls["status"]
    runpod.wait_until(lambda: runpod.calls["status"] > seen + 1)
    runpod.progress(job, progress(2, 50, "transcription", "next"))
    assert rows.until(job, lambda r: r["pct"] == 50, timeout=3)["status"] == "processing"
    runpod.finish(job)
    assert rows.ended(job)["status"] == "completed"


def test_a_report_without_a_number_is_shown(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Workers that count no reports are heard too."""
    orchestrator = start()
    job = orchestrator.submit(youtube_url=URL)
    runpod.start(job)
    for pct in (20, 30):
        runpod.progress(job, {"pct": pct, "stage": "transcription", "status": "on"})
        rows.until(job, lambda r, pct=pct: r["pct"] == pct)


def test_figures_beyond_a_column_lose_no_result(rows: Rows, store: Store) -> None:
    """A duration or an execution time that no integer holds is no reason not to complete."""
    send(store, take_in(store, rows, "job"))
    huge = RESULT.model_copy(update={"duration": 1e300})
    account = Account(execution_ms=2**40, delay_ms=2**50)
    assert store.complete(claim(store, "job"), huge, account, kept_here=None)
    assert rows.get("job")["status"] == "completed"


def test_ids_that_no_row_can_have_are_unknown(rows: Rows, start: StartLoop) -> None:
    """A NUL or half a surrogate pair, as a URL may hold, is an unknown job and no crash."""
    orchestrator = start(loop=False)
    for job_id in ("a\x00b", "\ud800"):
        for ask in (orchestrator.progress, orchestrator.cancel, orchestrator.retry):
            with pytest.raises(UnknownJob):
                ask(job_id)
        with pytest.raises(UnknownJob):
            orchestrator.result(job_id)


# Rows that must end, and looks that must not spin.


def test_a_result_that_can_not_be_kept_for_a_reason_nobody_foresaw_ends_in_time(
    rows: Rows,
    runpod: RunPodDouble,
    start: StartLoop,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    """Whatever keeping it raises: the job ends with its deadline."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug in a library")

    monkeypatch.setattr("orchestrator.results.Publisher.publish", broken)
    monkeypatch.setattr(turn, "PUBLISH_FIRST", 0.1)
    runpod.decide = lambda body: Script()
    orchestrator = start(STORAGE_DIR=str(tmp_path), DEADLINE_SECONDS="2")
    row = rows.ended(orchestrator.submit(youtube_url=URL), timeout=20)
    assert "RuntimeError" in row["error_message"]


def test_an_abandoned_sending_of_a_removed_endpoint_ends(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Nobody can ask there any more: once its timeout has passed, it is no more looked at."""
    orchestrator = start(loop=False)
    send(orchestrator.store, take_in(orchestrator.store, rows, "job"), "runpod:gone")
    assert orchestrator.cancel("job")
    rows.run(
        "UPDATE lyricpod_attempts SET next_poll_at = now(),"
        " submitted_at = now() - interval '3 hours'"
    )
    orchestrator.start()
    ended = rows.attempt_until("job", lambda a: a["state"] == "lost")
    assert ended["next_poll_at"] is None


def test_a_dead_local_endpoint_loses_its_jobs_at_once(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """The child is gone and nobody begins it anew: its sendings are not waited for."""
    orchestrator = start(loop=False, MAX_ATTEMPTS="1")
    take_in(orchestrator.store, rows, "job")
    send(orchestrator.store, "job", "local")
    rows.run("UPDATE lyricpod_attempts SET instance = %s", orchestrator._instance)
    orchestrator.start()
    assert "local endpoint" in rows.ended("job", timeout=10)["error_message"]


def test_a_sending_whose_id_a_webhook_told_is_given_up_like_any_other(
    rows: Rows, store: Store, runpod: RunPodDouble, start: StartLoop
) -> None:
    """Its sender is gone and its endpoint silent: it goes to another, and nobody spins."""
    orchestrator = start(
        loop=False, RUNPOD_ENDPOINT_ID=f"{runpod.env()['RUNPOD_ENDPOINT_ID']},other"
    )
    send(store, take_in(store, rows, "job"), "runpod:gone")
    rows.run(
        "UPDATE lyricpod_attempts SET state = 'submitting',"
        " unreachable_since = now() - interval '1 hour'"
    )
    orchestrator.start()
    rows.attempt_until("job", lambda a: a["number"] == 2)
    assert rows.attempts("job")[0]["state"] == "abandoned"


def test_health_is_looked_at_by_one_thread_at_a_time(runpod: RunPodDouble) -> None:
    """A look that hangs is not begun again: an outage fills no queue."""
    settings = Settings.from_env(runpod.env())
    fleet = Fleet(settings, uuid.uuid4(), Credit(None, 0))
    (name,) = fleet.due()
    fleet.missed(name, "no answer")
    fleet._pods[name].looked_at -= 100.0
    assert fleet.due() == []
    fleet.look(name)
    fleet.missed(name, "no answer")
    fleet._pods[name].looked_at -= 100.0
    assert fleet.due() == [name]
    fleet.close()


def test_a_key_that_may_look_and_not_send_pauses_the_endpoint(runpod: RunPodDouble) -> None:
    """Looks that are answered are no reason to send again before the pause is over."""
    fleet = Fleet(Settings.from_env(runpod.env()), uuid.uuid4(), Credit(None, 0))
    name = fleet.names[0]
    fleet.misconfigured(name, Misconfigured("it answered 403", "check the key"))
    fleet.reached(name)
    assert fleet.candidates({})[0].paused_reason is not None
    fleet.close()


# Rounds of one job.


def test_an_earlier_rounds_result_is_never_taken_for_a_later_ones(
    rows: Rows, runpod: RunPodDouble, start: StartLoop
) -> None:
    """The row is queued again with another song: `result` forgets the first at once."""
    orchestrator = start()
    runpod.decide = lambda body: Script()
    rows.ended(rows.queue("job", URL))
    assert orchestrator.result("job").words
    runpod.decide = lambda body: HELD
    rows.run("UPDATE jobs SET status = 'queued', youtube_url = %s WHERE id = 'job'", OTHER)
    rows.attempt_until("job", lambda a: a["number"] == 2 and a["state"] == "queued")
    with pytest.raises(NotFinished):
        orchestrator.result("job")


def test_a_result_that_was_not_kept_is_not_kept_for_another_song(rows: Rows, store: Store) -> None:
    """`retry` of a row whose URL has changed makes it anew."""
    send(store, take_in(store, rows, "job"))
    assert store.finishing(claim(store, "job"), compress(RESULT), Account())
    (kept,) = store.claim_finishing(10, lease=60.0)
    assert store.end(kept, State.FAILED, JobError(ErrorCode.UPLOAD_FAILED, "no"), Account())
    rows.run("UPDATE jobs SET youtube_url = %s", OTHER)
    assert store.reopen("job", HOUR) == "error"
    assert rows.get("job")["status"] == "queued"
    assert store.find_queued(10, read, HOUR) == 1
    assert store.kept_result("job") is None


def test_an_earlier_rounds_sending_does_not_win_a_later_round(rows: Rows, store: Store) -> None:
    """It was abandoned, and may be of another song: its result is not the new round's."""
    send(store, take_in(store, rows, "job"))
    assert store.cancel("job")
    assert store.reopen("job", HOUR) == "error"
    assert store.find_queued(10, read, HOUR) == 1
    late = claim(store, "job")
    assert store.win(late, compress(RESULT), Account()) is False
    assert state_of(rows, "job") == "waiting"


def test_a_new_round_leaves_no_active_sending_behind(rows: Rows, store: Store) -> None:
    """A crash between closing a job and its sending, and a row that is queued again after it."""
    send(store, take_in(store, rows, "job"))
    rows.run("UPDATE jobs SET status = 'error'")
    store.orphan("job")
    rows.run("UPDATE jobs SET status = 'queued'")
    assert store.find_queued(10, read, HOUR) == 1
    send(store, "job")
    assert [a["state"] for a in rows.attempts("job")] == ["abandoned", "queued"]


def test_the_processing_time_is_of_this_round(rows: Rows, store: Store) -> None:
    """A row that failed last week and is queued again did not take a week."""
    send(store, take_in(store, rows, "job"))
    assert store.cancel("job")
    rows.run("UPDATE lyricpod_jobs SET created_at = now() - interval '7 days'")
    rows.run("UPDATE jobs SET status = 'queued'")
    assert store.find_queued(10, read, HOUR) == 1
    send(store, "job")
    assert store.complete(claim(store, "job", 2), RESULT, Account(), kept_here=None)
    assert rows.get("job")["processing_time_seconds"] < HOUR


def test_retry_of_a_row_that_someone_else_has_just_ended(rows: Rows, store: Store) -> None:
    """Before we noticed its end: the retry counts, and the sending under way goes on."""
    send(store, take_in(store, rows, "job"))
    rows.run("UPDATE jobs SET status = 'error'")
    assert store.reopen("job", HOUR) == "error"
    assert rows.get("job")["status"] == "queued"
    assert not claim(store, "job").unwanted


def test_a_result_found_after_the_deadline_is_not_thrown_away(
    rows: Rows, runpod: RunPodDouble, start: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looked until the deadline was over: the durable copy is adopted."""
    copy = RESULT.model_copy(update={"result_url": "https://example.com/results"})
    monkeypatch.setattr("orchestrator.results.Publisher.find", lambda *_: copy)
    orchestrator = start(loop=False)
    send(orchestrator.store, take_in(orchestrator.store, rows, "job"))
    rows.run("UPDATE lyricpod_jobs SET deadline = now() - interval '1 hour'")
    orchestrator.start()
    row = rows.ended("job")
    assert (row["status"], row["results_url"]) == ("completed", copy.result_url)


# The backend's table.


def test_a_table_of_the_needed_columns_alone_serves(
    database_url: str, runpod: RunPodDouble, start: StartLoop
) -> None:
    """What `prepare` accepts, the loop can work with."""
    with Rows(database_url) as backend:
        backend.run(
            "CREATE TABLE jobs (id varchar(255) PRIMARY KEY, youtube_url text NOT NULL,"
            " status varchar(50) NOT NULL DEFAULT 'queued', results_url text, error_message text,"
            " created_at timestamptz DEFAULT now())"
        )
        backend.watch()
        orchestrator = start()
        runpod.decide = lambda body: Script()
        job = orchestrator.submit(youtube_url=URL)
        assert backend.ended(job)["status"] == "completed"
        assert orchestrator.progress(job).status == "completed"
        orchestrator.retry(job)
        backend.until(job, lambda r: len(backend.attempts(job)) == 2 and r["status"] == "completed")
        assert orchestrator.list()[0].job_id == job


def test_leases_are_found_without_reading_the_whole_table(
    rows: Rows, store: Store, pool: ConnectionPool
) -> None:
    """Renewing and releasing cost the same however many sendings there ever were."""
    params = {"ids": [1], "leases": [uuid.uuid4()], "lease": 60.0}
    with pool.connection() as connection:
        rows.run(
            "INSERT INTO lyricpod_attempts (job_id, number, endpoint, state, execution_timeout_ms)"
            " SELECT 'old', n, 'runpod:a', 'completed', 1 FROM generate_series(1, 5000) AS n"
        )
        connection.execute("ANALYZE lyricpod_attempts")
        for name in ("renew", "release"):
            plan = connection.execute(b"EXPLAIN " + store._sql[name], params).fetchall()
            assert "Seq Scan" not in str(plan)


def test_a_storage_that_does_not_answer_holds_one_look_at_most(
    rows: Rows, store: Store, start: StartLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody knows of copies, looks at other sendings are spared the wait for it."""
    asked = []

    def silent(_: object, job_id: str, fingerprint: str) -> None:
        asked.append(job_id)
        raise JobError(ErrorCode.NETWORK, "the storage does not answer")

    monkeypatch.setattr("orchestrator.results.Publisher.find", silent)
    observer = start(loop=False)._loop._turns._observer
    send(store, take_in(store, rows, "job"))
    attempt = claim(store, "job")
    assert [type(observer.copy(attempt)) for _ in range(20)] == [JobError] * 20
    assert len(asked) == 1
    observer._doubt_until = 0.0
    monkeypatch.setattr("orchestrator.results.Publisher.find", lambda *_: RESULT)
    assert [observer.copy(attempt) for _ in range(2)] == [RESULT] * 2
