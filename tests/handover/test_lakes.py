"""Lakes: each run of a batch once, whatever is repeated; damaged files never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyiceberg.catalog.sql import SqlCatalog

from nvpstore.batches.output import Output, next_run
from nvpstore.errors import IntegrityError, UsageError
from nvpstore.handover.lakes import write_delta, write_iceberg
from nvpstore.storage.keys import new_attempt
from nvpstore.storage.objects import open_store

ROWS = [
    {"video_id": "a", "frame": 0, "label": "cat", "score": 0.5},
    {"video_id": "a", "frame": 1, "label": "dog", "score": 0.25},
    {"video_id": "b", "frame": 0, "label": "cat", "score": 1.0},
]


def written(out: Path, rows: list[dict[str, Any]], partition_by: list[str]) -> None:
    """One more run of a batch."""
    output = Output(open_store(str(out)))
    manifests = output.manifests()
    folder = out.parent / f"scratch-{len(manifests)}"
    folder.mkdir()
    count, columns, files = output.write(
        iter(pa.Table.from_pylist(rows).to_batches()),
        attempt=new_attempt(),
        folder=folder,
        partition_by=partition_by,
    )
    said = {"sql": "SELECT …", "snapshot": 1, "rows": count, "columns": columns, "files": files, "videos": {}}
    output.commit(next_run(manifests, said))


def ordered(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: (row["video_id"], row["frame"]))


@pytest.mark.parametrize("partition_by", [[], ["video_id"], ["frame", "video_id"]])
def test_delta_has_each_run_once(tmp_path: Path, partition_by: list[str]) -> None:
    batch, lake = tmp_path / "batch", str(tmp_path / "lake")
    written(batch, ROWS[:2], partition_by)
    first = write_delta(str(batch), lake)
    assert (first.added, first.rows, first.known) == ((0,), 2, ())
    assert write_delta(str(batch), lake).added == ()
    written(batch, ROWS[2:], partition_by)
    second = write_delta(str(batch), lake)
    assert (second.added, second.rows, second.known) == ((1,), 1, (0,))
    assert ordered(DeltaTable(lake).to_pyarrow_table()) == ROWS


def test_iceberg_has_each_run_once(tmp_path: Path) -> None:
    catalog = SqlCatalog("local", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/lake")
    catalog.create_namespace("night")
    batch = tmp_path / "batch"
    written(batch, ROWS[:2], ["video_id"])
    assert write_iceberg(str(batch), catalog, "night.labels").added == (0,)
    written(batch, ROWS[2:], ["video_id"])
    again = write_iceberg(str(batch), catalog, "night.labels")
    assert (again.added, again.known) == ((1,), (0,))
    assert write_iceberg(str(batch), catalog, "night.labels").added == ()
    assert ordered(catalog.load_table("night.labels").scan().to_arrow()) == ROWS


def test_a_damaged_file_is_no_row_of_a_lake(tmp_path: Path) -> None:
    written(tmp_path / "batch", ROWS, [])
    (file,) = (tmp_path / "batch").glob("part-*.parquet")
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="differs from what its batch committed"):
        write_delta(str(tmp_path / "batch"), str(tmp_path / "lake"))
    assert not DeltaTable.is_deltatable(str(tmp_path / "lake"))


def test_no_batch_is_said(tmp_path: Path) -> None:
    (tmp_path / "batch").mkdir()
    with pytest.raises(UsageError, match="no batch finished there"):
        write_delta(str(tmp_path / "batch"), str(tmp_path / "lake"))
