"""Rules: Plan → Plan, each leaving the rows as they are. `RULES` runs in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import pyarrow as pa

from nvpstore.query.plan import STEP_SCHEMA, Plan, Scan, naive_steps
from nvpstore.query.relation import relation_schema


def merge_equal_scans(plan: Plan) -> Plan:
    """Scans of the same task version with the same options are one over the union of their frames.

    Each relation then holds rows that it did not ask for; DuckDB applies its predicate anyway.
    """
    merged: list[Scan] = []
    for scan in plan.scans:
        twin = next((s for s in merged if s.task == scan.task and s.options == scan.options), None)
        if twin is None:
            merged.append(scan)
        else:
            merged[merged.index(twin)] = _union(twin, scan)
    return _with_scans(plan, merged)


def _union(left: Scan, right: Scan) -> Scan:
    work = pa.concat_tables([left.work, right.work]).group_by(left.work.schema.names, use_threads=False)
    columns = [c for c in relation_schema(left.kind).names if c in left.columns or c in right.columns]
    return replace(
        left,
        relations=left.relations + right.relations,
        columns=tuple(columns),
        work=work.aggregate([]).sort_by([("video_id", "ascending"), ("frame", "ascending")]),
        routes={**left.routes, **right.routes},
        skipped=tuple(dict.fromkeys(left.skipped + right.skipped)),
    )


def drop_empty_scans(plan: Plan) -> Plan:
    """A scan without frames is no step at all; its relations stay, empty."""
    return _with_scans(plan, [scan for scan in plan.scans if scan.work.num_rows])


def share_decodes(plan: Plan) -> Plan:
    """All scans of a segment share one decode: a shallower one is a tap of the deeper one."""
    rows = plan.steps.to_pylist()
    shared = []
    for (video_id, segment, source), same in groupby(
        rows, key=lambda row: (row["video_id"], row["segment"], row["source"])
    ):
        scans = sorted({scan for row in same for scan in row["scans"]})
        shared.append({"video_id": video_id, "segment": segment, "source": source, "scans": scans})
    return replace(plan, steps=pa.Table.from_pylist(shared, schema=STEP_SCHEMA))


def _with_scans(plan: Plan, scans: Sequence[Scan]) -> Plan:
    return replace(plan, scans=tuple(scans), steps=naive_steps(scans))


RULES: tuple[Callable[[Plan], Plan], ...] = (merge_equal_scans, drop_empty_scans, share_decodes)


def improve(plan: Plan) -> Plan:
    """`plan` after all rules."""
    for rule in RULES:
        plan = rule(plan)
    return plan
