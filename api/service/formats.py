"""The forms in which an answer travels, each written batch by batch.

An answer that breaks off never looks whole: the connection ends without the last chunk. Before that a JSON
text ends with `"error"` in place of `"skipped"`, NDJSON with a line that is `{"error": {…}}`; Arrow and
Parquet lack their end.
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from nvpstore.api.jobs.requests import AnswerFormat
from nvpstore.api.output import plain
from nvpstore.api.rows import csv_cell, distinct, values_of
from nvpstore.errors import QueryError
from nvpstore.query.plan import Skipped

NOTES_KEY = b"nvpstore"  # in the metadata of Arrow's last batch and of Parquet's footer
GROUP_BYTES = 16 << 20  # of a Parquet row group, before compression
GROUP_ROWS = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """What is said of an answer beside its rows: segments that were left out, and lines of warning."""

    skipped: Sequence[Skipped] = ()
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        return {"skipped": [asdict(skip) for skip in self.skipped], "warnings": list(self.warnings)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Notes:
        skipped = tuple(Skipped(**skip) for skip in value["skipped"])
        return cls(skipped=skipped, warnings=tuple(value["warnings"]))


class Writer(ABC):
    """Makes an answer's bytes, in this order: `begin`, `batch` once a batch, `end` or `broken`.

    Each raises QueryError for columns and values that the form has no place for.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    @abstractmethod
    def begin(self) -> bytes: ...

    @abstractmethod
    def batch(self, batch: pa.RecordBatch) -> bytes: ...

    @abstractmethod
    def end(self, notes: Notes) -> bytes: ...

    def broken(self, problem: Mapping[str, Any]) -> bytes:
        """The last words of an answer that breaks off, where the form has room for them."""
        return b""


class _Json(Writer):
    """`{"columns": [{"name", "type"}], "rows": [{…}], "skipped": […], "warnings": […]}`."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._names = distinct(schema.names)
        self._separator = "\n"

    def begin(self) -> bytes:
        types = [str(field.type) for field in self.schema]
        columns = [{"name": n, "type": t} for n, t in zip(self._names, types, strict=True)]
        return f'{{"columns": {_text(columns)},\n"rows": ['.encode()

    def batch(self, batch: pa.RecordBatch) -> bytes:
        lines = ",\n".join(_objects(batch, self._names))
        if not lines:
            return b""
        before, self._separator = self._separator, ",\n"
        return (before + lines).encode()

    def end(self, notes: Notes) -> bytes:
        said = notes.to_json()
        return (
            f'\n],\n"skipped": {_text(said["skipped"])}, "warnings": {_text(said["warnings"])}}}\n'.encode()
        )

    def broken(self, problem: Mapping[str, Any]) -> bytes:
        return f'\n],\n"error": {_text(problem)}}}\n'.encode()


class _Lines(Writer):
    """NDJSON: an object a row, as in JSON. A line that is `{"error": {…}}` ends an answer that breaks off."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._names = distinct(schema.names)

    def begin(self) -> bytes:
        return b""

    def batch(self, batch: pa.RecordBatch) -> bytes:
        return "".join(f"{line}\n" for line in _objects(batch, self._names)).encode()

    def end(self, notes: Notes) -> bytes:
        return b""

    def broken(self, problem: Mapping[str, Any]) -> bytes:
        return f"{_text({'error': problem})}\n".encode()


class _Csv(Writer):
    """With a heading. NULL is empty, blobs are base64, lists and structs are JSON."""

    def begin(self) -> bytes:
        return _csv([self.schema.names])

    def batch(self, batch: pa.RecordBatch) -> bytes:
        with _as_query_error("CSV"):
            return _csv([[csv_cell(value) for value in row] for row in values_of(batch)])

    def end(self, notes: Notes) -> bytes:
        return b""


class _Arrow(Writer):
    """An IPC stream. Its last batch has no rows; its metadata have the notes as JSON."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._drain = Drain()
        self._writer = pa.ipc.new_stream(self._drain, schema)

    def begin(self) -> bytes:
        return self._drain.take()

    def batch(self, batch: pa.RecordBatch) -> bytes:
        self._writer.write_batch(batch)
        return self._drain.take()

    def end(self, notes: Notes) -> bytes:
        nothing = pa.RecordBatch.from_pylist([], schema=self.schema)
        self._writer.write_batch(nothing, custom_metadata={NOTES_KEY: _text(notes.to_json()).encode()})
        self._writer.close()
        return self._drain.take()


class _Parquet(Writer):
    """Row groups as rows come; the notes are JSON in the footer's metadata."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._drain = Drain()
        self._waiting: list[pa.RecordBatch] = []
        with _as_query_error("Parquet"):
            self._writer = pq.ParquetWriter(self._drain, schema, write_page_checksum=True)

    def begin(self) -> bytes:
        return self._drain.take()

    def batch(self, batch: pa.RecordBatch) -> bytes:
        self._waiting.append(batch)
        many = sum(waiting.num_rows for waiting in self._waiting) >= GROUP_ROWS
        if many or sum(waiting.nbytes for waiting in self._waiting) >= GROUP_BYTES:
            self._write()
        return self._drain.take()

    def end(self, notes: Notes) -> bytes:
        self._write()
        self._writer.add_key_value_metadata({NOTES_KEY: _text(notes.to_json()).encode()})
        self._writer.close()
        return self._drain.take()

    def _write(self) -> None:
        if self._waiting:
            with _as_query_error("Parquet"):
                self._writer.write_table(pa.Table.from_batches(self._waiting, self.schema))
            self._waiting = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A form of answers. `tells_at_end`: it has room for notes after the rows."""

    name: AnswerFormat
    media_type: str
    writer: type[Writer]
    tells_at_end: bool


_ALL = (
    Format(name="json", media_type="application/json", writer=_Json, tells_at_end=True),
    Format(name="ndjson", media_type="application/x-ndjson", writer=_Lines, tells_at_end=False),
    Format(name="csv", media_type="text/csv", writer=_Csv, tells_at_end=False),
    Format(
        name="arrow", media_type="application/vnd.apache.arrow.stream", writer=_Arrow, tells_at_end=True
    ),
    Format(
        name="parquet", media_type="application/vnd.apache.parquet", writer=_Parquet, tells_at_end=True
    ),
)  # fmt: skip
# Where a caller takes several alike, the first.
FORMATS: Mapping[AnswerFormat, Format] = MappingProxyType({each.name: each for each in _ALL})


class Drain(io.RawIOBase):
    """A file whose bytes are taken away as they are written."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._written += len(part)
        return len(part)

    def tell(self) -> int:
        return self._written  # of all of the file: Parquet's footer counts from its beginning

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self._parts = b"".join(self._parts), []
        return taken


def _objects(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[str]:
    with _as_query_error("JSON"):
        for row in values_of(batch):
            yield _text({name: plain(value) for name, value in zip(names, row, strict=True)})


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


@contextmanager
def _as_query_error(form: str) -> Iterator[None]:
    """What a form has no place for is the query's fault: infinite dates, say."""
    try:
        yield
    except (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError) as cause:
        why = " ".join(str(cause).split())
        raise QueryError(
            f"a column or value of the answer has no form in {form} ({why}): cast it, or take"
            " application/vnd.apache.arrow.stream"
        ) from cause
