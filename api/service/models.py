"""What requests and answers hold, with every limit: the OpenAPI description is made from it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from nvpstore.api.jobs.job import Job, JobKind, JobState
from nvpstore.api.jobs.requests import SteadyVariant
from nvpstore.errors import UsageError
from nvpstore.types import RouteName, RouteScope, TaskKind, VideoState, WeightsPlace
from nvpstore.upkeep.meta import in_utc

MOST_TAGS = 64
MOST_TASKS = 64
MOST_LABELS = 100_000
_SHOWN = r"^[^\x00-\x1f\x7f-\x9f]*$"  # no control characters
_TASK = r"^[a-z][a-z0-9_]{0,62}$"
_TASK_REF = r"^[a-z][a-z0-9_]{0,62}(@[0-9a-f]{1,64})?$"


def _recorded(value: datetime) -> datetime:
    try:
        in_utc(value)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return value


Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=_SHOWN)]
TagKey = Annotated[str, StringConstraints(max_length=255, pattern=_SHOWN)]
TagValue = Annotated[str, StringConstraints(max_length=1024, pattern=_SHOWN)]
TaskName = Annotated[str, StringConstraints(pattern=_TASK)]
TaskRef = Annotated[str, StringConstraints(pattern=_TASK_REF)]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=_SHOWN)]
Instant = Annotated[AwareDatetime, AfterValidator(_recorded)]
Side = Annotated[int, Field(ge=1, le=4096)]
Colour = tuple[float, float, float]
KeepSource = Literal["reference", "copy", "none"]


class Asked(BaseModel):
    """What a caller says: nothing but the fields that there are."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """What the service says."""


def _unnamed(schema: dict[str, Any]) -> None:
    """For fields that have no value where they are not named, and may not be null either."""
    schema.pop("default", None)


# ---------------------------------------------------------------- videos


class VideoFields(Asked):
    """What is said of a video that comes in, and what is to be done with it."""

    name: Name | None = Field(default=None, description="default: the file's name", examples=["gate, Monday"])
    tags: dict[TagKey, TagValue] = Field(
        default_factory=dict,
        max_length=MOST_TAGS,
        description="in a form: a JSON object",
        examples=[{"camera": "gate"}],
    )
    recorded_at: Instant | None = Field(
        default=None,
        description="when the first frame was recorded: ISO 8601 with its zone",
        examples=["2026-03-01T08:00:00+01:00"],
    )
    tasks: list[TaskRef] = Field(
        default=["labels"],
        min_length=1,
        max_length=MOST_TASKS,
        description="tasks to prepare; in a form: the field once a task",
    )
    preset: Name = Field(default="demo", description="how to fit", examples=["demo"])
    mode: Literal["ingest", "add"] = Field(
        default="ingest",
        description="`ingest` fits the video; `add` only registers it: questions read the original until "
        "`POST /v1/videos/{id}/fit`",
    )
    keep_source: KeepSource | None = Field(
        default=None,
        description="what is kept of the original. Uploads: `none` (default) or `copy` where they are "
        "fitted, always `copy` where they are added. By URI: `reference` (default), `copy` or `none`",
    )
    refit: bool = Field(default=False, description="fit again what is fitted already")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mode == "add" and self.keep_source == "none":
            raise ValueError("mode add with keep_source none: an added video needs its original")
        if self.mode == "add" and self.refit:
            raise ValueError("mode add with refit: a video that is only added is not fitted")
        return self


class VideoByUri(VideoFields):
    """A video that the server fetches itself."""

    uri: Uri = Field(
        description="under one of the roots that the operator allows (NVP_INGEST_ROOTS)",
        examples=["s3://camera-1/2026/03/01/gate.mp4"],
    )


class VideoUpload(VideoFields):
    """The fields of a form that brings a video; they may stand before or after the file."""

    file: bytes = Field(
        description="the video's bytes", json_schema_extra={"type": "string", "format": "binary"}
    )


class VideoChanges(Asked):
    """What is to be said of a video from now on; what is not named stays."""

    name: Name = Field(
        default="", description="a new name", examples=["gate, Monday"], json_schema_extra=_unnamed
    )
    tags: dict[TagKey, TagValue | None] = Field(
        default_factory=dict,
        max_length=MOST_TAGS,
        description="tags to set; null removes one",
        examples=[{"camera": "gate", "draft": None}],
    )
    recorded_at: Instant = Field(
        default=datetime.min, description="when the first frame was recorded", json_schema_extra=_unnamed
    )
    hold: bool = Field(
        default=False,
        description="forbid, or allow, that it is erased; scope admin",
        json_schema_extra=_unnamed,
    )

    def said(self, name: str) -> Any:
        """A field's value; None where the caller did not name it."""
        return getattr(self, name) if name in self.model_fields_set else None


class Meta(Answer):
    """What people say of a video."""

    video_id: str
    name: str
    tags: dict[str, str]
    recorded_at: datetime | None
    hold: bool


class Video(Answer):
    """A row of the view `videos`. Of an added video psnr, bpp, preset and fit_seconds are null."""

    video_id: str = Field(examples=["82bc07de7ba81cd2d45d2eec1e27f47d"])
    name: str
    duration: float | None = Field(description="seconds")
    fps: float | None
    width: int
    height: int
    frames: int
    psnr: float | None = Field(description="dB over all frames, RGB, at source size, of what is stored")
    psnr_p5: float | None = Field(description="5th percentile of the frames' own PSNR")
    bpp: float | None = Field(description="stored bits a source pixel")
    stored_bytes: int
    shared_bytes: int
    state: VideoState
    tags: dict[str, str]
    recorded_at: datetime | None
    source_bytes: int
    preset: str | None
    fit_seconds: float | None
    resize_bound_psnr: float | None


class Segment(Answer):
    """A row of the view `segments`."""

    segment: int
    scene: int
    start_frame: int
    frames: int
    start_ts: float
    end_ts: float
    psnr: float | None
    stored_bytes: int
    codec: str | None


class Route(Answer):
    """A row of the view `routes`: how a task is answered on a segment, and what that costs."""

    segment: int
    task: str
    version: str
    route: RouteName
    stages: list[str]
    cut: str | None
    scope: RouteScope
    cka: float | None
    fidelity: float | None
    gflops: float | None
    bytes: int | None
    fidelity_confident: float | None
    confident_frames: int | None
    ridge_r2: float | None


class VideoDetails(Video):
    """A video with its segments and routes."""

    sha256: str = Field(description="of the source's bytes")
    attempt: str = Field(description="changes when the video is fitted anew, and pictures with it")
    hold: bool = Field(description="on hold, it cannot be erased")
    time_base: str = Field(description="seconds a tick of `pts`, as a fraction", examples=["1/12800"])
    pts_origin: int = Field(description="`pts` of the first frame: ts = (pts - pts_origin) · time_base")
    pixel_aspect: str = Field(
        description="a pixel's width over its height, a fraction: 1 but for anamorphic video",
        examples=["64/45"],
    )
    original: Literal["reference", "copy"] | None = Field(
        description="whether the original is where it was read, copied into the archive, or not kept"
    )
    segments: list[Segment]
    routes: list[Route]


class VideosPage(Answer):
    """Some videos, by name."""

    videos: list[Video]
    next: str | None = Field(description="the `cursor` of the next page; null at the end")


class Erased(Answer):
    """What an erasure did. Only the id remains."""

    video_id: str
    number: int = Field(description="the log's entry")
    objects: int = Field(description="how many objects went")


class FitAsked(Asked):
    """How to fit a video that is stored."""

    tasks: list[TaskRef] = Field(default=["labels"], min_length=1, max_length=MOST_TASKS)
    preset: Name = "demo"
    keep_source: KeepSource | None = Field(
        default=None, description="what is kept of the original; null leaves it as it is"
    )
    refit: bool = Field(default=False, description="also where it is fitted already")


# ---------------------------------------------------------------- jobs


class JobAnswer(Answer):
    """Work that takes longer than a request."""

    id: str = Field(examples=["01M7YGENEA4WME18CAPTYWDMBT"])
    kind: JobKind
    state: JobState
    owner: str = Field(description="the id of the key that asked for it")
    video_id: str | None = Field(description="the video that it is about, as soon as that is known")
    request: dict[str, Any] = Field(description="what was asked")
    attempts: int = Field(description="how often a worker began it")
    cancelling: bool = Field(description="somebody asked to stop it")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: dict[str, Any] | None = Field(
        description="how far it is",
        examples=[{"phase": "fit", "done": 120, "total": 900, "psnr": 27.1, "eta_seconds": 310.0}],
    )
    result: dict[str, Any] | None = Field(description="what came of it, once it is done")
    error: dict[str, Any] | None = Field(
        description="why it failed", examples=[{"title": "…", "detail": "no video stream", "status": 422}]
    )

    @classmethod
    def of(cls, job: Job) -> Self:
        # Where an upload lies on the server, or an answer, is nobody's business.
        request = {name: value for name, value in job.request.items() if name != "file"}
        result = {name: value for name, value in (job.result or {}).items() if name != "file"}
        sha256 = request.get("sha256")
        return cls(
            id=job.id,
            kind=job.kind,
            state=job.state,
            owner=job.owner,
            video_id=sha256[:32] if sha256 else request.get("video") or result.get("video_id"),
            request=request,
            attempts=job.attempts,
            cancelling=job.cancelling,
            created_at=datetime.fromtimestamp(job.created_at, UTC),
            started_at=_time(job.started_at),
            finished_at=_time(job.finished_at),
            progress=None if job.progress is None else dict(job.progress),
            result=None if job.result is None else result,
            error=None if job.error is None else dict(job.error),
        )


class JobsPage(Answer):
    """Some jobs, the newest first."""

    jobs: list[JobAnswer]
    next: str | None = Field(description="the `cursor` of the next page; null at the end")


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


# ---------------------------------------------------------------- tasks


class TaskFields(Asked):
    """A task to register: a built-in one by its name, or described. What is null is as in the built-in task
    `like`, else of `name`."""

    name: TaskName = Field(examples=["labels"])
    like: TaskName | None = Field(default=None, description="a built-in task", examples=["resnet50"])
    provider: Name | None = Field(
        default=None, description="a library that the server has", examples=["timm"]
    )
    model: Name | None = Field(default=None, description="the provider's name of it", examples=["resnet50"])
    kind: TaskKind | None = Field(default=None, description="what its output means")
    size: tuple[Side, Side] | None = Field(default=None, description="height and width of its input")
    fit: Literal["stretch", "crop", "letterbox"] | None = None
    mean: Colour | None = Field(default=None, description="of its input, RGB from 0 to 255")
    std: Colour | None = None
    clip: tuple[Annotated[int, Field(ge=2, le=1024)], Annotated[int, Field(ge=1, le=1024)]] | None = Field(
        default=None, description="actions: pictures at once, every so many frames", examples=[[32, 2]]
    )
    labels: list[Name] | None = Field(
        default=None, max_length=MOST_LABELS, description="in class order", examples=[["cat", "dog"]]
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        max_length=64,
        description="the provider's own settings: numbers and booleans, in objects and lists",
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="draw weights at random: for figures of cost alone"
    )
    new_version: bool = Field(default=False, description="the name is there: from now on this one answers")


class TaskAnswer(Answer):
    """A row of the view `tasks`; one that is only available has no version where its weights are absent."""

    name: str
    version: str | None
    kind: TaskKind
    cuts: int
    weights: WeightsPlace | None


class TasksAnswer(Answer):
    tasks: list[TaskAnswer]


class TaskDetails(Answer):
    """A task version with its labels in class order; `spec` is its canonical JSON."""

    name: str
    version: str
    kind: TaskKind
    cuts: int
    labels: list[str]
    spec: str
    weights: WeightsPlace


class TaskAdded(Answer):
    """A task as it is registered now."""

    name: str
    version: str
    kind: TaskKind
    cuts: int
    labels: int = Field(description="their number")
    weights: WeightsPlace
    weights_bytes: int = Field(description="what the archive keeps")
    already_registered: bool
    warning: str | None


class StabilizeAsked(Asked):
    """How to teach what makes answers, or pictures, steady."""

    videos: str | None = Field(
        default=None,
        max_length=65_536,
        description="an SQL predicate over the columns of the view `videos`; null: all",
        examples=["tags['camera'] = 'gate'"],
    )
    share: float = Field(default=0.25, gt=0, le=1, description="of a segment's frames, to learn from")
    steps: int = Field(default=200, ge=1, le=100_000, description="of training")
    stability: float = Field(
        default=0.2, ge=0, lt=0.5, description="what being steady is worth beside being right"
    )
    variant: SteadyVariant | None = Field(
        default=None, description="null: controlled, and of pictures spatial"
    )


class TrainAsked(Asked):
    """How to give fitted videos routes for a task."""

    videos: str | None = Field(
        default=None,
        max_length=65_536,
        description="an SQL predicate over the columns of the view `videos`; null: all",
        examples=["tags['camera'] = 'gate'"],
    )
    share: float = Field(default=0.05, gt=0, le=1, description="of a segment's frames, to learn from")
    measured: int = Field(default=256, ge=1, le=100_000, description="others a segment, to judge by")
    again: bool = Field(default=False, description="also videos that have routes of it")
