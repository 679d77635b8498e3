"""Rows that come before all segments are done, and queries that end once they have enough."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nvpstore.archive import Archive
from nvpstore.errors import IntegrityError, QueryError
from nvpstore.query.progress import QueryProgress
from nvpstore.query.request import Request
from nvpstore.query.run import Stream, execute, execute_stream
from nvpstore.query.scheduler import SCHEDULER
from tests.query.archive_fixture import SETTINGS, CountingOperators, FixtureSnapshot, ask

A = "a" * 32
SEGMENTS = 7  # of all videos of the fixture


class Broken(CountingOperators):
    """One segment cannot be read."""

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> Any:
        if segment == 2:
            raise IntegrityError("bytes differ")
        return super().fetch(snapshot, video_id, segment, stage)


def stream(snapshot: FixtureSnapshot, sql: str, operators: Any = None, **options: Any) -> Stream:
    made = CountingOperators() if operators is None else operators
    return execute_stream(
        Request(sql=sql, snapshot=snapshot, operators_factory=lambda: made, settings=SETTINGS, **options)
    )


class TestStream:
    PLAIN = "SELECT video_id, frame, label, score * 2 AS s FROM labels WHERE score > 0.3 AND frame % 2 = 0"

    @pytest.mark.parametrize(
        "sql",
        [
            PLAIN,
            "SELECT * FROM labels WHERE label = 'no such'",
            "SELECT frame, rank FROM labels",
            "SELECT frame, label FROM labels ORDER BY label, frame, video_id, rank",
            "SELECT label, count(*) FROM labels GROUP BY label ORDER BY label",
            "SELECT l.frame FROM labels l JOIN embed e USING (video_id, frame) WHERE e.embedding[1] > 3",
            "SELECT name FROM videos",
            "SELECT max(name) FROM videos GROUP BY name HAVING false",
            "SELECT label AS l, l || 'x' FROM labels WHERE rank = 1",
        ],
    )
    def test_its_rows_are_those_of_the_query(self, snapshot: FixtureSnapshot, sql: str) -> None:
        expected = ask(snapshot, sql)
        batches = list(stream(snapshot, sql))
        assert {batch.schema for batch in batches} == {expected.arrow().schema}
        found = pa.Table.from_batches(batches).to_pylist()
        assert sorted(map(repr, found)) == sorted(map(repr, expected.arrow().to_pylist()))

    def test_rows_come_segment_by_segment(self, snapshot: FixtureSnapshot) -> None:
        operators = CountingOperators()
        batches = stream(snapshot, self.PLAIN, operators)
        assert next(batches).num_rows == 0  # the columns
        first = next(batches)
        assert set(first["video_id"].to_pylist()) == {A}
        assert max(first["frame"].to_pylist()) < 30
        assert operators.decoded.total() == 15
        batches.close()
        assert operators.decoded.total() == 15
        assert all(held.dropped for held in operators.ahead)
        assert SCHEDULER.running == 0

    def test_it_can_be_cancelled_at_any_moment(self, snapshot: FixtureSnapshot) -> None:
        cancel, operators = threading.Event(), CountingOperators()
        batches = stream(snapshot, self.PLAIN, operators, cancel=cancel)
        next(batches), next(batches)
        cancel.set()
        with pytest.raises(QueryError, match="the query was cancelled"):
            list(batches)
        assert operators.decoded.total() == 15

    def test_an_error_names_the_segment(self, snapshot: FixtureSnapshot) -> None:
        batches = stream(snapshot, self.PLAIN, Broken())
        with pytest.raises(IntegrityError, match=f"video {A} segment 2, fetching .*bytes differ"):
            list(batches)

    def test_the_lines_of_a_plan_are_its_rows(self, snapshot: FixtureSnapshot) -> None:
        sql, operators = "EXPLAIN SELECT * FROM labels", CountingOperators()
        lines = [line for batch in stream(snapshot, sql, operators) for line in batch["plan"].to_pylist()]
        assert lines == ask(snapshot, sql).explain().splitlines()
        assert operators.fetches == []

    def test_it_tells_what_is_left_out_and_what_cannot_hold(self, snapshot: FixtureSnapshot) -> None:
        sql = "SELECT frame, rank FROM labels(min_fidelity := 0.97, on_error := 'skip', route := 'source') l"
        batches = stream(snapshot, f"{sql} WHERE label = 'cat' AND rank = 9")
        assert batches.plan is None
        assert batches.skipped == ()
        assert sum(batch.num_rows for batch in batches) == 0
        expected = ask(snapshot, f"{sql} WHERE label = 'cat' AND rank = 9")
        assert batches.skipped == expected.skipped != ()
        assert batches.warnings == expected.warnings != ()
        assert batches.plan is not None

    def test_segments_that_fail_on_the_way_are_told_at_the_end(self, snapshot: FixtureSnapshot) -> None:
        batches = stream(snapshot, "SELECT label FROM labels(on_error := 'skip')", Broken())
        assert sum(batch.num_rows for batch in batches) > 0
        assert [(skip.video_id, skip.segment) for skip in batches.skipped] == [(A, 2)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT label FROM labels LIMIT 3",
        "SELECT DISTINCT label FROM labels",
        "SELECT max(score) FROM labels",
        "SELECT frame, lag(frame) OVER () FROM labels",
        "SELECT frame FROM labels WHERE score > (SELECT avg(score) FROM labels)",
        "SELECT frame FROM labels JOIN videos USING (video_id)",
        "SELECT frame FROM labels, videos",
        "SELECT unnest([1, 2]) FROM labels",
        "SELECT first(frame) FROM labels",
        "SELECT frame FROM labels UNION ALL SELECT frame FROM labels",
        "WITH t AS (SELECT frame FROM labels) SELECT * FROM t",
        "SELECT frame FROM labels USING SAMPLE 10%",
        "FROM labels SELECT frame QUALIFY row_number() OVER () < 3",
        "SELECT frame FROM (SELECT * FROM labels LIMIT 3)",
        "SELECT name FROM videos",
    ],
)
def test_what_hangs_on_more_than_one_row_waits_for_all(snapshot: FixtureSnapshot, sql: str) -> None:
    waiting, whole = CountingOperators(), CountingOperators()
    ask(snapshot, sql, whole)
    batches = stream(snapshot, sql, waiting)
    next(batches)
    assert len(waiting.fetches) == len(whole.fetches)
    batches.close()


class TestEnough:
    @pytest.mark.parametrize(
        ("sql", "fetches"),
        [
            ("SELECT label FROM labels LIMIT 5", 1),
            ("SELECT label FROM labels LIMIT 0", 0),
            ("SELECT label FROM labels WHERE rank = 1 LIMIT 31", 2),
            ("SELECT label FROM labels WHERE rank = 1 LIMIT 5 OFFSET 28", 2),
            ("SELECT 1 WHERE EXISTS (SELECT 1 FROM labels WHERE label = 'cat')", 1),
            ("SELECT label FROM labels WHERE label = 'no such' LIMIT 5", SEGMENTS),
            ("SELECT label FROM labels ORDER BY score LIMIT 5", SEGMENTS),
            ("SELECT label, count(*) FROM labels GROUP BY label LIMIT 2", SEGMENTS),
        ],
    )
    def test_it_ends_once_no_more_rows_are_needed(
        self, snapshot: FixtureSnapshot, sql: str, fetches: int
    ) -> None:
        operators = CountingOperators()
        result = ask(snapshot, sql, operators)
        assert len(operators.fetches) == fetches
        limit = int(sql.split("LIMIT ")[1].split()[0]) if "LIMIT" in sql else 1
        assert len(result.fetchall()) == (0 if "no such" in sql else limit)
        assert all(held.dropped for held in operators.ahead)

    def test_an_error_in_the_rows_is_the_query_s(self, snapshot: FixtureSnapshot) -> None:
        with pytest.raises(QueryError, match=r"cat|dog|car|bike|tree|person|boat|bird"):
            ask(snapshot, "SELECT label::INT FROM labels WHERE label::INT > 3 LIMIT 2")


def test_progress_counts_videos_and_frames(snapshot: FixtureSnapshot) -> None:
    seen: list[QueryProgress] = []
    execute(
        Request(
            sql="SELECT l.label, f.image FROM labels l JOIN frames f USING (video_id, frame)",
            snapshot=snapshot,
            operators_factory=CountingOperators,
            settings=SETTINGS,
            on_progress=seen.append,
        )
    )
    assert len(seen) == SEGMENTS
    done = [progress.frames_done for progress in seen]
    assert done == sorted(done)
    assert (seen[-1].videos, done[-1], seen[-1].frames_total) == (3, 380, 380)
    assert seen[-1].eta_seconds == 0
    assert all(progress.eta_seconds is not None and progress.eta_seconds >= 0 for progress in seen)


def test_queries_read_the_caller_s_tables(snapshot: FixtureSnapshot) -> None:
    watch = pa.table({"frame": pa.array([3, 40], pa.int64())})
    sql = "SELECT w.frame, l.label FROM watch w JOIN best l USING (frame) WHERE l.video_id = $1"
    result = execute(
        Request(
            sql=sql,
            snapshot=snapshot,
            operators_factory=CountingOperators,
            settings=SETTINGS,
            params=[A],
            tables={"watch": watch},
            views={"best": "SELECT * FROM labels WHERE rank = 1"},
        )
    )
    assert sorted(row[0] for row in result.fetchall()) == [3, 40]


def test_an_archive_streams_the_caller_s_tables_and_views(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "archive", settings=replace(SETTINGS, cache_dir=tmp_path / "cache"))
    batches = archive.stream(
        "SELECT n + $1 AS n FROM odd",
        params=[10],
        tables={"numbers": pa.table({"n": [1, 2, 3]})},
        views={"odd": "SELECT n FROM numbers WHERE n % 2 = 1"},
        progress=lambda _: None,
    )
    assert [row["n"] for batch in batches for row in batch.to_pylist()] == [11, 13]
