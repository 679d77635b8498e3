EXPLAIN ANALYZE
SELECT a.frame, a.end_ts, a.label, l.label
FROM actions a JOIN labels l ON l.video_id = a.video_id AND l.ts BETWEEN a.ts AND a.end_ts
WHERE a.video_id = repeat('a', 32) AND a.ts BETWEEN 1 AND 2 AND l.ts < 2 AND a.rank = 1 AND l.rank = 1
