"""Query results as bytes: table, json, csv, arrow, parquet; written batch by batch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from types import MappingProxyType
from typing import IO, Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from nvpstore.api.output import aligned, cell, plain

PLAN_COLUMN = "plan"
BATCH_ROWS = 1_000
PAGE_ROWS = 10_000  # a table chooses its column widths anew for each page, so that memory stays bounded


class Rows(Protocol):
    """What a writer needs of a query's result."""

    def arrow(self) -> pa.Table: ...

    def explain(self) -> str: ...

    def explain_dict(self) -> dict[str, Any]: ...


def write_table(rows: Rows, stream: IO[bytes]) -> None:
    """For people: aligned columns. A plan is the text that it is."""
    with _text(stream) as text:
        if is_plan(rows):
            text.write(rows.explain() + "\n")
            return
        table = rows.arrow()
        values = _values(table)
        page = list(islice(values, PAGE_ROWS))
        while True:
            lines = aligned(table.column_names, [[cell(value) for value in row] for row in page])
            text.writelines(f"{line}\n" for line in lines)
            page = list(islice(values, PAGE_ROWS))
            if not page:
                return


def write_json(rows: Rows, stream: IO[bytes]) -> None:
    """A list of row objects, one a line. Floats read back exactly; blobs are base64; NaN is null.

    A plan is one object with its bytes, frames and GFLOPs.
    """
    with _text(stream) as text:
        text.write("[")
        separator = "\n"
        for fields in [plain(rows.explain_dict())] if is_plan(rows) else _objects(rows.arrow()):
            text.write(separator + json.dumps(fields, ensure_ascii=False, allow_nan=False))
            separator = ",\n"
        text.write("\n]\n")


def write_csv(rows: Rows, stream: IO[bytes]) -> None:
    """With a heading. NULL is empty, blobs are base64, lists and structs are JSON."""
    table = rows.arrow()
    with _text(stream) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows([csv_cell(value) for value in row] for row in _values(table))


def write_arrow(rows: Rows, stream: IO[bytes]) -> None:
    """An Arrow IPC stream."""
    table = rows.arrow()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)


def write_parquet(rows: Rows, stream: IO[bytes]) -> None:
    pa.parquet.write_table(rows.arrow(), stream, write_page_checksum=True)


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


def is_plan(rows: Rows) -> bool:
    """Whether the rows are the lines of EXPLAIN's own text."""
    table = rows.arrow()
    if table.num_columns != 1 or table.column_names != [PLAN_COLUMN]:
        return False
    # A query may name its own column so.
    return bool("\n".join(str(line) for line in table.column(0).to_pylist()) == rows.explain())


def _values(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Rows as Python values, a batch in memory at a time; maps as dicts."""
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield from values_of(batch)


def values_of(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """The rows of a batch as Python values; maps as dicts."""
    columns = [column.to_pylist(maps_as_pydicts="strict") for column in batch.columns]
    yield from zip(*columns, strict=True)


def _objects(table: pa.Table) -> Iterator[dict[str, Any]]:
    names = distinct(table.column_names)
    for row in _values(table):
        yield {name: plain(value) for name, value in zip(names, row, strict=True)}


def csv_cell(value: object) -> Any:
    """A value as a cell: blobs are base64, lists and structs are JSON."""
    simple = plain(value)
    if isinstance(simple, list | dict):
        return json.dumps(simple, ensure_ascii=False, allow_nan=False)
    return simple


def distinct(names: Sequence[str]) -> list[str]:
    """Names made distinct by a number, as an object cannot hold one twice."""
    taken, found = set(names), []
    seen: set[str] = set()
    for name in names:
        free = name
        if name in seen:
            free = next(f"{name}_{n}" for n in count(1) if f"{name}_{n}" not in taken)
            taken.add(free)
        seen.add(name)
        found.append(free)
    return found


@contextmanager
def _text(stream: IO[bytes]) -> Iterator[TextIO]:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    try:
        yield text
        text.flush()
    finally:
        # Or the wrapper would close a stream that is not its own.
        text.detach()
