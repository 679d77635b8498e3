"""python -m benchmarks.planning [--segments 300000]: an index of that many segments, written by SQL."""

from __future__ import annotations

from pathlib import Path

import duckdb

from nvpstore.catalog import tables
from nvpstore.catalog.tables import ORDERS

SEGMENTS_A_VIDEO, FRAMES = 100, 96
_ROW_GROUP = 16384  # as the catalog writes its files
_VIDEO = "lpad(format('{:x}', hash(v)), 16, '0') || lpad(format('{:x}', hash(v + 1000000007)), 16, '0')"
_ROWS = {
    "videos": """
        SELECT id AS video_id, '01' || id[:24] AS attempt, id AS sha256, 'clip ' || v || '.mp4' AS name,
            'ready' AS state, 'file:///clips/' || v || '.mp4' AS source_uri, 40000000 AS source_bytes,
            'mp4' AS container, 'h264' AS source_codec, 1280 AS width, 720 AS height, 0 AS rotation_degrees,
            1 AS time_base_num, 12800 AS time_base_den, 25 AS fps_num, 1 AS fps_den,
            $frames * $segments AS frames, $frames * $segments / 25 AS duration, 'small' AS preset,
            30.0 AS psnr, 27.0 AS psnr_p5, 40.0 AS resize_bound_psnr, 60.0 AS fit_seconds,
            MAP {'camera': 'gate ' || v % 100} AS tags,
            TIMESTAMPTZ '2026-01-01 00:00:00+00' + to_seconds(60 * v) AS recorded_at, false AS hold
        FROM v""",
    "objects": """
        SELECT id AS owner, 'videos/' || id || '/' || part AS key, 100000 AS size_bytes,
            sha256(id || part) AS sha256, 1 AS log_number
        FROM v, (SELECT unnest(['a/manifest', 'a/weights-0', 'a/weights-64', 'a/latents-0', 'a/latents-64',
                                'routes/a', 'meta/a']) AS part)""",
    "segments": """
        SELECT id AS video_id, n::INTEGER AS segment, (n // 4)::INTEGER AS scene,
            $frames * n AS start_frame, $frames AS frames, $frames * n / 25 AS start_ts,
            $frames * (n + 1) / 25 AS end_ts, 0 AS pts_origin, $frames * n * 512 AS pts_first, 512 AS pts_step,
            30.0 AS psnr, repeat([30.0], 4) AS frame_psnr, 300000 AS stored_bytes, 'hnerv' AS codec,
            '{"widths":[96,72,54,40,30]}' AS architecture,
            'videos/' || id || '/a/latents-' || 64 * (n // 64) AS latents_key,
            4000 * (n % 64) AS latents_offset, 4000 AS latents_bytes, sha256('l' || id || n) AS latents_sha256
        FROM v, (SELECT unnest(range($segments)) AS n)""",
    "stages": """
        SELECT id AS video_id, n::INTEGER AS segment, p::INTEGER AS position,
            ['0', '1', '2', '3', '4', 'rgb'][p + 1] AS stage,
            'videos/' || id || '/a/weights-' || 64 * (n // 64) AS key,
            300000 * (n % 64) + 50000 * p AS "offset", 40000 + hash(n + p) % 10000 AS size_bytes,
            sha256('s' || id || n || p) AS sha256, 0.1 * 2 ** p AS gflops
        FROM v, (SELECT unnest(range($segments)) AS n), (SELECT unnest(range(6)) AS p)""",
    "routes": """
        SELECT id AS video_id, (3 * n + r)::INTEGER AS position, n::INTEGER AS segment, 'labels' AS task,
            repeat('5', 64) AS version, 'a' AS attempt,
            ['adapter', 'adapter', 'pixel'][r + 1] AS route, [['2'], ['3'], ['rgb']][r + 1] AS stages,
            ['features.3', 'features.5', ''][r + 1] AS cut, ['video', 'segment', NULL][r + 1] AS scope,
            0.9 AS cka, 0.8 AS ridge_r2, [0.93, 0.95, 0.96][r + 1] + (hash(id || n) % 20)::DOUBLE / 1000 *
            [1, 0, 0][r + 1] AS fidelity, 0.9 AS fidelity_confident, 40 AS confident_frames,
            [0.6, 0.9, 3.6][r + 1] AS gflops, [130000, 180000, 300000][r + 1] AS bytes,
            CASE WHEN r < 2 THEN 'videos/' || id || '/routes/' || repeat('5', 64) || '/a.parquet' END AS key,
            CASE r WHEN 0 THEN 100 WHEN 1 THEN 10000 * (n + 1) END AS "offset",
            CASE WHEN r < 2 THEN 9000 END AS size_bytes,
            CASE r WHEN 0 THEN sha256(id) WHEN 1 THEN sha256('r' || id || n) END AS sha256
        FROM v, (SELECT unnest(range($segments)) AS n), (SELECT unnest(range(3)) AS r)""",
    "tasks": """
        SELECT 'labels' AS name, repeat('5', 64) AS version, 'classification' AS kind, 16 AS cuts,
            ['cat', 'dog', 'car', 'bike', 'tree'] AS labels, '{}' AS spec, 1 AS log_number""",
}


def write_index(path: Path, segments: int) -> None:
    """An index file as the catalog writes them: sorted rows in groups of its size."""
    con = duckdb.connect(":memory:")
    con.execute(f"ATTACH '{path}' AS built (ROW_GROUP_SIZE {_ROW_GROUP}); USE built; {tables.SCHEMA}")
    con.execute("SET temp_directory = '/tmp/plan/spill'")
    videos = segments // SEGMENTS_A_VIDEO
    con.execute(f"CREATE TEMP TABLE v AS SELECT v, {_VIDEO} AS id FROM range({videos}) r(v)")
    for table, query in _ROWS.items():
        text = query.replace("$frames", str(FRAMES)).replace("$segments", str(SEGMENTS_A_VIDEO))
        con.execute(f"INSERT INTO store.{table} BY NAME FROM ({text}) ORDER BY {ORDERS[table]}")
    con.execute("INSERT INTO store.snapshot VALUES ('a', 1, 'd', 0, 'a', ?)", [tables.SCHEMA_VERSION])
    con.execute("USE memory; CHECKPOINT built; DETACH built")
    con.close()
