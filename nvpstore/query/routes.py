"""Routes as a plan has them, and which one the options choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvpstore.query.options import TableOptions
from nvpstore.routing import choice
from nvpstore.types import ByteRange, RouteName


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way to answer a task on a segment. Read from the index, consumed by `Operators`.

    `stages` are tapped ([] for a source route); the deepest, `stage`, decides the fetch. `gflops` is a
    frame's (clip's) whole path, `decode_gflops` the part up to `stage`, of one picture. `prefix_bytes` and
    `latents_bytes` are what the segment's fetch takes. `adapter` is the row group of a micro adapter.
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


def choose(routes: Sequence[Route], options: TableOptions) -> Route | None:
    """The cheapest stored route that meets the floor of `options` (routing.choice); None where none does."""
    return choice.choose(routes, min_fidelity=options.min_fidelity, only=options.route)


def describe_unmet(routes: Sequence[Route], options: TableOptions) -> str:
    """Why `choose` gave None, in a few words."""
    asked = [route for route in routes if options.route in (None, route.route)]
    if not asked:
        return f"no {options.route or 'stored'} route"
    measured = [route.fidelity for route in asked if route.fidelity is not None]
    best = f"best {max(measured):.3f}" if measured else "fidelity unknown"
    return f"{best}, asked {options.min_fidelity}"
