"""How a query's memory is divided."""

from __future__ import annotations

from dataclasses import dataclass

from nvpstore.storage.ranges import AHEAD_BYTES

MOST_FOUND = 64 << 20


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
    def found_bytes(self) -> int:
        """Of new answers in memory: more are stored while the query runs. A part of what rows have."""
        return min(MOST_FOUND, self.rows_bytes // 2)

    @property
    def ahead_bytes(self) -> int:
        """Of what is fetched ahead. A part of what is kept."""
        return min(AHEAD_BYTES, self.kept_bytes // 2)

    @property
    def batch_bytes(self) -> int:
        return self.memory_bytes // 8
