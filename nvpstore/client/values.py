"""What a server answers, as values with the fields of a local archive's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

from nvpstore.errors import ServiceError
from nvpstore.types import TaskKind, VideoMeta, VideoState, WeightsPlace

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSummary:
    """One stored video. `psnr` (dB) as in the `videos` view; an added video has no PSNR, bpp and fit time."""

    video_id: str
    name: str
    state: VideoState
    frames: int
    psnr: float | None
    bpp: float | None
    stored_bytes: int
    source_bytes: int
    fit_seconds: float | None
    already_stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the server is: `done` of `total` steps of `phase`, bytes of the file in phase "upload"."""

    phase: str
    done: int = 0
    total: int = 0
    psnr: float | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What an erasure did: `number` is its log entry, `objects` how many objects went."""

    video_id: str
    number: int
    objects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedTask:
    """A task as it is registered now. `labels` is their number, `warning` says what it cannot do."""

    name: str
    version: str
    kind: TaskKind
    cuts: int
    labels: int
    weights: WeightsPlace
    weights_bytes: int
    already_registered: bool
    warning: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedVideo:
    """What became of one video; `why` says what came between where it was "dropped" or "failed"."""

    video_id: str
    name: str
    state: Literal["trained", "estimated", "dropped", "failed"]
    segments: int
    frames: int
    fidelity: float | None = None
    reference: str | None = None
    trained_frames: int = 0
    measured_frames: int = 0
    adapter_bytes: int = 0
    seconds: float = 0.0
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilizerSummary:
    """A stabilizer as it was trained; `change`, `error` and `flips` (a second) before and after."""

    name: str
    version: str
    state: Literal["trained", "estimated"]
    variant: str
    cut: str
    parameters: int
    bytes: int
    segments: int
    judged_segments: int
    frames: int
    steps: int
    seconds: float
    change: tuple[float, float] | None = None
    error: tuple[float, float] | None = None
    flips: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What `export` wrote. `upscaled`: how many times as large as the source."""

    path: str
    frames: int
    reconstructed: bool
    upscaled: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A segment that `on_error := 'skip'` left out, and why."""

    video_id: str
    segment: int
    table: str
    reason: str


def of(kind: type[T], answer: Any) -> T:
    """A value of `kind` from a JSON object; fields that a newer server adds are left out.

    Raises ServiceError where a field is missing.
    """
    assert dataclasses.is_dataclass(kind), "values are dataclasses"
    known = {field.name for field in dataclasses.fields(kind)}
    try:
        return kind(**{name: value for name, value in answer.items() if name in known})
    except (TypeError, AttributeError) as cause:
        raise ServiceError(f"the server's answer is no {kind.__name__}: {cause}") from cause


def meta_of(answer: Mapping[str, Any]) -> VideoMeta:
    return of(VideoMeta, with_times(answer))


def with_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """A video's fields with `recorded_at` as a local archive has it."""
    said = row.get("recorded_at")
    return {**row, "recorded_at": None if said is None else datetime.fromisoformat(said)}
