-- The index of one archive at one log number. The store is the truth; this file can be rebuilt from it.
-- Base tables live in schema `store`; the four public views are what SQL users see.
CREATE SCHEMA store;

CREATE TABLE store.snapshot (
    archive_id VARCHAR, log_number BIGINT, log_digest VARCHAR, schema_version INTEGER
);

CREATE TABLE store.objects (key VARCHAR PRIMARY KEY, size_bytes BIGINT, sha256 VARCHAR, log_number BIGINT);

CREATE TABLE store.videos (
    video_id VARCHAR PRIMARY KEY, attempt VARCHAR, sha256 VARCHAR, name VARCHAR, state VARCHAR,
    source_uri VARCHAR, source_bytes BIGINT, container VARCHAR, source_codec VARCHAR,
    width INTEGER, height INTEGER, rotation_degrees INTEGER,
    time_base_num BIGINT, time_base_den BIGINT, fps_num BIGINT, fps_den BIGINT,
    frames BIGINT, duration DOUBLE, preset VARCHAR,
    psnr DOUBLE, psnr_p5 DOUBLE, resize_bound_psnr DOUBLE, fit_seconds DOUBLE,
    audio_key VARCHAR,
    tags MAP(VARCHAR, VARCHAR), recorded_at TIMESTAMPTZ, hold BOOLEAN
);

-- What people said last about a video, whether its manifest was read before or after; `videos` repeats it.
CREATE TABLE store.meta (
    video_id VARCHAR PRIMARY KEY, name VARCHAR, tags MAP(VARCHAR, VARCHAR), recorded_at TIMESTAMPTZ, hold BOOLEAN
);

-- `pts` is NULL where the step is constant: then pts of frame start_frame + k is pts_first + k * pts_step.
-- Times are seconds since the video's first pts. A segment's frames are at start_ts <= ts < end_ts: end_ts is
-- where the next segment starts, and for the last one a frame's duration after its last frame.
CREATE TABLE store.segments (
    video_id VARCHAR, segment INTEGER, scene INTEGER, start_frame BIGINT, frames INTEGER,
    start_ts DOUBLE, end_ts DOUBLE,
    pts_origin BIGINT, pts_first BIGINT, pts_step BIGINT, pts BIGINT[],
    psnr DOUBLE, frame_psnr FLOAT[], stored_bytes BIGINT, codec VARCHAR, architecture VARCHAR,
    latents_key VARCHAR, latents_offset BIGINT, latents_bytes BIGINT, latents_sha256 VARCHAR,
    PRIMARY KEY (video_id, segment)
);

-- One row a stage, in decode order: a stage prefix is one contiguous byte range of `key`.
-- `gflops` is the cost of decoding one frame up to and including the stage (2 x MAC).
CREATE TABLE store.stages (
    video_id VARCHAR, segment INTEGER, position INTEGER, stage VARCHAR,
    key VARCHAR, "offset" BIGINT, size_bytes BIGINT, sha256 VARCHAR, gflops DOUBLE,
    PRIMARY KEY (video_id, segment, position)
);

CREATE TABLE store.footers (key VARCHAR PRIMARY KEY, footer BLOB);

CREATE TABLE store.tasks (
    name VARCHAR, version VARCHAR, kind VARCHAR, cuts INTEGER, labels VARCHAR[], spec VARCHAR,
    log_number BIGINT,
    PRIMARY KEY (name, version)
);

-- `key` .. `sha256` give the row group that holds the adapter; NULL for pixel and source routes.
-- `position` is the route's place in its object.
CREATE TABLE store.routes (
    video_id VARCHAR, position INTEGER, segment INTEGER, task VARCHAR, version VARCHAR, attempt VARCHAR,
    route VARCHAR, stages VARCHAR[], cut VARCHAR, scope VARCHAR,
    cka DOUBLE, ridge_r2 DOUBLE, fidelity DOUBLE, fidelity_confident DOUBLE, confident_frames INTEGER,
    gflops DOUBLE, bytes BIGINT,
    key VARCHAR, "offset" BIGINT, size_bytes BIGINT, sha256 VARCHAR
);

CREATE VIEW videos AS
SELECT v.video_id, v.name, v.duration, v.fps_num / v.fps_den AS fps, v.width, v.height, v.frames,
       v.psnr, v.psnr_p5,
       8.0 * (o.stored_bytes - o.other_stream_bytes) / nullif(v.width::DOUBLE * v.height * v.frames, 0) AS bpp,
       o.stored_bytes, 0::BIGINT AS shared_bytes, v.state, v.tags, v.recorded_at,
       v.source_bytes, v.preset, v.fit_seconds, v.resize_bound_psnr
FROM store.videos v
JOIN (
    SELECT split_part(key, '/', 2) AS video_id, sum(size_bytes)::BIGINT AS stored_bytes,
           coalesce(sum(size_bytes) FILTER (key LIKE '%/audio.mka'), 0)::BIGINT AS other_stream_bytes
    FROM store.objects WHERE key LIKE 'videos/%' GROUP BY ALL
) o USING (video_id);

CREATE VIEW segments AS
SELECT video_id, segment, scene, start_frame, frames, start_ts, end_ts, psnr, stored_bytes, codec
FROM store.segments;

CREATE VIEW tasks AS
SELECT name, version, kind, cuts, labels FROM store.tasks
QUALIFY row_number() OVER (PARTITION BY name ORDER BY log_number DESC, version) = 1;

CREATE VIEW routes AS
SELECT video_id, segment, task, version, route, stages, cut, scope, cka, fidelity, gflops, bytes,
       fidelity_confident, confident_frames, ridge_r2
FROM store.routes;
