"""What opening costs, what an erasure leaves, what gc asks for, and how checkpoints come and go."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from nvpstore.catalog import Catalog
from nvpstore.errors import ArchiveError, ObjectMissing, StoreError
from nvpstore.exports import pixel_aspect
from nvpstore.storage import keys
from nvpstore.storage.checkpoints import TABLES, list_checkpoints, put_checkpoint
from nvpstore.storage.commit import commit_stabilizer
from nvpstore.storage.entries import LogDraft, LogEntry
from nvpstore.storage.gc import collect
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.types import StoredObject
from tests.catalog.conftest import SmallArchive
from tests.catalog.test_index import all_rows, fill, index_files

pytestmark = pytest.mark.parametrize("archive", ["local"], indirect=True)


class Counted:
    """Counts every request that a store gets."""

    def __init__(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: Counter[str] = Counter()
        for name in ("get", "get_range", "size", "exists", "list", "get_verified"):
            monkeypatch.setattr(store, name, self._counting(name, getattr(store, name)))

    def _counting(self, name: str, method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.requests[name] += 1
            return method(*arguments)

        return call


# ---------------------------------------------------------------- opening


def test_opening_with_nothing_new_costs_two_requests(
    archive: Any, catalog: Catalog, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(archive)
    catalog.snapshot()
    counted = Counted(archive.store, monkeypatch)
    again = Catalog(archive.store, cache_dir)
    assert again.archive_id == archive.archive_id
    again.snapshot()
    assert counted.requests.total() == 2
    again.snapshot()
    assert counted.requests.total() == 3


def test_a_root_that_holds_another_archive_now_is_noticed(archive: Any, cache_dir: Path) -> None:
    fill(archive)
    Catalog(archive.store, cache_dir).snapshot()
    root, entries = archive.store.root, archive.log.head()
    shutil.rmtree(root)
    with pytest.raises(ArchiveError, match="is not an archive"):
        Catalog(open_store(root), cache_dir)
    other = SmallArchive(open_store(root))
    for n in range(entries + 1):
        other.add_video(f"other {n}")
    catalog = Catalog(other.store, cache_dir)
    assert catalog.archive_id == other.archive_id
    assert len(all_rows(catalog.snapshot())["videos"]) == entries + 1


@pytest.mark.parametrize("memory", ["", "[]", "{}", '{"archive_id": 7}', '{"archive_id": "../../x"}'])
def test_a_damaged_memory_of_roots_does_not_matter(archive: Any, cache_dir: Path, memory: str) -> None:
    fill(archive)
    expected = all_rows(Catalog(archive.store, cache_dir).snapshot())
    (path,) = (cache_dir / "roots").glob("*.json")
    path.write_text(memory)
    assert all_rows(Catalog(archive.store, cache_dir).snapshot()) == expected
    assert json.loads(path.read_text())["archive_id"] == archive.archive_id


def test_a_few_new_entries_read_only_their_own_objects(
    archive: Any, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(6):
        archive.add_video(f"video {n}")
    catalog.snapshot()
    archive.add_video("new")
    counted = Counted(archive.store, monkeypatch)
    assert catalog.snapshot().path.name.startswith("delta-")
    assert counted.requests["get_verified"] == 1


# ---------------------------------------------------------------- erasure


def traces(catalog: Catalog, video_id: str) -> list[Path]:
    """Makes folders such as other parts of the program keep of a video."""
    folders = [catalog.folder / kind / video_id for kind in ("fits", "ranges", "originals")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "file").write_text("gate")
    return folders


def erase(archive: Any, video_id: str) -> LogEntry:
    entry: LogEntry = archive.commit("erase", video_id, [])
    for prefix in keys.video_prefixes(video_id):
        archive.store.delete_all(archive.store.list(prefix))
    return entry


def files_with(folder: Path, text: str) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in paths if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("seen", ["forget", "snapshot", "fresh"])
def test_after_an_erasure_no_file_of_the_cache_has_the_name(
    archive: Any, catalog: Catalog, cache_dir: Path, seen: str
) -> None:
    video = archive.add_video("one", name="unmistakable name")
    archive.add_meta(video.video_id, name="another unmistakable name", tags={"k": "unmistakable"})
    kept = archive.add_video("two")
    base = catalog.snapshot()
    archive.add_video("three", name="third unmistakable name")
    pinned = catalog.snapshot()
    gone, stays = traces(catalog, video.video_id), traces(catalog, kept.video_id)
    assert files_with(catalog.folder, "unmistakable")
    entry = erase(archive, video.video_id)
    if seen == "forget":
        catalog.forget(video.video_id, number=entry.number)
    else:
        (catalog if seen == "snapshot" else Catalog(archive.store, cache_dir)).snapshot()
    assert not files_with(catalog.folder, "another unmistakable")
    assert not any(folder.exists() for folder in gone)
    assert all(folder.exists() for folder in stays)
    assert len(index_files(catalog)) == 1
    # Snapshots from before go on, from files that have no name any more.
    assert len(all_rows(pinned)["videos"]) == 3
    assert len(all_rows(base)["videos"]) == 2
    assert not catalog.snapshot().has_video(video.video_id)


def test_a_fit_of_a_video_that_is_stored_again_outlives_a_rebuild(
    archive: Any, catalog: Catalog, cache_dir: Path
) -> None:
    video = archive.add_video("one")
    erase(archive, video.video_id)
    catalog.snapshot()
    fit, *_ = traces(catalog, video.video_id)
    with FileLock(fit.with_suffix(".lock")):  # as whoever fits holds it
        Catalog(archive.store, cache_dir).rebuild()
        assert fit.exists()
    Catalog(archive.store, cache_dir).rebuild()
    assert not fit.exists()
    again = archive.add_video("two")
    catalog.snapshot()
    fit, *_ = traces(catalog, again.video_id)
    erase(archive, again.video_id)
    with FileLock(fit.with_suffix(".lock")):  # erased just now, it is in vain
        catalog.snapshot()
    assert not fit.exists()


def test_garbage_is_what_the_index_does_not_name(archive: Any, catalog: Catalog) -> None:
    old, new = (
        commit_stabilizer(
            archive.log,
            name="labels",
            version="c" * 64,
            data=b"w",
            later_than=catalog.snapshot().latest_attempt,
        ).key
        for _ in range(2)
    )
    later = datetime.now(UTC) + timedelta(days=3)
    assert collect(archive.log, catalog.snapshot, now=later).keys == [old]
    assert list(archive.store.list(keys.STABILIZERS_PREFIX)) == [new]


def test_forgetting_what_the_log_does_not_say_is_refused(archive: Any, catalog: Catalog) -> None:
    video = archive.add_video("one")
    with pytest.raises(StoreError, match=r"entry 9 .* is not there: the newest is 1"):
        catalog.forget(video.video_id, number=9)


def test_an_erased_video_that_is_stored_again_is_there(
    archive: Any, catalog: Catalog, tmp_path: Path
) -> None:
    old = archive.add_video("one", name="first name")
    archive.add_meta(old.video_id, name="said before", tags={})
    number = erase(archive, old.video_id).number
    new = archive.add_video("one", name="second name")
    for snapshot in (catalog.snapshot(), Catalog(archive.store, tmp_path / "other").snapshot()):
        assert snapshot.video(old.video_id).name == "second name"
        assert snapshot.video(old.video_id).attempt == new.attempt
        assert snapshot.erased() == {old.video_id: number}
        assert snapshot.erased(after=number) == {}


def test_an_erasure_while_entries_are_read_is_taken_in(
    archive: Any, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add_video("two")
    video = archive.add_video("one")
    get_verified = archive.store.get_verified

    def racing(obj: StoredObject) -> bytes:
        if video.video_id in obj.key:
            monkeypatch.undo()
            erase(archive, video.video_id)
        return bytes(get_verified(obj))

    monkeypatch.setattr(archive.store, "get_verified", racing)
    snapshot = catalog.snapshot()
    assert snapshot.number == archive.log.head() == 3
    assert [row["name"] for row in all_rows(snapshot)["videos"]] == ["two.mp4"]


def test_a_missing_object_that_nobody_removed_is_an_error(archive: Any, catalog: Catalog) -> None:
    video = archive.add_video("one")
    archive.store.delete(keys.manifest_key(video.video_id, video.attempt))
    with pytest.raises(ObjectMissing, match="manifest"):
        catalog.snapshot()


# ---------------------------------------------------------------- objects


def test_replaced_objects_are_listed_until_they_are_collected(archive: Any, catalog: Catalog) -> None:
    video, task = archive.add_video("one"), archive.add_task()
    archive.add_routes(video, task)
    before = {obj.key for obj in catalog.snapshot().objects(video.video_id)}
    archive.add_video("one")
    snapshot = catalog.snapshot()
    replaced = {held.stored.key for held in snapshot.superseded(before=datetime.now(UTC))}
    assert replaced == before
    assert snapshot.superseded(before=datetime.now(UTC) - timedelta(hours=1)) == []
    in_force = {obj.key for obj in snapshot.objects(video.video_id)}
    assert not in_force & replaced
    everything = {obj.key for obj in snapshot.objects(video.video_id, in_force=False)}
    assert everything == in_force | replaced
    assert {obj.key for obj in snapshot.objects("")} == {keys.task_key("labels", task.version)}
    assert snapshot.held([*everything, "videos/unknown"]) == everything


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_due_after_enough_entries(
    archive: Any, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvpstore.catalog.index.step", lambda number: 3)
    archive.add_video("one", segments=1)
    assert catalog.checkpoint() is None
    for n in range(2):
        archive.add_video(f"more {n}", segments=1)
    assert catalog.checkpoint() == 3
    assert catalog.checkpoint() is None
    assert catalog.checkpoint(force=True) == 3
    assert {found.number for found in list_checkpoints(archive.store)} == {3}


def test_a_fresh_machine_reads_the_checkpoint_and_what_came_since(
    archive: Any, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(archive)
    catalog.checkpoint(force=True)
    archive.add_video("three")
    expected = all_rows(catalog.snapshot())
    counted = Counted(archive.store, monkeypatch)
    fresh = Catalog(archive.store, tmp_path / "fresh").snapshot()
    assert all_rows(fresh) == expected
    assert counted.requests["get_verified"] == 1
    assert fresh.path.name.startswith("delta-")


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign", "missing"])
def test_an_older_checkpoint_stands_in_for_a_damaged_one(
    archive: Any, catalog: Catalog, tmp_path: Path, damage: str
) -> None:
    fill(archive)
    catalog.checkpoint(force=True)
    archive.add_video("three")
    catalog.checkpoint(force=True)
    expected = all_rows(catalog.snapshot())
    newest, older = list_checkpoints(archive.store)
    path = Path(archive.store.root, newest.key)
    whole = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    elif damage == "cut":
        path.write_bytes(whole[:-7])
    elif damage == "foreign":
        path.write_bytes(Path(archive.store.root, older.key).read_bytes())
    fresh = Catalog(archive.store, tmp_path / "fresh")
    assert all_rows(fresh.snapshot()) == expected
    assert f"-on-{older.number}-" in fresh.snapshot().path.name


def test_a_checkpoint_of_another_log_is_passed_over(archive: Any, catalog: Catalog, tmp_path: Path) -> None:
    other = SmallArchive(open_store(str(tmp_path / "other")))
    for target in (archive, other):
        fill(target)
    Catalog(other.store, tmp_path / "a").checkpoint(force=True)
    (foreign,) = list_checkpoints(other.store)
    shutil.copy(Path(other.store.root, foreign.key), Path(archive.store.root, foreign.key))
    assert all_rows(Catalog(archive.store, tmp_path / "b").snapshot()) == all_rows(catalog.rebuild())


def test_no_checkpoint_stays_that_an_erasure_overtook(
    archive: Any, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = archive.add_video("one")
    put_file = archive.store.put_file

    def racing(key: str, path: Path) -> StoredObject:
        erase(archive, video.video_id)
        stored: StoredObject = put_file(key, path)
        return stored

    monkeypatch.setattr(archive.store, "put_file", racing)
    assert catalog.checkpoint(force=True) is None
    assert list_checkpoints(archive.store) == []


def test_a_damaged_checkpoint_of_the_same_state_is_replaced(archive: Any, catalog: Catalog) -> None:
    fill(archive)
    catalog.checkpoint(force=True)
    (found,) = list_checkpoints(archive.store)
    path = Path(archive.store.root, found.key)
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(b"damaged")
    assert catalog.checkpoint(force=True) == found.number
    assert whole in [Path(archive.store.root, c.key).read_bytes() for c in list_checkpoints(archive.store)]


def test_checkpoints_hold_the_tables_of_the_index(archive: Any, catalog: Catalog) -> None:
    with catalog.snapshot().connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table, schema in TABLES.items():
            columns = connection.sql(f"FROM idx.store.{table} LIMIT 0").to_arrow_table().schema
            assert [n for n in columns.names if n != "schema_version"] == schema.names, table
            assert [columns.field(n).type for n in schema.names] == schema.types, table


def test_a_checkpoint_of_a_release_without_pixel_aspects_is_read(
    archive: Any, catalog: Catalog, tmp_path: Path
) -> None:
    archive.add_video("one", pixel_aspect=Fraction(64, 45))
    catalog.checkpoint(force=True)
    (checkpoint,) = list_checkpoints(archive.store)
    whole = pq.read_table(Path(archive.store.root, checkpoint.key))
    archive.store.delete(checkpoint.key)
    videos = whole["videos"].combine_chunks()
    kept = [field for field in videos.type if not field.name.startswith("aspect_")]
    fewer = pa.StructArray.from_arrays(
        [videos.field(field.name) for field in kept], fields=kept, mask=videos.is_null()
    )
    place = whole.column_names.index("videos")
    older = tmp_path / "older.parquet"
    metadata = {"nvp:format": "1", "nvp:kind": "checkpoint"}
    pq.write_table(whole.set_column(place, "videos", fewer).replace_schema_metadata(metadata), older)
    put_checkpoint(archive.store, checkpoint.number, older)
    archive.add_video("two")
    fresh = Catalog(archive.store, tmp_path / "fresh").snapshot()
    assert fresh.path.name.startswith("delta-")  # on the checkpoint as its base
    (one,) = (fresh.video(row["video_id"]) for row in all_rows(fresh)["videos"] if row["name"] == "one.mp4")
    assert one.pixel_aspect is None
    assert pixel_aspect(archive.store, fresh, one) == Fraction(64, 45)


def test_a_checkpoint_of_a_release_without_views_is_read(
    archive: Any, catalog: Catalog, tmp_path: Path
) -> None:
    archive.add_video("one")
    catalog.checkpoint(force=True)
    (checkpoint,) = list_checkpoints(archive.store)
    whole = pq.read_table(Path(archive.store.root, checkpoint.key))
    archive.store.delete(checkpoint.key)
    older = tmp_path / "older.parquet"
    metadata = {"nvp:format": "1", "nvp:kind": "checkpoint"}
    pq.write_table(whole.drop_columns(["views"]).replace_schema_metadata(metadata), older)
    put_checkpoint(archive.store, checkpoint.number, older)
    view = archive.add_view("night")
    fresh = Catalog(archive.store, tmp_path / "fresh").snapshot()
    assert fresh.path.name.startswith("delta-")  # on the checkpoint as its base
    assert fresh.views() == (view,)
    assert all_rows(fresh) == all_rows(catalog.snapshot())


# ---------------------------------------------------------------- together


def test_readers_never_fail_beside_a_writer_that_stores_and_erases(
    archive: Any, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvpstore.catalog.index.step", lambda number: 2)  # new bases all the time
    done = threading.Event()

    def read(_: int) -> int:
        looks = 0
        while not done.is_set() or looks < 2:
            snapshot = Catalog(archive.store, cache_dir).snapshot()
            rows = all_rows(snapshot)
            assert {row["video_id"] for row in rows["videos"]} == {
                row["video_id"] for row in rows["segments"]
            }
            looks += 1
        return looks

    with ThreadPoolExecutor(3) as readers:
        reading = [readers.submit(read, n) for n in range(3)]
        try:
            writer = Catalog(archive.store, cache_dir)
            for n in range(6):
                video = archive.add_video(f"video {n}", segments=1)
                if n % 2:
                    writer.forget(video.video_id, number=erase(archive, video.video_id).number)
                writer.checkpoint(force=n == 3)
        finally:
            done.set()
        assert all(future.result() >= 2 for future in reading)
    assert len(all_rows(writer.snapshot())["videos"]) == 3


def test_a_collection_that_touches_many_videos_is_folded(
    archive: Any, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvpstore.catalog.workspace._SHORT", 2)
    for n in range(4):
        for _ in range(2):
            archive.add_video(f"video {n}", segments=1)
    catalog.rebuild()
    replaced = catalog.snapshot().superseded(before=datetime.now(UTC))
    archive.log.append(
        LogDraft(
            kind="gc",
            attempt=keys.new_attempt(),
            subject=archive.archive_id,
            removed=tuple(held.stored.key for held in replaced),
            fence=keys.new_attempt(),
        )
    )
    snapshot = catalog.snapshot()
    assert snapshot.path.name.startswith("delta-")
    assert snapshot.superseded(before=datetime.now(UTC)) == []
    assert all_rows(snapshot) == all_rows(Catalog(archive.store, tmp_path / "other").snapshot())
