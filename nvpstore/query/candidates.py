"""The routes of all segments of a scan as columns, and the choice among them: `routing.choice` for many
segments at once, with the same floors, costs and ties."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nvpstore.query.places import Places
from nvpstore.query.rows_at import KIND_SQL, RowsAt
from nvpstore.query.sample import Scoped, videos_filter
from nvpstore.routing.choice import MARGIN, ROUNDING
from nvpstore.types import RGB_STAGE, RouteName, TaskRecord

_KIND_HASH = "hash(route, stages, cut, scope)"
PART_ROWS = 1 << 20
Ints = NDArray[np.signedinteger[Any]]
_BETWEEN, _STAGE = "\x01", "\x02"  # as KIND_SQL writes them


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteKind:
    """What routes of many segments have in common. `stages` in decode order."""

    route: RouteName
    stages: tuple[str, ...] = ()
    cut: str = ""
    scope: str = ""

    @property
    def stage(self) -> str:
        """The deepest tapped stage; "" for a source route."""
        return self.stages[-1] if self.stages else ""

    @property
    def tie(self) -> tuple[str, tuple[str, ...], str]:
        """What decides between routes of equal GFLOPs and bytes."""
        return (self.route, self.stages, self.cut)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """A row a route, [m]: the segment's row (`owner`), its kind (of `kinds`), fidelity (NaN:
    unknown), GFLOPs of a frame (inf: unknown) and bytes of a segment."""

    kinds: tuple[RouteKind, ...]
    owner: Ints
    kind: Ints
    fidelity: NDArray[np.float64]
    gflops: NDArray[np.float64]
    bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.owner)


def choose_rows(
    candidates: Candidates,
    segments: int,
    *,
    min_fidelity: float | None = None,
    only: RouteName | None = None,
) -> NDArray[np.int64]:
    """For each of `segments` the row of the route that `routing.choice.choose` takes, int64; -1 for none."""
    names = np.array([kind.route for kind in candidates.kinds], dtype=object)
    asked = np.array([only in (None, name) for name in names], dtype=np.bool_)[candidates.kind]
    source = np.equal(names, "source").astype(np.bool_)[candidates.kind]
    decoded = asked & ~source
    meeting = decoded & _meets(candidates, decoded, segments, min_fidelity)
    met = np.zeros(segments, dtype=np.bool_)
    met[candidates.owner[meeting]] = True
    rows = np.flatnonzero(meeting | (asked & source & ~met[candidates.owner]))
    return _cheapest(candidates, rows, segments)


def _meets(
    candidates: Candidates, decoded: NDArray[np.bool_], segments: int, min_fidelity: float | None
) -> NDArray[np.bool_]:
    known = ~np.isnan(candidates.fidelity)
    if min_fidelity is not None:
        return known & (candidates.fidelity >= min_fidelity - ROUNDING)
    best = np.full(segments, -np.inf)
    measured = np.flatnonzero(decoded & known)
    np.maximum.at(best, candidates.owner[measured], candidates.fidelity[measured])
    floor = (best - MARGIN)[candidates.owner]
    return np.isneginf(floor) | (known & (candidates.fidelity >= floor - ROUNDING))


def _cheapest(candidates: Candidates, rows: NDArray[np.int64], segments: int) -> NDArray[np.int64]:
    """Of each segment's `rows` the one of least cost."""
    chosen = np.full(segments, -1, dtype=np.int64)
    least = np.full(segments, np.inf)
    np.minimum.at(least, candidates.owner[rows], candidates.gflops[rows])
    rows = rows[candidates.gflops[rows] == least[candidates.owner[rows]]]
    ordered = sorted({kind.tie for kind in candidates.kinds})
    ranks = np.array([ordered.index(kind.tie) for kind in candidates.kinds], dtype=np.int64)
    owners = candidates.owner[rows]
    tied = np.bincount(owners, minlength=segments)[owners] > 1
    ties = rows[tied]
    keys = (ranks[candidates.kind[ties]], candidates.bytes[ties], candidates.owner[ties])
    ties = ties[np.lexsort(keys)]
    chosen[candidates.owner[ties[::-1]]] = ties[::-1]  # of a segment's the first is written last
    chosen[owners[~tied]] = rows[~tied]
    return chosen


# ---------------------------------------------------------------- read from the index


def task_candidates(
    con: duckdb.DuckDBPyConnection, task: TaskRecord, scoped: Scoped, rows: RowsAt | None = None
) -> Candidates:
    """The stored routes of `task` on the segments in scope, and the original of each that has one.

    `rows` are what is stored of these segments, where that was read.
    """
    if rows is not None and rows.routes is not None:
        stored = _compact(rows.routes.to_batches(), scoped.places)
        kinds = {text: text for text in stored.numbers}
    else:
        stored = _compact(_route_rows(con, task, scoped.places), scoped.places)
        kinds = _kinds_of(con, task, stored)
    found = stored.candidates([read_kind(kinds[key]) for key in stored.numbers])
    return with_originals(decodable(con, found, scoped, rows), scoped)


def _route_rows(con: duckdb.DuckDBPyConnection, task: TaskRecord, places: Places) -> Iterator[pa.RecordBatch]:
    """A part at a time, kinds as hashes: of millions of segments, text takes gigabytes and seconds."""
    sql = f"""
        SELECT video_id, segment, fidelity, gflops, coalesce(bytes, 0) AS bytes, {_KIND_HASH} AS kind
        FROM (FROM idx.store.routes{videos_filter(places.videos)})
        WHERE task = ? AND version = ?
        """
    yield from in_parts(con, sql, [task.name, task.version])


def in_parts(
    con: duckdb.DuckDBPyConnection, sql: str, params: Sequence[Any] = ()
) -> Iterator[pa.RecordBatch]:
    """The rows of a query of our own, about PART_ROWS at a time; nothing for none."""
    waiting: list[pa.RecordBatch] = []
    # DuckDB hands out some thousand rows at a time.
    for batch in con.sql(sql, params=list(params)).to_arrow_reader(PART_ROWS):
        waiting.append(batch)
        if sum(len(one) for one in waiting) >= PART_ROWS:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


@dataclass(slots=True, kw_only=True)
class _Compact:
    """Rows of routes as numbers. `numbers` are the kinds that were found, as texts or hashes, in order;
    `examples` a segment (video, number) of each."""

    numbers: dict[Any, int] = field(default_factory=dict)
    examples: list[tuple[str, int]] = field(default_factory=list)
    columns: list[tuple[NDArray[Any], ...]] = field(default_factory=list)

    def number(self, part: pa.RecordBatch, places: NDArray[np.int64], keys: Sequence[Any]) -> list[int]:
        """The number of each of `keys`, which the rows of `part` have by `places`."""
        for at, key in enumerate(keys):
            if key not in self.numbers:
                row = int(np.argmax(places == at))
                self.numbers[key] = len(self.numbers)
                self.examples.append((part["video_id"][row].as_py(), part["segment"][row].as_py()))
        return [self.numbers[key] for key in keys]

    def candidates(self, kinds: Sequence[RouteKind]) -> Candidates:
        empty = tuple(np.empty(0, dtype) for dtype in (np.int32, np.int32, float, float, np.int64))
        owner, kind, fidelity, gflops, size = (
            np.concatenate(column) for column in zip(empty, *self.columns, strict=True)
        )
        return Candidates(
            kinds=tuple(kinds), owner=owner, kind=kind, fidelity=fidelity, gflops=gflops, bytes=size
        )


def _compact(parts: Iterable[pa.RecordBatch], places: Places) -> _Compact:
    """Rows of routes, those of segments that are not at `places` left out."""
    found = _Compact()
    for part in parts:
        owner = places.rows(part["video_id"], part["segment"].to_numpy())
        kinds = part["kind"].dictionary_encode()
        which = kinds.indices.to_numpy()
        numbers = np.array(found.number(part, which, kinds.dictionary.to_pylist()), dtype=np.int32)
        here = owner >= 0
        found.columns.append(
            (
                owner[here].astype(np.int32),
                numbers[which][here],
                _floats(part["fidelity"], np.nan)[here],
                _floats(part["gflops"], np.inf)[here],
                part["bytes"].to_numpy()[here],
            )
        )
    return found


def _kinds_of(con: duckdb.DuckDBPyConnection, task: TaskRecord, found: _Compact) -> dict[int, str]:
    """What the kinds that were found as hashes are, looked up at a segment of each."""
    rows = con.execute(
        f"""
        SELECT DISTINCT {_KIND_HASH}, {KIND_SQL} FROM idx.store.routes
        WHERE video_id IN (SELECT unnest(?::VARCHAR[])) AND segment IN (SELECT unnest(?::INTEGER[]))
          AND task = ? AND version = ?
        """,
        [[v for v, _ in found.examples], [s for _, s in found.examples], task.name, task.version],
    ).fetchall()
    return dict(rows)


def frame_candidates(
    con: duckdb.DuckDBPyConnection, scoped: Scoped, rows: RowsAt | None = None
) -> Candidates:
    """Frames for people: decoded pixels where the segment is fitted, the original's where it is kept."""
    owner = np.arange(len(scoped))
    pixels = Candidates(
        kinds=(RouteKind(route="pixel", stages=(RGB_STAGE,)),),
        owner=owner,
        kind=np.zeros(len(owner), dtype=np.int64),
        fidelity=np.full(len(owner), np.nan),
        gflops=np.zeros(len(owner)),
        bytes=np.zeros(len(owner), dtype=np.int64),
    )
    return with_originals(decodable(con, pixels, scoped, rows), scoped)


def read_kind(text: str) -> RouteKind:
    """What KIND_SQL says of a row of `routes`, its stages as they are stored."""
    route, stages, cut, scope = text.split(_BETWEEN)
    taps = tuple(stages.split(_STAGE)) if stages and route != "source" else ()
    return RouteKind(route=route, stages=taps, cut=cut, scope=scope)  # type: ignore[arg-type]


def _floats(column: pa.Array, unknown: float) -> NDArray[np.float64]:
    values: NDArray[np.float64] = pc.fill_null(column, unknown).to_numpy(zero_copy_only=False)
    return values


def with_originals(candidates: Candidates, scoped: Scoped) -> Candidates:
    """Any task can be asked of the original, also before routes of it were measured."""
    sources = np.array([kind.route == "source" for kind in candidates.kinds], dtype=np.bool_)
    missing = scoped.has_source.copy()
    if sources.any():
        missing[candidates.owner[sources[candidates.kind]]] = False
    owner = np.flatnonzero(missing)
    if not len(owner):
        return candidates
    return Candidates(
        kinds=(*candidates.kinds, RouteKind(route="source")),
        owner=np.concatenate([candidates.owner, owner]),
        kind=np.append(candidates.kind, np.full(len(owner), len(candidates.kinds))),
        fidelity=np.append(candidates.fidelity, np.full(len(owner), np.nan)),
        gflops=np.append(candidates.gflops, np.full(len(owner), np.inf)),
        bytes=np.append(candidates.bytes, scoped.source_bytes[owner]),
    )


# ---------------------------------------------------------------- stages


def decodable(
    con: duckdb.DuckDBPyConnection, candidates: Candidates, scoped: Scoped, rows: RowsAt | None = None
) -> Candidates:
    """The candidates whose stages their segment has, kinds with their stages in decode order."""
    used = sorted({stage for kind in candidates.kinds for stage in kind.stages})
    if not used:
        return candidates
    if rows is not None:
        return _segment_by_segment(candidates, _positions(rows.stages, scoped.places, used), used)
    # Of a few videos, looking at every stage is as quick as counting them.
    order = None if videos_filter(scoped.places.videos) else _common_order(con, scoped, used)
    if order is None:
        return _segment_by_segment(candidates, stage_positions(con, scoped.places, used), used)
    kinds = [replace(kind, stages=tuple(sorted(kind.stages, key=order.index))) for kind in candidates.kinds]
    return replace(candidates, kinds=tuple(kinds))


def _common_order(con: duckdb.DuckDBPyConnection, scoped: Scoped, used: Sequence[str]) -> list[str] | None:
    """The stages in decode order where every fitted segment has all of `used` at the same positions."""
    if not scoped.fitted.all():
        return None
    rows = con.execute(
        """
        SELECT stage, min(position), max(position), count(*),
               (SELECT count(*) FROM idx.store.segments WHERE latents_key IS NOT NULL)
        FROM idx.store.stages GROUP BY stage
        """
    ).fetchall()
    alike = {stage: low for stage, low, high, count, fitted in rows if low == high and count == fitted}
    return sorted(used, key=alike.__getitem__) if alike.keys() >= set(used) else None


def stage_positions(con: duckdb.DuckDBPyConnection, places: Places, used: Sequence[str]) -> NDArray[np.int64]:
    """The decode position of each of `used` in each segment, int64 [segments, used]; -1 where it has none."""
    query = f"SELECT video_id, segment, position, stage FROM idx.store.stages{videos_filter(places.videos)}"
    return _positions(con.sql(query).to_arrow_table(), places, used)


def _positions(table: pa.Table, places: Places, used: Sequence[str]) -> NDArray[np.int64]:
    owner = places.rows(table["video_id"].combine_chunks(), table["segment"].to_numpy())
    column = pc.fill_null(pc.index_in(table["stage"], value_set=pa.array(used)), -1).to_numpy()
    positions = np.full((len(places), len(used)), -1, dtype=np.int64)
    here = (owner >= 0) & (column >= 0)
    positions[owner[here], column[here]] = table["position"].to_numpy()[here]
    return positions


def _segment_by_segment(
    candidates: Candidates, positions: NDArray[np.int64], used: Sequence[str]
) -> Candidates:
    """As `decodable`, where segments differ: a kind for each order in which a kind's stages come."""
    kinds: list[RouteKind] = []
    kind = np.full(len(candidates), -1, dtype=np.int64)
    for number, old in enumerate(candidates.kinds):
        rows = np.flatnonzero(candidates.kind == number)
        if not old.stages:
            kind[rows] = len(kinds)
            kinds.append(old)
            continue
        columns = [used.index(stage) for stage in old.stages]
        at = positions[candidates.owner[rows]][:, columns]
        rows, at = rows[(at >= 0).all(axis=1)], at[(at >= 0).all(axis=1)]
        orders, which = np.unique(np.argsort(at, axis=1, kind="stable"), axis=0, return_inverse=True)
        kind[rows] = len(kinds) + which.reshape(-1)
        kinds += [replace(old, stages=tuple(old.stages[i] for i in order)) for order in orders.tolist()]
    keep = kind >= 0
    return Candidates(
        kinds=tuple(kinds),
        owner=candidates.owner[keep],
        kind=kind[keep],
        fidelity=candidates.fidelity[keep],
        gflops=candidates.gflops[keep],
        bytes=candidates.bytes[keep],
    )
