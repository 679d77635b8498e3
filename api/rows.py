"""Query results as bytes: table, json, csv, arrow, parquet. All are streamed, batch by batch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from types import MappingProxyType
from typing import IO, Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from nvpstore.api.output import aligned, cell, plain

PLAN_COLUMN = "explain"  # the only column of EXPLAIN's rows
PAGE_ROWS = 10_000  # a table chooses its column widths anew for each page, so that memory stays bounded


class Rows(Protocol):
    """What a writer needs of a query's result. `batches` may be read once."""

    def batches(self) -> pa.RecordBatchReader: ...


def write_table(rows: Rows, stream: IO[bytes]) -> None:
    """For people: aligned columns. A plan is the text that it is."""
    reader = rows.batches()
    values = _values(reader)
    with _text(stream) as text:
        if reader.schema.names == [PLAN_COLUMN]:
            text.writelines(f"{row[0]}\n" for row in values)
            return
        page = list(islice(values, PAGE_ROWS))
        while True:
            lines = aligned(reader.schema.names, [[cell(value) for value in row] for row in page])
            text.writelines(f"{line}\n" for line in lines)
            page = list(islice(values, PAGE_ROWS))
            if not page:
                return


def write_json(rows: Rows, stream: IO[bytes]) -> None:
    """A list of row objects, one a line. Floats read back exactly; blobs are base64; NaN is null."""
    reader = rows.batches()
    names = _distinct(reader.schema.names)
    with _text(stream) as text:
        text.write("[")
        separator = "\n"
        for row in _values(reader):
            fields = {name: plain(value) for name, value in zip(names, row, strict=True)}
            text.write(separator + json.dumps(fields, ensure_ascii=False, allow_nan=False))
            separator = ",\n"
        text.write("\n]\n")


def write_csv(rows: Rows, stream: IO[bytes]) -> None:
    """With a heading. NULL is empty, blobs are base64, lists and structs are JSON."""
    reader = rows.batches()
    with _text(stream) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(reader.schema.names)
        writer.writerows([_csv_cell(value) for value in row] for row in _values(reader))


def write_arrow(rows: Rows, stream: IO[bytes]) -> None:
    """An Arrow IPC stream."""
    reader = rows.batches()
    with pa.ipc.new_stream(stream, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)


def write_parquet(rows: Rows, stream: IO[bytes]) -> None:
    reader = rows.batches()
    with pa.parquet.ParquetWriter(stream, reader.schema, write_page_checksum=True) as writer:
        for batch in reader:
            writer.write_batch(batch)


BINARY_FORMATS = frozenset({"arrow", "parquet"})
WRITERS: Mapping[str, Callable[[Rows, IO[bytes]], None]] = MappingProxyType(
    {
        "table": write_table,
        "json": write_json,
        "csv": write_csv,
        "arrow": write_arrow,
        "parquet": write_parquet,
    }
)


def _values(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Any, ...]]:
    """Rows as Python values; maps as dicts."""
    for batch in batches:
        columns = [column.to_pylist(maps_as_pydicts="strict") for column in batch.columns]
        yield from zip(*columns, strict=True)


def _csv_cell(value: object) -> Any:
    simple = plain(value)
    if isinstance(simple, list | dict):
        return json.dumps(simple, ensure_ascii=False, allow_nan=False)
    return simple


def _distinct(names: Sequence[str]) -> list[str]:
    """Names made distinct by a number, as an object cannot hold one twice."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        distinct.append(name if count == 0 else f"{name}_{count}")
    return distinct


@contextmanager
def _text(stream: IO[bytes]) -> Iterator[TextIO]:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    try:
        yield text
        text.flush()
    finally:
        # Or the wrapper would close a stream that is not its own.
        text.detach()
