"""The same queries with sharing and stored answers, by decoding for each, and with rows cached alone.

One real clip with three tasks: the built-in one's backbone under three names, so that nobody's answers are
another's, each by another adapter route of the fit. Backbones are loaded before, for all sides. The other
sides decode the original with PyAV on all threads, scale in swscale and run the whole backbone: `decode` on
every frame for each task of each query, which is what people do today; `decode_needed` only up to the last
frame that the query's times allow, and the backbone only on those; `rows_cached` as `decode`, but each task
and text of a query once. The SQL on the rows is DuckDB's everywhere.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import duckdb
import numpy as np
import pyarrow as pa
import torch

from benchmarks.drawn import SEED
from benchmarks.footage import write_bikes
from benchmarks.query.counting import Session, settings_in
from benchmarks.query.outcome import Line, shown, spread
from nvpstore.archive import open as open_archive
from nvpstore.codec.grids import WHOLE
from nvpstore.errors import ArchiveError
from nvpstore.query.keeping import drop_answers
from nvpstore.storage import keys
from nvpstore.storage.commit import register_task
from nvpstore.storage.log import LogDraft
from nvpstore.storage.originals import source_path
from nvpstore.storage.tables import decode_routes, encode_routes
from nvpstore.tasks.heads import View
from nvpstore.tasks.registry import LoadedTask, builtin_spec, load
from nvpstore.types import RouteRecord, TaskRoutes

DEMO = Path(__file__).resolve().parents[2] / "demo" / "archive"
TASKS = ("labels", "labels_b", "labels_c")
TIMES = 2  # that each query is asked
TOP = 5
BATCH = 16
SIDES = ("nvpstore", "decode", "decode_needed", "rows_cached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """`sql` reads `tasks` on ts < `end` seconds (None: all of the video)."""

    sql: str
    tasks: tuple[str, ...]
    end: float | None = None


_JOINED = "FROM labels a JOIN labels_b b USING (frame) JOIN labels_c c USING (frame)"
QUERIES = (
    Query(
        sql="SELECT ts, label, score FROM labels WHERE rank = 1 AND ts < 1 ORDER BY ts",
        tasks=("labels",),
        end=1,
    ),
    Query(
        sql="SELECT ts, label, score FROM labels WHERE rank = 1 AND ts < 2 ORDER BY ts",
        tasks=("labels",),
        end=2,
    ),
    Query(
        sql="SELECT label, count(*) FROM labels_b WHERE score > 0.3 GROUP BY ALL ORDER BY ALL",
        tasks=("labels_b",),
    ),
    Query(
        sql="SELECT frame, label FROM labels_c WHERE label LIKE '%bike%' AND score > 0.1 ORDER BY ALL",
        tasks=("labels_c",),
    ),
    Query(
        sql="SELECT count(*) FROM labels a JOIN labels_b b USING (frame, rank)"
        " WHERE a.label = b.label AND rank = 1",
        tasks=("labels", "labels_b"),
    ),
    Query(
        sql=f"SELECT frame, a.score, b.score, c.score {_JOINED}"
        " WHERE a.rank = 1 AND b.rank = 1 AND c.rank = 1 AND a.ts < 2 AND b.ts < 2 AND c.ts < 2 ORDER BY ALL",
        tasks=TASKS,
        end=2,
    ),
)


@dataclass(slots=True, kw_only=True)
class Effort:
    """What a side took: frames decoded, and how many of them went through an adapter and a tail, or through
    a whole backbone."""

    seconds: float = 0.0
    decoded_frames: int = 0
    tail_frames: int = 0
    whole_frames: int = 0


def measure(repeats: int) -> dict[str, Any]:
    """Sides in turn in one process, `repeats` times; nothing is kept from round to round but backbones."""
    with tempfile.TemporaryDirectory() as folder:
        clip = prepare(Path(folder))
        asked = asked_order()
        found: dict[str, list[Effort]] = {side: [] for side in SIDES}
        for _ in range(repeats):
            for side in SIDES:
                found[side].append(run_side(side, clip, asked))
        return {
            "clip": clip.name,
            "frames": clip.frames,
            "preset": clip.preset,
            "tasks": len(TASKS),
            "distinct_queries": len(QUERIES),
            "queries": len(asked),
            "agreement": agreement(clip),
            "sides": {side: summed(efforts) for side, efforts in found.items()},
            "sooner_than": {
                side: spread(
                    [b.seconds / a.seconds for a, b in zip(found["nvpstore"], found[side], strict=True)]
                )
                for side in SIDES[1:]
            },
        }


def asked_order() -> list[Query]:
    """Every query `TIMES` times, shuffled."""
    asked = list(QUERIES) * TIMES
    random.Random(SEED).shuffle(asked)
    return asked


def summed(efforts: Sequence[Effort]) -> dict[str, Any]:
    """Counts of the first round: they do not vary."""
    first = efforts[0]
    return {
        "seconds": spread([effort.seconds for effort in efforts]),
        "decoded_frames": first.decoded_frames,
        "tail_frames": first.tail_frames,
        "whole_backbone_frames": first.whole_frames,
    }


# ---------------------------------------------------------------- the clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One video of an archive of its own, with routes for all of `TASKS`, and its original."""

    session: Session
    video_id: str
    source: Path
    name: str
    frames: int
    preset: str
    tasks: Mapping[str, LoadedTask]


def prepare(folder: Path) -> Clip:
    """The demo's first clip in a copy of its archive; without a demo, one fitted here as small as can be."""
    root, settings = folder / "archive", settings_in(folder / "cache")
    if (DEMO / "log").is_dir():
        shutil.copytree(DEMO, root)
        archive = open_archive(root, settings=settings)
    else:
        archive = open_archive(root, create=True, settings=settings)
        archive.ingest(write_bikes(folder / "bikes.mp4"), preset="micro")
    video, *others = archive.videos()
    for other in others:
        archive.erase(other["video_id"])
    session = Session(root, settings, answers=True)
    tasks = {name: load(replace(builtin_spec("labels"), name=name)) for name in TASKS}
    for number, name in enumerate(TASKS[1:], start=1):
        lend_routes(session, video["video_id"], tasks, name, number)
    indexed = session.catalog.snapshot().video(video["video_id"])
    source = source_path(session.store, indexed.source_uri)
    if source is None or not source.is_file():
        raise ArchiveError(f"{video['name']}: the original is needed for the other sides")
    return Clip(
        session=session,
        video_id=video["video_id"],
        source=source,
        name=video["name"],
        frames=video["frames"],
        preset=video["preset"],
        tasks=tasks,
    )


def lend_routes(
    session: Session, video_id: str, tasks: Mapping[str, LoadedTask], name: str, number: int
) -> None:
    """The routes of the built-in task for its namesake `name`, of each segment the adapter route `number`."""
    record = tasks[name].record()
    register_task(session.catalog.log, record)
    folder = f"videos/{video_id}/routes/{tasks['labels'].spec.version}/"
    stored = decode_routes(session.store.get(session.store.list(folder)[-1]))
    routes = TaskRoutes(
        video_id=video_id,
        task=name,
        version=record.version,
        attempt=keys.new_attempt(),
        routes=tuple(chosen_routes(stored.routes, number)),
    )
    key = keys.routes_key(video_id, record.version, routes.attempt)
    put = session.store.put(key, encode_routes(key, routes).data)
    session.catalog.log.append(
        LogDraft(kind="routes", attempt=routes.attempt, subject=video_id, objects=(put,))
    )


def chosen_routes(routes: Sequence[RouteRecord], number: int) -> Iterator[RouteRecord]:
    """Of each segment its adapter route `number`, counted round from the cheapest."""
    for segment in sorted({route.segment for route in routes}):
        adapters = [r for r in routes if r.segment == segment and r.route == "adapter"]
        adapters.sort(key=lambda route: route.gflops)
        yield adapters[number % len(adapters)]


# ---------------------------------------------------------------- sides


def run_side(side: str, clip: Clip, asked: Sequence[Query]) -> Effort:
    """All queries by one side, from nothing."""
    if side == "nvpstore":
        return run_ours(clip, asked)
    began = time.perf_counter()
    effort, cached = Effort(), set[Query]()
    for query in asked:
        if query in cached:
            continue
        finish(query, {task: decoded(clip, task, query, side, effort) for task in query.tasks})
        if side == "rows_cached":
            cached.add(query)
    effort.seconds = time.perf_counter() - began
    return effort


def run_ours(clip: Clip, asked: Sequence[Query]) -> Effort:
    session = clip.session
    drop_answers(session.catalog)
    counted = session.renewed()
    began = time.perf_counter()
    for query in asked:
        session.ask(query.sql)
    return Effort(
        seconds=time.perf_counter() - began,
        decoded_frames=counted.decodes,
        tail_frames=counted.adapter_frames,
        whole_frames=counted.whole_frames,
    )


def decoded(clip: Clip, task: str, query: Query, side: str, effort: Effort) -> pa.Table:
    """The task's rows of the original: of all frames, or of those that `query` needs."""
    end = query.end if side == "decode_needed" else None
    tables = []
    for frames, ts, pictures in pictures_of(clip, end):
        tables.append(rows_of(clip.tasks[task], frames, ts, pictures))
        effort.decoded_frames += len(frames)
        effort.whole_frames += len(frames)
    return pa.concat_tables(tables)


def pictures_of(
    clip: Clip, end: float | None
) -> Iterator[tuple[list[int], list[float], list[np.ndarray[Any, Any]]]]:
    """Batches of (frames, seconds, RGB uint8 [h, w, 3] at the backbone's size) with ts < `end`."""
    size = clip.tasks["labels"].spec.preprocessing
    with av.open(str(clip.source)) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames: list[int] = []
        ts: list[float] = []
        pictures: list[np.ndarray[Any, Any]] = []
        first: float | None = None
        for number, frame in enumerate(container.decode(video=0)):
            first = frame.time if first is None else first
            if end is not None and frame.time - first >= end:
                break
            frames.append(number)
            ts.append(frame.time - first)
            pictures.append(
                frame.to_ndarray(
                    format="rgb24", width=size.width, height=size.height, interpolation="BILINEAR"
                )
            )
            if len(frames) == BATCH:
                yield frames, ts, pictures
                frames, ts, pictures = [], [], []
        if frames:
            yield frames, ts, pictures


@torch.inference_mode()
def rows_of(
    task: LoadedTask, frames: Sequence[int], ts: Sequence[float], pictures: Sequence[np.ndarray[Any, Any]]
) -> pa.Table:
    """The whole backbone's answers as rows of the task's table."""
    rgb = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # TxHxWxC -> TxCxHxW
    outputs = task.backbone.whole(task.spec.prepare(rgb))
    view = View(height=rgb.shape[2], width=rgb.shape[3], region=WHOLE)
    positions, table = task.head.rows(outputs, top=TOP, view=view, columns=("rank", "label", "score"))
    table = table.append_column("frame", pa.array(np.asarray(frames)[positions]))
    return table.append_column("ts", pa.array(np.asarray(ts)[positions]))


def finish(query: Query, tables: Mapping[str, pa.Table]) -> pa.Table:
    """The query's SQL on rows that are all here."""
    with duckdb.connect(":memory:") as con:
        for name, table in tables.items():
            con.register(name, table)
        return con.sql(query.sql).to_arrow_table()


def agreement(clip: Clip) -> dict[str, float]:
    """Of each task the share of frames whose first label is the whole backbone's on the original."""
    whole = Query(sql="SELECT frame, label FROM {} WHERE rank = 1 ORDER BY frame", tasks=TASKS)
    found = {}
    for name in TASKS:
        ours = clip.session.ask(whole.sql.format(name)).rows["label"].to_pylist()
        table = decoded(clip, name, whole, "decode", Effort())
        theirs = finish(replace(whole, sql=whole.sql.format(name)), {name: table})["label"].to_pylist()
        found[name] = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(theirs)
    return found


def named(side: str) -> str:
    return side.replace("_", " ")


def lines(result: Mapping[str, Any]) -> list[Line]:
    sides: Mapping[str, Mapping[str, Any]] = result["sides"]
    found = [
        Line(
            part="baselines",
            what=f"{named(side)}: {result['queries']} queries",
            found=f"{shown(row['seconds'], ' s')}; {row['decoded_frames']} frames decoded,"
            f" {row['whole_backbone_frames']} through whole backbones, {row['tail_frames']} through tails",
        )
        for side, row in sides.items()
    ]
    ratios = ", ".join(f"{shown(ratio, 'x')} {named(side)}" for side, ratio in result["sooner_than"].items())
    agreed = ", ".join(f"{share:.2f}" for share in result["agreement"].values())
    said = f"{result['clip']}, preset {result['preset']}: agreement {agreed}"
    return [
        *found,
        Line(part="baselines", what="nvpstore sooner than", found=ratios),
        Line(part="baselines", what="the clip", found=said),
    ]
