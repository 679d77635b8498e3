-- The tables of an index file: of a base all rows, of a delta all rows of the owners named in `store.touched`.
-- An owner is a video, or '' for what belongs to the archive as a whole. There are no keys: rows are written
-- once, sorted by owner, and found by the minima and maxima of their row groups.
CREATE SCHEMA store;

CREATE TABLE store.snapshot (
    archive_id VARCHAR, log_number BIGINT, log_digest VARCHAR, grace_seconds BIGINT, latest_attempt VARCHAR,
    schema_version INTEGER
);

-- Owners whose rows here stand for those of the base; empty in a base.
CREATE TABLE store.touched (owner VARCHAR);

-- Erased videos and the entries that erased them, also where a video was stored again later.
CREATE TABLE store.erased (video_id VARCHAR, log_number BIGINT);

-- Every object that is stored on purpose. `log_number` is the newest entry that names it. `replaced_at` is when
-- another took its place: it waits to be collected. NULL: it is in force.
CREATE TABLE store.objects (
    owner VARCHAR, key VARCHAR, size_bytes BIGINT, sha256 VARCHAR, log_number BIGINT, replaced_at TIMESTAMPTZ
);

CREATE TABLE store.videos (
    video_id VARCHAR, attempt VARCHAR, sha256 VARCHAR, name VARCHAR, state VARCHAR,
    source_uri VARCHAR, source_bytes BIGINT, container VARCHAR, source_codec VARCHAR,
    width INTEGER, height INTEGER, rotation_degrees INTEGER,
    time_base_num BIGINT, time_base_den BIGINT, fps_num BIGINT, fps_den BIGINT,
    frames BIGINT, aspect_num BIGINT, aspect_den BIGINT, duration DOUBLE, preset VARCHAR,
    psnr DOUBLE, psnr_p5 DOUBLE, resize_bound_psnr DOUBLE, fit_seconds DOUBLE,
    audio_key VARCHAR,
    tags MAP(VARCHAR, VARCHAR), recorded_at TIMESTAMPTZ, hold BOOLEAN
);

-- What people said last about a video, whether its manifest was read before or after; `videos` repeats it.
CREATE TABLE store.meta (
    video_id VARCHAR, name VARCHAR, tags MAP(VARCHAR, VARCHAR), recorded_at TIMESTAMPTZ, hold BOOLEAN
);

-- `pts` is NULL where the step is constant: then pts of frame start_frame + k is pts_first + k * pts_step.
-- Times are seconds since the video's first pts. A segment's frames are at start_ts <= ts < end_ts: end_ts is
-- where the next segment starts, and for the last one a frame's duration after its last frame.
CREATE TABLE store.segments (
    video_id VARCHAR, segment INTEGER, scene INTEGER, start_frame BIGINT, frames INTEGER,
    start_ts DOUBLE, end_ts DOUBLE,
    pts_origin BIGINT, pts_first BIGINT, pts_step BIGINT, pts BIGINT[],
    psnr DOUBLE, frame_psnr FLOAT[], stored_bytes BIGINT, codec VARCHAR, architecture VARCHAR,
    latents_key VARCHAR, latents_offset BIGINT, latents_bytes BIGINT, latents_sha256 VARCHAR
);

-- One row a stage, in decode order: a stage prefix is one contiguous byte range of `key`.
-- `gflops` is the cost of decoding one frame up to and including the stage (2 x MAC).
CREATE TABLE store.stages (
    video_id VARCHAR, segment INTEGER, position INTEGER, stage VARCHAR,
    key VARCHAR, "offset" BIGINT, size_bytes BIGINT, sha256 VARCHAR, gflops DOUBLE
);

CREATE TABLE store.footers (video_id VARCHAR, key VARCHAR, footer BLOB);

CREATE TABLE store.tasks (
    name VARCHAR, version VARCHAR, kind VARCHAR, cuts INTEGER, labels VARCHAR[], spec VARCHAR,
    log_number BIGINT
);

-- SELECTs that people saved: queries can name them like tables.
CREATE TABLE store.views (name VARCHAR, sql VARCHAR, saved_at TIMESTAMPTZ);

-- `key` .. `sha256` give the row group that holds the adapter; NULL for pixel and source routes.
-- `position` is the route's place in its object.
CREATE TABLE store.routes (
    video_id VARCHAR, position INTEGER, segment INTEGER, task VARCHAR, version VARCHAR, attempt VARCHAR,
    route VARCHAR, stages VARCHAR[], cut VARCHAR, scope VARCHAR,
    cka DOUBLE, ridge_r2 DOUBLE, fidelity DOUBLE, fidelity_confident DOUBLE, confident_frames INTEGER,
    gflops DOUBLE, bytes BIGINT,
    key VARCHAR, "offset" BIGINT, size_bytes BIGINT, sha256 VARCHAR
);

-- Answers in force: of each part of a results object its frames ([starts[i], stops[i])), and the row group that
-- holds its rows; NULL where there are none. An object whose footer is damaged has no rows here.
CREATE TABLE store.results (
    video_id VARCHAR, task VARCHAR, version VARCHAR, result VARCHAR, segment INTEGER, route VARCHAR,
    starts BIGINT[], stops BIGINT[], frames BIGINT, "rows" BIGINT,
    key VARCHAR, "offset" BIGINT, size_bytes BIGINT, sha256 VARCHAR
);
