"""The answer to a query: computed when rows are first asked for, or already here."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pyarrow as pa

from nvpstore.errors import UsageError
from nvpstore.query.explain import explain_dict, explain_text
from nvpstore.query.left import Left
from nvpstore.query.measured import Measured
from nvpstore.query.notebook import as_html
from nvpstore.query.plan import Plan, Skipped

Row = tuple[Any, ...]


class Result:
    """Rows of a query, what they took, and the segments that `on_error := 'skip'` left out of them.

    `left` is what stored answers left to compute, of a plan that was asked for. `warnings` are lines about
    conditions that cannot hold. With `compute` in place of `table`, rows are computed once, when first asked
    for: its errors come then, `explain()` needs none. Can be shared by threads, but `fetchone()` goes through
    the rows once for all of them.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        table: pa.Table | None = None,
        measured: Measured | None = None,
        skipped: tuple[Skipped, ...] = (),
        warnings: tuple[str, ...] = (),
        left: Left | None = None,
        compute: Callable[[], Result] | None = None,
    ) -> None:
        assert (table is None) != (compute is None), "a result has rows, or a way to compute them"
        self.plan = plan
        self.warnings = warnings
        self._left = left
        self._table = table
        self._measured = measured
        self._skipped = skipped
        self._compute = compute
        self._computing = threading.Lock()
        self._fetched: Iterator[Row] | None = None

    # ------------------------------------------------------------ what it took

    @property
    def computed(self) -> bool:
        return self._table is not None

    @property
    def measured(self) -> Measured | None:
        """What the rows took, once they are here."""
        return self._measured

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Segments without rows; computes the rows."""
        self.arrow()
        return self._skipped

    def explain(self) -> str:
        """The plan as text, with what it really took once it ran. Computes nothing."""
        return explain_text(self.plan, self.measured, self._left)

    def explain_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return explain_dict(self.plan, self.measured, self._left)

    # ------------------------------------------------------------ rows

    def arrow(self) -> pa.Table:
        """All rows. Raises what the query raises."""
        with self._computing:
            if self._table is None:
                assert self._compute is not None, "checked on construction"
                done = self._compute()
                self._measured, self._skipped = done.measured, done.skipped
                self._table = done.arrow()
                self._compute = None  # it may hold connections and tensors
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
            return "Result(not computed yet)"
        return f"Result({self._table.num_rows} rows: {', '.join(self.columns)})"

    def _repr_html_(self) -> str:
        """The first rows for a notebook, images as thumbnails."""
        return as_html(self.arrow(), warnings=self.warnings)


def _optional(package: str, method: str) -> ModuleType:
    """A package that only `method` needs: nvpstore neither installs nor pins it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as cause:
        raise UsageError(
            f"{method} needs {package}, which is not installed: pip install {package}"
        ) from cause
