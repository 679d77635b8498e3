"""The choice for all segments at once is `routing.choice` for each."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.query import candidates as candidates_module
from nvpstore.query.candidates import Candidates, RouteKind, choose_rows, task_candidates
from nvpstore.query.index import load_whole
from nvpstore.query.options import TableOptions
from nvpstore.query.parse import parse
from nvpstore.query.plan import Plan, build_plan
from nvpstore.query.routes import Route
from nvpstore.query.rows_at import read_rows
from nvpstore.query.sample import scoped_segments
from nvpstore.routing import choice
from tests.query.archive_fixture import FixtureSnapshot, build_index

KINDS = tuple(
    RouteKind(route=name, stages=stages, cut=cut)  # type: ignore[arg-type]
    for name, stages, cut in [
        ("adapter", ("1",), "a"),
        ("adapter", ("1", "3"), "a"),
        ("adapter", ("1",), "b"),
        ("adapter", ("10",), "b"),
        ("pixel", ("rgb",), ""),
        ("source", (), ""),
    ]
)
FIDELITY = st.none() | st.sampled_from([0.0, 0.5, 0.93, 0.95, 0.97, 1.0]) | st.floats(0, 1)
GFLOPS = st.none() | st.sampled_from([0.1, 0.2, 0.3])
ROUTES = st.lists(st.tuples(st.integers(0, len(KINDS) - 1), FIDELITY, GFLOPS, st.integers(0, 2)), max_size=6)


def as_columns(segments: list[list[Any]]) -> Candidates:
    rows = [(owner, *route) for owner, routes in enumerate(segments) for route in routes]
    owner, kind, fidelity, gflops, size = zip(*rows, strict=True) if rows else ([],) * 5
    return Candidates(
        kinds=KINDS,
        owner=np.array(owner, dtype=np.int64),
        kind=np.array(kind, dtype=np.int64),
        fidelity=np.array([math.nan if f is None else f for f in fidelity], dtype=np.float64),
        gflops=np.array([math.inf if g is None else g for g in gflops], dtype=np.float64),
        bytes=np.array(size, dtype=np.int64),
    )


def as_objects(routes: list[Any]) -> list[Route]:
    return [
        Route(
            video_id="v",
            segment=0,
            route=KINDS[kind].route,
            stages=KINDS[kind].stages,
            cut=KINDS[kind].cut,
            fidelity=fidelity,
            gflops=gflops,
            bytes=size,
        )
        for kind, fidelity, gflops, size in routes
    ]


@given(
    st.lists(ROUTES, min_size=1, max_size=8),
    st.none() | st.sampled_from([0.0, 0.5, 0.95, 0.95 + 1e-10, 1.0]) | st.floats(0, 1),
    st.sampled_from([None, "adapter", "pixel", "source"]),
)
def test_columns_are_chosen_from_as_objects_are(segments: list[list[Any]], floor: Any, only: Any) -> None:
    rows = choose_rows(as_columns(segments), len(segments), min_fidelity=floor, only=only)
    firsts = [0, *itertools.accumulate(len(routes) for routes in segments)]
    for routes, first, row in zip(segments, firsts, rows.tolist(), strict=False):
        objects = as_objects(routes)
        best = choice.choose(objects, min_fidelity=floor, only=only)
        assert (None if row < 0 else objects[row - first]) == best


# ---------------------------------------------------------------- through the index


@pytest.fixture
def odd(tmp_path: Path) -> FixtureSnapshot:
    """Segments of two architectures, one without rgb, and routes of stages that their segment lacks."""
    snapshot = build_index(tmp_path / "index.duckdb")
    con = duckdb.connect(str(snapshot.path))
    con.execute("UPDATE store.stages SET stage = 'deep' WHERE stage = '3' AND video_id = repeat('b', 32)")
    con.execute("UPDATE store.stages SET position = position + 1 WHERE video_id = repeat('c', 32)")
    con.execute("DELETE FROM store.stages WHERE stage = 'rgb' AND video_id = repeat('a', 32) AND segment = 2")
    con.execute("UPDATE store.routes SET stages = ['3', '1'] WHERE stages = ['1', '3'] AND segment = 1")
    con.execute(
        "UPDATE store.stages SET position = 3 - position WHERE stage IN ('0', '3', '1', '2')"
        " AND video_id = repeat('a', 32) AND segment = 3"
    )
    con.close()
    return snapshot


def plan_of(snapshot: FixtureSnapshot, sql: str) -> Plan:
    con = snapshot.connect()
    index = load_whole(con)
    query = parse(sql, {task.name for task in index.tasks})
    return build_plan(query, con=con, index=index, snapshot_number=snapshot.number)


@pytest.mark.parametrize(
    "table",
    [
        "labels",
        "embed",
        "frames",
        "objects(on_error := 'skip')",
        "embed(route := 'adapter', on_error := 'skip')",
        "labels(min_fidelity := 0.955, on_error := 'skip')",
        "labels(route := 'source', on_error := 'skip')",
    ],
)
def test_segments_of_different_stages_get_the_routes_that_single_ones_get(
    odd: FixtureSnapshot, table: str
) -> None:
    (scan,) = plan_of(odd, f"SELECT * FROM {table}").scans
    assert scan.segments > 0
    for row, key in enumerate(scan.scoped.places):
        kind, route = scan.chosen.kinds[scan.chosen.kind[row]], scan.routes[key]
        assert (kind.route, kind.stages, kind.cut) == (route.route, route.stages, route.cut)
        fidelity = scan.chosen.fidelity[row]
        assert (None if math.isnan(fidelity) else fidelity) == route.fidelity


@pytest.mark.parametrize("part_rows", [1, 7, 1 << 20])
def test_many_segments_are_read_in_parts_and_few_at_once_with_the_same_choice(
    odd: FixtureSnapshot, part_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "PART_ROWS", part_rows)
    con = odd.connect()
    for task in load_whole(con).tasks:
        scoped = scoped_segments(con, None, TableOptions())
        at_once = task_candidates(con, task, scoped, read_rows(con, task, scoped.places))
        in_parts = task_candidates(con, task, scoped)
        assert len(at_once) == len(in_parts) > 0
        for found in (at_once, in_parts):
            assert set(found.kind.tolist()) <= set(range(len(found.kinds)))
        chosen = [
            [(found.kinds[found.kind[row]], found.gflops[row], found.bytes[row]) if row >= 0 else None
             for row in choose_rows(found, len(scoped)).tolist()]
            for found in (at_once, in_parts)
        ]  # fmt: skip
        assert chosen[0] == chosen[1]
