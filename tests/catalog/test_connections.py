"""Connections that wait for their next user: nothing of the one before is left in them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from nvpstore.catalog import Catalog
from nvpstore.catalog.connections import KEPT, Connections
from nvpstore.catalog.snapshot import Snapshot
from nvpstore.query.safety import Locked

TERMS = Locked(memory_mib=32, threads=1)


class Counted(Connections):
    """Of empty databases; knows all that it made."""

    def __init__(self) -> None:
        self.made: list[duckdb.DuckDBPyConnection] = []
        super().__init__(self._make)

    def _make(self) -> duckdb.DuckDBPyConnection:
        self.made.append(duckdb.connect(":memory:"))
        return self.made[-1]

    @property
    def open(self) -> int:
        return sum(map(is_open, self.made))


@pytest.fixture
def connections() -> Iterator[Counted]:
    made = Counted()
    yield made
    made.close()


def is_open(con: duckdb.DuckDBPyConnection) -> bool:
    try:
        return con.execute("SELECT 1").fetchall() == [(1,)]
    except duckdb.ConnectionException:
        return False


def setting(con: duckdb.DuckDBPyConnection, name: str) -> Any:
    return con.execute(f"SELECT current_setting('{name}')").fetchall()[0][0]


def test_one_after_another_is_one_connection(connections: Counted) -> None:
    for _ in range(3):
        with connections.lend(TERMS) as con:
            assert con.execute("SELECT 42").fetchall() == [(42,)]
    assert len(connections.made) == 1


def test_the_next_user_finds_nothing_of_the_one_before(connections: Counted) -> None:
    mine = pa.table({"a": [1, 2]})
    with connections.lend(TERMS) as con:
        con.register("mine", mine)
        con.execute("SET memory_limit = '64MiB'")
        con.execute("CREATE TEMP TABLE noted AS FROM mine")
        child = con.cursor()
        child.register("hers", mine)
    with connections.lend(TERMS) as con:
        for name in ("mine", "noted", "hers"):
            with pytest.raises(duckdb.CatalogException):
                con.execute(f"FROM {name}")
        assert setting(con, "memory_limit") == "32.0 MiB"
    assert not is_open(child)
    assert len(connections.made) == 1


def test_every_user_is_locked_down(connections: Counted) -> None:
    mine = pa.table({"a": [1]})
    for _ in range(2):
        with connections.lend(TERMS) as con:
            assert (setting(con, "TimeZone"), setting(con, "threads")) == ("UTC", 1)
            for sql, said in (
                ("SET threads = 8", "locked"),
                ("SET GLOBAL TimeZone = 'Europe/Berlin'", "locked"),
                ("SET python_enable_replacements = true", "locked"),
                ("SELECT * FROM '/etc/passwd'", "does not exist"),
                ("FROM read_csv('/etc/passwd')", "disabled"),
                ("FROM mine", "does not exist"),
            ):
                with pytest.raises(duckdb.Error, match=said):
                    con.execute(sql)
    assert mine.num_rows == 1
    assert len(connections.made) == 1


def test_two_at_once_share_nothing(connections: Counted) -> None:
    with connections.lend(TERMS) as one, connections.lend(TERMS) as other:
        one.execute("SET memory_limit = '64MiB'")
        one.execute("CREATE TABLE theirs AS SELECT 1")
        assert setting(other, "memory_limit") == "32.0 MiB"
        with pytest.raises(duckdb.CatalogException):
            other.execute("FROM theirs")
    assert len(connections.made) == 2


def test_other_terms_get_another(connections: Counted) -> None:
    with connections.lend(TERMS):
        pass
    with connections.lend(Locked(memory_mib=32, threads=2)) as con:
        assert setting(con, "threads") == 2
    assert len(connections.made) == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, duckdb.InterruptException])
def test_where_anything_went_wrong_it_is_not_used_again(
    connections: Counted, error: type[BaseException]
) -> None:
    with pytest.raises(error), connections.lend(TERMS):
        raise error
    assert connections.open == 0
    with connections.lend(TERMS) as con:
        assert is_open(con)


def test_what_cannot_be_restored_is_not_used_again(connections: Counted) -> None:
    with connections.lend(TERMS) as con:
        con.execute("SET memory_limit = '256MiB'")
        # As if it held more than its limit: it cannot go below what this result has.
        holding = connections.made[0].cursor()
        holding.execute("SELECT i, md5(i::VARCHAR) AS m FROM range(1000000) AS t(i) ORDER BY m").fetchone()
    assert connections.open == 0


def test_few_are_kept(connections: Counted) -> None:
    with ExitStack() as stack:
        for _ in range(KEPT + 3):
            stack.enter_context(connections.lend(TERMS))
    assert (len(connections.made), connections.open) == (KEPT + 3, KEPT)


def test_what_comes_back_after_the_end_is_closed(connections: Counted) -> None:
    with connections.lend(TERMS) as con:
        with connections.lend(TERMS):
            pass
        connections.close()
        assert connections.open == 1
        assert is_open(con)
    assert connections.open == 0


def test_threads_never_have_the_same_one(connections: Counted) -> None:
    def use(number: int) -> int:
        with connections.lend(TERMS) as con:
            con.execute("CREATE TABLE busy AS SELECT 1")  # fails where somebody else has this database
            con.register("mine", pa.table({"a": [number]}))
            assert setting(con, "memory_limit") == "32.0 MiB"
            con.execute("SET memory_limit = '40MiB'")
            found: int = con.execute("SELECT a FROM mine").fetchall()[0][0]
            con.execute("DROP TABLE busy")
            return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(40))) == list(range(40))


# ---------------------------------------------------------------- of a snapshot


def opened(folder: Path) -> list[str]:
    """Index files that this process has open."""
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
    return [link for link in links if link.startswith(str(folder)) and ".duckdb" in link]


def test_a_snapshot_lends_its_index(archive: Any, catalog: Catalog) -> None:
    video = archive.add_video("one")
    snapshot = catalog.snapshot()
    for _ in range(2):
        with snapshot.lend(TERMS) as con:
            assert con.execute("SELECT video_id FROM videos").fetchall() == [(video.video_id,)]
            assert con.execute("SELECT count(*) FROM idx.store.segments").fetchall() == [(2,)]


@pytest.mark.parametrize("dropped", [False, True])
def test_a_closed_or_forgotten_snapshot_has_no_file_open(archive: Any, tmp_path: Path, dropped: bool) -> None:
    archive.add_video("one")
    folder = tmp_path / "index"
    catalog = Catalog(archive.store, folder)
    snapshot: Snapshot | None = catalog.snapshot()
    assert snapshot is not None
    with snapshot.lend(TERMS) as con:
        con.execute("SELECT * FROM videos").fetchall()
    assert opened(folder)
    if not dropped:
        snapshot.close()
    del catalog, snapshot, con
    gc.collect()
    assert not opened(folder)
