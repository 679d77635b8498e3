"""Index files on this machine: their names, and keeping them while they are in use.

A base holds all rows at one log number, a delta on it all rows of the owners that entries since then touched.
Files are immutable. Whoever has one open holds a shared lock on it; without that it may be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from nvpstore.catalog.connections import Connections
from nvpstore.catalog.tables import TABLES, VIEWS, VIEWS_SQL, united
from nvpstore.errors import StoreError

DIGITS = 12  # of an entry's checksum, in names
BUILDING = ".building-"

_NAME = re.compile(rf"(base|delta)-(\d+)-([0-9a-f]{{{DIGITS}}})(?:-on-(\d+)-([0-9a-f]{{{DIGITS}}}))?\.duckdb")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFile:
    """An index up to entry `number`, whose checksum starts with `digest`. A base file has no `base`."""

    number: int
    digest: str
    path: Path
    base: IndexFile | None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,) if self.base is None else (self.base.path, self.path)


def base_file(folder: Path, number: int, checksum: str) -> IndexFile:
    digest = checksum[:DIGITS]
    return IndexFile(number=number, digest=digest, path=folder / f"base-{number}-{digest}.duckdb", base=None)


def delta_file(number: int, checksum: str, base: IndexFile) -> IndexFile:
    digest = checksum[:DIGITS]
    name = f"delta-{number}-{digest}-on-{base.number}-{base.digest}.duckdb"
    return IndexFile(number=number, digest=digest, path=base.path.with_name(name), base=base)


def list_indexes(folder: Path) -> list[IndexFile]:
    """All indexes in `folder`, newest first; of equal ones, those that need a single file first."""
    found = []
    for path in folder.glob("*.duckdb"):
        match = _NAME.fullmatch(path.name)
        if match and match[1] == "base":
            found.append(base_file(folder, int(match[2]), match[3]))
        elif match and match[4]:
            base = base_file(folder, int(match[4]), match[5])
            found.append(delta_file(int(match[2]), match[3], base))
    return sorted(found, key=lambda file: (-file.number, file.base is not None, file.path))


def remove_files(folder: Path, *, keep: Iterable[Path], in_use_too: bool) -> None:
    """Remove index files but those of `keep`, of other releases too; by default not while in use."""
    kept = set(keep)
    for path in folder.glob("*.duckdb*"):
        if path in kept:
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            if not in_use_too:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a snapshot holds its lock
            path.unlink()


class OpenIndex:
    """The files of one index, open. They stay readable here, also after they are removed."""

    def __init__(self, file: IndexFile) -> None:
        """Raises OSError where a file is gone, or is removed at this moment."""
        self.file = file
        self.connections = Connections(self.connect)
        self._descriptors: list[int] = []
        try:
            for path in file.paths:
                self._descriptors.append(os.open(path, os.O_RDONLY))
                fcntl.flock(self._descriptors[-1], fcntl.LOCK_SH)
                if os.fstat(self._descriptors[-1]).st_ino != path.stat().st_ino:
                    raise FileNotFoundError(str(path))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.connections.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Attach the files read-only as `base` and, if there is one, `delta`."""
        for name, path, descriptor in zip(
            ("base", "delta"), self.file.paths, self._descriptors, strict=False
        ):
            try:
                _attach(connection, name, str(path))
            except duckdb.Error:
                if path.exists():
                    raise
                # Removed after an erasure. What is open can still be reached by its descriptor.
                _attach(connection, name, f"/dev/fd/{descriptor}")

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A fresh in-memory connection: all rows as `idx.store.*`, the views for users by plain name."""
        connection = duckdb.connect(":memory:")
        try:
            self.attach(connection)
            tables = [f"CREATE VIEW store.{name} AS {self._rows_of(name)};" for name in (*TABLES, "snapshot")]
            views = [f"CREATE VIEW {view} AS FROM idx.main.{view};" for view in VIEWS]
            # One call: each one waits for DuckDB's own thread.
            connection.execute(
                f"ATTACH ':memory:' AS idx; USE idx; CREATE SCHEMA store; {''.join(tables)} {VIEWS_SQL} "
                f"USE memory; {''.join(views)}"
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def _rows_of(self, table: str) -> str:
        if self.file.base is None:
            return f"FROM base.store.{table}"
        if table == "snapshot":
            return "FROM delta.store.snapshot"
        return united(table, base="base.store", delta="delta.store")


def connect_elsewhere(file: IndexFile) -> duckdb.DuckDBPyConnection:
    """A connection as `OpenIndex.connect` gives it, for as long as the process that this runs in lives.

    Raises StoreError where the index was removed since its name was given away.
    """
    try:
        return OpenIndex(file).connect()
    except OSError as cause:
        raise StoreError(f"the index {file.path.name} is gone: an erasure replaced it; ask again") from cause


def _attach(connection: duckdb.DuckDBPyConnection, name: str, path: str) -> None:
    quoted = path.replace("'", "''")
    connection.execute(f"ATTACH '{quoted}' AS {name} (READ_ONLY)")
