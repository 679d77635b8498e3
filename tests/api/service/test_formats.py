"""Each form of an answer reads back as what was written, batch by batch."""

from __future__ import annotations

import csv
import io
import json
from base64 import b64decode
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from nvpstore.api.service.formats import FORMATS, NOTES_KEY, Notes
from nvpstore.errors import QueryError
from nvpstore.query.plan import Skipped

SCHEMA = pa.schema(
    [
        ("n", pa.int64()),
        ("score", pa.float32()),
        ("text", pa.string()),
        ("blob", pa.binary()),
        ("box", pa.struct([("x0", pa.float32())])),
        ("list", pa.list_(pa.int32())),
    ]
)
ROWS = [
    {
        "n": 1,
        "score": 0.1,
        "text": 'a "quoted"\nline',
        "blob": b"\x00\xff",
        "box": {"x0": 1.5},
        "list": [1, 2],
    },
    {"n": 2, "score": float("nan"), "text": "é", "blob": None, "box": None, "list": []},
    {"n": None, "score": None, "text": None, "blob": b"", "box": {"x0": None}, "list": None},
]
NOTES = Notes(
    skipped=(Skipped(video_id="a" * 32, segment=3, table="labels", reason="fetching: bytes differ"),),
    warnings=("rank = 9 cannot hold",),
)


def written(name: Any, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> bytes:
    writer = FORMATS[name].writer(schema)
    batches = [pa.RecordBatch.from_pylist([row], schema=schema) for row in rows]
    return b"".join([writer.begin(), *map(writer.batch, batches), writer.end(NOTES)])


def plain_rows() -> list[dict[str, Any]]:
    """The rows as JSON has them."""
    first, second, third = (dict(row) for row in ROWS)
    first |= {"score": pa.scalar(0.1, pa.float32()).as_py(), "blob": "AP8="}
    return [first, second | {"score": None}, third | {"blob": ""}]


class TestJson:
    def test_an_object_with_columns_rows_and_notes(self) -> None:
        found = json.loads(written("json", ROWS))
        assert found["columns"][:2] == [{"name": "n", "type": "int64"}, {"name": "score", "type": "float"}]
        assert found["rows"] == plain_rows()
        assert {name: found[name] for name in ("skipped", "warnings")} == NOTES.to_json()

    def test_no_rows(self) -> None:
        assert json.loads(written("json", []))["rows"] == []

    def test_two_columns_of_a_name_are_told_apart(self) -> None:
        schema = pa.schema([("a", pa.int64()), ("a", pa.int64()), ("a_1", pa.int64())])
        writer = FORMATS["json"].writer(schema)
        batch = pa.RecordBatch.from_arrays([pa.array([n]) for n in (1, 2, 3)], schema=schema)
        found = json.loads(writer.begin() + writer.batch(batch) + writer.end(Notes()))
        assert found["rows"] == [{"a": 1, "a_2": 2, "a_1": 3}]
        assert [column["name"] for column in found["columns"]] == ["a", "a_2", "a_1"]

    def test_what_breaks_off_ends_in_its_error(self) -> None:
        writer = FORMATS["json"].writer(SCHEMA)
        batch = pa.RecordBatch.from_pylist(ROWS, schema=SCHEMA)
        found = json.loads(writer.begin() + writer.batch(batch) + writer.broken({"status": 500}))
        assert found["error"] == {"status": 500}
        assert found["rows"] == plain_rows()
        assert "skipped" not in found

    def test_a_value_without_a_form_names_what_to_do(self) -> None:
        schema = pa.schema([("t", pa.timestamp("us", tz="UTC"))])
        batch = pa.RecordBatch.from_arrays(
            [pa.array([2**62], pa.int64()).cast(schema[0].type)], schema=schema
        )
        with pytest.raises(QueryError, match=r"has no form in JSON .*: cast it"):
            FORMATS["json"].writer(schema).batch(batch)


class TestLines:
    def test_an_object_a_line(self) -> None:
        lines = written("ndjson", ROWS).decode().splitlines()
        assert [json.loads(line) for line in lines] == plain_rows()

    def test_what_breaks_off_ends_in_its_error(self) -> None:
        last = FORMATS["ndjson"].writer(SCHEMA).broken({"status": 500})
        assert json.loads(last) == {"error": {"status": 500}}
        assert last.endswith(b"\n")


def test_csv_has_a_heading_and_reads_back() -> None:
    heading, *rows = csv.reader(io.StringIO(written("csv", ROWS).decode(), newline=""))
    assert heading == SCHEMA.names
    assert [row[0] for row in rows] == ["1", "2", ""]
    assert rows[0][2] == ROWS[0]["text"]
    assert b64decode(rows[0][3]) == b"\x00\xff"
    assert [json.loads(rows[0][n]) for n in (4, 5)] == [{"x0": 1.5}, [1, 2]]


class TestArrow:
    def test_a_stream_with_notes_behind_the_rows(self) -> None:
        with pa.ipc.open_stream(written("arrow", ROWS)) as reader:
            batches = list(reader.iter_batches_with_custom_metadata())
        table = pa.Table.from_batches([item.batch for item in batches])
        assert table.schema == SCHEMA
        assert repr(table.to_pylist()) == repr(pa.Table.from_pylist(ROWS, schema=SCHEMA).to_pylist())
        assert batches[-1].batch.num_rows == 0
        assert Notes.from_json(json.loads(batches[-1].custom_metadata[NOTES_KEY])) == NOTES

    def test_what_breaks_off_has_no_end(self) -> None:
        writer = FORMATS["arrow"].writer(SCHEMA)
        half = writer.begin() + writer.batch(pa.RecordBatch.from_pylist(ROWS, schema=SCHEMA))
        assert writer.broken({"status": 500}) == b""
        assert written("arrow", ROWS)[:8] == half[:8]
        assert not half.endswith(b"\xff\xff\xff\xff\x00\x00\x00\x00")  # how a stream says that it is over
        assert written("arrow", ROWS).endswith(b"\xff\xff\xff\xff\x00\x00\x00\x00")


class TestParquet:
    def test_row_groups_with_notes_in_the_footer(self) -> None:
        file = pq.ParquetFile(io.BytesIO(written("parquet", ROWS)))
        assert repr(file.read().to_pylist()) == repr(pa.Table.from_pylist(ROWS, schema=SCHEMA).to_pylist())
        assert Notes.from_json(json.loads(file.metadata.metadata[NOTES_KEY])) == NOTES

    def test_many_rows_are_written_as_they_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nvpstore.api.service.formats.GROUP_ROWS", 2)
        file = pq.ParquetFile(io.BytesIO(written("parquet", ROWS)))
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2, 1]

    def test_a_column_without_a_form_names_what_to_do(self) -> None:
        schema = pa.schema([("i", pa.month_day_nano_interval())])
        with pytest.raises(QueryError, match=r"has no form in Parquet .*: cast it"):
            FORMATS["parquet"].writer(schema)

    def test_no_rows(self) -> None:
        assert pq.read_table(io.BytesIO(written("parquet", []))).schema.names == SCHEMA.names
