"""A page of an archive's videos: found by SQL on the index, whatever their number, and gone on with by a
cursor.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from nvpstore.api.output import plain
from nvpstore.api.service.models import Video, VideosPage
from nvpstore.api.service.problems import Refused
from nvpstore.catalog import Snapshot
from nvpstore.types import VideoState

LONGEST_CURSOR = 4096

# Texts that never change: what callers say goes in as values.
_AFTER = "(name > $name_after OR (name = $name_after AND video_id > $id_after))"
_NAMED = "contains(lower(name), lower($name))"
_IN_STATE = "state = $state"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = "* REPLACE (epoch_us(recorded_at) AS recorded_at)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Videos whose name contains `name` (in any case), that are in `state`, and that have all of `tags`."""

    name: str | None = None
    state: VideoState | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def page_of_videos(snapshot: Snapshot, wanted: Wanted, *, cursor: str | None, limit: int) -> VideosPage:
    """At most `limit` videos by name and id, behind `cursor`. Raises Refused for a cursor that is none."""
    conditions, values = _conditions(wanted)
    if cursor is not None:
        values["name_after"], values["id_after"] = _read_cursor(cursor)
        conditions.append(_AFTER)
    # First which ones, from three columns; only then all that is known of these few.
    found = snapshot.ask(
        f"SELECT name, video_id FROM idx.store.videos WHERE {' AND '.join(conditions) or 'true'} "
        "ORDER BY name, video_id LIMIT $most",
        {**values, "most": limit + 1},
    )
    page = found[:limit]
    more = len(found) > limit
    return VideosPage(
        videos=_videos(snapshot, [row["video_id"] for row in page]),
        next=_write_cursor(page[-1]["name"], page[-1]["video_id"]) if more else None,
    )


def _conditions(wanted: Wanted) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    if wanted.name is not None:
        conditions.append(_NAMED)
        values["name"] = wanted.name
    if wanted.state is not None:
        conditions.append(_IN_STATE)
        values["state"] = wanted.state
    for place, (key, value) in enumerate(wanted.tags.items()):
        conditions.append(f"tags[$key{place}] = $value{place}")
        values |= {f"key{place}": key, f"value{place}": value}
    return conditions, values


def _videos(snapshot: Snapshot, video_ids: list[str]) -> list[Video]:
    if not video_ids:
        return []
    rows = snapshot.ask(
        f"SELECT {_COLUMNS} FROM videos WHERE video_id IN (SELECT unnest($ids::VARCHAR[])) "
        "ORDER BY name, video_id",
        {"ids": video_ids},
    )
    return [Video.model_validate(plain(row | {"recorded_at": _time(row["recorded_at"])})) for row in rows]


def _time(microseconds: int | None) -> datetime | None:
    return None if microseconds is None else _EPOCH + timedelta(microseconds=microseconds)


def _write_cursor(name: str, video_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([name, video_id]).encode()).decode()


def _read_cursor(cursor: str) -> tuple[str, str]:
    try:
        name, video_id = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
        if not (isinstance(name, str) and isinstance(video_id, str)):
            raise ValueError("two texts are needed")
        (name + video_id).encode("utf-8")
    except (ValueError, TypeError, RecursionError):
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, "cursor: only what an earlier page gave as `next` is one"
        ) from None
    return name, video_id
