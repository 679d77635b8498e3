"""`python -m benchmarks.soak gets`: how many requests a query costs on S3, counted before the server.

A video of several segments is asked one task by adapter routes, with an empty range cache and an index that
is up to date. Of its objects at most 3 GETs may be for the first segment (weights prefix, latents, adapters)
and 2 for each further one, and their bytes must be those that the index gives for what the plan uses. Asked
again, the query costs no GET of them. To find that the log has nothing new costs at most 2 requests.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.servers.proxy import Proxy, Request
from benchmarks.servers.weed import Weed
from benchmarks.soak import clips
from benchmarks.soak.outcome import Options, Outcome
from nvpstore.archive import Archive
from nvpstore.query.operators import ADAPTER_BRIDGE_BYTES
from nvpstore.storage import keys

BUCKET = "counted"
FRAMES = 60  # the preset's longest segment has 24
QUESTION = "SELECT frame, label FROM labels(route := 'adapter', top := 1)"


def run(options: Options) -> Outcome:
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-gets-") as folder, Weed() as weed:
        weed.make_bucket(BUCKET)
        os.environ.update(weed.environment)
        with Proxy(weed.endpoint) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
            figures = _counted(Path(folder), proxy, broken)
    return Outcome(
        question="how many requests and bytes does a query cost on S3?",
        figures=figures,
        broken=tuple(broken),
    )


def _counted(folder: Path, proxy: Proxy, broken: list[str]) -> dict[str, Any]:
    root = f"s3://{BUCKET}/archive"
    (clip,) = clips.write_clips(folder / "clips", 1, frames=FRAMES)
    archive = clips.create(root, folder / "writer", grace_seconds=600)
    video_id = archive.ingest(clip, preset="micro", device="cpu").video_id
    figures: dict[str, Any] = {"new_machine_opens_with_requests": _open(root, folder / "cache", proxy)}
    figures["nothing_new_requests"] = _open(root, folder / "cache", proxy)
    if figures["nothing_new_requests"] > 2:
        broken.append(f"to find nothing new took {figures['nothing_new_requests']} requests, not 2")
    archive = clips.opened(root, folder / "cache")
    segments = len(archive.catalog.snapshot().segments(video_id))
    expected = used_bytes(archive, video_id)
    for name, start in (("query", True), ("query_again", False)):
        gets = _query(archive if start else clips.opened(root, folder / "cache"), proxy)
        figures[name] = _sums(gets)
        most = 3 + 2 * (segments - 1) if start else 0
        if len(gets) > most:
            broken.append(f"{name}: {len(gets)} GETs for {segments} segments, {most} are allowed")
        if start:
            broken += _wrong_bytes(gets, expected)
    return {"segments": segments, "indexed_bytes": expected, **figures}


def used_bytes(archive: Archive, video_id: str) -> dict[str, int]:
    """The bytes of the row groups that the plan of QUESTION uses, by kind of object, as indexed."""
    snapshot = archive.catalog.snapshot()
    (scan,) = archive.sql(f"EXPLAIN {QUESTION}").plan.scans
    used = {"weights": 0, "latents": 0, "routes": 0}
    for (_, number), route in scan.routes.items():
        segment = snapshot.segment(video_id, number)
        used["weights"] += segment.prefix(route.stage).size_bytes
        used["latents"] += segment.latents.size_bytes
    adapters = {route.adapter for route in scan.routes.values() if route.adapter is not None}
    used["routes"] = sum(adapter.size_bytes for adapter in adapters)
    return used


def _wrong_bytes(gets: Sequence[Request], expected: dict[str, int]) -> list[str]:
    found = _sums(gets)["bytes"]
    lines = [
        f"{found.get(kind, 0)} bytes of {kind}, {expected[kind]} are indexed"
        for kind in ("weights", "latents")
        if found.get(kind, 0) != expected[kind]
    ]
    # Adapters that a plan passes over may lie between those that it uses.
    between = found.get("routes", 0) - expected["routes"]
    if not 0 <= between <= ADAPTER_BRIDGE_BYTES:
        lines.append(f"{found.get('routes', 0)} bytes of routes, {expected['routes']} are indexed")
    return lines


def _open(root: str, cache: Path, proxy: Proxy) -> int:
    proxy.reset()
    clips.opened(root, cache).catalog.snapshot()
    return len(proxy.requests)


def _query(archive: Archive, proxy: Proxy) -> list[Request]:
    """The requests that it makes for objects of the video."""
    proxy.reset()
    rows = archive.sql(QUESTION).fetchall()
    if len(rows) != FRAMES:
        raise AssertionError(f"{len(rows)} rows for {FRAMES} frames")
    return [request for request in proxy.requests if "/videos/" in request.path]


def _sums(gets: Sequence[Request]) -> dict[str, Any]:
    bytes_by_kind: dict[str, int] = {}
    for request in gets:
        kind = keys.parse_key(request.path.partition("/archive/")[2]).kind
        bytes_by_kind[kind] = bytes_by_kind.get(kind, 0) + request.received_bytes
    return {"gets": len(gets), "bytes": bytes_by_kind}
