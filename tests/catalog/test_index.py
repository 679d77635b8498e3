"""Index files: built once, from any start the same, never another archive's, kept while in use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.errors import ArchiveError, IntegrityError, StoreError
from nvpstore.storage.keys import log_key
from nvpstore.storage.objects import open_store

VIEWS = ("videos", "segments", "tasks", "routes")
TABLES = (
    "objects",
    "erased",
    "videos",
    "meta",
    "segments",
    "stages",
    "footers",
    "tasks",
    "views",
    "routes",
    "results",
)


def all_rows(snapshot: Snapshot) -> dict[str, list[Any]]:
    """Every row of every view and table, in an order that does not depend on how it was built."""
    with snapshot.connect() as connection:
        names = [*VIEWS, *(f"idx.store.{table}" for table in TABLES)]
        return {
            name: connection.sql(f"FROM {name} ORDER BY ALL").to_arrow_table().to_pylist() for name in names
        }


def fill(archive: Any) -> Any:
    first = archive.add_video("one")
    task = archive.add_task()
    archive.add_routes(first, task)
    archive.add_answers(first, task)
    archive.add_view("night")
    archive.add_meta(first.video_id, name="gate", tags={"camera": "gate"})
    second = archive.add_video("two", segments=1)
    archive.add_routes(second, task)
    return first


def index_files(catalog: Catalog) -> list[str]:
    return sorted(path.name for path in catalog.folder.glob("*.duckdb"))


def test_a_missing_archive_is_an_archive_error(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is not an archive: run `nvp init`"):
        Catalog(open_store(str(tmp_path / "nothing")), tmp_path)


def test_an_empty_archive_has_empty_views(catalog: Catalog) -> None:
    snapshot = catalog.snapshot()
    assert snapshot.number == 0
    assert all(not rows for rows in all_rows(snapshot).values())


@pytest.mark.parametrize("archive", ["local", "memory"], indirect=True)
def test_rows_are_the_same_grown_entry_by_entry_fresh_and_rebuilt(
    archive: Any, catalog: Catalog, cache_dir: Path
) -> None:
    first = archive.add_video("one")
    catalog.snapshot()
    task = archive.add_task()
    archive.add_routes(first, task)
    catalog.snapshot()
    archive.add_meta(first.video_id, name="gate", tags={"camera": "gate"})
    archive.add_routes(first, task, fidelity=0.5)
    catalog.snapshot()
    archive.add_video("one", pts=(0, 512, 1024, 1700))
    archive.add_video("two", segments=1)
    archive.add_routes(first, archive.add_task(spec='{"v":2}'))
    grown = catalog.snapshot()
    expected = all_rows(grown)
    assert [len(expected[view]) for view in VIEWS] == [2, 3, 1, 4]

    assert all_rows(catalog.rebuild()) == expected
    shutil.rmtree(cache_dir)
    fresh = Catalog(archive.store, cache_dir).snapshot()
    assert all_rows(fresh) == expected
    assert fresh.number == grown.number == archive.log.head()


def test_meta_before_its_video_counts_however_entries_are_batched(
    archive: Any, catalog: Catalog, tmp_path: Path
) -> None:
    video, objects = archive.put_video("one")
    archive.add_meta(video.video_id, name="early", tags={"a": "b"})
    catalog.snapshot()
    archive.commit("video", video.video_id, objects)
    grown = catalog.snapshot()
    assert grown.video(video.video_id).name == "early"
    assert all_rows(grown) == all_rows(Catalog(archive.store, tmp_path / "other").snapshot())


def test_a_refit_replaces_segments_and_routes_and_keeps_what_people_said(
    archive: Any, catalog: Catalog
) -> None:
    old = archive.add_video("one", segments=3)
    archive.add_routes(old, archive.add_task())
    archive.add_meta(old.video_id, name="gate", tags={"camera": "gate"})
    catalog.snapshot()
    new = archive.add_video("one", segments=2)
    snapshot = catalog.snapshot()
    rows = all_rows(snapshot)
    assert len(rows["segments"]) == 2
    assert rows["routes"] == []
    assert snapshot.video(old.video_id).attempt == new.attempt
    assert snapshot.video(old.video_id).tags == {"camera": "gate"}
    with pytest.raises(StoreError, match="no footer"):
        snapshot.footer(old.segments[0].latents.key)


def test_objects_without_an_entry_are_invisible(archive: Any, catalog: Catalog) -> None:
    fill(archive)
    before = all_rows(catalog.snapshot())
    archive.put_video("crashed before its entry")
    assert all_rows(catalog.snapshot()) == before
    assert all_rows(catalog.rebuild()) == before


def test_a_snapshot_stays_what_it_was(archive: Any, catalog: Catalog) -> None:
    archive.add_video("one")
    pinned = catalog.snapshot()
    for n in range(4):
        archive.add_video(f"more {n}")
        catalog.snapshot()
    assert len(all_rows(pinned)["videos"]) == 1
    assert len(all_rows(catalog.snapshot())["videos"]) == 5
    assert pinned.path.exists()


def test_files_that_no_snapshot_holds_are_removed_but_the_last_two(archive: Any, catalog: Catalog) -> None:
    for n in range(4):
        archive.add_video(f"video {n}")
        catalog.snapshot()
    names = [name.split("-")[:2] for name in index_files(catalog)]
    assert names == [["base", "1"], ["delta", "3"], ["delta", "4"]]


def test_nothing_new_means_the_same_snapshot(archive: Any, catalog: Catalog, cache_dir: Path) -> None:
    fill(archive)
    snapshot = catalog.snapshot()
    written = snapshot.path.stat().st_mtime_ns
    assert catalog.snapshot() is snapshot
    assert Catalog(archive.store, cache_dir).snapshot().path == snapshot.path
    assert snapshot.path.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_a_damaged_index_is_built_again(archive: Any, catalog: Catalog, cache_dir: Path, damage: str) -> None:
    fill(archive)
    snapshot = catalog.snapshot()
    expected, path = all_rows(snapshot), snapshot.path
    snapshot.close()
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[:5000], "noise": bytes(len(whole))}[damage])
    assert all_rows(Catalog(archive.store, cache_dir).snapshot()) == expected


def test_an_index_of_another_schema_is_built_again(
    archive: Any, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(archive)
    monkeypatch.setattr("nvpstore.catalog.tables.SCHEMA_VERSION", 1)
    assert Catalog(archive.store, cache_dir).snapshot().schema_version == 1
    monkeypatch.undo()
    assert Catalog(archive.store, cache_dir).snapshot().schema_version != 1


def test_a_root_with_another_history_never_sees_the_old_index(archive: Any, cache_dir: Path) -> None:
    archive.add_video("one")
    Catalog(archive.store, cache_dir).snapshot()
    number = archive.log.head()
    archive.store.delete(log_key(number))  # as after restoring an older copy, which then goes its own way
    fork = type(archive).__new__(type(archive))
    fork.store, fork.log = archive.store, type(archive.log)(archive.store)
    other = fork.add_video("other")
    snapshot = Catalog(archive.store, cache_dir).snapshot()
    assert snapshot.number == number
    assert [row["video_id"] for row in all_rows(snapshot)["videos"]] == [other.video_id]


def test_a_gap_in_the_log_fails_a_rebuild(archive: Any, catalog: Catalog) -> None:
    fill(archive)
    archive.store.delete(log_key(2))
    with pytest.raises(IntegrityError, match="0002"):
        catalog.rebuild()


def test_a_flipped_bit_in_a_manifest_is_named(archive: Any, catalog: Catalog) -> None:
    video, objects = archive.put_video("one")
    (manifest,) = (obj for obj in objects if obj.key.endswith("manifest.parquet"))
    archive.commit("video", video.video_id, objects)
    data = bytearray(archive.store.get(manifest.key))
    data[len(data) // 2] ^= 4
    archive.store.delete(manifest.key)
    archive.store.put(manifest.key, bytes(data))
    with pytest.raises(IntegrityError, match=manifest.key):
        catalog.snapshot()
    assert index_files(catalog) == []


@pytest.mark.parametrize("archive", ["local", "memory"], indirect=True)
def test_threads_and_catalogs_build_one_file_together(archive: Any, cache_dir: Path) -> None:
    fill(archive)
    catalogs = [Catalog(archive.store, cache_dir) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        snapshots = list(pool.map(lambda n: catalogs[n % 4].snapshot(), range(8)))
    assert len({snapshot.path for snapshot in snapshots}) == 1
    assert len(index_files(catalogs[0])) == 1


@pytest.mark.parametrize("archive", ["local"], indirect=True)
def test_another_process_uses_the_same_file(archive: Any, cache_dir: Path) -> None:
    fill(archive)
    code = (
        "import sys; from nvpstore.catalog import Catalog; from nvpstore.storage.objects import open_store;"
        "print(Catalog(open_store(sys.argv[1]), sys.argv[2]).snapshot().path)"
    )
    command = [sys.executable, "-c", code, archive.store.root, str(cache_dir)]
    path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert str(Catalog(archive.store, cache_dir).snapshot().path) == path


def test_a_cache_that_cannot_be_written_is_one_clear_line(archive: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot build the index in .*file"):
        Catalog(archive.store, tmp_path / "file").snapshot()
