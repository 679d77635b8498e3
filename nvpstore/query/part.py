"""A query's answers computed a part at a time, by any number of processes and stored; its rows come later."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvpstore.errors import UsageError
from nvpstore.query.answers import question_of
from nvpstore.query.cost import estimate
from nvpstore.query.measured import Measured
from nvpstore.query.places import in_order
from nvpstore.query.plan import STEP_SCHEMA, Key, Plan
from nvpstore.query.request import Request
from nvpstore.query.run import planned, runner_of

KEY_SCHEMA = pa.schema([("video_id", pa.string()), ("segment", pa.int32())])
WORK_SCHEMA = KEY_SCHEMA.append(pa.field("frames", pa.int64()))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkLeft:
    """What stored answers leave of a query. `work` (WORK_SCHEMA) has a row a segment, by video and segment;
    `frames` are counted once a task; `gflops` None where they are not known.
    """

    snapshot: int
    work: pa.Table
    answered_frames: int
    frames: int
    bytes: int
    gflops: float | None

    @property
    def videos(self) -> int:
        return len(self.work["video_id"].unique())


def work_left(request: Request) -> WorkLeft:
    """Looks only into the index. Raises UsageError where answers are not kept, else as a query does."""
    answers = request.answers
    if answers is None:
        raise UsageError("nothing can be computed ahead where answers are not kept: NVP_ANSWERS must be on")
    with planned(request) as asked:
        plan = kept(asked.plan)
        whole = _frames(plan)
        left = answers.left(plan, asked.orders.check).plan
        work = _frames(left)
        cost = estimate(left)
        return WorkLeft(
            snapshot=request.snapshot.number,
            work=work,
            answered_frames=_total(whole) - _total(work),
            frames=_total(work),
            bytes=cost.bytes,
            gflops=cost.gflops,
        )


def answer_part(request: Request, keys: Collection[Key]) -> Measured:
    """Compute and store what the query asks of these segments; what is stored already is no work.

    Segments that are no part of the query any more are left out. Raises what a step raises.
    """
    wanted = frozenset(keys)
    with planned(request) as asked:
        plan = only(kept(asked.plan), wanted)
        part = replace(asked, plan=replace(plan, stop_after=None, stop_once=None, streams=False))
        with runner_of(part, []) as runner:
            for _ in runner.tables():
                pass  # they are stored as they come
            return runner.measured


def kept(plan: Plan) -> Plan:
    """`plan` without what no answers are kept of: pictures for people."""
    scans = [i for i, scan in enumerate(plan.scans) if question_of(scan) is not None]
    if len(scans) == len(plan.scans) or not plan.steps.num_rows:
        return plan
    steps = plan.steps.combine_chunks()
    lists = steps["scans"].combine_chunks()
    flat = pc.list_flatten(lists)
    some = np.isin(flat.to_numpy(), scans)
    counts = np.bincount(pc.list_parent_indices(lists).to_numpy()[some], minlength=len(lists))
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    left = pa.ListArray.from_arrays(ends, flat.filter(pa.array(some)))
    at = STEP_SCHEMA.get_field_index("scans")
    narrowed = steps.set_column(at, STEP_SCHEMA.field(at), left)
    return replace(plan, steps=narrowed.filter(pa.array(counts > 0)))


def only(plan: Plan, keys: Collection[Key]) -> Plan:
    """`plan` with the steps of these segments alone."""
    if not plan.steps.num_rows:
        return plan
    wanted = pa.table(
        [[video_id for video_id, _ in keys], [segment for _, segment in keys]], schema=KEY_SCHEMA
    )
    places = in_order(wanted)[1]
    ids = plan.steps["video_id"].combine_chunks().cast(pa.string())
    rows = places.rows(ids, plan.steps["segment"].to_numpy())
    return replace(plan, steps=plan.steps.filter(pa.array(rows >= 0)))


def _frames(plan: Plan) -> pa.Table:
    """Frames of each segment, added up over the scans whose answers are kept."""
    tables = [
        pa.table(
            {
                "video_id": scan.scoped.places.dictionary().dictionary_decode(),
                "segment": pa.array(scan.scoped.places.segment, pa.int32()),
                "frames": pa.array(scan.scoped.frames.astype(np.int64)),
            }
        )
        for scan in plan.scans
        if scan.segments and question_of(scan) is not None
    ]
    together = pa.concat_tables([WORK_SCHEMA.empty_table(), *tables])
    summed = together.group_by(["video_id", "segment"], use_threads=False).aggregate([("frames", "sum")])
    ordered = summed.sort_by([("video_id", "ascending"), ("segment", "ascending")])
    return ordered.rename_columns([name.removesuffix("_sum") for name in ordered.column_names]).select(
        WORK_SCHEMA.names
    )


def _total(work: pa.Table) -> int:
    return int(np.sum(work["frames"].to_numpy())) if work.num_rows else 0
