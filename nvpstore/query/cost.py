"""What a plan will take, from stored figures: bytes, frames and GFLOPs, by scan and route and in all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nvpstore.query.plan import Key, Plan, Scan, deepest, iterate_steps
from nvpstore.query.routes import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The segments of a scan that are answered in the same way, and what that takes if nothing is shared.

    Bytes over all `segments`; GFLOPs of one frame, averaged over `frames` (None: not measured).
    `full_bytes` is what decoding the same segments to pixels fetches, `source_bytes` their original files.
    """

    route: Route
    stages_fetched: tuple[str, ...]
    segments: tuple[Key, ...]
    frames: int
    prefix_bytes: int
    latents_bytes: int
    route_bytes: int
    full_bytes: int
    source_bytes: int
    decode_gflops: float
    gflops: float | None
    fidelity: tuple[float, float] | None

    @property
    def bytes(self) -> int:
        return self.prefix_bytes + self.latents_bytes + self.route_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a whole plan takes with everything shared that its steps share.

    `frames` counts decoded frames once; `shared` are decodes that another scan's made unnecessary.
    `read_bytes` are original files read by source routes.
    """

    segments: int
    frames: int
    shared: int
    prefix_bytes: int
    latents_bytes: int
    route_bytes: int
    read_bytes: int
    gflops: float
    full_bytes: int
    source_bytes: int

    @property
    def bytes(self) -> int:
        return self.prefix_bytes + self.latents_bytes + self.route_bytes + self.read_bytes


def parts(plan: Plan, scan: Scan) -> list[Part]:
    """The parts of `scan`, in order of their first segment."""
    alike: dict[tuple[str, tuple[str, ...], str, tuple[str, ...]], list[Key]] = {}
    for key in scan.frames_by_segment():
        route = scan.routes[key]
        order = plan.segments[key].stages
        fetched = order[: order.index(route.stage) + 1] if route.stage else ()
        alike.setdefault((route.route, route.stages, route.cut, fetched), []).append(key)
    return [_part(plan, scan, keys, fetched=kind[3]) for kind, keys in alike.items()]


def _part(plan: Plan, scan: Scan, keys: list[Key], *, fetched: tuple[str, ...]) -> Part:
    runs = scan.frames_by_segment()
    routes = [scan.routes[key] for key in keys]
    counts = [runs[key][1] - runs[key][0] for key in keys]
    frames = sum(counts)
    measured = [route.fidelity for route in routes if route.fidelity is not None]
    gflops = [route.gflops for route in routes if route.gflops is not None]
    weighted = sum(g * n for g, n in zip(gflops, counts, strict=False)) / frames
    return Part(
        route=routes[0],
        stages_fetched=fetched,
        segments=tuple(keys),
        frames=frames,
        prefix_bytes=sum(route.prefix_bytes for route in routes),
        latents_bytes=sum(route.latents_bytes for route in routes),
        route_bytes=_adapter_bytes(routes),
        full_bytes=sum(plan.segments[key].full_bytes for key in keys),
        source_bytes=_source_bytes(plan, keys),
        decode_gflops=sum(r.decode_gflops * n for r, n in zip(routes, counts, strict=True)) / frames,
        gflops=weighted if len(gflops) == len(routes) else None,
        fidelity=(min(measured), max(measured)) if measured else None,
    )


def _adapter_bytes(routes: Iterable[Route]) -> int:
    # An adapter of archive or video scope is one row group however many segments use it.
    return sum(a.size_bytes for a in {route.adapter for route in routes if route.adapter is not None})


def _source_bytes(plan: Plan, keys: Iterable[Key]) -> int:
    return sum({video_id: plan.segments[(video_id, n)].source_bytes for video_id, n in keys}.values())


def estimate(plan: Plan) -> Cost:
    """The cost of all steps of `plan`."""
    prefix = latents = frames = 0
    gflops, naive = 0.0, 0
    fetched: set[Key] = set()
    read: set[Key] = set()
    routes: list[Route] = []
    for step, groups in iterate_steps(plan):
        key = (step.video_id, step.segment)
        facts = plan.segments[key]
        if step.source:
            read.add(key)
        else:
            fetched.add(key)
            prefix += facts.prefix(deepest(plan, key, groups))
            latents += facts.latents_bytes
        routes += [plan.scans[index].routes[key] for index in step.scans]
        for group in groups:
            count = len(group.frames)
            frames += count
            naive += count * len(group.scans)
            per_frame = facts.decode_gflops(group.stage) if group.stage else 0.0
            for index in group.scans:
                route = plan.scans[index].routes[key]
                per_frame += max(0.0, (route.gflops or 0.0) - route.decode_gflops)
            gflops += count * per_frame
    return Cost(
        segments=len(fetched | read),
        frames=frames,
        shared=naive - frames,
        prefix_bytes=prefix,
        latents_bytes=latents,
        route_bytes=_adapter_bytes(routes),
        read_bytes=_source_bytes(plan, read),
        gflops=gflops,
        full_bytes=sum(plan.segments[key].full_bytes for key in fetched | read),
        source_bytes=_source_bytes(plan, fetched | read),
    )
