"""The cheapest stored route that meets the floor."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.errors import RouteError
from nvpstore.query.options import TableOptions
from nvpstore.query.routes import Route, choose
from nvpstore.routing.choice import MARGIN
from tests.query.archive_fixture import FixtureSnapshot, ask


def route(name: Any, fidelity: float | None, gflops: float | None, **more: Any) -> Route:
    return Route(video_id="v", segment=0, route=name, fidelity=fidelity, gflops=gflops, **more)


CHEAP, GOOD = route("adapter", 0.80, 0.2), route("adapter", 0.95, 0.3)
PIXEL, SOURCE = route("pixel", 0.96, 0.9), route("source", 1.0, 0.1)
UNKNOWN = route("adapter", None, 0.1)


@pytest.mark.parametrize(
    ("routes", "options", "expected"),
    [
        ([CHEAP, GOOD, PIXEL, SOURCE], {}, GOOD),
        ([CHEAP, PIXEL], {}, PIXEL),
        ([CHEAP, GOOD, PIXEL], {"min_fidelity": 0.5}, CHEAP),
        ([CHEAP, GOOD, PIXEL], {"min_fidelity": 0.955}, PIXEL),
        ([CHEAP, GOOD, PIXEL], {"min_fidelity": 0.99}, None),
        ([CHEAP, GOOD, PIXEL, SOURCE], {"min_fidelity": 0.99}, SOURCE),
        ([SOURCE], {}, SOURCE),
        ([GOOD, SOURCE], {"route": "source"}, SOURCE),
        ([CHEAP, PIXEL], {"route": "adapter"}, CHEAP),
        ([PIXEL, GOOD], {"route": "pixel"}, PIXEL),
        ([UNKNOWN, GOOD], {}, GOOD),
        ([UNKNOWN, PIXEL], {"min_fidelity": 0.0}, PIXEL),
        ([UNKNOWN], {}, UNKNOWN),
        ([UNKNOWN], {"min_fidelity": 0.0}, None),
        ([], {}, None),
    ],
)
def test_the_choice(routes: list[Route], options: dict[str, Any], expected: Route | None) -> None:
    assert choose(routes, TableOptions(**options)) is expected


def test_equal_gflops_are_decided_by_bytes() -> None:
    small, large = route("adapter", 0.9, 0.2, bytes=10), route("pixel", 0.9, 0.2, bytes=20)
    assert choose([large, small], TableOptions()) is small


ROUTES = st.lists(
    st.builds(
        route,
        st.sampled_from(["adapter", "pixel"]),
        st.none() | st.floats(0, 1),
        st.none() | st.floats(0, 9),
        bytes=st.integers(0, 9),
    ),
    max_size=6,
)


@given(ROUTES, st.randoms())
def test_the_order_of_routes_decides_nothing_and_the_default_floor_holds(
    routes: list[Route], random: Any
) -> None:
    chosen = choose(routes, TableOptions())
    shuffled = random.sample(routes, len(routes))
    assert choose(shuffled, TableOptions()) == chosen
    measured = [r.fidelity for r in routes if r.fidelity is not None]
    if measured:
        assert chosen is not None
        assert chosen.fidelity is not None
        assert chosen.fidelity >= max(measured) - MARGIN - 1e-6


def test_a_floor_that_nothing_meets_names_segments_and_the_best(snapshot: FixtureSnapshot) -> None:
    with pytest.raises(RouteError, match=r"labels.*video c{32} segment 0 \(best 0.960, asked 0.99\)"):
        ask(snapshot, "SELECT label FROM labels(min_fidelity := 0.99)", operators=object())


def test_skip_leaves_out_and_reports_such_segments(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT DISTINCT video_id FROM labels(min_fidelity := 0.99, on_error := 'skip')"
    result = ask(snapshot, sql, operators=object())
    assert sorted(result.fetchall()) == [("a" * 32,), ("b" * 32,)]
    assert [(s.video_id, s.segment) for s in result.skipped] == [("c" * 32, 0)]
