"""The benchmark of the query engine: its pure parts, and what it counts on the smallest networks."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.drawn import Shape, draw_archive
from benchmarks.query import again, baselines, memory, touched
from benchmarks.query.__main__ import DEFAULT_PARTS, lines_of, parse_arguments, table
from benchmarks.query.child import Orders, Report, Took, ask_in_process, read_report
from benchmarks.query.linear import fit_line
from benchmarks.query.outcome import Line, shown, spread
from nvpstore.codec.build import build_architecture, find_preset
from nvpstore.types import RouteRecord

TOOK = Took(
    seconds=2.0,
    rows=3,
    digest="a",
    decoded_frames=25,
    answered_frames=0,
    fetched_segments=1,
    resident_bytes=100,
    peak_bytes=150,
)


def report(*took: Took, torch: bool = False) -> Report:
    return Report(open_seconds=0.1, torch=torch, took=took)


def test_a_straight_line_is_found_with_its_fixed_cost() -> None:
    line = fit_line([1, 2, 4, 8], [0.5 + 0.25 * x for x in (1, 2, 4, 8)])
    assert line["fixed_seconds"] == pytest.approx(0.5)
    assert line["seconds_a_frame"] == pytest.approx(0.25)
    assert line["r2"] == pytest.approx(1)
    assert line["largest_residual"] < 1e-9


def test_a_bend_shows_in_the_residual() -> None:
    line = fit_line([1, 2, 4, 8], [1, 4, 16, 64])
    assert line["r2"] < 0.97
    assert line["largest_residual"] > 0.5


def test_two_points_say_nothing_about_a_line() -> None:
    with pytest.raises(ValueError, match="2 points"):
        fit_line([1, 2], [1, 2])


def test_spread_is_shown_with_its_extremes() -> None:
    assert shown(spread([0.3, 0.1, 0.2]), " s") == "0.2 (0.1–0.3) s"


def test_a_report_survives_its_json() -> None:
    told = report(TOOK, replace(TOOK, rows=4))
    assert read_report(json.loads(json.dumps(asdict(told)))) == told


def again_row(*, decoded: int = 0, digest: str = "a", torch: bool = False) -> dict[str, object]:
    stored = replace(TOOK, seconds=0.02, decoded_frames=decoded, digest=digest)
    more = replace(TOOK, decoded_frames=25, answered_frames=25)
    return again.row_of(1, [report(TOOK)], [report(stored, stored, torch=torch)], [report(more)])


def test_again_meets_its_targets() -> None:
    assert [line.met for line in again.lines({"lengths": [again_row()]})] == [True, True, True]


@pytest.mark.parametrize("wrong", [{"decoded": 1}, {"digest": "b"}, {"torch": True}])
def test_again_tells_what_was_not_only_read(wrong: dict[str, object]) -> None:
    found = again.lines({"lengths": [again_row(**wrong)]})  # type: ignore[arg-type]
    assert [line.met for line in found] == [True, False, True]


def test_features_are_as_many_budgets_as_they_must_be() -> None:
    arch = build_architecture(272, 640, memory.FRAMES, find_preset("demo"))
    segments = memory.segments_for(arch)
    amount = segments * memory.FRAMES * memory.frame_bytes(arch)
    one = memory.FRAMES * memory.frame_bytes(arch)
    assert amount - one < memory.LEAST_FEATURES * memory.BUDGET_BYTES <= amount


def test_every_query_is_asked_alike_often() -> None:
    asked = baselines.asked_order()
    assert {asked.count(query) for query in baselines.QUERIES} == {baselines.TIMES}
    assert asked != list(baselines.QUERIES) * baselines.TIMES


def route(segment: int, kind: str, gflops: float) -> RouteRecord:
    return RouteRecord(
        segment=segment,
        route=kind,  # type: ignore[arg-type]
        stages=("1",),
        cut="",
        scope="segment",
        cka=None,
        ridge_r2=None,
        fidelity=None,
        fidelity_confident=None,
        confident_frames=0,
        gflops=gflops,
        bytes=1,
        adapter=(),
    )


def test_lent_routes_are_adapters_by_cost_counted_round() -> None:
    routes = [route(0, "adapter", 3), route(0, "adapter", 1), route(0, "pixel", 0), route(1, "adapter", 7)]
    assert [r.gflops for r in baselines.chosen_routes(routes, 0)] == [1, 7]
    assert [r.gflops for r in baselines.chosen_routes(routes, 1)] == [3, 7]
    assert [r.gflops for r in baselines.chosen_routes(routes, 2)] == [1, 7]


def test_the_table_marks_what_was_missed() -> None:
    _, _, met, missed = table(
        [
            Line(part="again", what="a", found="60x", target="50x", met=True),
            Line(part="again", what="b", found="40x", target="50x", met=False),
        ]
    )
    assert met.endswith("ok")
    assert missed.endswith("MISSED")


def test_long_parts_run_only_when_named() -> None:
    assert tuple(parse_arguments([]).parts) == DEFAULT_PARTS
    assert parse_arguments(["planning"]).parts == ["planning"]


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["nothing"])
    assert "no part nothing" in capsys.readouterr().err


def test_a_range_touches_the_segments_it_lies_in() -> None:
    found = touched.touched_by(touched.RANGE_SQL, 13)
    assert found["decoded_frames"] == 26
    assert found["begun_segments"] == found["decoded_segments"] == 2
    assert 0 < found["read_bytes"] < found["stored_bytes"]
    assert all(
        line.met for line in lines_of("touched", {"between": found, "limit": found | {"segments": 100}})
    )


def test_stored_answers_are_read_without_torch(tmp_path: Path) -> None:
    shape = Shape(preset="micro", height=96, width=144, segments=2, frames=8, tasks=touched.TASK)
    draw_archive(str(tmp_path / "archive"), shape)
    orders = Orders(root=str(tmp_path / "archive"), queries=("SELECT frame, label FROM labels",))
    first, then = (ask_in_process(orders, NVP_CACHE=str(tmp_path / "cache")) for _ in range(2))
    assert (first.torch, first.took[0].decoded_frames) == (True, 16)
    assert (then.torch, then.took[0].decoded_frames, then.took[0].answered_frames) == (False, 0, 16)
    assert then.took[0].digest == first.took[0].digest
