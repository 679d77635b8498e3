"""Checkpoints: the state of an archive up to a log entry, so that a fresh machine need not read all entries.

`log/checkpoint-<number>-<sha256>.parquet` is one Parquet file with one column a table (`TABLES`), each a
struct. A row of the file is a row of one table: exactly that table's column is not null. Row groups hold rows
of one table only, in the order of `TABLES`, and rows are sorted by video. Compression is zstd. The footer's
key-value metadata has `nvp:format` (the format version) and `nvp:kind` = `checkpoint`.

| table | a row is |
| --- | --- |
| snapshot | archive's id, number and checksum of the last entry folded, grace, greatest attempt; one row |
| erased | an erased video and the newest entry that erased it |
| objects | a stored object: owner (video id or empty), newest entry naming it, when replaced (or null) |
| videos | a video, with what its newest meta object says |
| meta | what a video's newest meta object says |
| segments | a segment; `pts` is null where pts are `pts_first` + k · `pts_step` |
| stages | the row group of one stage of a segment, in decode order, and GFLOPs up to it |
| footers | the Parquet footer of a weights, latents, routes or results object |
| routes | a route, and the row group of its adapter |
| results | a part of stored answers: the frames that it covers, and the row group of their rows |
| tasks | a registered task version |
| views | a saved view |

A checkpoint is derived: everything in it can be folded from the log. The digest in its name is of the whole
file, so that it needs no entry of its own, may be deleted at any time, and is passed over where damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nvpstore.errors import ArchiveError, IntegrityError, ObjectExists, UsageError
from nvpstore.storage.documents import FORMAT_VERSION, check_format
from nvpstore.storage.keys import CHECKPOINT_PREFIX, log_checkpoint_key, parse_key
from nvpstore.storage.objects import ObjectStore
from nvpstore.types import StoredObject

_GROUP_ROWS = 50_000
_KIND = "checkpoint"

_TAGS = pa.map_(pa.string(), pa.string())
_TIME = pa.timestamp("us", "UTC")
_RANGE = {"key": pa.string(), "offset": pa.int64(), "size_bytes": pa.int64(), "sha256": pa.string()}
_META = {"name": pa.string(), "tags": _TAGS, "recorded_at": _TIME, "hold": pa.bool_()}

TABLES: dict[str, pa.Schema] = {
    "snapshot": pa.schema(
        {
            "archive_id": pa.string(),
            "log_number": pa.int64(),
            "log_digest": pa.string(),
            "grace_seconds": pa.int64(),
            "latest_attempt": pa.string(),
        }
    ),
    "erased": pa.schema({"video_id": pa.string(), "log_number": pa.int64()}),
    "objects": pa.schema(
        {
            "owner": pa.string(),
            "key": pa.string(),
            "size_bytes": pa.int64(),
            "sha256": pa.string(),
            "log_number": pa.int64(),
            "replaced_at": _TIME,
        }
    ),
    "videos": pa.schema(
        {
            **dict.fromkeys(("video_id", "attempt", "sha256", "name", "state", "source_uri"), pa.string()),
            "source_bytes": pa.int64(),
            "container": pa.string(),
            "source_codec": pa.string(),
            **dict.fromkeys(("width", "height", "rotation_degrees"), pa.int32()),
            **dict.fromkeys(("time_base_num", "time_base_den", "fps_num", "fps_den", "frames"), pa.int64()),
            **dict.fromkeys(("aspect_num", "aspect_den"), pa.int64()),
            "duration": pa.float64(),
            "preset": pa.string(),
            **dict.fromkeys(("psnr", "psnr_p5", "resize_bound_psnr", "fit_seconds"), pa.float64()),
            "audio_key": pa.string(),
            **{name: kind for name, kind in _META.items() if name != "name"},
        }
    ),
    "meta": pa.schema({"video_id": pa.string(), **_META}),
    "segments": pa.schema(
        {
            "video_id": pa.string(),
            "segment": pa.int32(),
            "scene": pa.int32(),
            "start_frame": pa.int64(),
            "frames": pa.int32(),
            "start_ts": pa.float64(),
            "end_ts": pa.float64(),
            **dict.fromkeys(("pts_origin", "pts_first", "pts_step"), pa.int64()),
            "pts": pa.list_(pa.int64()),
            "psnr": pa.float64(),
            "frame_psnr": pa.list_(pa.float32()),
            "stored_bytes": pa.int64(),
            "codec": pa.string(),
            "architecture": pa.string(),
            "latents_key": pa.string(),
            "latents_offset": pa.int64(),
            "latents_bytes": pa.int64(),
            "latents_sha256": pa.string(),
        }
    ),
    "stages": pa.schema(
        {
            "video_id": pa.string(),
            "segment": pa.int32(),
            "position": pa.int32(),
            "stage": pa.string(),
            **_RANGE,
            "gflops": pa.float64(),
        }
    ),
    "footers": pa.schema({"video_id": pa.string(), "key": pa.string(), "footer": pa.binary()}),
    "routes": pa.schema(
        {
            "video_id": pa.string(),
            "position": pa.int32(),
            "segment": pa.int32(),
            **dict.fromkeys(("task", "version", "attempt", "route"), pa.string()),
            "stages": pa.list_(pa.string()),
            "cut": pa.string(),
            "scope": pa.string(),
            **dict.fromkeys(("cka", "ridge_r2", "fidelity", "fidelity_confident"), pa.float64()),
            "confident_frames": pa.int32(),
            "gflops": pa.float64(),
            "bytes": pa.int64(),
            **_RANGE,
        }
    ),
    "results": pa.schema(
        {
            **dict.fromkeys(("video_id", "task", "version", "result"), pa.string()),
            "segment": pa.int32(),
            "route": pa.string(),
            **dict.fromkeys(("starts", "stops"), pa.list_(pa.int64())),
            **dict.fromkeys(("frames", "rows"), pa.int64()),
            **_RANGE,
        }
    ),
    "tasks": pa.schema(
        {
            "name": pa.string(),
            "version": pa.string(),
            "kind": pa.string(),
            "cuts": pa.int32(),
            "labels": pa.list_(pa.string()),
            "spec": pa.string(),
            "log_number": pa.int64(),
        }
    ),
    "views": pa.schema({"name": pa.string(), "sql": pa.string(), "saved_at": _TIME}),
}  # fmt: skip
_SCHEMA = pa.schema([(table, pa.struct(list(fields))) for table, fields in TABLES.items()])


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Checkpoint:
    """A checkpoint as its key names it: the state up to entry `number`."""

    number: int
    sha256: str

    @property
    def key(self) -> str:
        return log_checkpoint_key(self.number, self.sha256)


def list_checkpoints(store: ObjectStore) -> list[Checkpoint]:
    """All checkpoints, newest first; whether they are whole is not known. Costs one request."""
    found = []
    for key in store.list(CHECKPOINT_PREFIX):
        with contextlib.suppress(UsageError):  # none of ours
            parsed = parse_key(key)
            found.append(Checkpoint(number=parsed.number, sha256=parsed.sha256))
    return sorted(found, reverse=True)


def write_checkpoint(path: Path, tables: Iterable[tuple[str, pa.RecordBatchReader]]) -> None:
    """Write `tables`, in the order of `TABLES`, as one file. Memory does not grow with their length."""
    writer = pq.ParquetWriter(
        path,
        _SCHEMA,
        compression="zstd",
        # Each row group has a chunk for every column of every table: what an empty one costs is what counts.
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    )
    with writer:
        for table, batches in tables:
            for batch in batches:
                writer.write_table(_rows(table, pa.Table.from_batches([batch])), row_group_size=_GROUP_ROWS)
        writer.add_key_value_metadata({"nvp:format": str(FORMAT_VERSION), "nvp:kind": _KIND})


def put_checkpoint(store: ObjectStore, number: int, path: Path) -> Checkpoint:
    """Store a written checkpoint as that of entry `number`."""
    checkpoint = Checkpoint(number=number, sha256=_digest(path))
    try:
        store.put_file(checkpoint.key, path)
    except ObjectExists:
        # Other bytes under a name that is their digest are damaged ones.
        store.delete(checkpoint.key)
        store.put_file(checkpoint.key, path)
    return checkpoint


def fetch_checkpoint(store: ObjectStore, checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint to `path`. Raises IntegrityError if it is damaged, ArchiveError if it is of a newer
    format, ObjectMissing if it was deleted.
    """
    size = store.size(checkpoint.key)
    store.get_file(StoredObject(key=checkpoint.key, size_bytes=size, sha256=checkpoint.sha256), path)
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{checkpoint.key} is no Parquet file: {error}") from error
    version = metadata.get(b"nvp:format", b"").decode(errors="replace")
    check_format(int(version) if version.isdigit() else version, what=checkpoint.key)
    if metadata.get(b"nvp:kind") != _KIND.encode():
        raise ArchiveError(f"{checkpoint.key} is not a checkpoint")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(table: str, rows: pa.Table) -> pa.Table:
    fields = TABLES[table]
    cast = rows.select(fields.names).cast(fields).combine_chunks()
    columns = [chunked.combine_chunks() for chunked in cast.columns]
    filled = pa.StructArray.from_arrays(columns, fields=list(fields))
    return pa.table(
        [
            filled if name == table else pa.nulls(len(filled), field.type)
            for name, field in zip(_SCHEMA.names, _SCHEMA, strict=True)
        ],
        schema=_SCHEMA,
    )
