"""Rows of task tables while a query runs: in memory while they are few, else in Parquet files on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from nvpstore.errors import StoreError

Relation: TypeAlias = "pa.Table | ds.Dataset"  # both are registered with DuckDB as they are
GROUP_BYTES = 256 << 10  # of a row group: the least that a scan reads at once


class Rows:
    """Rows of several tables, added in order, of which at most `limit()` bytes stay in memory."""

    def __init__(self, *, limit: Callable[[], int]) -> None:
        """`limit` is asked whenever rows are added."""
        self._limit = limit
        self._tables: dict[int, list[pa.Table]] = {}
        self._files: dict[int, _File] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._held_bytes = 0
        self.added = 0

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, index: int, table: pa.Table) -> None:
        """Raises StoreError where rows must go to disk and cannot."""
        self._tables.setdefault(index, []).append(table)
        self._held_bytes += table.nbytes
        self.added += table.num_rows
        if self._held_bytes > self._limit():
            self._spill()

    def relation(self, index: int, schema: pa.Schema) -> Relation:
        """All rows of a table so far; more may be added after."""
        tables = [schema.empty_table(), *self._tables.get(index, [])]
        if index not in self._files:
            return pa.concat_tables(tables)
        self._spill()
        return self._files[index].dataset()

    def _spill(self) -> None:
        try:
            for index, tables in self._tables.items():
                if tables:
                    self._file(index).write(pa.concat_tables(tables))
        except OSError as cause:
            raise StoreError(f"rows beyond {self._limit()} bytes cannot go to disk: {cause}") from cause
        self._tables = {}
        self._held_bytes = 0

    def _file(self, index: int) -> _File:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="nvp-rows-")
        if index not in self._files:
            self._files[index] = _File(Path(self._folder.name) / str(index))
        return self._files[index]


class RowFiles(ds.FileSystemDataset):  # type: ignore[misc]
    """Files of which DuckDB's scan reads hardly ahead: by default it would be all rows of a small file."""

    batch_rows: int

    def scanner(self, **asked: Any) -> ds.Scanner:
        options = ds.ParquetFragmentScanOptions(pre_buffer=False)
        ahead = {"batch_readahead": 1, "fragment_readahead": 1, "fragment_scan_options": options}
        return super().scanner(**asked, **ahead, batch_size=self.batch_rows)


def row_files(paths: Sequence[str], *, batch_rows: int) -> RowFiles:
    """The rows of Parquet files of this machine, read `batch_rows` at a time."""
    found = ds.dataset(list(paths), format="parquet")
    files = RowFiles(list(found.get_fragments()), found.schema, found.format, found.filesystem)
    files.batch_rows = batch_rows
    return files


class _File:
    """One table on disk, as Parquet files: each is finished once it must be read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._parts: list[str] = []
        self._writer: pq.ParquetWriter | None = None
        self._batch_rows = 1 << 17

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._parts.append(str(self._folder / f"{len(self._parts):06}.parquet"))
            self._writer = pq.ParquetWriter(self._parts[-1], table.schema, compression="lz4")
        rows = max(1, table.num_rows * GROUP_BYTES // max(1, table.nbytes))
        self._batch_rows = min(rows, self._batch_rows)
        self._writer.write_table(table, row_group_size=rows)

    def dataset(self) -> ds.Dataset:
        self.close()
        return row_files(self._parts, batch_rows=self._batch_rows)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
