"""The route of an original: fitted or only added, a video's own file answers alike."""

from __future__ import annotations

from nvpstore.types import RouteRecord


def source_route(segment: int, *, gflops: float, bytes: int = 0, confident_frames: int = 0) -> RouteRecord:
    """The original answers as itself: fidelity 1 by definition. `gflops` are the whole backbone's a frame."""
    return RouteRecord(
        segment=segment,
        route="source",
        stages=(),
        cut="",
        scope="archive",
        cka=None,
        ridge_r2=None,
        fidelity=1.0,
        fidelity_confident=1.0,
        confident_frames=confident_frames,
        gflops=gflops,
        bytes=bytes,
    )
