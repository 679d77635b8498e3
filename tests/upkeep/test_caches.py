"""Damaged files of this machine are found and removed; the archive does not suffer."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from nvpstore.catalog import Catalog
from nvpstore.storage.objects import open_store
from nvpstore.storage.range_cache import RangeCache
from nvpstore.types import ByteRange
from nvpstore.upkeep.caches import drop_damaged
from tests.catalog.conftest import SmallArchive


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """With a base and a delta on it."""
    small = SmallArchive(open_store(str(tmp_path / "archive")))
    small.add_video("gate")
    catalog = Catalog(small.store, tmp_path / "cache")
    catalog.snapshot()
    small.add_video("yard")
    catalog.snapshot().close()
    return Catalog(small.store, tmp_path / "cache")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def indexes(catalog: Catalog) -> list[Path]:
    return sorted(catalog.folder.glob("*.duckdb"))


def test_sound_indexes_stay(catalog: Catalog) -> None:
    before = indexes(catalog)
    assert len(before) == 2
    assert drop_damaged(catalog.folder) == ()
    assert indexes(catalog) == before


@pytest.mark.parametrize("kind", ["base", "delta"])
def test_a_damaged_index_is_removed_alone_and_built_again(catalog: Catalog, kind: str) -> None:
    (path,) = catalog.folder.glob(f"{kind}-*.duckdb")
    for block in range(3, path.stat().st_size // 4096):  # past the headers, of which one is a spare
        flip(path, block * 4096 + 100)
    assert drop_damaged(catalog.folder) == (str(path),)
    assert path not in indexes(catalog)
    fresh = Catalog(catalog.log.store, catalog.folder.parent).snapshot()
    assert fresh.has_video(fresh.find_video("gate.mp4"))


def test_a_folder_that_is_not_there_has_no_damage(tmp_path: Path) -> None:
    assert drop_damaged(tmp_path / "nothing", [RangeCache(tmp_path / "ranges", budget_bytes=1)]) == ()


def test_damaged_ranges_are_removed(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path / "ranges", budget_bytes=10**6)
    key = f"videos/{'a' * 32}/01M7YG5AMPKS8R25RCST1TFRR7/weights-0.parquet"
    chance = random.Random(0)
    for offset in range(3):
        data = chance.randbytes(500)
        part = ByteRange(key=key, offset=offset, size_bytes=500, sha256=hashlib.sha256(data).hexdigest())
        cache.put(part, data, as_of=0)
    damaged = next(path for path in (tmp_path / "ranges" / ("a" * 32)).iterdir())
    flip(damaged, 250)
    assert drop_damaged(tmp_path, [cache]) == (str(damaged),)
    assert not damaged.exists()
    assert drop_damaged(tmp_path, [cache]) == ()
