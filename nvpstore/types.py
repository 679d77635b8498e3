"""Frozen values that cross module boundaries. Imports nothing of ours, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

VideoState = Literal["added", "ready", "below_target"]
RouteName = Literal["adapter", "pixel", "source"]
RouteScope = Literal["segment", "video", "archive"]
WeightsPlace = Literal["package", "archive", "random"]
TaskKind = Literal["classification", "embedding", "detection", "segmentation", "depth", "action", "caption"]

RGB_STAGE = "rgb"  # the name of the last stage; the others are "0" (stem), "1", … "n"


# ---------------------------------------------------------------- video


SLIMMEST_PIXEL = Fraction(1, 16)  # its width over its height; files that declare slimmer ones are damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a container says about its first video stream. Produced by `video.source.probe`.

    `width` and `height` are as shown, after rotation. `declared_frames` is 0 where the container
    does not say. `hdr` is "PQ" or "HLG" where the first frame is coded so, else empty. `pixel_aspect` is a
    pixel's width over its height as shown: 1 but for anamorphic video (DV, HDV, DVD).
    """

    path: str
    size_bytes: int
    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    rotation_degrees: int
    time_base: Fraction
    average_fps: Fraction
    declared_frames: int
    duration_seconds: float
    audio_streams: int
    subtitle_streams: int = 0
    hdr: str = ""
    pixel_aspect: Fraction = Fraction(1)

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"size {self.width}x{self.height}: both sides must be at least 1")
        if self.time_base <= 0:
            raise ValueError(f"time base {self.time_base} must be positive")
        if self.rotation_degrees not in (0, 90, 180, 270):
            raise ValueError(f"rotation {self.rotation_degrees} must be 0, 90, 180 or 270")
        if self.pixel_aspect <= 0:
            raise ValueError(f"pixel aspect {self.pixel_aspect} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBatch:
    """Consecutive frames. `rgb_thwc` uint8 [t, h, w, 3]; `pts` int64 [t] in the source's time base."""

    first_frame: int
    rgb_thwc: NDArray[np.uint8]
    pts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.rgb_thwc.ndim != 4 or self.rgb_thwc.shape[3] != 3:
            raise ValueError(f"rgb_thwc has shape {self.rgb_thwc.shape}, expected [t, h, w, 3]")
        if self.rgb_thwc.dtype != np.uint8:
            raise ValueError(f"rgb_thwc is {self.rgb_thwc.dtype}, expected uint8")
        if self.pts.shape != (self.rgb_thwc.shape[0],):
            raise ValueError(f"{self.pts.shape} pts for {self.rgb_thwc.shape[0]} frames")

    def __len__(self) -> int:
        return int(self.rgb_thwc.shape[0])

    def __repr__(self) -> str:
        t, h, w, _ = self.rgb_thwc.shape
        return f"FrameBatch(first_frame={self.first_frame}, frames={t}, size={w}x{h})"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSpan:
    """Frames [start_frame, start_frame + frames) of a video, all of one scene."""

    segment: int
    scene: int
    start_frame: int
    frames: int

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"segment {self.segment} has {self.frames} frames, needs at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceScan:
    """One streamed pass over a source: every pts and where the scenes are cut.

    `pts` int64 [frames], strictly increasing, in `info.time_base`; `ts` = (pts − pts[0]) × time base.
    """

    info: SourceInfo
    sha256: str
    pts: NDArray[np.int64]
    segments: tuple[SegmentSpan, ...]

    @property
    def video_id(self) -> str:
        return self.sha256[:32]

    @property
    def frames(self) -> int:
        return int(self.pts.shape[0])


# ---------------------------------------------------------------- storage


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One immutable object as a log entry names it. `key` is relative to the archive's root."""

    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A row group inside an object, with the digest of exactly these bytes."""

    key: str
    offset: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as bytes. `encoding` names how `payload` and `scale` turn back into `dtype`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    encoding: str
    scale: bytes
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStage:
    """One row group of a weights file: the tensors of one decoder stage of one segment."""

    segment: int
    stage: str
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLatents:
    """One row group of a latents file: one latent tensor a frame.

    `frames` and `pts` int64 [t]; `payload` uint8 [t, latent bytes]; `scale` is shared by the segment.
    """

    segment: int
    frames: NDArray[np.int64]
    pts: NDArray[np.int64]
    shape: tuple[int, ...]
    encoding: str
    scale: bytes
    payload: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRecord:
    """A stored segment as the manifest holds it.

    `architecture` is the decoder's JSON (codec.build). `stages` gives each stage's row group in
    decode order, so that a prefix of it is one contiguous range. `gflops` gives the cost of decoding
    one frame up to and including each stage (2 × MAC). `pts` int64 [frames]. A segment that is not
    fitted has no codec, architecture, stages or latents, and no PSNR (NaN, `frame_psnr` empty).
    """

    segment: int
    scene: int
    start_frame: int
    pts: NDArray[np.int64]
    psnr: float
    frame_psnr: NDArray[np.float32]
    codec: str
    architecture: str
    stages: tuple[tuple[str, ByteRange], ...]
    gflops: tuple[float, ...]
    latents: ByteRange | None

    @property
    def fitted(self) -> bool:
        return self.latents is not None

    @property
    def frames(self) -> int:
        return int(self.pts.shape[0])

    @property
    def stored_bytes(self) -> int:
        latents = self.latents.size_bytes if self.latents else 0
        return latents + sum(r.size_bytes for _, r in self.stages)

    @property
    def parts(self) -> tuple[tuple[str, ByteRange], ...]:
        """The row groups of all stages, then that of the latents, by these names; none if not fitted."""
        return (*self.stages, ("latents", self.latents)) if self.latents else ()

    def prefix(self, stage: str) -> ByteRange:
        """The contiguous range of all stages up to and including `stage` (digest left empty)."""
        names = [name for name, _ in self.stages]
        ranges = [r for _, r in self.stages[: names.index(stage) + 1]]
        end = ranges[-1].offset + ranges[-1].size_bytes
        return ByteRange(
            key=ranges[0].key, offset=ranges[0].offset, size_bytes=end - ranges[0].offset, sha256=""
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecord:
    """A stored video as the manifest holds it. `footers` maps a weights or latents key to its footer.

    `psnr` is 10·log10(255² / mean squared error) over all frames, RGB, at source size, of what is
    stored; `psnr_p5` the 5th percentile of the per-frame values. Of an "added" video no segment is
    fitted: it has no preset, and its measured values are NaN.
    """

    video_id: str
    attempt: str
    sha256: str
    name: str
    source_uri: str | None
    source_bytes: int
    container: str
    source_codec: str
    width: int
    height: int
    rotation_degrees: int
    time_base: Fraction
    average_fps: Fraction
    preset: str
    psnr: float
    psnr_p5: float
    resize_bound_psnr: float
    state: VideoState
    fit_seconds: float
    segments: tuple[SegmentRecord, ...]
    footers: Mapping[str, bytes]
    audio: StoredObject | None = None
    pixel_aspect: Fraction = Fraction(1)

    @property
    def frames(self) -> int:
        return sum(s.frames for s in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoMeta:
    """What people say about a video; kept only inside `meta/` objects, never in log entries."""

    video_id: str
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    recorded_at: datetime | None = None
    hold: bool = False


# ---------------------------------------------------------------- tasks and routes


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """A registered task. `version` is the SHA-256 of `spec` (canonical JSON), weights' digest included."""

    name: str
    version: str
    kind: TaskKind
    cuts: int
    labels: tuple[str, ...]
    spec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedView:
    """A SELECT that queries of the archive can name like a table. `saved_at` is UTC."""

    name: str
    sql: str
    saved_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRecord:
    """How a task is answered on a segment, and what that costs and is worth, as measured.

    `stages` are the decoder stages tapped (empty for source routes, ("rgb",) for pixel routes); the
    deepest decides the fetch. `gflops` is one frame's whole path (decode + adapter + tail);
    `bytes` what a cold read of the segment fetches (stage prefix + latents + this route's row group;
    for a source route the source file). `fidelity` is agreement with the backbone's own answers on
    source frames, over all frames that no adapter or task term was trained on;
    `fidelity_confident` the same over those where the source answer's confidence is ≥ 0.4
    (`confident_frames` of them); None without a source reference.
    """

    segment: int
    route: RouteName
    stages: tuple[str, ...]
    cut: str
    scope: RouteScope
    cka: float | None
    ridge_r2: float | None
    fidelity: float | None
    fidelity_confident: float | None
    confident_frames: int
    gflops: float
    bytes: int
    adapter: tuple[StoredTensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRoutes:
    """All routes of one task on one video: the content of one routes object."""

    video_id: str
    task: str
    version: str
    attempt: str
    routes: tuple[RouteRecord, ...]
