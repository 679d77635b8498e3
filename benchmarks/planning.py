"""python -m benchmarks.planning [--segments 1000000 3000000 10000000]: what planning a query costs.

An index of so many segments is written by SQL (100 segments a video, 96 frames each, 6 stages, 3 routes) as
the catalog writes its files. Each query is planned in a process of its own, files in the page cache: from the
text to the improved plan, the connection being open, and what every query asks of an index as a whole being
known, which is timed apart. Resident memory is the process's: once the connection is open, with the plan
kept, and at its peak. EXPLAIN is timed apart: it adds up every segment's figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb

from nvpstore.catalog import tables
from nvpstore.catalog.files import IndexFile, OpenIndex
from nvpstore.catalog.tables import ORDERS
from nvpstore.query.explain import explain_text
from nvpstore.query.index import Whole, load_whole
from nvpstore.query.parse import parse
from nvpstore.query.plan import Plan, build_plan
from nvpstore.query.rules import improve

RESULTS = Path(__file__).parent / "results"
QUERIES: Mapping[str, str] = {
    "one video by name": "SELECT ts, label FROM labels JOIN videos v USING (video_id)"
    " WHERE v.name = 'clip 7.mp4'",
    "one second of one video": "SELECT ts, label FROM labels WHERE video_id = '{id}'"
    " AND ts BETWEEN 10 AND 11",
    "one percent of videos by tag": "SELECT ts, label FROM labels JOIN videos v USING (video_id)"
    " WHERE v.tags['camera'] = 'gate 7'",
    "everything": "SELECT label, count(*) FROM labels GROUP BY label",
    "everything, a frame a second": "SELECT label, count(*) FROM labels(every := 1) GROUP BY label",
    "everything past each video's 20 s": "SELECT label, count(*) FROM labels WHERE ts > 20 GROUP BY label",
    "everything, two tables": "SELECT l.label, f.image FROM labels l JOIN frames f USING (video_id, frame)",
}
THREADS, MEMORY = 2, "4GB"
FRAMES = 96
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
            $frames * (n + 1) / 25 AS end_ts, 0 AS pts_origin, $frames * n * 512 AS pts_first,
            512 AS pts_step,
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


def write_index(path: Path, segments: int, *, segments_a_video: int = 100) -> None:
    """An index file of `segments` as the catalog writes them: sorted rows in groups of its size."""
    con = duckdb.connect(":memory:")
    con.execute(
        f"SET temp_directory = '{path}.spill'; ATTACH '{path}' AS built (ROW_GROUP_SIZE {_ROW_GROUP})"
    )
    con.execute(f"USE built; {tables.SCHEMA}")
    con.execute(
        f"CREATE TEMP TABLE v AS SELECT v, {_VIDEO} AS id FROM range({segments // segments_a_video}) r(v)"
    )
    for table, query in _ROWS.items():
        text = query.replace("$frames", str(FRAMES)).replace("$segments", str(segments_a_video))
        con.execute(f"INSERT INTO store.{table} BY NAME FROM ({text}) ORDER BY {ORDERS[table]}")
    con.execute("INSERT INTO store.snapshot VALUES ('a', 1, 'd', 0, 'a', ?)", [tables.SCHEMA_VERSION])
    con.execute("USE memory; CHECKPOINT built; DETACH built")
    con.close()


def open_index(path: Path) -> OpenIndex:
    """The file that `write_index` wrote; `connect` gives what a snapshot's gives."""
    return OpenIndex(IndexFile(number=1, digest="0" * 12, path=path, base=None))


# ---------------------------------------------------------------- one query in a process


def measure(path: Path, sql: str, repeats: int) -> dict[str, Any]:
    """Planning `sql` `repeats` times after a warm-up, each on a connection of its own."""
    index = open_index(path)
    with index.connect() as con:
        ((video_id,),) = con.sql("SELECT video_id FROM idx.store.videos LIMIT 1 OFFSET 7").fetchall()
        began = time.perf_counter()
        whole = load_whole(con)
        whole_seconds = time.perf_counter() - began
    opened = resident_bytes("VmRSS")
    seconds: list[float] = []
    cpu: list[float] = []
    for _ in range(repeats + 1):
        con = _connect(index)
        began, worked = time.perf_counter(), time.process_time()
        plan = _plan(con, sql.replace("{id}", video_id), whole)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - worked)
    kept, peak = resident_bytes("VmRSS"), resident_bytes("VmHWM")
    began = time.perf_counter()
    explain_text(plan)
    return {
        "seconds": statistics.median(seconds[1:]),
        "seconds_spread": [min(seconds[1:]), max(seconds[1:])],
        "first_seconds": seconds[0],
        "whole_seconds": whole_seconds,
        "cpu_seconds": statistics.median(cpu[1:]),
        "explain_seconds": time.perf_counter() - began,
        "segments": sum(scan.segments for scan in plan.scans),
        "frames": sum(scan.frames for scan in plan.scans),
        "steps": plan.steps.num_rows,
        "resident_bytes": {"connected": opened, "planned": kept, "peak_of_planning": peak},
    }


def _connect(index: OpenIndex) -> duckdb.DuckDBPyConnection:
    con = index.connect()
    con.execute(f"SET threads = {THREADS}; SET memory_limit = '{MEMORY}'; SET TimeZone = 'UTC'")
    return con


def _plan(con: duckdb.DuckDBPyConnection, sql: str, whole: Whole) -> Plan:
    query = parse(sql, {task.name for task in whole.tasks})
    return improve(build_plan(query, con=con, index=whole, snapshot_number=1))


def resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


# ---------------------------------------------------------------- all of them


def run_size(folder: Path, segments: int, repeats: int) -> dict[str, Any]:
    """Every query on an index of `segments`."""
    path = folder / f"{segments}.duckdb"
    began = time.perf_counter()
    write_index(path, segments)
    result: dict[str, Any] = {
        "segments": segments,
        "frames": FRAMES * segments,
        "index_bytes": path.stat().st_size,
        "write_seconds": time.perf_counter() - began,
        "load_average": None,
        "queries": {},
    }
    for name, sql in QUERIES.items():
        command = [sys.executable, "-m", "benchmarks.planning", "--measure", str(path), sql, str(repeats)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result["queries"][name] = {"sql": sql, **json.loads(done.stdout)}
    result["load_average"] = os.getloadavg()[0]  # two cores: above 2 others were waiting too
    path.unlink()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--segments", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "planning.json")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        path, sql, repeats = arguments.measure
        sys.stdout.write(json.dumps(measure(Path(path), sql, int(repeats))))
        return
    from benchmarks.machine import write_result  # imports torch, which planning must not

    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for size in arguments.segments:
            sizes.append(run_size(Path(folder), size, arguments.repeats))
            # Each size is written when it is done: a larger one may not fit.
            write_result(arguments.output, {"threads": THREADS, "duckdb_memory": MEMORY, "sizes": sizes})


if __name__ == "__main__":
    main()
