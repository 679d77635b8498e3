"""Damaged index files: noticed when their bytes are used, never a wrong answer, and replaced."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.catalog.files import OpenIndex, list_indexes
from nvpstore.errors import QueryError, StoreError
from tests.catalog.test_index import all_rows, fill

FLIPS = 40


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.unlink()  # an open snapshot keeps what it has
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("which", [0, 1], ids=["base", "delta"])
def test_every_flipped_bit_is_noticed_or_changes_nothing(archive: Any, catalog: Catalog, which: int) -> None:
    fill(archive)
    catalog.rebuild()
    archive.add_video("later")
    snapshot = catalog.snapshot()
    expected, path = all_rows(snapshot), snapshot.index.file.paths[which]
    whole = path.read_bytes()
    draw = random.Random(which)
    noticed = 0
    for n in range(FLIPS):
        # Half of them in the three headers, on which everything hangs.
        flip(path, draw.randrange(12288 if n % 2 else len(whole)), draw.randrange(8))
        try:
            damaged = Snapshot(OpenIndex(snapshot.index.file))
            damaged.check()
            assert all_rows(damaged) == expected
        except (duckdb.Error, StoreError):
            noticed += 1
        path.write_bytes(whole)
    assert noticed > FLIPS // 2


def damaged_late(archive: Any, catalog: Catalog) -> Snapshot:
    """A snapshot whose file opens well, though a block of a table in it is damaged."""
    fill(archive)
    path = catalog.rebuild().path
    whole = path.read_bytes()
    for position in range(len(whole) - 100, 12288, -4096):
        flip(path, position, 3)
        try:
            found = Snapshot(OpenIndex(list_indexes(catalog.folder)[0]))
        except duckdb.Error:
            path.write_bytes(whole)
            continue
        catalog._current = found
        try:
            found.check()
        except StoreError:
            found.damaged = False
            return found
        path.write_bytes(whole)
    raise AssertionError("every block is read when the file is opened")


def test_damage_found_by_a_check_is_repaired(archive: Any, catalog: Catalog) -> None:
    damaged = damaged_late(archive, catalog)
    with pytest.raises(StoreError, match=f"the index {damaged.path} is damaged: Corrupt database file"):
        catalog.check()
    repaired = catalog.snapshot()
    catalog.check()
    assert repaired is not damaged
    assert len(all_rows(repaired)["videos"]) == 2


def test_damage_found_by_somebody_elses_query_is_repaired(archive: Any, catalog: Catalog) -> None:
    damaged = damaged_late(archive, catalog)
    with pytest.raises(StoreError, match="is damaged"):
        _query(damaged)
    assert len(all_rows(catalog.snapshot())["videos"]) == 2


def _query(snapshot: Snapshot) -> None:
    with snapshot.noticing_damage():
        try:
            all_rows(snapshot)
        except duckdb.Error as error:
            raise QueryError("as the query engine says it") from error


def test_damage_found_while_building_is_passed_over(archive: Any, catalog: Catalog, tmp_path: Path) -> None:
    damaged_late(archive, catalog)
    archive.commit("erase", archive.add_video("three").video_id, [])  # needs a new base: all is read
    expected = all_rows(Catalog(archive.store, tmp_path / "other").snapshot())
    assert all_rows(catalog.snapshot()) == expected


def test_other_errors_are_not_damage(archive: Any, catalog: Catalog) -> None:
    fill(archive)
    snapshot = catalog.snapshot()
    with pytest.raises(duckdb.Error), snapshot.noticing_damage(), snapshot.connect() as connection:
        connection.execute("SELECT nothing FROM videos")
    assert not snapshot.damaged
