"""The file format of checkpoints: one Parquet file for all tables, named by its digest."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvpstore.errors import ArchiveError, IntegrityError, ObjectMissing
from nvpstore.storage.checkpoints import (
    TABLES,
    Checkpoint,
    fetch_checkpoint,
    list_checkpoints,
    put_checkpoint,
    write_checkpoint,
)
from nvpstore.storage.keys import new_attempt
from nvpstore.storage.objects import ObjectStore, open_store

ROWS: dict[str, list[dict[str, Any]]] = {
    "snapshot": [{"archive_id": "A", "log_number": 7, "log_digest": "d", "grace_seconds": 60}],
    "objects": [
        {"owner": "v", "key": f"videos/v/{n}", "size_bytes": n, "log_number": 1, "replaced_at": None}
        for n in range(120_000)
    ],
    "videos": [
        {"video_id": "v", "tags": [("camera", "gate")], "recorded_at": datetime(2026, 5, 1, tzinfo=UTC)}
    ],
    "segments": [{"video_id": "v", "segment": 0, "pts": [1, 5], "frame_psnr": [30.5, None]}],
}


def written(path: Path) -> Path:
    tables = (
        (name, pa.Table.from_pylist(ROWS.get(name, []), schema=schema).to_reader())
        for name, schema in TABLES.items()
    )
    write_checkpoint(path, tables)
    return path


@pytest.fixture
def store() -> ObjectStore:
    return open_store(f"memory://{new_attempt()}")


def test_each_row_is_of_one_table_and_each_group_too(tmp_path: Path) -> None:
    file = pq.ParquetFile(written(tmp_path / "checkpoint.parquet"))
    assert file.schema_arrow.names == list(TABLES)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    order = []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        (name,) = [name for name in TABLES if table[name].null_count < table.num_rows]
        assert table[name].null_count == 0
        order.append(name)
        found[name] += table[name].to_pylist()
    assert order == sorted(order, key=list(TABLES).index)
    for name, rows in found.items():
        expected = pa.Table.from_pylist(ROWS.get(name, []), schema=TABLES[name]).to_pylist()
        assert rows == expected


def test_it_is_found_by_number_and_read_back_whole(store: ObjectStore, tmp_path: Path) -> None:
    path = written(tmp_path / "checkpoint.parquet")
    older, newer = put_checkpoint(store, 7, path), put_checkpoint(store, 12, path)
    store.put("log/checkpoint-notes.txt", b"nobody's")
    assert list_checkpoints(store) == [newer, older]
    fetch_checkpoint(store, newer, tmp_path / "fetched.parquet")
    assert (tmp_path / "fetched.parquet").read_bytes() == path.read_bytes()


def test_what_is_no_whole_checkpoint_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    path = written(tmp_path / "checkpoint.parquet")
    found, target = put_checkpoint(store, 7, path), tmp_path / "fetched.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    store.delete(found.key)
    with pytest.raises(ObjectMissing):
        fetch_checkpoint(store, found, target)
    store.put(found.key, bytes(data))
    with pytest.raises(IntegrityError, match=found.key):
        fetch_checkpoint(store, found, target)
    assert put_checkpoint(store, 7, path) == found  # takes the damaged one's place
    fetch_checkpoint(store, found, target)


@pytest.mark.parametrize(
    ("metadata", "error"),
    [({"nvp:format": "9", "nvp:kind": "checkpoint"}, "version 9"), ({"nvp:format": "1"}, "not a checkpoint")],
)
def test_another_format_or_kind_is_an_archive_error(
    store: ObjectStore, tmp_path: Path, metadata: dict[str, str], error: str
) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), path)
    found = put_checkpoint(store, 1, path)
    with pytest.raises(ArchiveError, match=error):
        fetch_checkpoint(store, found, tmp_path / "fetched.parquet")


def test_bytes_that_are_no_parquet_are_an_integrity_error(store: ObjectStore, tmp_path: Path) -> None:
    data = b"not Parquet at all"
    found = Checkpoint(number=3, sha256=hashlib.sha256(data).hexdigest())
    store.put(found.key, data)
    with pytest.raises(IntegrityError, match="no Parquet file"):
        fetch_checkpoint(store, found, tmp_path / "fetched.parquet")
