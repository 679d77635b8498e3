"""Rows of a task table: outputs joined with what the plan knows of their frames."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from nvpstore.query.plan import Plan, Scan, top_of
from nvpstore.query.relation import output_schema, relation_schema
from nvpstore.query.routes import Route
from nvpstore.query.sample import WORK_SCHEMA

FREE_ROWS = 1 << 17  # that are made at once


def attach(scan: Scan, work: pa.Table, route: Route, outputs: pa.Table) -> pa.Table:
    """The task table's rows: `outputs` (by frame) with what `work` and `route` know of their frames."""
    places = np.searchsorted(work["frame"].to_numpy(), outputs["frame"].to_numpy())
    common = work.take(pa.array(places))
    count = outputs.num_rows
    schema, columns = relation_schema(scan.kind), []
    known = {
        **{name: common[name] for name in WORK_SCHEMA.names},
        "route": pa.repeat(pa.scalar(route.route), count),
        "fidelity": pa.repeat(pa.scalar(route.fidelity, pa.float64()), count),
    }
    computed = output_schema(scan.kind)
    for field in schema:
        if field.name in known:
            columns.append(known[field.name])
        elif field.name in outputs.schema.names:
            columns.append(outputs[field.name].cast(computed.field(field.name).type))
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.table(columns, schema=schema)


def free_rows(plan: Plan, scan: Scan) -> Iterator[pa.Table]:
    """The rows of a scan of which only frames, times, routes, ranks or sizes are read: nothing is decoded.

    At most FREE_ROWS at a time, or those of one frame.
    """
    top = top_of(scan) if scan.ranks else 1
    for key in scan.routes:
        whole, at_once = scan.work_of(key), max(1, FREE_ROWS // top)
        for first in range(0, whole.num_rows, at_once):
            work = whole.slice(first, at_once)
            frames, count = work["frame"].to_numpy(), work.num_rows
            outputs = {"frame": np.repeat(frames, top)}
            if scan.ranks:
                outputs["rank"] = np.tile(np.arange(1, top + 1, dtype=np.int32), count)
            elif scan.task is None:
                facts, larger = plan.segments[key], scan.options.upscale
                for name, side in (("width", facts.width), ("height", facts.height)):
                    outputs[name] = np.full(count, side * larger, dtype=np.int32)
            yield attach(scan, work, scan.routes[key], pa.table(outputs))
