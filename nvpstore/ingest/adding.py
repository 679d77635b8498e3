"""A video that is only registered: what its file holds and where it is. Its originals answer until it is
fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np

from nvpstore.ingest.originals import source_route
from nvpstore.storage import keys
from nvpstore.storage.commit import PreparedVideo
from nvpstore.types import (
    SegmentRecord,
    SourceScan,
    TaskRecord,
    TaskRoutes,
    VideoMeta,
    VideoRecord,
)
from nvpstore.video.listing import list_frames

KeepAdded = Literal["reference", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRequest:
    """What to register. `source_uri` says where the original is to be found where that is not `path`.

    `tone_map`: HDR may be mapped to SDR.
    """

    path: Path
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    recorded_at: datetime | None = None
    keep_source: KeepAdded = "reference"
    source_uri: str | None = None
    tone_map: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredBySource:
    """A task that originals answer, and what its whole backbone takes for a frame."""

    task: TaskRecord
    gflops: float


def prepare_added(
    request: AddRequest,
    tasks: Sequence[AnsweredBySource],
    *,
    on_frames: Callable[[int], None] | None = None,
) -> PreparedVideo:
    """Look through the file's packets; nothing is fitted. `on_frames` gets the number of frames found.

    Raises SourceError as `video.listing.list_frames` does.
    """
    found = list_frames(str(request.path), tone_map=request.tone_map, progress=on_frames)
    attempt = keys.new_attempt()
    kept = keys.source_key(found.video_id, attempt)
    copied = request.keep_source == "copy"
    uri = kept if copied else request.source_uri or request.path.resolve().as_uri()
    video = _video_record(found, attempt, name=request.name, source_uri=uri)
    return PreparedVideo(
        video=video,
        routes=tuple(_source_routes(video, task) for task in tasks),
        files={kept: request.path} if copied else {},
        meta=VideoMeta(
            video_id=video.video_id,
            name=request.name,
            tags=request.tags,
            recorded_at=request.recorded_at,
        ),
    )


def _video_record(found: SourceScan, attempt: str, *, name: str, source_uri: str) -> VideoRecord:
    info = found.info
    return VideoRecord(
        video_id=found.video_id,
        attempt=attempt,
        sha256=found.sha256,
        name=name,
        source_uri=source_uri,
        source_bytes=info.size_bytes,
        container=info.container,
        source_codec=info.codec,
        width=info.width,
        height=info.height,
        rotation_degrees=info.rotation_degrees,
        time_base=info.time_base,
        average_fps=info.average_fps,
        pixel_aspect=info.pixel_aspect,
        preset="",
        psnr=math.nan,
        psnr_p5=math.nan,
        resize_bound_psnr=math.nan,
        state="added",
        fit_seconds=math.nan,
        segments=tuple(
            SegmentRecord(
                segment=span.segment,
                scene=span.scene,
                start_frame=span.start_frame,
                pts=found.pts[span.start_frame : span.start_frame + span.frames],
                psnr=math.nan,
                frame_psnr=np.empty(0, dtype=np.float32),
                codec="",
                architecture="",
                stages=(),
                gflops=(),
                latents=None,
            )
            for span in found.segments
        ),
        footers={},
    )


def _source_routes(video: VideoRecord, answered: AnsweredBySource) -> TaskRoutes:
    return TaskRoutes(
        video_id=video.video_id,
        task=answered.task.name,
        version=answered.task.version,
        attempt=video.attempt,
        routes=tuple(
            source_route(segment.segment, gflops=answered.gflops, bytes=video.source_bytes)
            for segment in video.segments
        ),
    )
