"""How a query's memory is divided."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Shares of `memory_bytes` (`Settings.memory_bytes`), of which one process has one.

    DuckDB has a half; a quarter is for what is kept for other queries (weights, features); an eighth for
    rows, which go to disk beyond it; an eighth for the batch that is being decoded. Queries that run at the
    same time divide DuckDB's part and that for rows (`allotment`).
    """

    memory_bytes: int = 2 << 30

    @property
    def duckdb_bytes(self) -> int:
        return self.memory_bytes // 2

    @property
    def kept_bytes(self) -> int:
        return self.memory_bytes // 4

    @property
    def rows_bytes(self) -> int:
        return self.memory_bytes // 8

    @property
    def batch_bytes(self) -> int:
        return self.memory_bytes // 8
