"""What is fetched, decoded, shared, dropped and reported while a plan runs."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest

from nvpstore.errors import CodecError, IntegrityError, QueryError
from nvpstore.query.run import execute
from tests.query.archive_fixture import (
    LATENTS_BYTES,
    SETTINGS,
    CountingOperators,
    FixtureSnapshot,
    ask,
    naive,
)

A = "a" * 32


class Broken(CountingOperators):
    """Fails on one segment of the first video."""

    def __init__(self, error: Exception, *, at: str) -> None:
        super().__init__()
        self.error, self.at = error, at

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> Any:
        if self.at == "fetch" and (video_id, segment) == (A, 1):
            raise self.error
        return super().fetch(snapshot, video_id, segment, stage)

    def tail(self, route: Any, features: Any) -> Any:
        if self.at == "tail" and (route.route.video_id, route.route.segment) == (A, 1):
            raise self.error
        return super().tail(route, features)


def test_only_the_needed_prefix_of_the_needed_segments_is_fetched(snapshot: FixtureSnapshot) -> None:
    operators = CountingOperators()
    sql = f"SELECT label FROM labels WHERE video_id = '{A}' AND ts BETWEEN 1.3 AND 1.5"
    result = ask(snapshot, sql, operators)
    assert operators.fetches == [(A, 1, "2")]
    assert result.measured is not None
    assert result.measured.prefix_bytes == 7000
    assert result.measured.bytes == 7000 + LATENTS_BYTES + 300


def test_a_self_join_computes_once(snapshot: FixtureSnapshot) -> None:
    operators = CountingOperators()
    sql = "SELECT a.label FROM labels a JOIN labels b USING (video_id, frame, rank) WHERE a.segment = 0"
    ask(snapshot, sql, operators)
    assert max(operators.decoded.values()) == 1
    assert operators.tails == operators.decoded.total()


def test_a_shallower_decode_is_a_tap_of_the_deeper_one(snapshot: FixtureSnapshot) -> None:
    operators = CountingOperators()
    sql = (
        f"SELECT f.image, l.label, e.embedding FROM frames f JOIN labels l USING (video_id, frame)"
        f" JOIN embed e USING (video_id, frame) WHERE f.video_id = '{A}' AND f.frame < 40"
    )
    result = ask(snapshot, sql, operators)
    assert operators.fetches == [(A, 0, "rgb"), (A, 1, "rgb")]
    assert max(operators.decoded.values()) == 1
    assert operators.decoded.total() == 40
    assert set(operators.deepest) == {("1", "2", "3", "rgb")}
    assert result.measured is not None
    assert result.measured.shared_decodes == 80


def test_frames_that_only_the_shallow_scan_needs_are_decoded_shallowly(snapshot: FixtureSnapshot) -> None:
    operators = CountingOperators()
    sql = (
        f"SELECT count(l.label) FROM labels l WHERE l.video_id = '{A}' AND l.segment = 0 UNION ALL"
        f" SELECT count(f.image) FROM frames f WHERE f.video_id = '{A}' AND f.frame = 3"
    )
    ask(snapshot, sql, operators)
    assert operators.fetches == [(A, 0, "rgb")]
    assert operators.decoded.total() == 30
    assert sorted(operators.deepest) == [("2",), ("2", "rgb")]


def test_batches_are_bounded_and_change_nothing(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT * FROM labels WHERE ts < 3"
    operators = CountingOperators()
    small = ask(snapshot, sql, operators, batch_frames=4).fetchall()
    assert max(operators.batches) == 4
    assert small == ask(snapshot, sql).fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM videos",
        "SELECT count(*) FROM labels",
        "SELECT video_id, frame, rank, route, fidelity FROM labels WHERE ts > 1",
        "SELECT * EXCLUDE (image) FROM frames",
        "SELECT sum(width * height) FROM frames WHERE frame < 5",
        "SELECT label FROM labels WHERE frame < 0",
        "EXPLAIN SELECT * FROM labels",
    ],
)
def test_nothing_is_decoded_where_nothing_needs_to_be(snapshot: FixtureSnapshot, sql: str) -> None:
    def refuse() -> Any:
        raise AssertionError("operators were asked for")

    found = execute(sql, snapshot=snapshot, operators_factory=refuse, settings=SETTINGS).fetchall()
    if not sql.startswith("EXPLAIN"):
        assert sorted(map(repr, found)) == sorted(map(repr, naive(snapshot, sql)))


def test_the_source_route_reads_the_source(snapshot: FixtureSnapshot) -> None:
    operators = CountingOperators()
    sql = f"SELECT label, route FROM labels(route := 'source') WHERE video_id = '{A}' AND frame < 5"
    result = ask(snapshot, sql, operators)
    assert (operators.fetches, operators.source_frames) == ([], 5)
    assert {row[1] for row in result.fetchall()} == {"source"}


@pytest.mark.parametrize("at", ["fetch", "tail"])
def test_an_error_names_the_step_and_keeps_its_type_and_cause(snapshot: FixtureSnapshot, at: str) -> None:
    operators = Broken(IntegrityError("bytes differ"), at=at)
    with pytest.raises(IntegrityError, match=rf"labels@9c21…, video {A} segment 1, .*bytes differ") as error:
        ask(snapshot, "SELECT label FROM labels", operators)
    assert error.value.__cause__ is operators.error


@pytest.mark.parametrize("at", ["fetch", "tail"])
def test_skip_leaves_out_a_damaged_segment_and_reports_it(snapshot: FixtureSnapshot, at: str) -> None:
    operators = Broken(IntegrityError("bytes differ"), at=at)
    sql = f"SELECT segment, min(label) FROM labels(on_error := 'skip') WHERE video_id = '{A}' GROUP BY 1"
    result = ask(snapshot, sql, operators)
    assert sorted(row[0] for row in result.fetchall()) == [0, 2, 3]
    assert [(s.video_id, s.segment) for s in result.skipped] == [(A, 1)]
    assert "bytes differ" in result.skipped[0].reason


def test_a_failing_tail_of_one_task_leaves_the_other_alone(snapshot: FixtureSnapshot) -> None:
    operators = Broken(IntegrityError("bytes differ"), at="tail")
    sql = (
        f"SELECT count(label) FROM labels(on_error := 'skip') WHERE video_id = '{A}'"
        f" UNION ALL SELECT count(image) FROM frames WHERE video_id = '{A}'"
    )
    assert ask(snapshot, sql, operators).fetchall() == [(70 * 5,), (100,)]


def test_a_bug_is_never_skipped(snapshot: FixtureSnapshot) -> None:
    operators = Broken(RuntimeError("shape mismatch"), at="tail")
    with pytest.raises(CodecError, match=r"segment 1, answering: shape mismatch"):
        ask(snapshot, "SELECT label FROM labels(on_error := 'skip')", operators)


def test_cancelling_stops_between_batches(snapshot: FixtureSnapshot) -> None:
    cancel = threading.Event()

    class Cancelling(CountingOperators):
        def tail(self, route: Any, features: Any) -> Any:
            cancel.set()
            return super().tail(route, features)

    operators = Cancelling()
    with pytest.raises(QueryError, match="the query was cancelled"):
        ask(snapshot, "SELECT label FROM labels", operators, cancel=cancel, batch_frames=4)
    assert operators.tails == 4


def test_features_are_dropped_after_their_last_reader(snapshot: FixtureSnapshot) -> None:
    alive: list[weakref.ref[Any]] = []

    class Features(dict[str, Any]):
        pass

    class Watching(CountingOperators):
        def decode(self, handle: Any, frames: Any, taps: tuple[str, ...]) -> Any:
            gc.collect()
            assert sum(ref() is not None for ref in alive) == 0
            features = Features(super().decode(handle, frames, taps))
            alive.append(weakref.ref(features))
            return features

    ask(snapshot, "SELECT label FROM labels", Watching(), batch_frames=16)
    assert len(alive) > 10


def test_planning_imports_no_torch() -> None:
    code = "import sys, nvpstore.query.run; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
