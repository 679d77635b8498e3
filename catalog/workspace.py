"""Where an index file is prepared: a private database with all rows of the owners that entries touch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from nvpstore.catalog import rows, tables
from nvpstore.catalog.files import BUILDING, OpenIndex
from nvpstore.catalog.fold import HeldObject, OwnerState
from nvpstore.catalog.tables import ORDERS, OWNERS, SCHEMA, TABLES, united
from nvpstore.storage.checkpoints import TABLES as CHECKPOINT_TABLES
from nvpstore.storage.keys import new_attempt

# Measured on 100,000 videos: with sorted rows and groups of this size, one video's rows are found in 1 to
# 2 ms; with primary keys it took up to 4 ms, and files were a quarter larger and twice as slow to write.
_ROW_GROUP = 16384
_SMALL_BLOCK = 16384  # bytes; DuckDB's usual 262,144 would make every small file megabytes
_SHORT = 256
_WRITERS = 2  # tables of a large base that are written at once: with one, 30,000 videos took a third longer
_MANY_OBJECTS = 10_000  # from here on a base has large blocks, which are read faster

# Objects whose content is indexed.
_IN_FORCE = (
    "SELECT key, log_number FROM store.objects WHERE replaced_at IS NULL AND "
    r"regexp_matches(key, '^(videos/[^/]+/([^/]+/manifest\.parquet|routes/|meta/)|"
    r"tasks/.*\.json$|views/|results/)')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPosition:
    """Which archive an index is of, the last log entry in it, and the greatest attempt of any entry."""

    archive_id: str
    number: int
    digest: str
    grace_seconds: int
    latest_attempt: str


class Workspace:
    """Rows on top of `base`; they begin as those of `delta`'s delta file, if there is one."""

    def __init__(self, folder: Path, index: OpenIndex | None) -> None:
        self._spill = folder / f"{BUILDING}{new_attempt()}"
        self._connection = duckdb.connect(":memory:")
        self._has_base = index is not None
        try:
            self._run(f"SET temp_directory = '{_quoted(self._spill)}'; SET TimeZone = 'UTC'")
            self._run(SCHEMA)
            if index is not None:
                index.attach(self._connection)
            if index is not None and index.file.base is not None:
                copies = (f"INSERT INTO store.{t} FROM delta.store.{t};" for t in (*TABLES, "touched"))
                self._run("".join(copies))
            self._run(f"CREATE TABLE store.loaded AS {_IN_FORCE}")
            touched = self._run("FROM store.touched").fetchall()
        except BaseException:
            self.close()
            raise
        self._touched = {str(owner) for (owner,) in touched}

    def close(self) -> None:
        self._connection.close()
        shutil.rmtree(self._spill, ignore_errors=True)

    @property
    def touched(self) -> int:
        """How many owners' rows are here."""
        return len(self._touched)

    def states(self, owners: Iterable[str]) -> dict[str, OwnerState]:
        """What the index says of `owners`, whose rows are taken here from the base where they are not yet."""
        asked = sorted(owners)
        self._take([owner for owner in asked if owner not in self._touched])
        states = {owner: OwnerState() for owner in asked}
        among = "IN (SELECT unnest($owners::VARCHAR[]))"
        for row in self._arrow(f"FROM store.objects WHERE owner {among}", asked).to_pylist():
            states[row["owner"]].objects[row["key"]] = rows.held_object(row)
        for row in self._arrow(f"FROM store.erased WHERE video_id {among}", asked).to_pylist():
            states[row["video_id"]].erased = row["log_number"]
        return states

    def delete(self, table: str, column: str, values: Sequence[str]) -> None:
        if values:
            condition = f"{column} IN (SELECT unnest($values::VARCHAR[]))"
            self._connection.execute(f"DELETE FROM store.{table} WHERE {condition}", {"values": list(values)})

    def insert(self, table: str, new: Iterable[rows.Row]) -> None:
        """Insert rows through Arrow: one statement, however many rows."""
        listed = list(new)
        if not listed:
            return
        self._connection.register("new_rows", pa.Table.from_pylist(listed, schema=CHECKPOINT_TABLES[table]))
        try:
            self._run(f"INSERT INTO store.{table} BY NAME FROM new_rows")
        finally:
            self._connection.unregister("new_rows")

    def outdated(self) -> list[str]:
        """Objects whose rows are here though they are no longer in force; their rows no longer count."""
        lost = f"FROM store.loaded ANTI JOIN ({_IN_FORCE}) USING (key, log_number)"
        keys = [str(key) for (key,) in self._run(f"SELECT key {lost}").fetchall()]
        self.delete("loaded", "key", keys)
        return keys

    def missing(self) -> list[HeldObject]:
        """Objects in force whose rows are not here yet, oldest first."""
        added = self._arrow(
            f"SELECT * FROM store.objects SEMI JOIN (FROM ({_IN_FORCE}) ANTI JOIN store.loaded "
            "USING (key, log_number)) USING (key) ORDER BY log_number, key"
        )
        return [rows.held_object(row) for row in added.to_pylist()]

    def loaded(self, objects: Sequence[HeldObject]) -> None:
        """The rows of `objects` are here now."""
        self._connection.execute(
            "INSERT INTO store.loaded SELECT unnest(?::VARCHAR[]), unnest(?::BIGINT[])",
            [[held.stored.key for held in objects], [held.log_number for held in objects]],
        )

    def name_videos(self, video_ids: Sequence[str]) -> None:
        """Let `videos` say what `meta` says of them."""
        self._connection.execute(
            "UPDATE store.videos v SET name = m.name, tags = m.tags, recorded_at = m.recorded_at, "
            "hold = m.hold FROM store.meta m WHERE m.video_id = v.video_id "
            "AND v.video_id IN (SELECT unnest(?::VARCHAR[]))",
            [list(video_ids)],
        )

    def write_base(self, path: Path, position: IndexPosition) -> None:
        """Everything, in a fresh file: nothing of an erased video is left in a free block."""
        queries = {table: f"FROM memory.store.{table}" for table in TABLES}
        if self._has_base:
            queries = {table: united(table, base="base.store", delta="memory.store") for table in TABLES}
        ((objects,),) = self._run(f"SELECT count(*) FROM ({queries['objects']})").fetchall()
        self._write(path, position, queries, small=objects < _MANY_OBJECTS)

    def write_checkpointed(self, path: Path, parquet: Path) -> None:
        """What the rows of a checkpoint say, as a base."""
        queries = {table: checkpoint_rows(table, parquet) for table in TABLES}
        self._write(path, self.checkpoint_position(parquet), queries, small=False)

    def checkpoint_position(self, parquet: Path) -> IndexPosition:
        (row,) = self._arrow(checkpoint_rows("snapshot", parquet)).to_pylist()
        return IndexPosition(
            archive_id=row["archive_id"],
            number=row["log_number"],
            digest=row["log_digest"],
            grace_seconds=row["grace_seconds"],
            latest_attempt=row["latest_attempt"],
        )

    def write_delta(self, path: Path, position: IndexPosition) -> None:
        queries = {table: f"FROM memory.store.{table}" for table in TABLES}
        self._write(path, position, queries | {"touched": "FROM memory.store.touched"}, small=True)

    def _take(self, owners: list[str]) -> None:
        if not owners:
            return
        self._connection.execute("CREATE OR REPLACE TEMP TABLE taken AS SELECT unnest(?) AS owner", [owners])
        if self._has_base:
            # A short list is compared with each row group's minimum and maximum, and so skips most of them.
            listed = ", ".join(f"'{owner}'" for owner in owners[: _SHORT + 1])
            given = listed if len(owners) <= _SHORT else "FROM taken"
            copies = [
                f"INSERT INTO store.{table} FROM base.store.{table} WHERE {owner} IN ({given});"
                for table, owner in OWNERS.items()
            ]
            self._run(f"{''.join(copies)} INSERT INTO store.loaded {_IN_FORCE} AND owner IN ({given})")
        self._run("INSERT INTO store.touched FROM taken")
        self._touched.update(owners)

    def _write(self, path: Path, position: IndexPosition, queries: dict[str, str], *, small: bool) -> None:
        block = f", BLOCK_SIZE {_SMALL_BLOCK}" if small else ""
        self._run(f"ATTACH '{_quoted(path)}' AS built (ROW_GROUP_SIZE {_ROW_GROUP}{block})")
        self._run(f"USE built; {SCHEMA} USE memory")
        inserts = [
            f"INSERT INTO built.store.{table} BY NAME FROM ({query}) ORDER BY {ORDERS.get(table, 'ALL')}"
            for table, query in queries.items()
        ]
        if small:
            self._run("; ".join(inserts))
        else:
            # DuckDB sorts and compresses much of a table on one core.
            with ThreadPoolExecutor(_WRITERS) as writers:
                list(writers.map(self._run_apart, inserts))
        self._connection.execute(
            "INSERT INTO built.store.snapshot VALUES (?, ?, ?, ?, ?, ?)",
            [*astuple(position), tables.SCHEMA_VERSION],
        )
        self._run("CHECKPOINT built; DETACH built")
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def _arrow(self, sql: str, owners: list[str] | None = None) -> pa.Table:
        values = {} if owners is None else {"owners": owners}
        return self._connection.sql(sql, params=values).to_arrow_table()

    def _run_apart(self, sql: str) -> None:
        """As a transaction of its own, beside others."""
        with self._connection.cursor() as cursor:
            cursor.execute("SET TimeZone = 'UTC'")
            cursor.execute(sql)

    def _run(self, sql: str) -> duckdb.DuckDBPyConnection:
        return self._connection.execute(sql)


def read_tables(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, pa.RecordBatchReader]]:
    """The rows that a checkpoint of an index holds, table by table."""
    for table, schema in CHECKPOINT_TABLES.items():
        columns = ", ".join(f'"{name}"' for name in schema.names)
        order = ORDERS.get(table, "ALL")
        rows_of = f"SELECT {columns} FROM idx.store.{table} ORDER BY {order}"
        yield table, connection.sql(rows_of).to_arrow_reader()


def checkpoint_rows(table: str, parquet: Path) -> str:
    """A query for one table's rows in a checkpoint."""
    there = pq.read_schema(parquet)
    if table not in there.names:  # of a release that had no such table
        return f"FROM store.{table} WHERE false"
    known = {field.name for field in there.field(table).type}  # a release before may have had no such column
    columns = ", ".join(
        f"""{table}['{name}'] AS "{name}\"""" if name in known else f'NULL AS "{name}"'
        for name in CHECKPOINT_TABLES[table].names
    )
    return f"SELECT {columns} FROM read_parquet('{_quoted(parquet)}') WHERE {table} IS NOT NULL"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
