"""Parquet files whose row groups are fetched one by one: written with each group's range and digest,
read from nothing but the fetched bytes and a footer that was kept elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nvpstore.errors import IntegrityError
from nvpstore.storage.documents import FORMAT_VERSION, canonical_json, check_format
from nvpstore.types import ByteRange

_MAGIC = b"PAR1"
_FORMAT, _KIND, _INDEX = b"nvp:format", b"nvp:kind", b"nvp:index"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedTable:
    """A finished Parquet file. `row_groups` follow each other without gaps; `footer` is all after them."""

    data: bytes
    row_groups: tuple[ByteRange, ...]
    footer: bytes


@dataclass(frozen=True, slots=True)
class _Layout:
    """A parsed footer: `starts[i]` is row group i's offset, `ends[i]` the first byte after it."""

    metadata: Any
    starts: tuple[int, ...]
    ends: tuple[int, ...]


def required(name: str, kind: pa.DataType) -> pa.Field:
    """A column that is never null: Parquet spends no bytes on saying so for every value."""
    return pa.field(name, kind, nullable=False)


def encode_groups(
    key: str,
    groups: Iterable[pa.Table],
    *,
    schema: pa.Schema,
    kind: str,
    index: object | Callable[[tuple[ByteRange, ...]], object],
    compressed: Sequence[str],
    column_encoding: Mapping[str, str] | None = None,
    dictionary: Sequence[str] = (),
) -> EncodedTable:
    """Write one row group a table. `index` is JSON that says what the groups are, kept in the footer; it may
    be made from their ranges.

    `compressed` columns get zstd; the others hold a few bytes a group, which it would only lengthen.
    Raises ValueError for an empty table: a group without rows has no place in the file.
    """
    sink, written = io.BytesIO(), []
    writer = pq.ParquetWriter(
        sink,
        schema,
        compression=dict.fromkeys(compressed, "zstd"),
        use_dictionary=list(dictionary),
        column_encoding=dict(column_encoding) if column_encoding else None,
        # Nobody filters by these, and they would cost more than small tensors themselves.
        write_statistics=False,
        store_schema=False,
    )
    with writer:
        for group in groups:
            # One group a table, whatever its length: a group is what is fetched at once.
            if not group.num_rows:
                raise ValueError(f"{key}: a row group needs at least one row")
            start = sink.tell()
            writer.write_table(group, row_group_size=group.num_rows)
            written.append(_range(key, sink.getbuffer(), start, sink.tell()))
        about = index(tuple(written)) if callable(index) else index
        writer.add_key_value_metadata(
            {_FORMAT: str(FORMAT_VERSION), _KIND: kind, _INDEX: canonical_json(about)}
        )
    data = sink.getvalue()
    return EncodedTable(data=data, row_groups=ranges_of(key, data), footer=footer_of(data))


def footer_of(data: bytes) -> bytes:
    """The end of a Parquet file, from which `read_groups` knows where everything is."""
    if len(data) < 12 or data[-4:] != _MAGIC:
        raise IntegrityError("not a Parquet file")
    size = int.from_bytes(data[-8:-4], "little") + 8
    if size > len(data) - 4:
        raise IntegrityError("a Parquet file with a damaged footer")
    return data[-size:]


def ranges_of(key: str, data: bytes) -> tuple[ByteRange, ...]:
    """Range and digest of every row group of a whole file."""
    layout = _layout(footer_of(data))
    view = memoryview(data)
    return tuple(_range(key, view, *bounds) for bounds in zip(layout.starts, layout.ends, strict=True))


def check_kind(footer: bytes, *, kind: str, what: str) -> None:
    """Raises ArchiveError for an unknown format version, IntegrityError for a file of another kind."""
    metadata = _layout(footer).metadata.metadata or {}
    check_format(_number(metadata.get(_FORMAT)), what=what)
    found = metadata.get(_KIND, b"").decode(errors="replace")
    if found != kind:
        raise IntegrityError(f"{what} is a file of {found or 'unknown things'}, expected {kind}")


def read_index(footer: bytes, *, kind: str, what: str) -> Any:
    """The `index` that a file was written with. Raises as `check_kind` does."""
    check_kind(footer, kind=kind, what=what)
    try:
        return json.loads(_layout(footer).metadata.metadata[_INDEX])
    except (KeyError, ValueError):
        raise IntegrityError(f"{what} has no readable index") from None


def group_position(footer: bytes, row_group: ByteRange) -> int:
    """Which row group of its file this is. Raises IntegrityError if it is none."""
    layout = _layout(footer)
    try:
        position = layout.starts.index(row_group.offset)
    except ValueError:
        position = -1
    if position < 0 or layout.ends[position] != row_group.offset + row_group.size_bytes:
        raise IntegrityError(
            f"{row_group.key} has no row group of {row_group.size_bytes} bytes at offset {row_group.offset}"
        )
    return position


def read_groups(
    data: bytes, *, offset: int, footer: bytes, row_groups: Sequence[ByteRange]
) -> list[pa.Table]:
    """The tables of `row_groups`, out of `data` = the file's bytes from `offset` on.

    Every group's digest is verified first. Raises IntegrityError naming key and offset.
    """
    view = memoryview(data)
    for row_group in row_groups:
        _verify(view, offset, row_group)
    positions = [group_position(footer, row_group) for row_group in row_groups]
    if not positions:
        return []
    metadata = _layout(footer).metadata
    try:
        with pa.PythonFile(_Fetched(view, offset), mode="r") as source:
            table = pq.ParquetFile(source, metadata=metadata).read_row_groups(positions, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(
            f"{row_groups[0].key} cannot be read at offset {row_groups[0].offset}: {error}"
        ) from error
    tables, start = [], 0
    for position in positions:
        rows = metadata.row_group(position).num_rows
        tables.append(table.slice(start, rows))
        start += rows
    return tables


def _verify(view: memoryview, offset: int, row_group: ByteRange) -> None:
    start = row_group.offset - offset
    part = view[start : start + row_group.size_bytes] if start >= 0 else view[:0]
    where = f"{row_group.key} at offset {row_group.offset}"
    if len(part) != row_group.size_bytes:
        raise IntegrityError(f"{where}: {row_group.size_bytes} bytes needed, {len(part)} were fetched")
    digest = hashlib.sha256(part).hexdigest()
    if digest != row_group.sha256:
        raise IntegrityError(f"{where} has SHA-256 {digest[:12]}…; {row_group.sha256[:12]}… was committed")


# Footers of files with many row groups take milliseconds to parse, and each is used once a segment.
@lru_cache(maxsize=128)
def _layout(footer: bytes) -> _Layout:
    try:
        metadata = pq.read_metadata(pa.BufferReader(_MAGIC + footer))
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"a Parquet footer cannot be read: {error}") from error
    starts, ends = [], []
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        columns = [group.column(i) for i in range(group.num_columns)]
        starts.append(min(_start(column) for column in columns))
        ends.append(max(_start(column) + column.total_compressed_size for column in columns))
    return _Layout(metadata, tuple(starts), tuple(ends))


def _range(key: str, data: memoryview, start: int, end: int) -> ByteRange:
    digest = hashlib.sha256(data[start:end]).hexdigest()
    return ByteRange(key=key, offset=start, size_bytes=end - start, sha256=digest)


def _start(column: Any) -> int:
    return int(column.dictionary_page_offset or column.data_page_offset)


def _number(text: bytes | None) -> object:
    return int(text) if text and text.isdigit() else text


class _Fetched(io.RawIOBase):
    """A file of which only the bytes from `offset` on were fetched; reading elsewhere is our bug."""

    def __init__(self, view: memoryview, offset: int) -> None:
        self._view = view
        self._offset = offset
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._offset + len(self._view)}
        self._position = base[whence] + position
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position - self._offset
        assert start >= 0, f"read at {self._position}, but only bytes from {self._offset} were fetched"
        data = bytes(self._view[start:] if size < 0 else self._view[start : start + size])
        self._position += len(data)
        return data
