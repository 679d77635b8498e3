"""A caller's own tables in a query: what is one, what it may be called, and that joins with it narrow."""

from __future__ import annotations

from typing import Any

import duckdb
import pandas
import polars
import pyarrow as pa
import pytest

from nvpstore.errors import QueryError
from nvpstore.query.tables import given_tables
from tests.query.archive_fixture import CountingOperators, FixtureSnapshot, ask

WATCH = pa.table({"video_id": ["a" * 32, "c" * 32], "frame": [3, 5], "note": ["x", "y"]})


class Streams:
    """What Polars and others are to us: an object that speaks Arrow's stream protocol."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return WATCH.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "value",
    [WATCH, WATCH.to_batches()[0], WATCH.to_reader(), Streams()],
    ids=["table", "batch", "reader", "stream"],
)
def test_whatever_speaks_arrow_is_a_table(snapshot: FixtureSnapshot, value: Any) -> None:
    sql = "SELECT w.note, count(*) FROM labels l JOIN watch w USING (video_id, frame) GROUP BY 1 ORDER BY 1"
    assert ask(snapshot, sql, tables={"watch": value}).fetchall() == [("x", 5), ("y", 5)]


def test_a_pandas_frame_is_a_table() -> None:
    assert given_tables({"watch": pandas.DataFrame({"a": [1]})})["watch"].to_pylist() == [{"a": 1}]


def test_a_polars_frame_is_a_table() -> None:
    assert given_tables({"watch": polars.DataFrame({"a": [1]})})["watch"].to_pylist() == [{"a": 1}]


def test_a_reader_can_be_read_twice_in_one_query(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT count(*) FROM watch a, Watch b"
    assert ask(snapshot, sql, tables={"watch": WATCH.to_reader()}).fetchall() == [(4,)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (duckdb.sql("SELECT 1 AS a"), 'table "t" belongs to another DuckDB connection: give its .to_arrow'),
        ([1, 2], 'table "t" is of type list: allowed is a pandas or Polars frame, or an Arrow table'),
        ({"a": [1]}, 'table "t" is of type dict'),
        (pa.table({}), 'table "t" has no columns'),
        (pa.table({"a": [1], "A": [2]}), 'table "t" has column "A" twice'),
    ],
)
def test_what_is_no_table_is_refused(value: Any, message: str) -> None:
    with pytest.raises(QueryError) as error:
        given_tables({"t": value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Videos", 'table name "Videos" is taken: it is a view of the catalog'),
        ("labels", "it is a task of this archive; give it another one"),
        ("frames", "it is a table of every archive"),
        ("a b", "table name 'a b': allowed are letters, digits and _, 63 at most"),
        ("x.csv", "allowed are letters, digits and _"),
        ("__nvp_0", "names that begin so are kept"),
        ("duckdb_tables", "names that begin so are kept"),
    ],
)
def test_a_name_that_means_something_else_is_refused(
    snapshot: FixtureSnapshot, name: str, message: str
) -> None:
    with pytest.raises(QueryError) as error:
        ask(snapshot, "SELECT 1", tables={name: WATCH})
    assert message in str(error.value)


def test_a_misspelt_table_is_suggested(snapshot: FixtureSnapshot) -> None:
    with pytest.raises(QueryError, match=r'unknown table "wach"; did you mean "watch"\?'):
        ask(snapshot, "SELECT * FROM wach", tables={"watch": WATCH})


def test_a_join_with_a_given_table_narrows_the_frames(snapshot: FixtureSnapshot) -> None:
    operators = CountingOperators()
    sql = "SELECT l.label FROM labels l JOIN watch w USING (video_id, frame) WHERE l.rank = 1"
    assert len(ask(snapshot, sql, operators, tables={"watch": WATCH})) == 2
    assert sum(operators.decoded.values()) + operators.source_frames == 2


def test_a_common_table_hides_a_given_one(snapshot: FixtureSnapshot) -> None:
    sql = "WITH watch AS (SELECT 1 AS one) SELECT * FROM watch"
    assert ask(snapshot, sql, tables={"watch": WATCH}).fetchall() == [(1,)]
