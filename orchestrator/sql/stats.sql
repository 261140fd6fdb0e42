-- Figures of the last hours, for `lyricpod stats` and /metrics. Reads only.

-- name: jobs
-- How the rows ended that arrived in these hours. Only columns that every table jobs has.
WITH arrived AS (
    SELECT j.id,
           CASE WHEN j.status = 'done' THEN 'completed'
                WHEN j.status = 'error' AND (l.cancel_requested_at IS NOT NULL
                     OR j.error_message = 'Cancelled') THEN 'cancelled'
                ELSE j.status END AS status,
           (SELECT extract(epoch FROM max(a.finished_at) - j.created_at)
            FROM lyricpod_attempts a WHERE a.job_id = j.id AND a.state = 'completed') AS seconds
    FROM jobs j LEFT JOIN lyricpod_jobs l ON l.job_id = j.id
    WHERE j.created_at > now() - make_interval(secs => %(seconds)s)
)
SELECT count(*) FILTER (WHERE status = 'queued') AS queued,
       count(*) FILTER (WHERE status NOT IN ('queued', 'completed', 'error', 'cancelled'))
           AS processing,
       count(*) FILTER (WHERE status = 'completed') AS completed,
       count(*) FILTER (WHERE status = 'error') AS failed,
       count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
       percentile_disc(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY seconds::float8)
           FILTER (WHERE status = 'completed') AS total
FROM arrived;

-- name: routes
-- What became of the sendings that were made in these hours.
SELECT endpoint,
       count(*) AS attempts,
       count(*) FILTER (WHERE state = 'completed') AS completed,
       count(*) FILTER (WHERE state IN ('failed', 'timed_out', 'lost')) AS failed,
       count(*) FILTER (WHERE state IN ('cancelled', 'abandoned')) AS cancelled,
       count(*) FILTER (WHERE state IN (
           'submitting', 'unknown', 'queued', 'running', 'finishing')) AS open,
       percentile_disc(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (
           ORDER BY extract(epoch FROM finished_at - created_at)::float8)
           FILTER (WHERE state = 'completed') AS total,
       percentile_disc(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY delay_ms / 1000.0::float8)
           AS delay,
       percentile_disc(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY execution_ms / 1000.0::float8)
           AS execution,
       sum(COALESCE(cost_usd, CASE WHEN price_usd = 0 THEN 0 END)) AS cost_usd,
       count(*) FILTER (WHERE cost_usd IS NULL AND execution_ms IS NOT NULL
                        AND price_usd IS DISTINCT FROM 0) AS unpriced
FROM lyricpod_attempts
WHERE created_at > now() - make_interval(secs => %(seconds)s)
GROUP BY endpoint
ORDER BY count(*) DESC, endpoint;

-- name: errors
-- Why sendings failed, the most frequent reason first.
SELECT COALESCE(error ->> 'code', 'internal') AS code, count(*) AS count
FROM lyricpod_attempts
WHERE created_at > now() - make_interval(secs => %(seconds)s)
  AND state IN ('failed', 'timed_out', 'lost')
GROUP BY 1
ORDER BY 2 DESC, 1;

-- name: loop
-- Who works, and how long the oldest job that could be sent has been waiting for it.
SELECT (SELECT count(*) FROM lyricpod_replicas
        WHERE seen_at > now() - make_interval(secs => %(silence)s)) AS replicas,
       (SELECT count(*) FROM lyricpod_jobs WHERE state = 'waiting') AS waiting,
       COALESCE((SELECT extract(epoch FROM now() - min(created_at))
                 FROM jobs WHERE status = 'queued'), 0)::float8 AS oldest_seconds;
