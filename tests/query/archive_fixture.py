"""A small index with known content, the naive plan as an oracle, and operators that count what they do."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import nvpstore.catalog
from nvpstore.catalog.connections import Connections, Terms
from nvpstore.config import Settings
from nvpstore.query.asking import Connect
from nvpstore.query.contract import Steadied
from nvpstore.query.index import load_tasks
from nvpstore.query.parse import parse
from nvpstore.query.plan import Scan, resolve_task, top_of
from nvpstore.query.relation import output_schema, relation_schema
from nvpstore.query.request import Request
from nvpstore.query.result import Result
from nvpstore.query.routes import Route
from nvpstore.query.run import execute
from nvpstore.query.sharing import Sharing
from nvpstore.query.steps import Batch
from nvpstore.storage.keys import PICTURES
from nvpstore.storage.ranges import Traffic
from nvpstore.types import ByteRange, StoredObject, TaskRecord

CATALOG = Path(nvpstore.catalog.__file__).parent
LABELS = ("cat", "dog", "car", "bike", "tree", "person", "boat", "bird")
ATTEMPT = "01M7YGENEA4WME18CAPTYWDMBT"
STAGES = ("0", "1", "2", "3", "rgb")
STAGE_BYTES = (1000, 2000, 4000, 8000, 1600)
STAGE_GFLOPS = (0.01, 0.03, 0.08, 0.3, 0.5)
LATENTS_BYTES = 500
SOURCE_BYTES = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video of the fixture: its pts and the frames at which its segments start."""

    video_id: str
    name: str
    camera: str
    pts: tuple[int, ...]
    starts: tuple[int, ...]
    time_base: Fraction
    recorded_at: str | None
    fitted: bool = True
    source: bool = True

    @property
    def segments(self) -> list[tuple[int, int]]:
        """[start, stop) of each segment's frames."""
        return list(itertools.pairwise([*self.starts, len(self.pts)]))

    @property
    def ts(self) -> list[float]:
        ticks = [pts - self.pts[0] for pts in self.pts]
        return [t * self.time_base.numerator / self.time_base.denominator for t in ticks]


def _varying(count: int) -> tuple[int, ...]:
    steps = np.random.default_rng(7).integers(1, 9, size=count - 1)
    return (40, *(40 + np.cumsum(steps)).tolist())


CLIPS = (
    Clip(
        video_id="a" * 32,
        name="gate.mp4",
        camera="gate",
        pts=tuple(range(0, 100 * 512, 512)),
        starts=(0, 30, 60, 90),
        time_base=Fraction(1, 12800),
        recorded_at="2026-03-01 12:00:00+00:00",
    ),
    Clip(
        video_id="b" * 32,
        name="yard.mp4",
        camera="yard",
        pts=_varying(50),
        starts=(0, 21),
        time_base=Fraction(1, 30),
        recorded_at=None,
    ),
    Clip(
        video_id="c" * 32,
        name="7",
        camera="gate",
        pts=tuple(range(1001, 1001 * 41, 1001)),
        starts=(0,),
        time_base=Fraction(1, 30000),
        recorded_at="2026-03-01 12:00:10+00:00",
        source=False,
    ),
)
# (route, stages, cut, fidelity, gflops) by task
ROUTES: Mapping[str, list[tuple[str, list[str], str, float | None, float]]] = {
    "labels": [
        ("adapter", ["1"], "features.2", 0.80, 0.20),
        ("adapter", ["2"], "features.3", 0.95, 0.30),
        ("pixel", ["rgb"], "", 0.96, 0.90),
        ("source", [], "", 1.0, 0.40),
    ],
    "embed": [("adapter", ["1", "3"], "layer2", None, 0.6), ("pixel", ["rgb"], "", None, 1.1)],
    "objects": [("pixel", ["rgb"], "", 0.7, 2.0)],
    "actions": [
        ("adapter", ["2"], "blocks.3", 0.90, 1.1),
        ("pixel", ["rgb"], "", 0.91, 5.0),
        ("source", [], "", 1.0, 3.0),
    ],
}
TASKS = (
    ("labels", "1f3a" + "0" * 60, "classification", LABELS, 1),
    ("labels", "9c21" + "0" * 60, "classification", LABELS, 3),
    ("embed", "e0e0" + "0" * 60, "embedding", (), 2),
    ("objects", "0b0b" + "0" * 60, "detection", LABELS, 2),
    ("actions", "ac70" + "0" * 60, "action", LABELS, 2),
)
# Of tasks that answer for clips: how many pictures, and every how many frames one.
SAMPLING: Mapping[str, tuple[int, int]] = {"actions": (4, 3), "moves": (3, 1)}


# ---------------------------------------------------------------- the index


class FixtureSnapshot:
    """What the catalog's Snapshot is to a query, over one index file."""

    number = 7

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections = Connections(self.connect)

    def __reduce__(self) -> tuple[type[FixtureSnapshot], tuple[Path]]:
        return type(self), (self.path,)

    def lend(self, terms: Terms) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self._connections.lend(terms)

    def elsewhere(self) -> Connect:
        return self.connect

    def connect(self) -> duckdb.DuckDBPyConnection:
        con = duckdb.connect(":memory:")
        con.execute(f"ATTACH '{self.path}' AS idx (READ_ONLY)")
        for view in ("videos", "segments", "tasks", "routes"):
            con.execute(f"CREATE VIEW {view} AS FROM idx.main.{view}")
        return con


def build_index(path: Path) -> FixtureSnapshot:
    con = duckdb.connect(str(path))
    con.execute((CATALOG / "schema.sql").read_text())
    con.execute((CATALOG / "views.sql").read_text())
    for clip in CLIPS:
        _insert_video(con, clip)
        for segment, (start, stop) in enumerate(clip.segments):
            _insert_segment(con, clip, segment, start, stop)
    for name, version, kind, labels, number in TASKS:
        _insert(con, "tasks", name=name, version=version, kind=kind, cuts=3, labels=list(labels),
                spec=spec_of(name), log_number=number)  # fmt: skip
    for name, version in [*((task[0], task[1]) for task in TASKS), ("frames", PICTURES)]:
        key = f"stabilizers/{name}/{version}/{ATTEMPT}.safetensors"
        _insert(con, "objects", owner="", key=key, size_bytes=1000, sha256=f"s{version}", log_number=1)
    con.close()
    return FixtureSnapshot(path)


def spec_of(task: str) -> str:
    """What planning reads of a task's spec."""
    if task not in SAMPLING:
        return "{}"
    frames, stride = SAMPLING[task]
    return json.dumps({"clip": {"frames": frames, "stride": stride}})


def _insert(con: duckdb.DuckDBPyConnection, table: str, **values: Any) -> None:
    names = ", ".join(f'"{name}"' for name in values)
    con.execute(
        f"INSERT INTO store.{table} ({names}) VALUES ({', '.join('?' * len(values))})", [*values.values()]
    )


def _insert_video(con: duckdb.DuckDBPyConnection, clip: Clip) -> None:
    _insert(
        con, "videos", video_id=clip.video_id, attempt="a1", name=clip.name, state="ready",
        source_uri=f"file:///{clip.name}" if clip.source else None, source_bytes=SOURCE_BYTES,
        width=64, height=48, rotation_degrees=0, time_base_num=clip.time_base.numerator,
        time_base_den=clip.time_base.denominator, fps_num=25, fps_den=1, frames=len(clip.pts),
        duration=clip.ts[-1], recorded_at=clip.recorded_at, hold=False,
    )  # fmt: skip
    con.execute(
        f"UPDATE store.videos SET tags = MAP {{'camera': '{clip.camera}'}} WHERE video_id = ?",
        [clip.video_id],
    )
    _insert(con, "objects", owner=clip.video_id, key=f"videos/{clip.video_id}/a1/weights-0.parquet",
            size_bytes=60_000, sha256="s", log_number=1)  # fmt: skip


def _insert_segment(con: duckdb.DuckDBPyConnection, clip: Clip, segment: int, start: int, stop: int) -> None:
    pts = clip.pts[start:stop]
    steps = set(np.diff(pts).tolist())
    constant = len(steps) <= 1
    end = clip.ts[stop] if stop < len(clip.ts) else clip.ts[-1] + 0.04
    key = f"videos/{clip.video_id}/a1/weights-0.parquet"
    _insert(
        con, "segments", video_id=clip.video_id, segment=segment, scene=segment, start_frame=start,
        frames=stop - start, start_ts=clip.ts[start], end_ts=end, pts_origin=clip.pts[0], pts_first=pts[0],
        pts_step=next(iter(steps), 0) if constant else None, pts=None if constant else list(pts), psnr=30.0,
        stored_bytes=sum(STAGE_BYTES) + LATENTS_BYTES, codec="hnerv", latents_key="l", latents_offset=0,
        latents_bytes=LATENTS_BYTES, latents_sha256="x",
    )  # fmt: skip
    offset = 0
    for position, (stage, size, gflops) in enumerate(zip(STAGES, STAGE_BYTES, STAGE_GFLOPS, strict=True)):
        _insert(con, "stages", video_id=clip.video_id, segment=segment, position=position, stage=stage,
                key=key, offset=offset, size_bytes=size, sha256="x", gflops=gflops)  # fmt: skip
        offset += size
    for name, version, *_ in TASKS:
        for route in ROUTES[name]:
            _insert_route(con, clip, segment, name, version, route)


def _insert_route(
    con: duckdb.DuckDBPyConnection, clip: Clip, segment: int, task: str, version: str, values: Any
) -> None:
    route, stages, cut, fidelity, gflops = values
    if route == "source" and not clip.source:
        return
    adapter = route == "adapter"
    _insert(
        con, "routes", video_id=clip.video_id, segment=segment, task=task, version=version, attempt="r1",
        route=route, stages=stages, cut=cut, scope="segment" if adapter else None, fidelity=fidelity,
        gflops=gflops, bytes=5000, key=f"routes/{clip.video_id}/{version[:4]}" if adapter else None,
        offset=1000 * segment + (0 if stages[:1] == ["1"] else 100) if adapter else None,
        size_bytes=300 if adapter else None, sha256="x" if adapter else None,
    )  # fmt: skip


# ---------------------------------------------------------------- operators


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeHandle:
    video_id: str
    segment: int
    stage: str
    start_frame: int
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRoute:
    route: Route
    scan: Scan
    route_bytes: int
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeSteadier:
    size_bytes: int = 10
    traffic: Traffic = field(default_factory=Traffic)


@dataclass(slots=True)
class FakeHeld:
    segment: tuple[str, int, str] | None
    adapters: tuple[ByteRange, ...]
    dropped: bool = False

    def drop(self) -> None:
        self.dropped = True


@dataclass(slots=True)
class CountingOperators:
    """Numpy in place of tensors: an answer depends on task version, video and frame alone."""

    fetches: list[tuple[str, int, str]] = field(default_factory=list)
    ahead: list[FakeHeld] = field(default_factory=list)
    decoded: Counter[tuple[str, int]] = field(default_factory=Counter)
    read: Counter[tuple[str, int]] = field(default_factory=Counter)
    deepest: list[tuple[str, ...]] = field(default_factory=list)
    tails: int = 0
    steadied: int = 0
    source_frames: int = 0
    batches: list[int] = field(default_factory=list)
    sharing: Sharing = field(default_factory=Sharing)

    def identity(self, snapshot: Any, video_id: str, segment: int) -> tuple[str, int]:
        return (video_id, segment)

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> FakeHandle:
        self.fetches.append((video_id, segment, stage))
        prefix = sum(STAGE_BYTES[: STAGES.index(stage) + 1])
        return FakeHandle(
            video_id=video_id,
            segment=segment,
            stage=stage,
            start_frame=next(clip for clip in CLIPS if clip.video_id == video_id).starts[segment],
            traffic=Traffic(requests=2, store_bytes=prefix + LATENTS_BYTES),
        )

    def load(self, snapshot: Any, route: Route, scan: Scan) -> FakeRoute:
        size = route.adapter.size_bytes if route.adapter is not None else 0
        traffic = Traffic(requests=1, store_bytes=size) if size else Traffic()
        return FakeRoute(route=route, scan=scan, route_bytes=size, traffic=traffic)

    def prefetch(self, snapshot: Any, *, segment: Any, adapters: Any) -> FakeHeld:
        held = FakeHeld(segment=segment, adapters=adapters)
        self.ahead.append(held)
        return held

    def decode(self, handle: FakeHandle, frames: Any, taps: tuple[str, ...]) -> dict[str, Any]:
        assert STAGES.index(taps[-1]) <= STAGES.index(handle.stage), "decoded deeper than was fetched"
        self.decoded.update((handle.video_id, int(frame)) for frame in frames)
        self.deepest.append(taps)
        self.batches.append(len(frames))
        return {tap: np.asarray(frames) for tap in taps}

    def size_bytes(self, value: Any) -> int:
        return 1000

    def frame_bytes(self, handle: FakeHandle, taps: tuple[str, ...]) -> int:
        return 8 * len(taps)

    def source_frame_bytes(self, snapshot: Any, video_id: str) -> int:
        return 8

    def source(self, snapshot: Any, video_id: str, frames: Any) -> dict[str, Any]:
        self.source_frames += len(frames)
        self.read.update((video_id, int(frame)) for frame in frames)
        return {"rgb": np.asarray(frames)}

    def times(self, snapshot: Any, video_id: str, segment: int) -> NDArray[np.float64]:
        clip = next(clip for clip in CLIPS if clip.video_id == video_id)
        start, stop = clip.segments[segment]
        return np.array(clip.ts[start:stop])

    def start_frame(self, snapshot: Any, video_id: str, segment: int) -> int:
        return next(clip for clip in CLIPS if clip.video_id == video_id).starts[segment]

    def embed_texts(self, task: Any, texts: Sequence[str]) -> NDArray[np.float32] | None:
        raise AssertionError("no text is embedded here")

    def adapt(self, features: Mapping[str, Any], route: FakeRoute) -> Any:
        assert tuple(features) == route.route.stages
        return next(iter(features.values()))

    def tail(self, route: FakeRoute, features: Any) -> Any:
        self.tails += len(features) // route.scan.pictures
        return features

    def steadier(self, snapshot: Any, stored: StoredObject, task: Any) -> FakeSteadier:
        version = PICTURES if task is None else task.version
        assert stored.sha256 == f"s{version}", "the stabilizer of another task"
        return FakeSteadier()

    def steady(
        self, steadier: FakeSteadier, route: Any, features: Any, ts: Any, before: int | None
    ) -> Steadied:
        """What is remembered is how many frames there were."""
        self.steadied += len(ts)
        first = before or 0
        outputs = (features, range(first, first + len(ts)))
        return Steadied(outputs=outputs, memory=first + len(ts), size_bytes=100)

    def rows(self, scan: Scan, outputs: Any, batch: Batch) -> pa.Table:
        if scan.stabilizer is not None:
            outputs, before = outputs
            version = scan.task.version if scan.task else ""
            return steady_answers(
                scan.kind, version, batch.video_id, batch.frames, before, top_of(scan), end_ts=batch.end_ts
            )
        assert np.array_equal(outputs, pictures(scan.task, batch, self.times, self.start_frame))
        version = scan.task.version if scan.task else ""
        return answers(scan.kind, version, batch.video_id, batch.frames, top_of(scan), end_ts=batch.end_ts)


def pictures(task: TaskRecord | None, batch: Batch, times: Any, start_frame: Any) -> list[int]:
    """The frames that the answers of a batch are made of, written out one by one."""
    if task is None or task.name not in SAMPLING:
        return [int(frame) for frame in batch.frames]
    count, stride = SAMPLING[task.name]
    last = start_frame(None, batch.video_id, batch.segment) - 1
    last += len(times(None, batch.video_id, batch.segment))
    return [min(int(first) + n * stride, last) for first in batch.frames for n in range(count)]


def answers(kind: str, version: str, video_id: str, frames: Any, top: int, *, end_ts: Any = None) -> pa.Table:
    """What a frame is answered hangs on nothing but the task's version, the video and the frame."""
    ends = [None] * len(frames) if end_ts is None else [float(end) for end in end_ts]
    rows = [
        {**row, "end_ts": end}
        for frame, end in zip(frames, ends, strict=True)
        for row in _answer(kind, version, video_id, int(frame), top)
    ]
    return pa.Table.from_pylist(rows, schema=output_schema(kind))


def steady_answers(
    kind: str,
    version: str,
    video_id: str,
    frames: Any,
    before: Sequence[int],
    top: int,
    *,
    end_ts: Any = None,
) -> pa.Table:
    """What a frame is answered hangs on how many sampled frames of its segment were `before` it, too."""
    ends = [None] * len(frames) if end_ts is None else [[end] for end in end_ts]
    tables = [
        answers(kind, f"{version} {count}", video_id, [frame], top, end_ts=end)
        for frame, count, end in zip(frames, before, ends, strict=True)
    ]
    return pa.concat_tables([output_schema(kind).empty_table(), *tables])


@functools.cache
def _answer(kind: str, version: str, video_id: str, frame: int, top: int) -> list[dict[str, Any]]:
    seed = int(hashlib.sha256(f"{version}{video_id}{frame // 7}".encode()).hexdigest()[:8], 16)
    if kind in ("classification", "action"):
        order = np.random.default_rng(seed).permutation(len(LABELS))[:top]
        return [
            {"frame": frame, "rank": rank + 1, "label": LABELS[label], "score": 1 / (2 + rank + seed % 3)}
            for rank, label in enumerate(order)
        ]
    if kind == "embedding":
        return [{"frame": frame, "embedding": [float(frame), float(seed % 10)]}]
    if kind == "detection":
        box = {"x0": 0.0, "y0": 1.0, "x1": 2.0, "y1": 3.0}
        return [
            {"frame": frame, "object": n, "label": LABELS[(seed + n) % 8], "score": 0.5, "box": box}
            for n in range(seed % 3)
        ]
    return [{"frame": frame, "width": 64, "height": 48, "image": f"{video_id[:1]}{frame}".encode()}]


# ---------------------------------------------------------------- asking, and the naive plan


SETTINGS = Settings(
    archive=None, cache_dir=Path("unused"), cache_bytes=0, memory_bytes=512 * 2**20, threads=2,
    query_seconds=None, debug=False,
)  # fmt: skip


def ask(snapshot: FixtureSnapshot, sql: str, operators: Any = None, **options: Any) -> Result:
    made = CountingOperators() if operators is None else operators
    return execute(
        Request(sql=sql, snapshot=snapshot, operators_factory=lambda: made, settings=SETTINGS, **options)
    )


def naive(snapshot: FixtureSnapshot, sql: str) -> list[tuple[Any, ...]]:
    """All frames of all videos computed for each task table, then plain DuckDB on the checked tree."""
    con = snapshot.connect()
    con.execute("SET TimeZone = 'UTC'")
    tasks = load_tasks(con)
    query = parse(sql, {task.name for task in tasks})
    for table in query.tables:
        task = resolve_task(table, tasks)
        options = table.options
        parts = [
            _naive_rows(clip, "frames" if task is None else task.kind, task.version if task else "", options)
            for clip in CLIPS
        ]
        con.register(table.relation, pa.concat_tables(parts))
    columns = con.sql(query.sql).to_arrow_table().columns
    return list(zip(*[column.to_pylist() for column in columns], strict=True))


def brute_force_sample(ts: list[Fraction], every: Fraction) -> list[int]:
    """For k = 0, 1, … the last frame with ts ≤ k·s, up to the last frame's ts, duplicates dropped."""
    picked = []
    k = 0
    while k * every <= ts[-1]:
        last = max(frame for frame, t in enumerate(ts) if t <= k * every)
        if last not in picked:
            picked.append(last)
        k += 1
    return picked


def clip_starts(clip: Clip, task: str) -> list[int]:
    """The first frames of a task's clips: they follow one another from each segment's first frame on."""
    count, stride = SAMPLING[task]
    return [frame for start, stop in clip.segments for frame in range(start, stop, count * stride)]


def clip_end_ts(clip: Clip, task: str, first: int) -> float:
    """The time of the last frame that the clip from `first` on stands for."""
    count, stride = SAMPLING[task]
    stop = next(stop for start, stop in clip.segments if start <= first < stop)
    return clip.ts[min(first + count * stride, stop) - 1]


@functools.cache
def _naive_rows(clip: Clip, kind: str, version: str, options: Any) -> pa.Table:
    exact = [(pts - clip.pts[0]) * clip.time_base for pts in clip.pts]
    frames = list(range(len(clip.pts)))
    if options.every is not None:
        frames = brute_force_sample(exact, options.every)
    elif options.stride is not None:
        frames = frames[:: options.stride]
    top = min(options.top, len(LABELS))
    rows = []
    name = next((task for task, number, *_ in TASKS if number == version), "")
    ends = None
    if name in SAMPLING:
        frames = clip_starts(clip, name)
        ends = [clip_end_ts(clip, name, frame) for frame in frames]
    for answer in answers(kind, version, clip.video_id, frames, top, end_ts=ends).to_pylist():
        frame = answer["frame"]
        segment = max(n for n, start in enumerate(clip.starts) if start <= frame)
        rows.append(
            {**answer, "video_id": clip.video_id, "segment": segment, "ts": clip.ts[frame],
             "wall_ts": _wall(clip, clip.ts[frame]), **_route_of(clip, name, options)}
        )  # fmt: skip
        if kind == "frames":
            rows[-1] |= {side: rows[-1][side] * options.upscale for side in ("width", "height")}
    return pa.Table.from_pylist(rows, schema=relation_schema(kind))


def _route_of(clip: Clip, name: str, options: Any) -> dict[str, Any]:
    best = {
        "labels": {"adapter": 0.95, "pixel": 0.96, "source": 1.0},
        "actions": {"adapter": 0.90, "pixel": 0.91, "source": 1.0},
    }
    if options.route is not None and name in best:
        return {"route": options.route, "fidelity": best[name][options.route]}
    known = {
        **{"labels": ("adapter", 0.95), "embed": ("adapter", None), "objects": ("pixel", 0.7)},
        "actions": ("adapter", 0.90),
    }
    route, fidelity = known.get(name, ("pixel", None))
    return {"route": route, "fidelity": fidelity}


def _wall(clip: Clip, ts: float) -> Any:
    if clip.recorded_at is None:
        return None
    return datetime.fromisoformat(clip.recorded_at) + timedelta(microseconds=round(ts * 1e6))
