"""The choice of a route: a pure function of what is stored for a segment and of the options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nvpstore.query.options import TableOptions
from nvpstore.types import ByteRange, RouteName

MARGIN = 0.02  # how far below the best measured route the default floor lies
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way to answer a task on a segment. Read from the index, consumed by `Operators`.

    `stages` are tapped ([] for a source route); the deepest, `stage`, decides the fetch. `gflops` is a
    frame's whole path, `decode_gflops` the part up to `stage`. `prefix_bytes` and `latents_bytes` are what
    the segment's fetch takes. `adapter` is the row group of a micro adapter.
    """

    video_id: str
    segment: int
    route: RouteName
    stages: tuple[str, ...] = ()
    stage: str = ""
    cut: str = ""
    scope: str = ""
    fidelity: float | None = None
    gflops: float | None = None
    decode_gflops: float = 0.0
    bytes: int = 0
    prefix_bytes: int = 0
    latents_bytes: int = 0
    adapter: ByteRange | None = None

    @property
    def cost(self) -> tuple[float, int, str, tuple[str, ...], str]:
        """GFLOPs, then bytes; the rest only keeps ties from being broken by chance."""
        gflops = math.inf if self.gflops is None else self.gflops
        return (gflops, self.bytes, self.route, self.stages, self.cut)


def floor_of(candidates: Sequence[Route], options: TableOptions) -> float | None:
    """The fidelity that a route must reach; None where nothing was asked for and nothing was measured."""
    if options.min_fidelity is not None:
        return options.min_fidelity
    measured = [route.fidelity for route in candidates if route.fidelity is not None]
    return max(measured) - MARGIN if measured else None


def choose(routes: Sequence[Route], options: TableOptions) -> Route | None:
    """The cheapest stored route that meets the floor; the source route only after all others, or as asked.

    An unknown fidelity is below everything measured. The source route agrees with itself: it meets any floor.
    None where nothing does.
    """
    asked = [route for route in routes if options.route in (None, route.route)]
    decoded = [route for route in asked if route.route != "source"]
    floor = floor_of(decoded, options)
    meeting = [route for route in decoded if _meets(route, floor)]
    source = [route for route in asked if route.route == "source"]
    return min(meeting or source, key=lambda route: route.cost, default=None)


def _meets(route: Route, floor: float | None) -> bool:
    return floor is None or (route.fidelity is not None and route.fidelity >= floor - _ROUNDING)


def describe_unmet(routes: Sequence[Route], options: TableOptions) -> str:
    """Why `choose` gave None, in a few words."""
    asked = [route for route in routes if options.route in (None, route.route)]
    if not asked:
        return f"no {options.route or 'stored'} route"
    measured = [route.fidelity for route in asked if route.fidelity is not None]
    best = f"best {max(measured):.3f}" if measured else "fidelity unknown"
    return f"{best}, asked {options.min_fidelity}"
