"""What is fetched, decoded, shared, dropped and reported while a plan runs."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest

from nvpstore.errors import CodecError, IntegrityError, QueryError, StoreError
from nvpstore.query.request import Request
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

    found = execute(
        Request(sql=sql, snapshot=snapshot, operators_factory=refuse, settings=SETTINGS)
    ).fetchall()
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


class TestReadAhead:
    """What the next steps fetch is begun before their turn, and let go of after it."""

    def segments(self, operators: CountingOperators) -> list[Any]:
        return [held for held in operators.ahead if held.segment is not None]

    def test_the_next_steps_are_begun_in_order_and_not_too_early(self, snapshot: FixtureSnapshot) -> None:
        begun_at_fetch: list[int] = []

        class Watching(CountingOperators):
            def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> Any:
                begun_at_fetch.append(len([held for held in self.ahead if held.segment is not None]))
                assert (video_id, segment, stage) in [held.segment for held in self.ahead]
                return super().fetch(snapshot, video_id, segment, stage)

        operators = Watching()
        ask(snapshot, "SELECT label FROM labels", operators)
        assert [held.segment for held in self.segments(operators)] == operators.fetches
        steps = len(operators.fetches)
        assert begun_at_fetch == [min(turn + 1 + 4, steps) for turn in range(steps)]
        assert all(held.dropped for held in operators.ahead)

    def test_at_most_four_wait_beside_the_present_one(self, snapshot: FixtureSnapshot) -> None:
        most = 0

        class Watching(CountingOperators):
            def decode(self, handle: Any, frames: Any, taps: tuple[str, ...]) -> Any:
                nonlocal most
                most = max(most, sum(held.segment is not None and not held.dropped for held in self.ahead))
                return super().decode(handle, frames, taps)

        ask(snapshot, "SELECT label FROM labels", Watching())
        assert most == 1 + 4

    def test_the_adapters_of_a_video_are_asked_for_at_once(self, snapshot: FixtureSnapshot) -> None:
        operators = CountingOperators()
        ask(snapshot, "SELECT label FROM labels WHERE segment < 3", operators)
        adapters = [held.adapters for held in operators.ahead if held.adapters]
        assert [len(ranges) for ranges in adapters] == [3, 2, 1]  # segments of the three videos
        assert [len({wanted.key for wanted in ranges}) for ranges in adapters] == [1, 1, 1]

    def test_adapters_are_held_until_their_last_segment(self, snapshot: FixtureSnapshot) -> None:
        class Watching(CountingOperators):
            def load(self, snapshot: Any, route: Any, scan: Any) -> Any:
                assert any(route.adapter in held.adapters and not held.dropped for held in self.ahead)
                return super().load(snapshot, route, scan)

        operators = Watching()
        ask(snapshot, "SELECT label FROM labels", operators)
        assert all(held.dropped for held in operators.ahead)

    def test_adapters_held_at_once_are_bounded(
        self, snapshot: FixtureSnapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("nvpstore.query.read_ahead.ADAPTER_BYTES", 700)
        operators = CountingOperators()
        ask(snapshot, f"SELECT label FROM labels WHERE video_id = '{A}'", operators)
        assert [len(held.adapters) for held in operators.ahead if held.adapters] == [2, 2]

    def test_the_source_route_has_nothing_to_begin(self, snapshot: FixtureSnapshot) -> None:
        operators = CountingOperators()
        ask(snapshot, f"SELECT label FROM labels(route := 'source') WHERE video_id = '{A}'", operators)
        assert operators.ahead == []

    @pytest.mark.parametrize("at", ["fetch", "tail"])
    def test_an_error_lets_go_of_everything(self, snapshot: FixtureSnapshot, at: str) -> None:
        operators = Broken(IntegrityError("bytes differ"), at=at)
        with pytest.raises(IntegrityError):
            ask(snapshot, "SELECT label FROM labels", operators)
        assert operators.ahead
        assert all(held.dropped for held in operators.ahead)

    def test_cancelling_lets_go_of_everything(self, snapshot: FixtureSnapshot) -> None:
        cancel = threading.Event()

        class Cancelling(CountingOperators):
            def tail(self, route: Any, features: Any) -> Any:
                cancel.set()
                return super().tail(route, features)

        operators = Cancelling()
        with pytest.raises(QueryError, match="cancelled"):
            ask(snapshot, "SELECT label FROM labels", operators, cancel=cancel, batch_frames=4)
        assert len(self.segments(operators)) == 5
        assert all(held.dropped for held in operators.ahead)

    def test_what_cannot_be_begun_is_the_step_s_own_error(self, snapshot: FixtureSnapshot) -> None:
        class Refusing(CountingOperators):
            def prefetch(self, snapshot: Any, *, segment: Any, adapters: Any) -> Any:
                raise StoreError("the line is dead")

        found = ask(snapshot, "SELECT label FROM labels", Refusing()).fetchall()
        assert found == ask(snapshot, "SELECT label FROM labels").fetchall()


def test_planning_imports_no_torch() -> None:
    code = "import sys, nvpstore.query.run; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
