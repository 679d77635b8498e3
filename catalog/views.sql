-- What SQL users see of an index. Tables are those of schema.sql.
CREATE VIEW videos AS
SELECT v.video_id, v.name, v.duration, v.fps_num / v.fps_den AS fps, v.width, v.height, v.frames,
       v.psnr, v.psnr_p5,
       -- An added video has bytes, but none of its pictures.
       CASE WHEN v.state <> 'added' THEN
           8.0 * (o.stored_bytes - o.other_stream_bytes) / nullif(v.width::DOUBLE * v.height * v.frames, 0)
       END AS bpp,
       o.stored_bytes, 0::BIGINT AS shared_bytes, v.state, v.tags, v.recorded_at,
       v.source_bytes, v.preset, v.fit_seconds, v.resize_bound_psnr
FROM store.videos v
JOIN (
    SELECT owner AS video_id, sum(size_bytes)::BIGINT AS stored_bytes,
           coalesce(sum(size_bytes) FILTER (key LIKE '%/audio.mka'), 0)::BIGINT AS other_stream_bytes
    FROM store.objects WHERE key LIKE 'videos/%' GROUP BY ALL
) o USING (video_id);

CREATE VIEW segments AS
SELECT video_id, segment, scene, start_frame, frames, start_ts, end_ts, psnr, stored_bytes, codec
FROM store.segments;

CREATE VIEW store.task_versions AS
SELECT t.*,
       -- Where the backbone's weights are: in the archive, nowhere but in a seed, or in a package.
       CASE WHEN EXISTS (FROM store.objects o
                         WHERE o.owner = '' AND o.key = concat('tasks/', t.name, '/', t.version, '.safetensors'))
            THEN 'archive'
            WHEN json_extract_string(t.spec, '$.weights_sha256') = '' THEN 'random'
            ELSE 'package' END AS weights
FROM store.tasks t;

CREATE VIEW tasks AS
SELECT name, version, kind, cuts, labels, weights FROM store.task_versions
QUALIFY row_number() OVER (PARTITION BY name ORDER BY log_number DESC, version) = 1;

CREATE VIEW routes AS
SELECT video_id, segment, task, version, route, stages, cut, scope, cka, fidelity, gflops, bytes,
       fidelity_confident, confident_frames, ridge_r2
FROM store.routes;
