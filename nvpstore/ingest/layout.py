"""Where routes lie in their object, and what a cold read of each takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nvpstore.routing.choice import choose
from nvpstore.storage.tables import encode_routes, route_ranges
from nvpstore.types import ByteRange, RouteRecord, SegmentRecord, TaskRoutes


def with_bytes(route: RouteRecord, record: SegmentRecord, *, source_bytes: int) -> RouteRecord:
    """The route with what a cold read of the segment fetches for it.

    Its own row group is not counted yet: its size is known once all routes are encoded (`laid_out`).
    """
    if route.route == "source":
        return replace(route, bytes=source_bytes)
    assert record.latents is not None, "only fitted segments are decoded"
    size = record.prefix(route.stages[-1]).size_bytes + record.latents.size_bytes
    return replace(route, bytes=size)


def laid_out(routes: TaskRoutes) -> TaskRoutes:
    """The routes in the order in which they are stored, their own row groups counted in their `bytes`."""
    ordered = replace(routes, routes=_in_reading_order(routes.routes))
    # Sizes do not depend on the figures: so it may be encoded once more, with them.
    pairs = zip(ordered.routes, adapter_ranges(ordered), strict=True)
    counted = (replace(r, bytes=r.bytes + (part.size_bytes if part else 0)) for r, part in pairs)
    return replace(ordered, routes=tuple(counted))


def adapter_ranges(routes: TaskRoutes) -> tuple[ByteRange | None, ...]:
    """The row group of each route's adapter; None for routes without one."""
    return tuple(route_ranges("routes", encode_routes("routes", routes).data))


def _in_reading_order(routes: Sequence[RouteRecord]) -> tuple[RouteRecord, ...]:
    """Each segment's default choice first: a query over many segments then reads one range of adapters."""
    by_segment: dict[int, list[RouteRecord]] = {}
    for route in routes:
        by_segment.setdefault(route.segment, []).append(route)
    defaults = [choose(own) for own in by_segment.values()]
    # An adapter is stored once where a route that names it is first listed; routes without one take no room.
    return (*(r for r in defaults if r), *(r for r in routes if not any(r is d for d in defaults)))
