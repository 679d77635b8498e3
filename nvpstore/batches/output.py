"""What a batch writes: Parquet files under a URI, and manifests that say which of them count.

`manifest-<n>.json`, put only where there is none, is the commit: it names the files of run n with sizes and
digests, the statement, and the log entry that was read. Files that no manifest names are what is left of a
run that was killed; the next one removes them. Nothing is ever overwritten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from nvpstore.errors import IntegrityError, ObjectExists, StoreError, UsageError
from nvpstore.storage.contract import ObjectStore
from nvpstore.storage.keys import attempt_time
from nvpstore.types import StoredObject

FORMAT = 1
ROW_GROUP_ROWS = 64 * 1024
MOST_PARTITIONS = 1 << 16
ALONE = timedelta(hours=1)  # after which an unfinished run on a remote store counts as dead
_LOCK = ".batch.lock"
_MANIFEST = re.compile(r"manifest-(\d{8})\.json")
_PART = re.compile(r"(?:.*/)?part-([0-9A-Z]{26})-\d+\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Run `run` of a batch. `videos` are the attempts of all videos that it answered, by id."""

    run: int
    sql: str
    snapshot: int
    written_at: str
    rows: int
    columns: tuple[str, ...]
    files: tuple[StoredObject, ...]
    videos: Mapping[str, str]

    def to_json(self) -> bytes:
        said = {"format": FORMAT, **asdict(self)}
        return (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def from_json(data: bytes, *, key: str) -> Manifest:
        """Raises IntegrityError for anything else, UsageError for the manifest of a newer release."""
        try:
            said = json.loads(data)
            version = said.pop("format")
            if version != FORMAT:
                raise UsageError(f"{key}: format {version}; this release of nvpstore knows {FORMAT}")
            files = tuple(StoredObject(**file) for file in said.pop("files"))
            return Manifest(**{**said, "columns": tuple(said["columns"]), "files": files})
        except (ValueError, TypeError, KeyError) as cause:
            raise IntegrityError(f"{key} is no manifest of a batch: {cause}") from cause


class Output:
    """The folder or prefix that a batch writes to."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def manifests(self) -> list[Manifest]:
        """Of all runs, in order."""
        keys = [key for key in self.store.list("manifest-") if _MANIFEST.fullmatch(key)]
        return [Manifest.from_json(self.store.get(key), key=key) for key in keys]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else on this machine writes there meanwhile. Raises StoreError where somebody does."""
        lock = self.store.local_path(_LOCK)
        with nullcontext() if lock is None else _locked(Path(lock)):
            yield

    def remove_leftovers(self, manifests: Sequence[Manifest]) -> int:
        """Delete what killed runs left; returns how many files. For who is alone.

        Of a remote store nobody can be sure to be: there raises StoreError while such files are young.
        """
        named = {file.key for manifest in manifests for file in manifest.files}
        left = [key for key in self.store.list() if _PART.fullmatch(key) and key not in named]
        if self.store.local_path(_LOCK) is None:
            self._check_dead(left)
        self.store.delete_all(left)
        return len(left)

    def _check_dead(self, keys: Sequence[str]) -> None:
        now = datetime.now(UTC)
        for key in keys:
            match = _PART.fullmatch(key)
            assert match is not None, "chosen by it"
            age = now - attempt_time(match[1])
            if age < ALONE:
                raise StoreError(
                    f"{self.store.root}: another batch began to write there {round(age.total_seconds())} s "
                    f"ago ({key}) and has not finished; its files count as left over after "
                    f"{round(ALONE.total_seconds() / 60)} min"
                )

    def write(
        self,
        batches: Iterator[pa.RecordBatch],
        *,
        attempt: str,
        folder: Path,
        partition_by: Sequence[str],
    ) -> tuple[int, tuple[str, ...], tuple[StoredObject, ...]]:
        """(rows, columns, files), put but not committed; made in `folder` first, so that an upload is short.

        Raises UsageError for a column to partition by that is not there.
        """
        first = next(batches)
        schema = first.schema
        if unknown := [name for name in partition_by if name not in schema.names]:
            raise UsageError(f"partition by {', '.join(unknown)}: the columns are {', '.join(schema.names)}")
        rows = _Counted(first, batches)
        _write_files(rows, schema, attempt=attempt, folder=folder, partition_by=partition_by)
        paths = sorted(folder.rglob("*.parquet"))
        files = tuple(self.store.put_file(path.relative_to(folder).as_posix(), path) for path in paths)
        return rows.count, tuple(schema.names), files

    def commit(self, manifest: Manifest) -> None:
        """Raises StoreError, with the run's files deleted, where another run of that number was first."""
        try:
            self.store.put(f"manifest-{manifest.run:08}.json", manifest.to_json())
        except ObjectExists as cause:
            self.store.delete_all([file.key for file in manifest.files])
            raise StoreError(
                f"{self.store.root}: another batch finished run {manifest.run} meanwhile; this one is dropped"
            ) from cause


class _Counted(Iterator[pa.RecordBatch]):
    def __init__(self, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> None:
        self._first: pa.RecordBatch | None = first
        self._rest = rest
        self.count = 0

    def __next__(self) -> pa.RecordBatch:
        batch, self._first = self._first, None
        if batch is None:
            batch = next(self._rest)
        self.count += batch.num_rows
        return batch


def _write_files(
    rows: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    *,
    attempt: str,
    folder: Path,
    partition_by: Sequence[str],
) -> None:
    """Raises UsageError for more than MOST_PARTITIONS folders."""
    options = ds.ParquetFileFormat().make_write_options(write_page_checksum=True, compression="zstd")
    partitions = ds.partitioning(pa.schema([schema.field(name) for name in partition_by]), flavor="hive")
    try:
        ds.write_dataset(
            pa.RecordBatchReader.from_batches(schema, rows),
            folder,
            format="parquet",
            file_options=options,
            basename_template=f"part-{attempt}-{{i}}.parquet",
            partitioning=partitions if partition_by else None,
            max_rows_per_group=ROW_GROUP_ROWS,
            min_rows_per_group=0,
            use_threads=False,  # or rows come in another order each time
            max_partitions=MOST_PARTITIONS,
            existing_data_behavior="error",
        )
    except pa.ArrowInvalid as cause:
        if "partitions" not in str(cause):
            raise
        raise UsageError(
            f"partition_by {', '.join(partition_by)}: more than {MOST_PARTITIONS} folders"
        ) from cause
    if not any(folder.rglob("*.parquet")):  # no rows: the columns are an answer too
        pq.write_table(schema.empty_table(), folder / f"part-{attempt}-0.parquet")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as cause:
        raise StoreError(f"{path.parent}: another batch is writing there") from cause
    except OSError as cause:
        raise StoreError(f"{path.parent} cannot be written: {cause.strerror}") from cause
    try:
        yield
    finally:
        lock.release()


def next_run(manifests: Sequence[Manifest], values: Mapping[str, Any]) -> Manifest:
    """The manifest behind `manifests`, of these values."""
    return Manifest(run=len(manifests), written_at=datetime.now(UTC).isoformat(timespec="seconds"), **values)
