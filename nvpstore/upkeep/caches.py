"""What this machine keeps of an archive: derived, and dropped where it turns out to be damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import duckdb

from nvpstore.catalog.files import IndexFile, OpenIndex, list_indexes
from nvpstore.catalog.snapshot import Snapshot
from nvpstore.errors import StoreError
from nvpstore.storage.range_cache import RangeCache


def drop_damaged(folder: Path, ranges: Iterable[RangeCache] = ()) -> tuple[str, ...]:
    """Read every index file in `folder` and every file of `ranges`; returns the damaged ones, removed."""
    damaged = [*_damaged_indexes(folder), *(path for cache in ranges for path in cache.check())]
    for path in damaged:
        path.unlink(missing_ok=True)
    return tuple(str(path) for path in damaged)


def _damaged_indexes(folder: Path) -> Iterator[Path]:
    bad: set[Path] = set()
    # Bases first: a delta cannot be read without its base, and is not to blame for it.
    for file in sorted(list_indexes(folder), key=lambda file: len(file.paths)):
        if not bad & set(file.paths) and not _is_sound(file):
            bad.add(file.path)
            yield file.path


def _is_sound(file: IndexFile) -> bool:
    try:
        index = OpenIndex(file)
    except OSError:  # removed meanwhile
        return True
    try:
        with closing(Snapshot(index)) as snapshot:
            snapshot.check()
    except (StoreError, duckdb.Error):
        return False
    finally:
        index.close()
    return True
