"""What the locked connection changes for right queries: nothing but wrong rows."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from nvpstore.query.safety import lock_down
from tests.query.archive_fixture import FixtureSnapshot, ask


def test_a_left_join_that_keeps_what_found_no_partner_loses_no_row(snapshot: FixtureSnapshot) -> None:
    tables = {
        "a": pa.table({"k": list(range(10))}),
        "b": pa.table({"k": list(range(10)), "v": pa.array([1] * 5 + [None] * 5, pa.int64())}),
    }
    sql = "SELECT count(*) FROM a LEFT JOIN b ON a.k = b.k AND b.v IS NULL WHERE b.k IS NULL"
    assert ask(snapshot, sql, tables=tables).fetchall() == [(5,)]


def test_what_does_not_fit_spills_where_it_was_told_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    with duckdb.connect() as con:
        lock_down(con, memory_limit="64MiB", threads=1, temp_folder=folder, temp_limit="2GiB")
        sql = "SELECT count(*) FROM (SELECT range, random() AS r FROM range(6000000) ORDER BY r)"
        assert con.sql(sql.replace("count(*)", "max(r), count(*)")).fetchall()[0][1] == 6_000_000
    assert not any(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    "sql",
    ["SET threads = 8", "SET memory_limit = '1TB'", "SET enable_external_access = true", "RESET threads"],
)
def test_a_locked_connection_stays_locked(sql: str) -> None:
    with duckdb.connect() as con:
        lock_down(con, memory_limit="64MiB", threads=1)
        with pytest.raises(duckdb.Error, match="locked"):
            con.execute(sql)
