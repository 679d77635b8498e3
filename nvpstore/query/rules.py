"""Rules: Plan → Plan, each leaving the rows as they are. `RULES` runs in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.query.details import Details
from nvpstore.query.plan import STEP_SCHEMA, Chosen, Plan, Scan, naive_steps
from nvpstore.query.relation import relation_schema
from nvpstore.query.sample import united

N = TypeVar("N", np.int64, np.float64)
Rows = NDArray[np.int64]


def merge_equal_scans(plan: Plan) -> Plan:
    """Scans of the same task version with the same options are one over the union of their frames.

    Of stabilized ones both begin at each segment's first frame, and so does their union.

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
    columns = [c for c in relation_schema(left.kind).names if c in left.columns or c in right.columns]
    scoped, (mine, theirs) = united(left.scoped, right.scoped)
    chosen = Chosen(
        kinds=left.chosen.kinds + right.chosen.kinds,
        kind=_either(left.chosen.kind, right.chosen.kind + len(left.chosen.kinds), mine, theirs),
        fidelity=_either(left.chosen.fidelity, right.chosen.fidelity, mine, theirs),
        gflops=_either(left.chosen.gflops, right.chosen.gflops, mine, theirs),
    )
    return replace(
        left,
        relations=left.relations + right.relations,
        columns=tuple(columns),
        scoped=scoped,
        chosen=chosen,
        details=Details(left.details.con, left.task, left.options, scoped),
        skipped=tuple(dict.fromkeys(left.skipped + right.skipped)),
    )


def _either(left: NDArray[N], right: NDArray[N], mine: Rows, theirs: Rows) -> NDArray[N]:
    """Of each united segment the value at its row in `left`, or in `right` where it is only there."""
    values = np.empty(len(mine), dtype=left.dtype)
    values[theirs >= 0] = right[theirs[theirs >= 0]]
    values[mine >= 0] = left[mine[mine >= 0]]
    return values


def drop_empty_scans(plan: Plan) -> Plan:
    """A scan without frames is no step at all; its relations stay, empty."""
    return _with_scans(plan, [scan for scan in plan.scans if scan.segments])


def share_decodes(plan: Plan) -> Plan:
    """All scans of a segment share one decode: a shallower one is a tap of the deeper one."""
    steps = plan.steps.combine_chunks()
    if steps.num_rows == 0:
        return plan
    columns = [steps["video_id"].chunk(0).indices, steps["segment"].chunk(0), steps["source"].chunk(0)]
    changed = np.zeros(steps.num_rows, dtype=np.bool_)
    changed[0] = True
    for column in columns:
        values = column.to_numpy(zero_copy_only=False)
        changed[1:] |= values[1:] != values[:-1]
    firsts = np.flatnonzero(changed)
    scans = steps["scans"].chunk(0)
    offsets = np.append(scans.offsets.to_numpy()[firsts], len(scans.values)).astype(np.int32)
    shared = pa.ListArray.from_arrays(pa.array(offsets), scans.values)
    return replace(plan, steps=steps.take(pa.array(firsts)).set_column(3, STEP_SCHEMA.field(3), shared))


def _with_scans(plan: Plan, scans: Sequence[Scan]) -> Plan:
    return replace(plan, scans=tuple(scans), steps=naive_steps(scans))


RULES: tuple[Callable[[Plan], Plan], ...] = (merge_equal_scans, drop_empty_scans, share_decodes)


def improve(plan: Plan) -> Plan:
    """`plan` after all rules."""
    for rule in RULES:
        plan = rule(plan)
    return plan
