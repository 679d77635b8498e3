"""DuckDB's part of a query in a process of its own: the same answers, and an end to whatever goes too far."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nvpstore.catalog.files import IndexFile, connect_elsewhere
from nvpstore.errors import QueryError, QueryTimeout, StoreError
from nvpstore.query.asking import Here
from nvpstore.query.child import Child
from nvpstore.query.children import Children
from nvpstore.query.request import Request
from nvpstore.query.run import Stream, execute, execute_stream
from nvpstore.query.scheduler import Cancelled
from nvpstore.query.serving import MOST_ROW_BYTES, ChildLimits, parts
from nvpstore.query.spill import Rows
from tests.query.archive_fixture import SETTINGS, CountingOperators, FixtureSnapshot, ask

LIMITS = ChildLimits(memory_bytes=512 << 20, threads=2, seconds=60)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children(warm=1)
    made.start()
    yield made
    made.close()


@pytest.fixture
def child(children: Children, snapshot: FixtureSnapshot) -> Iterator[Child]:
    with children.lend(snapshot.elsewhere(), limits=LIMITS, stop=threading.Event()) as lent:
        yield lent


def request(snapshot: FixtureSnapshot, sql: str, **options: Any) -> Request:
    operators = options.pop("operators", None) or CountingOperators()
    given = {"settings": SETTINGS, "operators_factory": lambda: operators, **options}
    return Request(sql=sql, snapshot=snapshot, **given)


def stream(snapshot: FixtureSnapshot, sql: str, children: Children, **options: Any) -> Stream:
    return execute_stream(request(snapshot, sql, children=children, **options))


SAME = {
    "nothing of ours": "SELECT 1 AS a, 'x' AS b, NULL AS c",
    "a view": "SELECT name, tags, recorded_at FROM videos ORDER BY name",
    "a task table": "SELECT video_id, frame, label, score FROM labels WHERE rank = 1",
    "predicates": "SELECT frame, ts FROM labels WHERE video_id LIKE 'a%' AND ts BETWEEN 0.5 AND 1",
    "a predicate that fails on some rows": "SELECT frame FROM labels l JOIN videos v USING (video_id)"
    " WHERE TRY_CAST(v.name AS INT) = 7 AND v.name::INT = 7 AND rank = 1",
    "joins": "SELECT frame, e.embedding FROM labels l JOIN embed e USING (video_id, frame) WHERE l.rank = 1",
    "aggregates": "SELECT label, count(*) AS n, max(score) AS s FROM labels GROUP BY label ORDER BY label",
    "structs": "SELECT object, box, box.x1 FROM objects ORDER BY video_id, frame, object",
    "blobs": "SELECT frame, image FROM frames WHERE frame < 3",
    "maps, lists and nested values": "SELECT map {'a': [1, 2]} AS m, {'b': [{'c': 1}]} AS s",
    "an enumeration": "SELECT (['x', 'y'])[1 + range % 2]::ENUM('x', 'y') AS e FROM range(5)",
    "times": "SELECT TIMESTAMPTZ '2026-01-01 00:00:00+02' AS t, DATE '2026-01-01' AS d, INTERVAL 1 DAY AS i",
    "no rows": "SELECT label FROM labels WHERE label = 'no such'",
    "no rows of an aggregate": "SELECT max(frame) FROM labels GROUP BY label HAVING false",
    "a limit": "SELECT label FROM labels WHERE rank = 1 LIMIT 31",
    "a limit of nothing": "SELECT label FROM labels LIMIT 0",
    "exists": "SELECT 1 AS a WHERE EXISTS (SELECT 1 FROM labels WHERE label = 'cat')",
    "sampled": "SELECT frame, ts FROM labels(every := 0.5) WHERE rank = 1",
    "two columns of a name": "SELECT 1 AS a, 2 AS a",
    "many rows": "SELECT range AS n, 'row ' || range AS t FROM range(100000)",
    "a plan": "EXPLAIN SELECT label FROM labels WHERE rank = 1",
}


@pytest.mark.parametrize("sql", SAME.values(), ids=SAME)
def test_its_rows_are_those_of_the_plain_query(
    snapshot: FixtureSnapshot, children: Children, sql: str
) -> None:
    plain = ask(snapshot, sql).arrow()
    apart = pa.Table.from_batches(stream(snapshot, sql, children))
    assert apart.schema == plain.schema
    assert sorted(map(repr, apart.to_pylist())) == sorted(map(repr, plain.to_pylist()))


def test_parameters_views_and_tables_of_the_caller_go_with_it(
    snapshot: FixtureSnapshot, children: Children
) -> None:
    asked = {
        "sql": "SELECT n.frame, n.label, t.x FROM night n JOIN t ON t.frame = n.frame WHERE n.score > $least",
        "params": {"least": 0.2},
        "views": {"night": "SELECT * FROM labels WHERE rank = 1"},
        "tables": {"t": pa.table({"frame": [1, 2, 3], "x": ["a", "b", "c"]})},
    }
    plain = execute(request(snapshot, **asked)).fetchall()
    apart = execute(request(snapshot, children=children, **asked)).fetchall()
    assert len(plain) > 3
    assert sorted(apart) == sorted(plain)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT labl FROM labels", 'column "labl"'),
        ("SELECT 1 + 'x'::BLOB", "Binder Error"),
        ("SELECT error('mine')", "Invalid Input Error: mine"),
        ("SELECT range::VARCHAR::DATE FROM range(5)", "Conversion Error"),
        ("SELECT name::INT FROM videos", "Conversion Error"),
    ],
)
def test_its_errors_are_those_of_the_plain_query(
    snapshot: FixtureSnapshot, children: Children, sql: str, message: str
) -> None:
    with pytest.raises(QueryError, match=message) as plain:
        ask(snapshot, sql)
    with pytest.raises(QueryError) as apart:
        list(stream(snapshot, sql, children))
    assert str(apart.value) == str(plain.value)


def test_nothing_of_what_a_user_wrote_runs_in_this_process(
    snapshot: FixtureSnapshot, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("check", "few", "numbers", "rows", "batches"):
        monkeypatch.setattr(Here, method, _never)
    sql = (
        "SELECT frame FROM labels JOIN videos v USING (video_id) WHERE v.name = 'gate.mp4' AND ts < 1 LIMIT 3"
    )
    assert sum(batch.num_rows for batch in stream(snapshot, sql, children)) == 3


def _never(*_: Any) -> Any:
    raise AssertionError("asked here")


class TestStreams:
    PLAIN = "SELECT video_id, frame, label FROM labels WHERE rank = 1"

    def test_rows_come_segment_by_segment(self, snapshot: FixtureSnapshot, children: Children) -> None:
        operators = CountingOperators()
        batches = stream(snapshot, self.PLAIN, children, operators=operators)
        assert next(batches).num_rows == 0  # the columns
        next(batches)
        assert operators.decoded.total() == 30
        batches.close()
        assert operators.decoded.total() == 30

    def test_rows_are_computed_as_they_are_read(self, children: Children, child: Child) -> None:
        rows = child.batches("SELECT range AS n FROM range(1000000000000)", 1000)
        assert [next(rows)["n"][0].as_py() for _ in range(3)] == [0, 1000, 2000]

    def test_large_rows_travel_alone(self, child: Child) -> None:
        sql = "SELECT repeat('x', 3000000) AS text FROM range(3)"
        assert [batch.num_rows for batch in child.batches(sql, 1000)] == [1, 1, 1]

    def test_a_row_may_be_only_so_large(self, child: Child) -> None:
        with pytest.raises(QueryError, match=f"a row of .* bytes: at most {MOST_ROW_BYTES}"):
            child.rows("SELECT repeat('x', 70000000)")

    def test_rows_on_disk_are_read_from_there(self, child: Child) -> None:
        table = pa.table({"n": list(range(1000))})
        with Rows(limit=lambda: 0) as rows:
            rows.add(0, table)
            child.register("spilled", rows.relation(0, table.schema))
            assert child.numbers("SELECT sum(n)::BIGINT FROM spilled").tolist() == [499500]

    def test_an_error_after_some_rows_is_told(self, child: Child) -> None:
        late = "CASE WHEN range < 3000000 THEN 1 ELSE error('late') END"
        rows = child.batches(f"SELECT {late} FROM range(3000001)", 100_000)
        assert next(rows).num_rows > 0
        with pytest.raises(Exception, match="late"):
            list(rows)


def test_a_batch_is_cut_by_size_and_by_rows() -> None:
    batch = pa.record_batch({"text": ["x" * 700_000] * 5})
    assert [part.num_rows for part in parts(batch, most_rows=100)] == [1, 1, 1, 1, 1]
    small = pa.record_batch({"n": list(range(10))})
    assert [part.num_rows for part in parts(small, most_rows=100)] == [10]
    assert sum(part.num_rows for part in parts(small, most_rows=3)) == 10
    assert max(part.num_rows for part in parts(small, most_rows=3)) <= 3


class TestEnds:
    def test_a_query_that_is_cancelled_before_its_first_row_ends_at_once(
        self, snapshot: FixtureSnapshot, children: Children
    ) -> None:
        cancel = threading.Event()
        threading.Timer(0.3, cancel.set).start()
        sql = "SELECT count(*) FROM range(100000000) a, range(100000000) b"
        with pytest.raises(QueryError, match="the query was cancelled"):
            list(stream(snapshot, sql, children, cancel=cancel))

    def test_a_deadline_is_an_error_of_its_own(self, snapshot: FixtureSnapshot, children: Children) -> None:
        sql = "SELECT count(*) FROM range(100000000) a, range(100000000) b"
        with pytest.raises(QueryTimeout, match=r"stopped after 0\.3 s"):
            list(stream(snapshot, sql, children, seconds=0.3))

    def test_what_is_asked_while_planning_is_limited_as_well(
        self, snapshot: FixtureSnapshot, children: Children
    ) -> None:
        # Evaluated when the query is bound, and when its scope is found.
        for where in ("length(repeat('x', 4000000000)) > 1", "length(repeat(video_id, 900000000)) > 1"):
            with pytest.raises(QueryError):
                list(stream(snapshot, f"SELECT frame FROM labels WHERE {where}", children, seconds=2))

    def test_after_a_query_whose_process_died_the_next_one_is_answered(
        self, snapshot: FixtureSnapshot, children: Children
    ) -> None:
        with children.lend(snapshot.elsewhere(), limits=LIMITS, stop=threading.Event()) as child:
            os.kill(child.pid, 9)
            with pytest.raises(QueryError, match=r"its process ended \(-9\)"):
                child.rows("SELECT 1")
        assert pa.Table.from_batches(stream(snapshot, "SELECT 1 AS a", children)).to_pylist() == [{"a": 1}]

    def test_processes_that_ended_while_they_waited_are_replaced(
        self, snapshot: FixtureSnapshot, children: Children
    ) -> None:
        list(stream(snapshot, "SELECT 1", children))
        forker = children._forker
        assert forker is not None
        os.kill(forker._process.pid, 9)
        forker._process.wait()
        assert pa.Table.from_batches(stream(snapshot, "SELECT 1 AS a", children)).to_pylist() == [{"a": 1}]

    def test_with_its_parent_all_end(self, snapshot: FixtureSnapshot) -> None:
        own = Children(warm=2)
        with own.lend(snapshot.elsewhere(), limits=LIMITS, stop=threading.Event()) as child:
            pid = child.pid
            own.close()
            _wait_until(lambda: not Path(f"/proc/{pid}").exists())

    def test_a_stopped_child_answers_nothing_more(
        self, snapshot: FixtureSnapshot, children: Children
    ) -> None:
        stop = threading.Event()
        with children.lend(snapshot.elsewhere(), limits=LIMITS, stop=stop) as child:
            stop.set()
            with pytest.raises(Cancelled):
                child.rows("SELECT count(*) FROM range(100000000000)")


class TestServingAgain:
    @pytest.fixture
    def own(self) -> Iterator[Children]:
        """One process, so that it is plain who serves next."""
        made = Children(warm=1)
        yield made
        made.close()

    def test_a_process_whose_query_ended_well_serves_the_next(
        self, snapshot: FixtureSnapshot, own: Children
    ) -> None:
        pids = {_pid_of(snapshot, own) for _ in range(20)}
        assert len(pids) <= 2  # of which one was started ahead

    def test_nothing_of_a_query_is_there_for_the_next(self, snapshot: FixtureSnapshot, own: Children) -> None:
        with lent(snapshot, own) as child:
            child.register("mine", pa.table({"n": [1]}))
            assert child.numbers("SELECT n::BIGINT FROM mine").tolist() == [1]
            before = child.pid
        with lent(snapshot, own, pid=before) as child, pytest.raises(Exception, match="mine does not exist"):
            child.rows("FROM mine")

    def test_one_whose_query_failed_serves_no_more(self, snapshot: FixtureSnapshot, own: Children) -> None:
        with lent(snapshot, own) as child:
            pid = child.pid
        with pytest.raises(Exception, match="syntax"), lent(snapshot, own, pid=pid) as child:
            child.rows("SELEC 1")
        _wait_until(lambda: not Path(f"/proc/{pid}").exists())

    def test_one_whose_rows_nobody_read_serves_no_more(
        self, snapshot: FixtureSnapshot, own: Children
    ) -> None:
        with lent(snapshot, own) as child:
            next(child.batches("SELECT range AS n FROM range(1000000)", 1000))
            pid = child.pid
        _wait_until(lambda: not Path(f"/proc/{pid}").exists())

    def test_time_is_counted_for_each_query(self, snapshot: FixtureSnapshot, own: Children) -> None:
        busy = "SELECT sum(hash(a.range + b.range)) FROM range(20000) a, range(2000) b"
        with lent(snapshot, own) as child:
            child.rows(busy)
            pid = child.pid
        tight = replace(LIMITS, seconds=1, threads=1)
        with lent(snapshot, own, limits=tight, pid=pid) as child, pytest.raises(QueryTimeout):
            child.rows("SELECT count(*) FROM range(100000000) a, range(100000000) b")

    def test_it_opens_another_index_when_asked_to(
        self, snapshot: FixtureSnapshot, own: Children, tmp_path: Path
    ) -> None:
        with lent(snapshot, own) as child:
            pid = child.pid
        gone = partial(
            connect_elsewhere, IndexFile(number=1, digest="x", path=tmp_path / "gone.duckdb", base=None)
        )
        with pytest.raises(StoreError), own.lend(gone, limits=LIMITS, stop=threading.Event()):
            pass
        with lent(snapshot, own, pid=pid) as child:
            assert child.rows("SELECT count(*) > 0 AS some FROM videos").to_pylist() == [{"some": True}]


class TestWhatItHas:
    def test_no_variables_of_the_server(
        self, snapshot: FixtureSnapshot, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do not tell")
        own = Children(warm=1)
        with own.lend(snapshot.elsewhere(), limits=LIMITS, stop=threading.Event()) as child:
            assert b"do not tell" not in Path(f"/proc/{child.pid}/environ").read_bytes()
        own.close()

    def test_queries_at_once_have_no_more_memory_together_than_one(self, children: Children) -> None:
        granted = []
        limits = replace(LIMITS, memory_bytes=1 << 30)
        with children._grant(limits) as first, children._grant(limits) as second:
            granted = [first.memory_bytes, second.memory_bytes]
            with children._grant(limits) as third:
                granted.append(third.memory_bytes)
        assert granted == [512 << 20, 256 << 20, 128 << 20]
        with children._grant(limits) as again:
            assert again.memory_bytes == 512 << 20

    def test_what_it_spilled_is_gone_with_it(self, snapshot: FixtureSnapshot, children: Children) -> None:
        before = _spilled()
        limits = replace(LIMITS, memory_bytes=128 << 20)
        sql = "SELECT range AS n, hash(range) AS h FROM range(8000000) ORDER BY h"
        with children.lend(snapshot.elsewhere(), limits=limits, stop=threading.Event()) as child:
            rows = child.batches(sql, 1000)
            next(rows)
            assert _spilled() > before
        _wait_until(lambda: _spilled() <= before)

    def test_an_index_that_is_gone_is_no_fault_of_the_query(
        self, children: Children, snapshot: FixtureSnapshot, tmp_path: Path
    ) -> None:
        gone = IndexFile(number=1, digest="x", path=tmp_path / "gone.duckdb", base=None)
        connect = partial(connect_elsewhere, gone)
        with (
            pytest.raises(StoreError, match=r"gone\.duckdb is gone: .* ask again"),
            children.lend(connect, limits=LIMITS, stop=threading.Event()),
        ):
            pass


@contextmanager
def lent(
    snapshot: FixtureSnapshot, children: Children, *, limits: ChildLimits = LIMITS, pid: int | None = None
) -> Iterator[Child]:
    """A child; with `pid`, the one of that number, which must be waiting."""
    with ExitStack() as others:
        for _ in range(10):
            stop = threading.Event()
            child = others.enter_context(children.lend(snapshot.elsewhere(), limits=limits, stop=stop))
            if pid in (None, child.pid):
                yield child
                return
    raise AssertionError(f"process {pid} serves no more")


def _pid_of(snapshot: FixtureSnapshot, children: Children) -> int | None:
    with children.lend(snapshot.elsewhere(), limits=LIMITS, stop=threading.Event()) as child:
        return child.pid


def _spilled() -> int:
    """Files that children have spilled."""
    return sum(1 for _ in Path(tempfile.gettempdir()).glob("nvp-query-*/*/*"))


def _wait_until(holds: Any) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)
