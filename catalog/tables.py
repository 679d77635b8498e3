"""The tables of an index, and how the rows of a base and of a delta on it are united."""

from __future__ import annotations

import hashlib
from importlib import resources

_FILES = resources.files("nvpstore.catalog")
SCHEMA = _FILES.joinpath("schema.sql").read_text()
VIEWS_SQL = _FILES.joinpath("views.sql").read_text()
# A file of another release is not used: any change of the tables changes this number.
SCHEMA_VERSION = int(hashlib.sha256(SCHEMA.encode()).hexdigest()[:7], 16)

VIEWS = ("videos", "segments", "tasks", "routes")

# Every table that the log fills, with the expression that gives a row's owner and the order of its rows.
OWNERS = {
    "erased": "video_id",
    "objects": "owner",
    "videos": "video_id",
    "meta": "video_id",
    "segments": "video_id",
    "stages": "video_id",
    "footers": "video_id",
    "routes": "video_id",
    "results": "video_id",
    "tasks": "''",
    "views": "''",
}
ORDERS = {
    "erased": "video_id",
    "objects": "owner, key",
    "videos": "video_id",
    "meta": "video_id",
    "segments": "video_id, segment",
    "stages": "video_id, segment, position",
    "footers": "video_id, key",
    "routes": "video_id, task, version, position",
    "results": "video_id, version, result, segment, key",
    "tasks": "name, version",
    "views": "name",
}
TABLES = tuple(OWNERS)


def united(table: str, *, base: str, delta: str) -> str:
    """A query for all rows of `table`: those of `delta`, and of `base` where the delta says nothing.

    `base` and `delta` are schemas with catalog, such as `base.store`.
    """
    owner = OWNERS[table] if OWNERS[table] == "''" else f"b.{OWNERS[table]}"
    # As NOT IN, looking up one video took twice as long.
    touched = f"SELECT 1 FROM {delta}.touched t WHERE t.owner = {owner}"
    return f"SELECT * FROM {base}.{table} b WHERE NOT EXISTS ({touched}) UNION ALL FROM {delta}.{table}"
