"""What each segment of a scan will fetch and compute, as columns: what estimates are added up from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nvpstore.errors import QueryError
from nvpstore.query.candidates import RouteKind, in_parts, read_kind
from nvpstore.query.plan import Scan
from nvpstore.query.rows_at import KIND_SQL
from nvpstore.query.sample import videos_filter

ADAPTERS = pa.schema(
    [("row", pa.int64()), ("object", pa.uint64()), ("offset", pa.int64()), ("size", pa.int64())]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Columns over the segments of a scan, [n]: bytes int64, GFLOPs of one frame (clip) float64 (NaN:
    unknown).

    `fetched[kind]` are the stages that are fetched, in decode order. `adapters` (ADAPTERS) has a row a
    segment that reads one; `object` is a hash of its key, since millions of keys are gigabytes.
    """

    kinds: tuple[RouteKind, ...]
    fetched: tuple[tuple[str, ...], ...]
    kind: NDArray[np.int64]
    prefix_bytes: NDArray[np.int64]
    latents_bytes: NDArray[np.int64]
    full_bytes: NDArray[np.int64]
    decode_gflops: NDArray[np.float64]
    gflops: NDArray[np.float64]
    adapters: pa.Table


def figures(scan: Scan) -> Figures:
    """Figures of all segments of `scan`, read once. Raises QueryError where they can no longer be read."""
    if scan.details.remembered is None:
        read = _read(scan)
        scan.details.remembered = replace(read, decode_gflops=read.decode_gflops * scan.pictures)
    found: Figures = scan.details.remembered
    return found


def _read(scan: Scan) -> Figures:
    if scan.details.at_hand is not None:
        return _of_objects(scan)
    try:
        return _of_index(scan, scan.details.con)
    except duckdb.ConnectionException as cause:
        raise QueryError(
            "the figures of a plan of this size can only be read while its query runs"
        ) from cause


def _of_objects(scan: Scan) -> Figures:
    keys = list(scan.scoped.places)
    routes, facts = [scan.routes[key] for key in keys], [scan.details.facts(key) for key in keys]
    numbers: dict[tuple[RouteKind, tuple[str, ...]], int] = {}
    kind = []
    for route, fact in zip(routes, facts, strict=True):
        alike = RouteKind(route=route.route, stages=route.stages, cut=route.cut, scope=route.scope)
        fetched = fact.stages[: fact.stages.index(route.stage) + 1] if route.stage else ()
        kind.append(numbers.setdefault((alike, fetched), len(numbers)))
    adapters = [
        {"row": row, "object": _hash_of(at.key), "offset": at.offset, "size": at.size_bytes}
        for row, route in enumerate(routes)
        if (at := route.adapter) is not None
    ]
    return Figures(
        kinds=tuple(alike for alike, _ in numbers),
        fetched=tuple(fetched for _, fetched in numbers),
        kind=np.array(kind, dtype=np.int64),
        prefix_bytes=np.array([route.prefix_bytes for route in routes], dtype=np.int64),
        latents_bytes=np.array([route.latents_bytes for route in routes], dtype=np.int64),
        full_bytes=np.array([fact.full_bytes for fact in facts], dtype=np.int64),
        decode_gflops=np.array([route.decode_gflops for route in routes], dtype=np.float64),
        gflops=np.array([np.nan if r.gflops is None else r.gflops for r in routes], dtype=np.float64),
        adapters=pa.Table.from_pylist(adapters, schema=ADAPTERS),
    )


# ---------------------------------------------------------------- without an object a segment


def _of_index(scan: Scan, con: duckdb.DuckDBPyConnection) -> Figures:
    places, chosen = scan.scoped.places, scan.chosen
    stages = _stages(scan, con)
    kinds = list(chosen.kinds)
    fetched: list[tuple[str, ...]] = [()] * len(chosen.kinds)
    kind = chosen.kind.copy()
    prefix = np.zeros(len(places), dtype=np.int64)
    decode = np.zeros(len(places))
    for number, alike in enumerate(chosen.kinds):
        rows = np.flatnonzero(chosen.kind == number)
        if not alike.stage or not len(rows):
            continue
        deepest = stages.position[rows, stages.names.index(alike.stage)]
        inside = (stages.position[rows] >= 0) & (stages.position[rows] <= deepest[:, None])
        prefix[rows] = np.where(inside, stages.size[rows], 0).sum(axis=1)
        decode[rows] = stages.gflops[rows, stages.names.index(alike.stage)]
        # Segments of other architectures fetch other stages for the same route: a kind for each.
        orders = np.where(inside, stages.position[rows], -1)
        for order, members in _distinct(orders):
            kind[rows[members]] = len(kinds)
            kinds.append(alike)
            names = sorted((at, name) for at, name in zip(order, stages.names, strict=True) if at >= 0)
            fetched.append(tuple(name for _, name in names))
    latents = _latents(scan, con)
    pixels = np.array([scan.task is None and k.route == "pixel" for k in chosen.kinds], dtype=np.bool_)
    gflops = np.where(np.isinf(chosen.gflops), np.nan, chosen.gflops)
    return Figures(
        kinds=tuple(kinds),
        fetched=tuple(fetched),
        kind=kind,
        prefix_bytes=prefix,
        latents_bytes=np.where(chosen.from_source, 0, latents),
        full_bytes=np.where(stages.position >= 0, stages.size, 0).sum(axis=1) + latents,
        decode_gflops=decode,
        gflops=np.where(pixels[chosen.kind], decode, gflops),
        adapters=_adapters(scan, con),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """Of each segment (rows) and stage name (columns): decode position (-1: none), bytes, GFLOPs up to it."""

    names: list[str]
    position: NDArray[np.int16]
    size: NDArray[np.int64]
    gflops: NDArray[np.float64]


def _stages(scan: Scan, con: duckdb.DuckDBPyConnection) -> _Stages:
    places = scan.scoped.places
    sql = "SELECT video_id, segment, stage, position, size_bytes, gflops FROM idx.store.stages"
    sql += videos_filter(places.videos)
    names = [name for (name,) in con.sql(f"SELECT DISTINCT stage FROM ({sql}) ORDER BY stage").fetchall()]
    shape = (len(places), len(names))
    found = _Stages(
        names=names,
        position=np.full(shape, -1, dtype=np.int16),
        size=np.zeros(shape, dtype=np.int64),
        gflops=np.zeros(shape),
    )
    for part in in_parts(con, sql):
        owner = places.rows(part["video_id"], part["segment"].to_numpy())
        column = pc.index_in(part["stage"], value_set=pa.array(names, pa.string())).to_numpy()
        here = owner >= 0
        for values, name in (
            (found.position, "position"),
            (found.size, "size_bytes"),
            (found.gflops, "gflops"),
        ):
            values[owner[here], column[here]] = part[name].to_numpy()[here]
    return found


def _distinct(rows: NDArray[np.int16]) -> list[tuple[list[int], NDArray[np.bool_]]]:
    """The different rows of a matrix, in the order of their first, and which ones equal each."""
    found = []
    left = np.ones(len(rows), dtype=np.bool_)
    while left.any():  # a round for each architecture
        first = rows[int(left.argmax())]
        alike = (rows == first).all(axis=1)
        found.append((first.tolist(), alike))
        left &= ~alike
    return found


def _latents(scan: Scan, con: duckdb.DuckDBPyConnection) -> NDArray[np.int64]:
    places = scan.scoped.places
    sql = "SELECT video_id, segment, coalesce(latents_bytes, 0) AS size FROM idx.store.segments"
    latents = np.zeros(len(places), dtype=np.int64)
    for part in in_parts(con, sql + videos_filter(places.videos)):
        owner = places.rows(part["video_id"], part["segment"].to_numpy())
        latents[owner[owner >= 0]] = part["size"].to_numpy()[owner >= 0]
    return latents


def _adapters(scan: Scan, con: duckdb.DuckDBPyConnection) -> pa.Table:
    if scan.task is None:
        return ADAPTERS.empty_table()
    sql = f"""
        SELECT video_id, segment, {KIND_SQL} AS kind, md5_number_lower(key) AS object, "offset",
               size_bytes AS size
        FROM (FROM idx.store.routes{videos_filter(scan.scoped.places.videos)})
        WHERE task = ? AND version = ? AND key IS NOT NULL
        """
    found = [_chosen(scan, part) for part in in_parts(con, sql, [scan.task.name, scan.task.version])]
    return pa.concat_tables([ADAPTERS.empty_table(), *found])


def _chosen(scan: Scan, part: pa.RecordBatch) -> pa.Table:
    """Those of some rows of routes whose segment's route they are, as ADAPTERS."""
    owner = scan.scoped.places.rows(part["video_id"], part["segment"].to_numpy())
    mine = np.zeros(len(owner), dtype=np.bool_)
    kinds = np.where(owner >= 0, scan.chosen.kind[owner], -1)
    text = part["kind"].dictionary_encode()
    stored = [read_kind(value) for value in text.dictionary.to_pylist()]
    for number, alike in enumerate(scan.chosen.kinds):
        same = np.array([_unordered(kind) == _unordered(alike) for kind in stored], dtype=np.bool_)
        mine |= (kinds == number) & same[text.indices.to_numpy()]
    rows = np.flatnonzero(mine)
    chosen = pa.table(part.select(["object", "offset", "size"]).take(pa.array(rows)))
    return chosen.add_column(0, "row", pa.array(owner[rows])).cast(ADAPTERS)


def _hash_of(key: str) -> int:
    """As DuckDB's `md5_number_lower`."""
    return int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest()[8:], "little")


def _unordered(kind: RouteKind) -> tuple[str, frozenset[str], str, str]:
    return (kind.route, frozenset(kind.stages), kind.cut, kind.scope)
