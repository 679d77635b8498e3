from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from nvpstore.api import rows
from nvpstore.api.rows import WRITERS

QUERY = """
    SELECT i AS segment, i / 3 AS ts, 'l' || i AS label, NULL::DOUBLE AS fidelity,
           MAP {'camera': 'gate'} AS tags, {'x0': i, 'y0': 1.5} AS box, [i, 2] AS labels,
           '\\x00\\xFF'::BLOB AS image
    FROM range(5) t(i) ORDER BY i
"""


class Answer:
    """DuckDB's own answer in the shape of a query result, or a plan."""

    def __init__(self, query: str, plan: str = "") -> None:
        self._query, self._plan = query, plan

    def arrow(self) -> pa.Table:
        if self._plan:
            return pa.table({rows.PLAN_COLUMN: self._plan.splitlines()})
        return duckdb.connect().sql(self._query).to_arrow_table()

    def explain(self) -> str:
        return self._plan or "Query"

    def explain_dict(self) -> dict[str, Any]:
        return {"total": {"bytes": 7}}


def written(format_name: str, query: str = QUERY) -> bytes:
    stream = io.BytesIO()
    WRITERS[format_name](Answer(query), stream)
    assert not stream.closed
    return stream.getvalue()


def test_arrow_and_parquet_hold_the_same_table() -> None:
    expected = Answer(QUERY).arrow()
    assert pa.ipc.open_stream(written("arrow")).read_all().equals(expected)
    assert pa.parquet.read_table(io.BytesIO(written("parquet"))).equals(expected)


def test_json_is_a_list_of_row_objects() -> None:
    values: list[dict[str, Any]] = json.loads(written("json"))
    assert [row["ts"] for row in values] == [i / 3 for i in range(5)]
    assert values[4] == {
        "segment": 4,
        "ts": 4 / 3,
        "label": "l4",
        "fidelity": None,
        "tags": {"camera": "gate"},
        "box": {"x0": 4, "y0": 1.5},
        "labels": [4, 2],
        "image": "AP8=",
    }


def test_csv_reads_back() -> None:
    lines = list(csv.DictReader(io.StringIO(written("csv").decode())))
    assert [float(line["ts"]) for line in lines] == [i / 3 for i in range(5)]
    assert lines[1]["fidelity"] == ""
    assert json.loads(lines[1]["box"]) == {"x0": 1, "y0": 1.5}
    assert lines[1]["image"] == "AP8="


def test_table_shows_blobs_by_their_size() -> None:
    lines = written("table").decode().splitlines()
    assert lines[0].split() == ["segment", "ts", "label", "fidelity", "tags", "box", "labels", "image"]
    assert "<2 bytes>" in lines[2]
    assert len(lines) == 2 + 5


@pytest.mark.parametrize("format_name", sorted(WRITERS))
def test_no_rows_still_have_their_columns(format_name: str) -> None:
    empty = written(format_name, "SELECT 1 AS a, 'x' AS b WHERE false")
    if format_name == "json":
        assert json.loads(empty) == []
    elif format_name == "arrow":
        assert pa.ipc.open_stream(empty).read_all().schema.names == ["a", "b"]
    elif format_name == "parquet":
        assert pa.parquet.read_table(io.BytesIO(empty)).schema.names == ["a", "b"]
    else:
        assert empty.decode().replace(",", " ").split()[:2] == ["a", "b"]


def test_columns_of_one_name_keep_all_values_in_json() -> None:
    assert json.loads(written("json", "SELECT 1 AS a, 2 AS a")) in (
        [{"a": 1, "a_1": 2}],
        [{"a": 1, "a_2": 2}],
    )


def test_nan_is_null_in_json() -> None:
    assert json.loads(written("json", "SELECT 'nan'::DOUBLE AS x")) == [{"x": None}]


def test_a_plan_is_text_for_people_and_one_object_for_programs() -> None:
    plan = Answer("", plan="Query\n└─ Scan")
    text, document = io.BytesIO(), io.BytesIO()
    WRITERS["table"](plan, text)
    WRITERS["json"](plan, document)
    assert text.getvalue().decode() == "Query\n└─ Scan\n"
    assert json.loads(document.getvalue()) == [{"total": {"bytes": 7}}]


def test_a_column_that_only_has_the_plan_s_name_is_a_column() -> None:
    assert json.loads(written("json", f"SELECT 1 AS {rows.PLAN_COLUMN}")) == [{rows.PLAN_COLUMN: 1}]


def test_a_long_table_is_shown_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "PAGE_ROWS", 2)
    assert len(written("table", "SELECT * FROM range(3)").splitlines()) == 2 + 2 + 2 + 1


def test_formats_are_those_of_the_command(tmp_path: Path) -> None:
    assert sorted(WRITERS) == ["arrow", "csv", "json", "parquet", "table"]
