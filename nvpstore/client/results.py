"""Rows of a query over HTTP: Arrow on the wire, computed when they are first asked for."""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pyarrow as pa

from nvpstore.client.streams import Notes, Params, RemoteStream, body_of, query_ask
from nvpstore.client.transport import Ask, Transport
from nvpstore.client.values import Skipped
from nvpstore.errors import UsageError

Row = tuple[Any, ...]


_EXPLAIN = re.compile(r"\s*EXPLAIN\b", re.IGNORECASE)


class RemoteResult:
    """Rows of a query, and the segments that `on_error := 'skip'` left out of them.

    The server is asked once, when rows, `skipped` or `warnings` are first wanted: its errors come then. Can
    be shared by threads, but `fetchone()` goes through the rows once for all of them.
    """

    def __init__(self, transport: Transport, query: str, *, params: Params | None) -> None:
        self._transport, self._query, self._params = transport, query, params
        self._body = body_of(query, params)
        self._table: pa.Table | None = None
        self._notes = Notes()
        self._asking = threading.Lock()
        self._fetched: Iterator[Row] | None = None

    @property
    def computed(self) -> bool:
        return self._table is not None

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Segments without rows; asks the server."""
        self.arrow()
        return self._notes.skipped

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines about conditions that cannot hold; asks the server."""
        self.arrow()
        return self._notes.warnings

    def explain(self) -> str:
        """The plan as text; of an EXPLAIN, what it answers. Computes no rows."""
        if _EXPLAIN.match(self._body["sql"]):
            return "\n".join(str(line) for line in self.arrow().column(0).to_pylist())
        ask = query_ask("query/explain", self._body, accept="text/plain")
        return self._transport.persistently(lambda: self._text(ask), retry=True)

    def explain_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        ask = query_ask("query/explain", self._body, accept="application/json")
        found: dict[str, Any] = json.loads(self._transport.persistently(lambda: self._text(ask), retry=True))
        del found["warnings"]  # they are said apart
        return found

    # ------------------------------------------------------------ rows

    def arrow(self) -> pa.Table:
        """All rows. Raises what the query raises, and ServiceError."""
        with self._asking:
            if self._table is None:
                # Not begun anew where it breaks off: it would cost the same again, and maybe break again.
                self._table, self._notes = self._asked()
            return self._table

    @property
    def table(self) -> pa.Table:
        return self.arrow()

    @property
    def columns(self) -> list[str]:
        return list(self.arrow().schema.names)

    def df(self) -> Any:
        """A pandas DataFrame. Raises UsageError where pandas is not installed."""
        _optional("pandas", "df()")
        return self.arrow().to_pandas()

    def pl(self) -> Any:
        """A Polars DataFrame. Raises UsageError where polars is not installed."""
        return _optional("polars", "pl()").from_arrow(self.arrow())

    def fetchall(self) -> list[Row]:
        """Rows as tuples of Python values."""
        return list(self)

    def fetchone(self) -> Row | None:
        """The next row, None after the last one."""
        if self._fetched is None:
            self._fetched = iter(self)
        return next(self._fetched, None)

    def batches(self, rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """The rows in record batches of at most `rows` ≥ 1. Raises UsageError for fewer."""
        if rows < 1:
            raise UsageError(f"batches of {rows} rows: at least 1 is needed")
        yield from self.arrow().to_batches(max_chunksize=rows)

    def __iter__(self) -> Iterator[Row]:
        """Rows as tuples. Raises UsageError for values that Python has none for, such as infinite dates."""
        for batch in self.batches():
            try:
                columns = [column.to_pylist() for column in batch.columns]
            except (OverflowError, ValueError) as cause:
                raise UsageError(f"a value has no form in Python ({cause}): use arrow()") from cause
            yield from zip(*columns, strict=True)

    def __len__(self) -> int:
        return int(self.arrow().num_rows)

    def __bool__(self) -> bool:
        return True  # a result without rows is one, and asking must not compute them

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Any library that speaks Arrow takes a result as it is."""
        return self.arrow().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        if self._table is None:
            return "RemoteResult(not asked for yet)"
        return f"RemoteResult({self._table.num_rows} rows: {', '.join(self.columns)})"

    # ------------------------------------------------------------ parts

    def _asked(self) -> tuple[pa.Table, Notes]:
        stream = RemoteStream(self._transport, self._query, params=self._params)
        batches = list(stream)
        table = pa.Table.from_batches(batches, schema=stream.schema)
        return table, Notes(skipped=stream.skipped, warnings=stream.warnings)

    def _text(self, ask: Ask) -> str:
        with self._transport.streamed(ask) as response:
            return response.read().decode().rstrip("\n")


def _optional(package: str, method: str) -> ModuleType:
    """A package that only `method` needs: nvpstore neither installs nor pins it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as cause:
        raise UsageError(
            f"{method} needs {package}, which is not installed: pip install {package}"
        ) from cause
