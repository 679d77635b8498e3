"""The answer to a query."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pyarrow as pa

from nvpstore.errors import UsageError
from nvpstore.query.explain import explain_dict, explain_text
from nvpstore.query.measured import Measured
from nvpstore.query.plan import Plan, Skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Rows of a query, what they took, and the segments that `on_error := 'skip'` left out of them."""

    table: pa.Table
    plan: Plan
    measured: Measured | None = None
    skipped: tuple[Skipped, ...] = ()

    @property
    def columns(self) -> list[str]:
        return list(self.table.schema.names)

    def arrow(self) -> pa.Table:
        return self.table

    def df(self) -> Any:
        """A pandas DataFrame. Raises UsageError where pandas is not installed."""
        _optional("pandas", "df()")
        return self.table.to_pandas()

    def pl(self) -> Any:
        """A Polars DataFrame. Raises UsageError where polars is not installed."""
        return _optional("polars", "pl()").from_arrow(self.table)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Rows as tuples of Python values."""
        columns = [column.to_pylist() for column in self.table.columns]
        return list(zip(*columns, strict=True)) if columns else []

    def batches(self, rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """The rows in record batches of at most `rows`."""
        yield from self.table.to_batches(max_chunksize=rows)

    def explain(self) -> str:
        """The plan as text, with what it really took where it ran."""
        return explain_text(self.plan, self.measured)

    def explain_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return explain_dict(self.plan, self.measured)


def _optional(package: str, method: str) -> ModuleType:
    """A package that only `method` needs: nvpstore neither installs nor pins it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as cause:
        raise UsageError(
            f"{method} needs {package}, which is not installed: pip install {package}"
        ) from cause
