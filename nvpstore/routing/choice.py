"""The choice of a route: a pure function of what is stored for a segment and of what was asked for.

It imports no torch: planning a query chooses by it, and ingest lays out adapters by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from nvpstore.types import RouteName

MARGIN = 0.02  # how far below the best measured route the default floor lies
ROUNDING = 1e-9


class Candidate(Protocol):
    """A stored route. `gflops` and `bytes` are a frame's and a segment's whole path."""

    @property
    def route(self) -> RouteName: ...
    @property
    def stages(self) -> tuple[str, ...]: ...
    @property
    def cut(self) -> str: ...
    @property
    def fidelity(self) -> float | None: ...
    @property
    def gflops(self) -> float | None: ...
    @property
    def bytes(self) -> int: ...


R = TypeVar("R", bound=Candidate)


def cost(route: Candidate) -> tuple[float, int, str, tuple[str, ...], str]:
    """GFLOPs, then bytes; the rest only keeps ties from being broken by chance."""
    gflops = math.inf if route.gflops is None else route.gflops
    return (gflops, route.bytes, route.route, route.stages, route.cut)


def floor_of(candidates: Sequence[Candidate], min_fidelity: float | None) -> float | None:
    """The fidelity that a route must reach; None where nothing was asked for and nothing was measured."""
    if min_fidelity is not None:
        return min_fidelity
    measured = [route.fidelity for route in candidates if route.fidelity is not None]
    return max(measured) - MARGIN if measured else None


def choose(
    routes: Sequence[R], *, min_fidelity: float | None = None, only: RouteName | None = None
) -> R | None:
    """The cheapest route that meets the floor; the source route only after all others, or as asked by `only`.

    An unknown fidelity is below everything measured. The source route agrees with itself: it meets any floor.
    None where nothing does.
    """
    asked = [route for route in routes if only in (None, route.route)]
    decoded = [route for route in asked if route.route != "source"]
    floor = floor_of(decoded, min_fidelity)
    meeting = [route for route in decoded if _meets(route, floor)]
    source = [route for route in asked if route.route == "source"]
    return min(meeting or source, key=cost, default=None)


def _meets(route: Candidate, floor: float | None) -> bool:
    return floor is None or (route.fidelity is not None and route.fidelity >= floor - ROUNDING)
