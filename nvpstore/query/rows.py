"""Rows of a task table: outputs joined with what the plan knows of their frames."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from nvpstore.query.plan import Plan, Scan, top_of
from nvpstore.query.relation import output_schema, relation_schema
from nvpstore.query.routes import Route
from nvpstore.query.sample import WORK_SCHEMA


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


def free_rows(plan: Plan, scan: Scan) -> pa.Table:
    """The rows of a scan of which only frames, times, routes, ranks or sizes are read: nothing is decoded."""
    tables = []
    for key in scan.routes:
        work = scan.work_of(key)
        frames, count = work["frame"].to_numpy(), work.num_rows
        if scan.ranks:
            top = top_of(scan)
            ranks = np.tile(np.arange(1, top + 1, dtype=np.int32), count)
            outputs = pa.table({"frame": np.repeat(frames, top), "rank": ranks})
        elif scan.task is None:
            facts = plan.segments[key]
            width, height = (np.full(count, side, dtype=np.int32) for side in (facts.width, facts.height))
            outputs = pa.table({"frame": frames, "width": width, "height": height})
        else:
            outputs = pa.table({"frame": frames})
        tables.append(attach(scan, work, scan.routes[key], outputs))
    return pa.concat_tables([relation_schema(scan.kind).empty_table(), *tables])
