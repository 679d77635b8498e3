"""What a plan will take, from stored figures: bytes, frames and GFLOPs, by scan and route and in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nvpstore.query.candidates import RouteKind
from nvpstore.query.figures import Figures, figures
from nvpstore.query.index import Key
from nvpstore.query.plan import Plan, Scan, deepest, groups_of, steps_of

NAMED_SEGMENTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The segments of a scan that are answered in the same way, and what that takes if nothing is shared.

    `named` are the first of its `segments`. Bytes over all of them; GFLOPs of one frame, averaged over
    `frames` (None: not measured). `full_bytes` is what decoding the same segments to pixels fetches,
    `source_bytes` their original files.
    """

    route: RouteKind
    stages_fetched: tuple[str, ...]
    named: tuple[Key, ...]
    segments: int
    frames: int
    prefix_bytes: int
    latents_bytes: int
    route_bytes: int
    full_bytes: int
    source_bytes: int
    decode_gflops: float
    gflops: float | None
    fidelity: tuple[float, float] | None

    @property
    def bytes(self) -> int:
        return self.prefix_bytes + self.latents_bytes + self.route_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a whole plan takes with everything shared that its steps share.

    `frames` counts decoded frames once; `shared` are decodes that another scan's made unnecessary.
    `read_bytes` are original files read by source routes.
    """

    segments: int
    frames: int
    shared: int
    prefix_bytes: int
    latents_bytes: int
    route_bytes: int
    read_bytes: int
    gflops: float
    full_bytes: int
    source_bytes: int

    @property
    def bytes(self) -> int:
        return self.prefix_bytes + self.latents_bytes + self.route_bytes + self.read_bytes


def parts(scan: Scan) -> list[Part]:
    """The parts of `scan`, in order of their first segment."""
    found = figures(scan)
    alike: dict[tuple[object, ...], list[int]] = {}
    for number in np.unique(found.kind).tolist():
        alike.setdefault((found.kinds[number].tie, found.fetched[number]), []).append(number)
    rows = [np.flatnonzero(np.isin(found.kind, numbers)) for numbers in alike.values()]
    return [_part(scan, found, some) for some in sorted(rows, key=lambda some: int(some[0]))]


def _part(scan: Scan, found: Figures, rows: NDArray[np.int64]) -> Part:
    counts = scan.scoped.frames[rows]
    frames = int(counts.sum())
    fidelity = scan.chosen.fidelity[rows]
    measured = fidelity[~np.isnan(fidelity)]
    gflops = float((found.gflops[rows] * counts).sum()) / frames
    kind = int(found.kind[rows[0]])
    return Part(
        route=found.kinds[kind],
        stages_fetched=found.fetched[kind],
        named=tuple(scan.scoped.places.key(row) for row in rows[:NAMED_SEGMENTS].tolist()),
        segments=len(rows),
        frames=frames,
        prefix_bytes=int(found.prefix_bytes[rows].sum()),
        latents_bytes=int(found.latents_bytes[rows].sum()),
        route_bytes=_adapter_bytes([_of_rows(found.adapters, rows)]),
        full_bytes=int(found.full_bytes[rows].sum()),
        source_bytes=_source_bytes([scan], [rows]),
        decode_gflops=float((found.decode_gflops[rows] * counts).sum()) / frames,
        gflops=None if np.isnan(gflops) else gflops,
        fidelity=(float(measured.min()), float(measured.max())) if len(measured) else None,
    )


def _of_rows(adapters: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    return adapters.filter(pa.array(np.isin(adapters["row"].to_numpy(), rows)))


def _adapter_bytes(adapters: Sequence[pa.Table]) -> int:
    # An adapter of archive or video scope is one row group however many segments use it.
    ranges = pa.concat_tables(adapters).group_by(["object", "offset", "size"], use_threads=False)
    distinct = ranges.aggregate([])
    return int(pc.sum(distinct["size"]).as_py() or 0)


def _source_bytes(scans: Sequence[Scan], rows: Sequence[NDArray[np.int64]]) -> int:
    """The original files of the videos of each scan's segments at `rows`, each file once."""
    tables = []
    for scan, some in zip(scans, rows, strict=True):
        codes, first = np.unique(scan.scoped.places.code[some], return_index=True)
        sizes = pa.array(scan.scoped.source_bytes[some][first])
        tables.append(pa.table({"id": scan.scoped.places.videos.take(pa.array(codes)), "size": sizes}))
    if not tables:
        return 0
    distinct = pa.concat_tables(tables).group_by(["id"], use_threads=False).aggregate([("size", "max")])
    return int(pc.sum(distinct["size_max"]).as_py() or 0)


# ---------------------------------------------------------------- with what is shared


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """A row for each scan of each step, [p]: the step, the scan, the segment's row in it, and the figures."""

    step: NDArray[np.int64]
    scan: NDArray[np.int64]
    row: NDArray[np.int64]
    frames: NDArray[np.int64]
    prefix: NDArray[np.int64]
    latents: NDArray[np.int64]
    full: NDArray[np.int64]
    pictures: NDArray[np.int64]  # that are decoded for a frame: more than one for clips
    decode: NDArray[np.float64]
    after: NDArray[np.float64]  # GFLOPs of a frame past the decode


def estimate(plan: Plan) -> Cost:
    """The cost of all steps of `plan`."""
    found = {index: figures(scan) for index, scan in enumerate(plan.scans) if scan.computes}
    pairs = _pairs(plan, found)
    source = plan.steps["source"].to_numpy()
    firsts = np.unique(pairs.step, return_index=True)[1]
    frames, gflops, prefix = _simple(plan, pairs, firsts)
    for step in _uneven(plan, pairs).tolist():
        frames[step], gflops[step], prefix[step] = _one_step(plan, step, pairs)
    # Both a decode and a read of the source can be of one segment.
    once = firsts[_first_of_segment(plan.steps)]
    owners = [(scan, pairs.row[(pairs.scan == index)]) for index, scan in enumerate(plan.scans)]
    reads = [(scan, pairs.row[(pairs.scan == i) & source[pairs.step]]) for i, scan in enumerate(plan.scans)]
    return Cost(
        segments=len(once),
        frames=int(frames.sum()),
        shared=int((pairs.frames * pairs.pictures).sum() - frames.sum()),
        prefix_bytes=int(prefix[~source].sum()),
        latents_bytes=int(pairs.latents[firsts][~source].sum()),
        route_bytes=_adapter_bytes([f.adapters for f in found.values()]) if found else 0,
        read_bytes=_source_bytes(*zip(*reads, strict=True)) if reads else 0,
        gflops=float(gflops.sum()),
        full_bytes=int(pairs.full[once].sum()),
        source_bytes=_source_bytes(*zip(*owners, strict=True)) if owners else 0,
    )


def _pairs(plan: Plan, found: dict[int, Figures]) -> _Pairs:
    steps = plan.steps.combine_chunks()
    lists = pc.list_parent_indices(steps["scans"]).to_numpy().astype(np.int64)
    scan = pc.list_flatten(steps["scans"]).to_numpy().astype(np.int64)
    row = np.zeros(len(scan), dtype=np.int64)
    names = ("frames", "pictures", "prefix", "latents", "full")
    ints = {name: np.zeros(len(scan), dtype=np.int64) for name in names}
    decode, after = np.zeros(len(scan)), np.zeros(len(scan))
    segments = steps["segment"].to_numpy()
    for index, figure in found.items():
        mine = np.flatnonzero(scan == index)
        at = pa.array(lists[mine])
        ids = steps["video_id"].combine_chunks().cast(pa.string()).take(at)
        rows = row[mine] = plan.scans[index].scoped.places.rows(ids, segments[lists[mine]])
        ints["frames"][mine] = plan.scans[index].scoped.frames[rows]
        ints["pictures"][mine] = plan.scans[index].pictures
        ints["prefix"][mine] = figure.prefix_bytes[rows]
        ints["latents"][mine] = figure.latents_bytes[rows]
        ints["full"][mine] = figure.full_bytes[rows]
        decode[mine] = figure.decode_gflops[rows]
        after[mine] = np.maximum(0.0, np.nan_to_num(figure.gflops[rows]) - figure.decode_gflops[rows])
    return _Pairs(step=lists, scan=scan, row=row, decode=decode, after=after, **ints)


def _simple(
    plan: Plan, pairs: _Pairs, firsts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Frames, GFLOPs and stage bytes of each step where all its scans read the same frames."""
    frames = pairs.frames[firsts].copy()
    if not len(firsts):
        return frames, np.zeros(0), frames
    prefix = np.maximum.reduceat(pairs.prefix, firsts)
    decode = np.maximum.reduceat(pairs.decode, firsts)
    gflops = frames * (decode + np.add.reduceat(pairs.after, firsts))
    return frames * pairs.pictures[firsts], gflops, prefix


def _uneven(plan: Plan, pairs: _Pairs) -> NDArray[np.int64]:
    """The steps whose scans may read different frames."""
    several = np.bincount(pairs.step, minlength=plan.steps.num_rows)[pairs.step] > 1
    masked = np.zeros(len(pairs.step), dtype=np.bool_)
    for index, scan in enumerate(plan.scans):
        mine = pairs.scan == index
        masked[mine] = scan.scoped.mask_at[pairs.row[mine]] >= 0
    samplings = {
        (scan.options.every, scan.options.stride, scan.options.clip, scan.stabilizer) for scan in plan.scans
    }
    odd = several & (masked | (len(samplings) > 1))
    return np.unique(pairs.step[odd])


def _one_step(plan: Plan, number: int, pairs: _Pairs) -> tuple[int, float, int]:
    """Frames, GFLOPs and stage bytes of one step, its scans' frames taken apart."""
    (step,) = steps_of(plan.steps.slice(number, 1))
    key = (step.video_id, step.segment)
    groups, facts = groups_of(plan, step), plan.segments[key]
    low = int(np.searchsorted(pairs.step, number))
    after = dict(zip(step.scans, pairs.after[low : low + len(step.scans)].tolist(), strict=True))
    gflops = 0.0
    for group in groups:
        decode = facts.decode_gflops(group.stage) if group.stage else 0.0
        gflops += group.pictures * decode + len(group.frames) * sum(after[index] for index in group.scans)
    prefix = 0 if step.source else facts.prefix(deepest(plan, key, groups))
    return sum(group.pictures for group in groups), gflops, prefix


def _first_of_segment(steps: pa.Table) -> NDArray[np.int64]:
    """The rows of `steps` whose segment no row before has."""
    if steps.num_rows == 0:
        return np.empty(0, dtype=np.int64)
    code = steps["video_id"].combine_chunks().indices.to_numpy()
    segment = steps["segment"].to_numpy()
    changed = (np.diff(code) != 0) | (np.diff(segment) != 0)
    return np.concatenate([[0], np.flatnonzero(changed) + 1])
