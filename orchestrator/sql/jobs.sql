-- Jobs: the backend's rows and ours beside them.
-- A line that ends in `--? name` is left out where the table jobs has no column `name`.

-- name: insert_row
INSERT INTO jobs (id, youtube_url, status) VALUES (%(job_id)s, %(source)s, 'queued');

-- name: insert_job
INSERT INTO lyricpod_jobs (job_id, request, fingerprint, state, deadline)
VALUES (%(job_id)s, %(request)s, %(fingerprint)s, 'waiting',
        now() + make_interval(secs => %(deadline)s));

-- name: find_queued
-- Rows that the backend queued by itself, or queued again after their end.
SELECT j.id AS job_id, j.youtube_url, l.request
FROM jobs j LEFT JOIN lyricpod_jobs l ON l.job_id = j.id
WHERE j.status = 'queued' AND (l.job_id IS NULL OR l.state = 'done')
ORDER BY j.created_at
LIMIT %(limit)s
FOR UPDATE OF j SKIP LOCKED;

-- name: take_in
-- A job that is not done is left alone: between the look for queued rows and their lock another
-- replica may have taken one in, and sent it. What is left of an earlier round goes.
-- Microseconds keep the order in which the rows were found.
WITH taken AS (
    INSERT INTO lyricpod_jobs (job_id, request, fingerprint, state, deadline, next_try_at)
    SELECT job_id, request, fingerprint, 'waiting', now() + make_interval(secs => %(deadline)s),
           now() - make_interval(secs => 0.000001 * (cardinality(%(job_ids)s::text[]) - place))
    FROM unnest(%(job_ids)s::text[], %(requests)s::jsonb[], %(fingerprints)s::text[])
        WITH ORDINALITY AS t (job_id, request, fingerprint, place)
    ON CONFLICT (job_id) DO UPDATE SET
        request = excluded.request, fingerprint = excluded.fingerprint, state = 'waiting',
        created_at = now(), deadline = excluded.deadline, next_try_at = excluded.next_try_at,
        attempts_used = 0, blocked_on = '{}', failed_on = '{}', cancel_requested_at = NULL
    WHERE lyricpod_jobs.state = 'done'
    RETURNING job_id
)
UPDATE lyricpod_attempts a SET
    result = NULL,
    state = CASE WHEN a.next_poll_at IS NULL THEN a.state ELSE 'abandoned' END,
    lease_token = NULL, lease_until = NULL,
    next_poll_at = CASE WHEN a.next_poll_at IS NULL THEN NULL ELSE now() END
FROM taken WHERE a.job_id = taken.job_id AND (a.result IS NOT NULL OR a.next_poll_at IS NOT NULL);

-- name: refuse
-- A row that can't be read as a job.
UPDATE jobs SET
    status = 'error',
    error_message = %(message)s
  , status_message = %(message)s   --? status_message
  , completed_at = now()           --? completed_at
  , updated_at = now()             --? updated_at
WHERE id = %(job_id)s AND status = 'queued';

-- name: waiting
-- Whose turn has been due for longest: jobs that no endpoint can take now go to the end of the
-- line when they are postponed, and hold up no other.
SELECT l.job_id, l.request, l.fingerprint, l.attempts_used, l.blocked_on, l.failed_on,
       extract(epoch FROM l.deadline - now())::float8 AS remaining, j.status
     , j.duration   --? duration
FROM lyricpod_jobs l LEFT JOIN jobs j ON j.id = l.job_id
WHERE l.state = 'waiting' AND l.next_try_at <= now()
ORDER BY l.next_try_at
LIMIT %(limit)s
FOR UPDATE OF l SKIP LOCKED;

-- name: postpone
-- Nowhere can take it now: its row says why, once.
WITH job AS (
    UPDATE lyricpod_jobs SET next_try_at = now() + make_interval(secs => %(seconds)s)
    WHERE job_id = ANY (%(job_ids)s) AND state = 'waiting' RETURNING job_id
)
UPDATE jobs SET
    status = jobs.status
  , status_message = %(message)s   --? status_message
  , updated_at = now()             --? updated_at
FROM job WHERE jobs.id = job.job_id AND jobs.status IN ('queued', 'processing')
  AND to_jsonb(jobs) ? 'status_message'
  AND to_jsonb(jobs) ->> 'status_message' IS DISTINCT FROM %(message)s;

-- name: end_waiting
-- A waiting job that is over: its row says why, if it is still there and ours.
WITH job AS (
    UPDATE lyricpod_jobs SET state = 'done'
    WHERE job_id = %(job_id)s AND state = 'waiting' RETURNING job_id
), told AS (
    SELECT pg_notify('lyricpod_job', job_id) FROM job
), ended AS (
    UPDATE jobs SET
        status = 'error',
        error_message = %(message)s
      , status_message = %(message)s   --? status_message
      , completed_at = now()           --? completed_at
      , updated_at = now()             --? updated_at
    FROM job WHERE jobs.id = job.job_id AND jobs.status IN ('queued', 'processing')
)
SELECT count(*) FROM told;

-- name: begin
-- The intent to send, committed before the sending. A job that has an active attempt stays with
-- it: one such row must not keep the others of its batch from being sent.
WITH new AS (
    SELECT * FROM unnest(
        %(job_ids)s::text[], %(endpoints)s::text[], %(instances)s::uuid[],
        %(timeouts)s::integer[], %(prices)s::float8[], %(digests)s::bytea[], %(methods)s::text[]
    ) AS t (job_id, endpoint, instance, timeout_ms, price, digest, method)
), taken AS (
    UPDATE lyricpod_jobs l SET state = 'active', attempts_used = attempts_used + 1
    FROM new WHERE l.job_id = new.job_id
), shown AS (
    UPDATE jobs SET
        status = 'processing'
      , pct = 0                                                        --? pct
      , status_message = 'Sent to ' || new.endpoint                    --? status_message
      , current_stage = 'initialization'                               --? current_stage
      , processing_method = new.method                                 --? processing_method
      , progress_log = COALESCE(progress_log, '[]') || jsonb_build_array(jsonb_build_object('status', 'initialization', 'percentage', 0, 'message', 'Sent to ' || new.endpoint, 'timestamp', now()))  --? progress_log
      , updated_at = now()                                             --? updated_at
    FROM new WHERE jobs.id = new.job_id AND jobs.status IN ('queued', 'processing')
)
INSERT INTO lyricpod_attempts (
    job_id, number, endpoint, instance, state, execution_timeout_ms, price_usd, webhook_digest,
    next_poll_at, lease_token, lease_until)
SELECT new.job_id,
       1 + COALESCE((SELECT max(number) FROM lyricpod_attempts a WHERE a.job_id = new.job_id), 0),
       endpoint, instance, 'submitting', timeout_ms, price, digest,
       now(), gen_random_uuid(), now() + make_interval(secs => %(lease)s)
FROM new
WHERE NOT EXISTS (SELECT FROM lyricpod_attempts a WHERE a.job_id = new.job_id
                  AND a.state IN ('submitting', 'unknown', 'queued', 'running', 'finishing'))
RETURNING id, job_id, number, lease_token;

-- name: cancel
-- Commits first and is final, unless the closing transaction was earlier.
WITH job AS (
    UPDATE lyricpod_jobs SET state = 'done', cancel_requested_at = now()
    WHERE job_id = %(job_id)s AND state <> 'done' RETURNING job_id
), attempts AS (
    UPDATE lyricpod_attempts a SET
        state = 'abandoned', lease_token = NULL, lease_until = NULL, urgent = true, result = NULL,
        next_poll_at = CASE WHEN runpod_id IS NULL THEN now() + interval '1 minute' ELSE now() END
    FROM job
    WHERE a.job_id = job.job_id
      AND a.state IN ('submitting', 'unknown', 'queued', 'running', 'finishing')
), ended AS (
    UPDATE jobs SET
        status = 'error',
        error_message = 'Cancelled'
      , status_message = 'Cancelled'   --? status_message
      , completed_at = now()           --? completed_at
      , updated_at = now()             --? updated_at
    FROM job WHERE jobs.id = job.job_id AND jobs.status IN ('queued', 'processing')
), told AS (
    SELECT pg_notify('lyricpod_job', job_id), pg_notify('lyricpod_work', '') FROM job
)
SELECT count(*) FROM told;

-- name: cancel_row
-- A row that nobody has taken yet.
UPDATE jobs SET
    status = 'error',
    error_message = 'Cancelled'
  , status_message = 'Cancelled'   --? status_message
  , completed_at = now()           --? completed_at
  , updated_at = now()             --? updated_at
WHERE id = %(job_id)s AND status = 'queued'
  AND NOT EXISTS (SELECT FROM lyricpod_jobs WHERE job_id = %(job_id)s AND state <> 'done');

-- name: lock_job
SELECT l.state, l.request, l.fingerprint, j.status
FROM jobs j LEFT JOIN lyricpod_jobs l ON l.job_id = j.id
WHERE j.id = %(job_id)s FOR UPDATE OF j;

-- name: reopen_row
UPDATE jobs SET
    status = 'queued',
    error_message = NULL,
    results_url = NULL
  , srt_url = NULL                    --? srt_url
  , status_message = 'Queued again'   --? status_message
  , pct = 0                           --? pct
  , completed_at = NULL               --? completed_at
  , updated_at = now()                --? updated_at
WHERE id = %(job_id)s;

-- name: resume_kept
-- A finished result that could not be kept: keep it now instead of making it again, unless the
-- row is of another source by now.
WITH kept AS (
    SELECT a.id FROM lyricpod_attempts a
    JOIN lyricpod_jobs l USING (job_id) JOIN jobs j ON j.id = a.job_id
    WHERE a.job_id = %(job_id)s AND a.result IS NOT NULL AND a.state IN ('failed', 'finishing')
      AND j.youtube_url IN (l.request ->> 'youtube_url', l.request ->> 'audio_url')
    ORDER BY a.number DESC LIMIT 1
), attempt AS (
    UPDATE lyricpod_attempts a SET state = 'finishing', next_poll_at = now(), publish_tries = 0,
        lease_token = NULL, lease_until = NULL
    FROM kept WHERE a.id = kept.id RETURNING a.job_id
), job AS (
    UPDATE lyricpod_jobs l SET state = 'active', cancel_requested_at = NULL,
        deadline = now() + make_interval(secs => %(deadline)s)
    FROM attempt WHERE l.job_id = attempt.job_id RETURNING l.job_id
), shown AS (
    UPDATE jobs SET
        status = 'processing'
      , updated_at = now()   --? updated_at
    FROM job WHERE jobs.id = job.job_id
)
SELECT count(*) FROM job;

-- name: row
SELECT id AS job_id, status, error_message, results_url, created_at
  , srt_url                   --? srt_url
  , title                     --? title
  , duration                  --? duration
  , updated_at                --? updated_at
  , pct                       --? pct
  , status_message            --? status_message
  , current_stage             --? current_stage
  , processing_method         --? processing_method
  , processing_time_seconds   --? processing_time_seconds
FROM jobs WHERE id = %(job_id)s;

-- name: rows
SELECT id AS job_id, status, error_message, results_url, created_at
  , srt_url                   --? srt_url
  , title                     --? title
  , duration                  --? duration
  , updated_at                --? updated_at
  , pct                       --? pct
  , status_message            --? status_message
  , current_stage             --? current_stage
  , processing_method         --? processing_method
  , processing_time_seconds   --? processing_time_seconds
FROM jobs WHERE %(status)s::text IS NULL OR status = %(status)s
ORDER BY created_at DESC LIMIT %(limit)s;

-- name: strange
-- Rows that the backend shows as being worked on, and that nobody of ours knows.
SELECT j.id AS job_id, j.status FROM jobs j
LEFT JOIN lyricpod_jobs l ON l.job_id = j.id AND l.state <> 'done'
WHERE j.status NOT IN ('queued', 'completed', 'error', 'done') AND l.job_id IS NULL
ORDER BY j.created_at LIMIT 100;

-- name: notify_work
SELECT pg_notify('lyricpod_work', '');
