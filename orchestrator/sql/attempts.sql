-- Attempts: one sending of a job each. Every write of a lease holder names its lease: no rows
-- changed means that the work is someone else's by now.
-- A line that ends in `--? name` is left out where the table jobs has no column `name`.

-- name: claim
WITH due AS (
    SELECT a.id, l.state AS job_state, l.fingerprint, l.deadline <= now() AS late, j.status,
           l.attempts_used, l.blocked_on, a.instance IS NOT NULL AND a.instance <> %(instance)s AS instance_gone
    FROM lyricpod_attempts a
    JOIN lyricpod_jobs l ON l.job_id = a.job_id
    LEFT JOIN jobs j ON j.id = a.job_id
    WHERE a.next_poll_at <= now()
      AND a.state <> 'finishing'
      AND (a.lease_until IS NULL OR a.lease_until < now())
      AND (a.instance IS NULL OR a.instance = %(instance)s OR NOT EXISTS (
              SELECT FROM lyricpod_replicas r WHERE r.instance = a.instance
              AND r.seen_at > now() - make_interval(secs => %(silence)s)))
    ORDER BY a.next_poll_at
    LIMIT %(limit)s
    FOR UPDATE OF a SKIP LOCKED
)
UPDATE lyricpod_attempts a SET
    lease_token = gen_random_uuid(), lease_until = now() + make_interval(secs => %(lease)s),
    urgent = false
FROM due WHERE a.id = due.id
RETURNING a.id, a.job_id, a.number, a.endpoint, a.runpod_id, a.state, a.lease_token,
    a.progress, a.price_usd, a.execution_timeout_ms, due.job_state, due.fingerprint, due.late,
    due.status, due.attempts_used, due.blocked_on, due.instance_gone,
    extract(epoch FROM now() - COALESCE(a.submitted_at, a.created_at))::float8 AS age,
    extract(epoch FROM now() - a.unreachable_since)::float8 AS unreachable,
    a.waiting_until IS NOT NULL AND a.waiting_until <= now() AS patience_over;

-- name: claim_finishing
WITH due AS (
    SELECT a.id, l.state AS job_state, l.fingerprint, l.deadline <= now() AS late, j.status
    FROM lyricpod_attempts a
    JOIN lyricpod_jobs l ON l.job_id = a.job_id
    LEFT JOIN jobs j ON j.id = a.job_id
    WHERE a.next_poll_at <= now()
      AND a.state = 'finishing'
      AND (a.lease_until IS NULL OR a.lease_until < now())
    ORDER BY a.next_poll_at
    LIMIT %(limit)s
    FOR UPDATE OF a SKIP LOCKED
)
UPDATE lyricpod_attempts a SET
    lease_token = gen_random_uuid(), lease_until = now() + make_interval(secs => %(lease)s)
FROM due WHERE a.id = due.id
RETURNING a.id, a.job_id, a.number, a.endpoint, a.state, a.lease_token, a.result, a.publish_tries,
    due.job_state, due.fingerprint, due.late, due.status;

-- name: renew
UPDATE lyricpod_attempts SET lease_until = now() + make_interval(secs => %(lease)s)
WHERE id = ANY (%(ids)s) AND lease_token = ANY (%(leases)s);

-- name: release
UPDATE lyricpod_attempts SET lease_token = NULL, lease_until = NULL
WHERE id = ANY (%(ids)s) AND lease_token = ANY (%(leases)s);

-- name: sent
UPDATE lyricpod_attempts SET
    state = 'queued', runpod_id = %(runpod_id)s, submitted_at = now(),
    lease_token = NULL, lease_until = NULL,
    next_poll_at = CASE WHEN urgent THEN 'epoch'
                        ELSE now() + make_interval(secs => %(delay)s) END
WHERE id = %(id)s AND lease_token = %(lease)s;

-- name: note_id
-- Without a lease: only an empty id is filled, so that what was sent can be found, or cancelled.
UPDATE lyricpod_attempts SET runpod_id = %(runpod_id)s, urgent = true, next_poll_at = 'epoch'
WHERE id = %(id)s AND runpod_id IS NULL AND state IN ('submitting', 'unknown', 'abandoned');

-- name: uncertain
UPDATE lyricpod_attempts SET
    state = 'unknown', submitted_at = COALESCE(submitted_at, now()),
    -- Reckoned anew at each look: in the first minutes nobody knows yet how long jobs take.
    waiting_until = COALESCE(submitted_at, now()) + make_interval(secs => %(patience)s),
    lease_token = NULL, lease_until = NULL,
    next_poll_at = CASE WHEN urgent THEN 'epoch'
                        ELSE now() + make_interval(secs => %(delay)s) END
WHERE id = %(id)s AND lease_token = %(lease)s;

-- name: patience
-- How long a job may be expected to take on an endpoint: what nine of ten of its last took.
SELECT percentile_disc(0.9) WITHIN GROUP (ORDER BY seconds)::float8 AS seconds FROM (
    SELECT extract(epoch FROM finished_at - submitted_at) AS seconds FROM lyricpod_attempts
    WHERE created_at > now() - interval '1 day' AND state = 'completed' AND endpoint = %(endpoint)s
    ORDER BY created_at DESC LIMIT 200) AS last_ones;

-- name: withdraw
-- Locks the job before the attempt, as all do: else it and a cancel would wait for each other.
WITH locked AS (
    SELECT job_id FROM lyricpod_jobs WHERE job_id = %(job_id)s FOR UPDATE
), gone AS (
    DELETE FROM lyricpod_attempts a USING locked
    WHERE a.job_id = locked.job_id AND a.id = %(id)s AND a.lease_token = %(lease)s
    RETURNING a.job_id
), job AS (
    UPDATE lyricpod_jobs l SET
        state = 'waiting', attempts_used = attempts_used - 1,
        next_try_at = now() + make_interval(secs => %(pause)s)
    FROM gone WHERE l.job_id = gone.job_id AND l.state = 'active'
), shown AS (
    UPDATE jobs SET
        status = 'processing'
      , status_message = %(message)s   --? status_message
      , updated_at = now()             --? updated_at
    FROM gone WHERE jobs.id = gone.job_id AND jobs.status = 'processing'
)
SELECT count(*) FROM gone;

-- name: watched
UPDATE lyricpod_attempts SET
    state = %(state)s,
    started_at = CASE WHEN %(state)s = 'running' THEN COALESCE(started_at, now())
                      ELSE started_at END,
    unreachable_since = CASE WHEN %(reached)s THEN NULL ELSE COALESCE(unreachable_since, now()) END,
    worker_id = COALESCE(%(worker_id)s, worker_id),
    lease_token = NULL, lease_until = NULL,
    next_poll_at = CASE WHEN urgent THEN 'epoch'
                        ELSE now() + make_interval(secs => %(delay)s) END
WHERE id = %(id)s AND lease_token = %(lease)s;

-- name: progressed
WITH attempt AS (
    UPDATE lyricpod_attempts SET
        state = 'running', started_at = COALESCE(started_at, now()), unreachable_since = NULL,
        worker_id = COALESCE(%(worker_id)s, worker_id), progress = %(progress)s,
        lease_token = NULL, lease_until = NULL,
        next_poll_at = CASE WHEN urgent THEN 'epoch'
                            ELSE now() + make_interval(secs => %(delay)s) END
    WHERE id = %(id)s AND lease_token = %(lease)s RETURNING job_id
), told AS (
    SELECT pg_notify('lyricpod_job', job_id) FROM attempt
), shown AS (
    UPDATE jobs SET
        status = 'processing'
      , pct = GREATEST(COALESCE(pct, 0), %(pct)s)   --? pct
      , status_message = %(message)s                --? status_message
      , progress_log = CASE WHEN COALESCE(progress_log, '[]') -> -1 ->> 'status' IS DISTINCT FROM %(stage)s THEN COALESCE(progress_log, '[]') || jsonb_build_array(jsonb_build_object('status', %(stage)s::text, 'percentage', %(pct)s::integer, 'message', %(message)s::text, 'timestamp', now())) ELSE progress_log END  --? progress_log
      , current_stage = %(stage)s                   --? current_stage
      , updated_at = now()                          --? updated_at
    FROM attempt WHERE jobs.id = attempt.job_id AND jobs.status = 'processing'
)
SELECT count(*) FROM told;

-- name: finishing
WITH attempt AS (
    UPDATE lyricpod_attempts SET
        state = 'finishing', result = %(result)s, finished_at = now(),
        delay_ms = %(delay_ms)s, execution_ms = %(execution_ms)s,
        worker_id = COALESCE(%(worker_id)s, worker_id), cost_usd = %(cost)s,
        unreachable_since = NULL, next_poll_at = now(), lease_token = NULL, lease_until = NULL
    WHERE id = %(id)s AND lease_token = %(lease)s RETURNING job_id
), told AS (
    SELECT pg_notify('lyricpod_job', job_id) FROM attempt
), shown AS (
    UPDATE jobs SET
        status = 'processing'
      , pct = GREATEST(COALESCE(pct, 0), 97)       --? pct
      , status_message = 'Keeping the result'      --? status_message
      , progress_log = CASE WHEN COALESCE(progress_log, '[]') -> -1 ->> 'status' IS DISTINCT FROM 'finalization' THEN COALESCE(progress_log, '[]') || jsonb_build_array(jsonb_build_object('status', 'finalization', 'percentage', 97, 'message', 'Keeping the result', 'timestamp', now())) ELSE progress_log END  --? progress_log
      , current_stage = 'finalization'             --? current_stage
      , updated_at = now()                         --? updated_at
    FROM attempt WHERE jobs.id = attempt.job_id AND jobs.status = 'processing'
)
SELECT count(*) FROM told;

-- name: unpublished
UPDATE lyricpod_attempts SET
    publish_tries = publish_tries + 1, error = %(error)s, lease_token = NULL, lease_until = NULL,
    next_poll_at = now() + make_interval(secs => %(delay)s)
WHERE id = %(id)s AND lease_token = %(lease)s;

-- name: complete
-- Closes attempt, job and row, or nothing.
WITH job AS (
    SELECT l.job_id, l.created_at FROM lyricpod_jobs l
    WHERE l.job_id = %(job_id)s AND l.state <> 'done' FOR UPDATE
), attempt AS (
    UPDATE lyricpod_attempts a SET
        state = 'completed', finished_at = COALESCE(a.finished_at, now()), error = NULL,
        delay_ms = COALESCE(%(delay_ms)s, a.delay_ms),
        execution_ms = COALESCE(%(execution_ms)s, a.execution_ms),
        worker_id = COALESCE(%(worker_id)s, a.worker_id), cost_usd = COALESCE(%(cost)s, a.cost_usd),
        unreachable_since = NULL, result = %(result)s,
        next_poll_at = NULL, lease_token = NULL, lease_until = NULL
    FROM job
    WHERE a.id = %(id)s AND a.lease_token = %(lease)s
    RETURNING a.job_id, a.submitted_at, job.created_at
), closed AS (
    UPDATE lyricpod_jobs l SET state = 'done' FROM attempt WHERE l.job_id = attempt.job_id
), told AS (
    SELECT pg_notify('lyricpod_job', job_id) FROM attempt
), ended AS (
    UPDATE jobs SET
        status = 'completed',
        results_url = %(results_url)s,
        error_message = NULL
      , srt_url = %(srt_url)s                                  --? srt_url
      , title = COALESCE(jobs.title, %(title)s)                --? title
      , duration = COALESCE(%(duration)s, jobs.duration)       --? duration
      , video_id = COALESCE(%(video_id)s, jobs.video_id)       --? video_id
      , pct = 100                                              --? pct
      , status_message = %(message)s                           --? status_message
      , progress_log = COALESCE(progress_log, '[]') || jsonb_build_array(jsonb_build_object('status', 'completed', 'percentage', 100, 'message', %(message)s::text, 'timestamp', now()))  --? progress_log
      , current_stage = 'finalization'                         --? current_stage
      , processing_time_seconds = extract(epoch FROM now() - attempt.created_at)  --? processing_time_seconds
      , completed_at = now()                                   --? completed_at
      , updated_at = now()                                     --? updated_at
    FROM attempt WHERE jobs.id = attempt.job_id AND jobs.status IN ('queued', 'processing')
)
SELECT count(*) FROM told;

-- name: win
-- An abandoned attempt's result came first: the job is open, so the other sending goes instead.
WITH job AS (
    SELECT job_id FROM lyricpod_jobs
    WHERE job_id = %(job_id)s AND state IN ('active', 'waiting') FOR UPDATE
)
UPDATE lyricpod_attempts a SET
    state = 'abandoned', lease_token = NULL, lease_until = NULL, urgent = true,
    next_poll_at = CASE WHEN runpod_id IS NULL THEN now() + interval '1 minute' ELSE now() END
FROM job WHERE a.job_id = job.job_id AND a.id <> %(id)s
  AND a.state IN ('submitting', 'unknown', 'queued', 'running');

-- name: reactivate
UPDATE lyricpod_jobs SET state = 'active' WHERE job_id = %(job_id)s
  AND state IN ('active', 'waiting')
  AND created_at <= (SELECT a.created_at FROM lyricpod_attempts a WHERE a.id = %(id)s)
  AND NOT EXISTS (SELECT FROM lyricpod_attempts a WHERE a.job_id = %(job_id)s
                  AND a.id <> %(id)s AND a.state = 'finishing');

-- name: end
-- Closes the job as failed; the attempt may have to be cancelled yet.
WITH job AS (
    SELECT job_id FROM lyricpod_jobs WHERE job_id = %(job_id)s AND state <> 'done' FOR UPDATE
), attempt AS (
    UPDATE lyricpod_attempts a SET
        state = %(state)s, error = %(error)s, finished_at = COALESCE(a.finished_at, now()),
        delay_ms = COALESCE(%(delay_ms)s, a.delay_ms),
        execution_ms = COALESCE(%(execution_ms)s, a.execution_ms),
        worker_id = COALESCE(%(worker_id)s, a.worker_id), cost_usd = COALESCE(%(cost)s, a.cost_usd),
        next_poll_at = CASE WHEN %(state)s = 'abandoned' THEN now() END,
        lease_token = NULL, lease_until = NULL
    FROM job WHERE a.id = %(id)s AND a.lease_token = %(lease)s RETURNING a.job_id
), closed AS (
    UPDATE lyricpod_jobs l SET state = 'done' FROM attempt WHERE l.job_id = attempt.job_id
), told AS (
    SELECT pg_notify('lyricpod_job', job_id) FROM attempt
), ended AS (
    UPDATE jobs SET
        status = 'error',
        error_message = %(message)s
      , status_message = %(message)s   --? status_message
      , completed_at = now()           --? completed_at
      , updated_at = now()             --? updated_at
    FROM attempt WHERE jobs.id = attempt.job_id AND jobs.status IN ('queued', 'processing')
)
SELECT count(*) FROM told;

-- name: retry
-- Ends the attempt; the job waits to be sent again.
WITH job AS (
    SELECT job_id FROM lyricpod_jobs WHERE job_id = %(job_id)s AND state <> 'done' FOR UPDATE
), attempt AS (
    UPDATE lyricpod_attempts a SET
        state = %(state)s, error = %(error)s, finished_at = COALESCE(a.finished_at, now()),
        delay_ms = COALESCE(%(delay_ms)s, a.delay_ms),
        execution_ms = COALESCE(%(execution_ms)s, a.execution_ms),
        worker_id = COALESCE(%(worker_id)s, a.worker_id), cost_usd = COALESCE(%(cost)s, a.cost_usd),
        waiting_until = now() + interval '1 hour',
        next_poll_at = CASE WHEN %(state)s <> 'abandoned' THEN NULL
                            WHEN a.runpod_id IS NULL THEN now() + interval '1 hour'
                            ELSE now() + make_interval(secs => %(pause)s) END,
        lease_token = NULL, lease_until = NULL
    FROM job WHERE a.id = %(id)s AND a.lease_token = %(lease)s RETURNING a.job_id
), waiting AS (
    UPDATE lyricpod_jobs l SET
        state = 'waiting', next_try_at = now() + make_interval(secs => %(pause)s),
        blocked_on = blocked_on || %(blocked_on)s::text[],
        failed_on = failed_on || %(failed_on)s::text[]
    FROM attempt WHERE l.job_id = attempt.job_id
), told AS (
    SELECT pg_notify('lyricpod_job', job_id) FROM attempt
), shown AS (
    UPDATE jobs SET
        status = 'processing'
      , status_message = %(message)s   --? status_message
      , updated_at = now()             --? updated_at
    FROM attempt WHERE jobs.id = attempt.job_id AND jobs.status = 'processing'
)
SELECT count(*) FROM told;

-- name: abandon
UPDATE lyricpod_attempts SET
    state = 'abandoned', lease_token = NULL, lease_until = NULL,
    waiting_until = COALESCE(waiting_until, now() + interval '1 hour'),
    next_poll_at = now() + make_interval(secs => %(delay)s)
WHERE id = %(id)s AND lease_token = %(lease)s;

-- name: orphan
-- The job was deleted or ended by someone else: close what is ours, touch nothing of theirs.
UPDATE lyricpod_jobs SET state = 'done' WHERE job_id = %(job_id)s AND state <> 'done';

-- name: settle
UPDATE lyricpod_attempts SET
    state = %(state)s, finished_at = COALESCE(finished_at, now()), next_poll_at = NULL,
    error = COALESCE(%(error)s, error), delay_ms = COALESCE(%(delay_ms)s, delay_ms),
    execution_ms = COALESCE(%(execution_ms)s, execution_ms),
    cost_usd = COALESCE(%(cost)s, cost_usd), lease_token = NULL, lease_until = NULL
WHERE id = %(id)s AND lease_token = %(lease)s;

-- name: heard
-- A webhook came: look at once. It may name what nobody could note.
WITH attempt AS (
    UPDATE lyricpod_attempts a SET
        urgent = true, next_poll_at = 'epoch',
        runpod_id = COALESCE(a.runpod_id, %(runpod_id)s),
        state = CASE WHEN a.state = 'lost' THEN 'abandoned' ELSE a.state END
    FROM lyricpod_jobs l
    WHERE a.webhook_digest = %(digest)s AND l.job_id = a.job_id
      AND (a.state IN ('submitting', 'unknown', 'queued', 'running', 'abandoned')
           OR (a.state = 'lost' AND l.state <> 'done'))
    RETURNING a.id
)
SELECT count(*), pg_notify('lyricpod_work', '') FROM attempt;

-- name: known_token
SELECT EXISTS (SELECT FROM lyricpod_attempts WHERE webhook_digest = %(digest)s);

-- name: in_flight
SELECT endpoint, count(*) AS attempts,
       count(*) FILTER (WHERE state IN ('submitting', 'unknown', 'queued')) AS queued
FROM lyricpod_attempts
WHERE state IN ('submitting', 'unknown', 'queued', 'running', 'finishing')
GROUP BY endpoint;

-- name: backlog
SELECT count(*) AS waiting FROM (
    SELECT FROM lyricpod_jobs WHERE state = 'waiting' LIMIT 1000) AS first_jobs;

-- name: next_due
SELECT extract(epoch FROM LEAST(
    (SELECT min(next_poll_at) FROM lyricpod_attempts
     WHERE next_poll_at IS NOT NULL AND state <> 'finishing'),
    (SELECT min(next_poll_at) FROM lyricpod_attempts
     WHERE next_poll_at IS NOT NULL AND state = 'finishing'),
    (SELECT min(next_try_at) FROM lyricpod_jobs WHERE state = 'waiting')) - now())::float8 AS seconds;

-- name: last_attempt
SELECT number, endpoint, state, progress, error, price_usd, cost_usd, delay_ms, execution_ms
FROM lyricpod_attempts WHERE job_id = %(job_id)s ORDER BY number DESC LIMIT 1;

-- name: kept_result
SELECT result FROM lyricpod_attempts WHERE job_id = %(job_id)s AND result IS NOT NULL
ORDER BY number DESC LIMIT 1;

-- name: beat
INSERT INTO lyricpod_replicas (instance) VALUES (%(instance)s)
ON CONFLICT (instance) DO UPDATE SET seen_at = now();

-- name: leave
DELETE FROM lyricpod_replicas
WHERE instance = %(instance)s OR seen_at < now() - interval '1 day';
