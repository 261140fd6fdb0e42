-- Idempotent; run under an advisory lock. `jobs` is the backend's and is made only where it has
-- none; it is never altered.

-- name: jobs
CREATE TABLE IF NOT EXISTS jobs (
    id varchar(255) PRIMARY KEY,
    youtube_url text NOT NULL,
    title text,
    duration integer,
    status varchar(50) NOT NULL DEFAULT 'queued',
    results_url text,
    srt_url text,
    error_message text,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    completed_at timestamptz,
    pct integer DEFAULT 0,
    status_message text,
    current_stage text,
    processing_method text,
    processing_time_seconds real,
    video_id text,
    progress_log jsonb DEFAULT '[]'
);
CREATE INDEX IF NOT EXISTS idx_jobs_status ON jobs (status);
CREATE INDEX IF NOT EXISTS idx_jobs_created_at ON jobs (created_at);

-- name: ours
-- What we know of a job beside the backend's row. No foreign key: the backend deletes rows.
CREATE TABLE IF NOT EXISTS lyricpod_jobs (
    job_id varchar(255) PRIMARY KEY,
    request jsonb,                                  -- null: the row could not be read
    fingerprint text,
    state text NOT NULL CHECK (state IN ('waiting', 'active', 'done')),
    created_at timestamptz NOT NULL DEFAULT now(),
    deadline timestamptz NOT NULL,
    next_try_at timestamptz NOT NULL DEFAULT now(),
    attempts_used integer NOT NULL DEFAULT 0,       -- in this round; `retry` begins a new one
    blocked_on text[] NOT NULL DEFAULT '{}',        -- endpoints whose exit the source refuses
    failed_on text[] NOT NULL DEFAULT '{}',
    cancel_requested_at timestamptz
);
CREATE INDEX IF NOT EXISTS lyricpod_jobs_due ON lyricpod_jobs (next_try_at)
    WHERE state = 'waiting';

-- One sending of a job to an endpoint.
CREATE TABLE IF NOT EXISTS lyricpod_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id varchar(255) NOT NULL,
    number integer NOT NULL,
    endpoint text NOT NULL,
    instance uuid,                                  -- the replica whose child the endpoint is
    runpod_id text,
    state text NOT NULL CHECK (state IN (
        'submitting', 'unknown', 'queued', 'running', 'finishing', 'completed', 'failed',
        'cancelled', 'timed_out', 'lost', 'abandoned')),
    execution_timeout_ms integer NOT NULL,
    price_usd double precision,                     -- per second, when it was sent
    created_at timestamptz NOT NULL DEFAULT now(),
    submitted_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    delay_ms integer,
    execution_ms integer,
    worker_id text,
    cost_usd double precision,
    error jsonb,                                    -- {code, message, hint, retryable, stage}
    progress jsonb,                                 -- {pct, status, stage, seq, lines}
    unreachable_since timestamptz,
    waiting_until timestamptz,                      -- how long an unknown sending is waited for
    publish_tries integer NOT NULL DEFAULT 0,
    next_poll_at timestamptz,                       -- null: nothing to do any more
    urgent boolean NOT NULL DEFAULT false,          -- something happened since the last claim
    lease_token uuid,
    lease_until timestamptz,
    webhook_digest bytea UNIQUE,
    result bytea,                                   -- zlib of the result's JSON, until it is kept
    UNIQUE (job_id, number)
);
CREATE UNIQUE INDEX IF NOT EXISTS lyricpod_attempts_active ON lyricpod_attempts (job_id)
    WHERE state IN ('submitting', 'unknown', 'queued', 'running', 'finishing');
CREATE INDEX IF NOT EXISTS lyricpod_attempts_due ON lyricpod_attempts (next_poll_at)
    WHERE next_poll_at IS NOT NULL AND state <> 'finishing';
CREATE INDEX IF NOT EXISTS lyricpod_attempts_finishing ON lyricpod_attempts (next_poll_at)
    WHERE next_poll_at IS NOT NULL AND state = 'finishing';
CREATE INDEX IF NOT EXISTS lyricpod_attempts_created ON lyricpod_attempts (created_at);

-- Who runs the loop: a child endpoint is gone when its replica is.
CREATE TABLE IF NOT EXISTS lyricpod_replicas (
    instance uuid PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT now()
);
