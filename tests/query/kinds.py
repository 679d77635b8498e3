"""A small fitted video with a task of every kind, whose models have random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nvpstore
from nvpstore.adapters.micro import MicroAdapter
from nvpstore.adapters.stored import load_adapter, store_adapter
from nvpstore.archive import Archive
from nvpstore.catalog import IndexedVideo
from nvpstore.codec.build import Architecture
from nvpstore.codec.grids import Region
from nvpstore.config import Settings, load_settings
from nvpstore.ingest.layout import laid_out, with_bytes
from nvpstore.ingest.originals import source_route
from nvpstore.query.operators import TorchOperators
from nvpstore.storage.commit import commit_routes, register_task
from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.tasks.recipes import IMAGENET
from nvpstore.tasks.registry import LoadedTask, load
from nvpstore.tasks.spec import Clip, TaskSpec
from nvpstore.types import RGB_STAGE, RouteRecord, SegmentRecord, StoredTensor, TaskRoutes
from tests.query.factories import HERE
from tests.tasks.test_models import TINY_BLIP, TINY_DETR
from tests.video.conftest import Clip as Footage
from tests.video.conftest import write_clip

FRAMES, WIDTH, HEIGHT = 26, 96, 64  # two segments of 13 frames
STAGES = ("0", "1")  # that the adapters tap
THREADS = 1  # nothing here is large enough for two


def preprocessing(height: int, width: int, **more: Any) -> Preprocessing:
    return Preprocessing(height=height, width=width, **{**IMAGENET, **more})


def spec(name: str, kind: Any, provider: str, model: str, **more: Any) -> TaskSpec:
    return TaskSpec(
        name=name,
        kind=kind,
        provider=provider,
        model=model,
        weights_sha256="",
        **{"preprocessing": preprocessing(32, 48), "labels": (), "options": {"seed": 3}, **more},
    )


SPECS = {
    task.name: task
    for task in (
        spec("scenes", "classification", "factory", f"{HERE}:classes", labels=("day", "night", "dusk")),
        spec(
            *("looks", "embedding", "factory", f"{HERE}:pictures_and_texts"),
            preprocessing=preprocessing(32, 32, fit="crop", crop_share=0.8),
        ),
        spec("mute", "embedding", "factory", f"{HERE}:pictures_alone"),
        spec("far", "depth", "factory", f"{HERE}:depth"),
        spec(
            *("parts", "segmentation", "torchvision", "lraspp_mobilenet_v3_large"),
            preprocessing=preprocessing(64, 64, fit="letterbox"),
            labels=("sky", "road", "car"),
        ),
        spec(
            *("things", "detection", "transformers", "detr-resnet-50"),
            preprocessing=preprocessing(64, 64, fit="letterbox"),
            labels=("cup", "key", "pen", "lid", "jar"),
            options={"seed": 3, "config": TINY_DETR},
        ),
        spec(
            *("lines", "caption", "transformers", "blip-image-captioning-base"),
            preprocessing=preprocessing(48, 48),
            options={"seed": 3, "config": TINY_BLIP},
        ),
        spec(
            *("moves", "action", "pytorchvideo", "i3d_r50"),
            preprocessing=preprocessing(32, 32, fit="crop"),
            labels=("run", "sit", "wave"),
            clip=Clip(frames=4, stride=3),
            options={"seed": 3, "build": {"head_pool_kernel_size": [2, 1, 1], "stem_dim_out": 8}},
        ),
    )
}
FACTORIES = ",".join(task.model for task in SPECS.values() if task.provider == "factory")


@dataclass(frozen=True, kw_only=True)
class Kinds:
    """`adapters` by task and segment: as they come back from the store."""

    archive: Archive
    clip: Path
    video: IndexedVideo
    segments: tuple[SegmentRecord, ...]
    tasks: Mapping[str, LoadedTask]
    adapters: Mapping[tuple[str, int], MicroAdapter]

    def operators(self) -> TorchOperators:
        """New ones, which hold nothing yet."""
        return TorchOperators(self.archive.store, threads=THREADS)


@contextmanager
def few_threads() -> Iterator[None]:
    """Operators set how many threads torch has, for the whole process: other tests find it as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settings(cache: Path, *, answers: str = "off") -> Settings:
    return load_settings({"NVP_CACHE": str(cache), "NVP_ANSWERS": answers, "NVP_THREADS": str(THREADS)})


def make(folder: Path) -> Kinds:
    """The video fitted, the tasks registered with routes of every kind. NVP_FACTORIES names FACTORIES."""
    clip = write_clip(folder, Footage(frames=FRAMES, width=WIDTH, height=HEIGHT))
    archive = nvpstore.open(folder / "archive", create=True, settings=settings(folder / "cache"))
    archive.ingest(clip, tasks=(), preset="micro", device="cpu")
    snapshot = archive.catalog.snapshot()
    video = snapshot.video(snapshot.find_video("clip.mp4"))
    segments = snapshot.segments(video.video_id)
    tasks = {name: load(task) for name, task in SPECS.items()}
    adapters: dict[tuple[str, int], MicroAdapter] = {}
    for task in tasks.values():
        register_task(archive.catalog.log, task.record())
        records: list[RouteRecord] = []
        for segment in segments:
            tensors, adapter = _adapter(task, segment)
            adapters[(task.spec.name, segment.segment)] = adapter
            records += _routes(task, segment, tensors, source_bytes=video.source_bytes)
        routes = TaskRoutes(
            video_id=video.video_id,
            task=task.spec.name,
            version=task.spec.version,
            attempt=video.attempt,
            routes=tuple(records),
        )
        commit_routes(archive.catalog.log, laid_out(routes), archive.catalog.snapshot().base(video.video_id))
    return Kinds(archive=archive, clip=clip, video=video, segments=segments, tasks=tasks, adapters=adapters)


def middle_cut(task: LoadedTask) -> str:
    cuts = task.backbone.cuts
    return cuts[len(cuts) // 2].name


def _adapter(task: LoadedTask, segment: SegmentRecord) -> tuple[tuple[StoredTensor, ...], MicroAdapter]:
    """An untrained adapter to the middle of the backbone, whose outputs are neither constant nor large."""
    arch = Architecture.from_json(segment.architecture)
    shown = task.spec.preprocessing.region(HEIGHT, WIDTH)
    content = Region(
        right=arch.content_width / arch.coded_width, bottom=arch.content_height / arch.coded_height
    )
    cut = task.backbone.cut(middle_cut(task))
    torch.manual_seed(segment.segment)
    adapter = MicroAdapter(
        STAGES,
        [arch.stage_shape(stage)[0] for stage in STAGES],
        cut.shapes,
        region=shown.within(content.right, content.bottom),
        frames=task.spec.frames,
    )
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tensors = store_adapter(adapter)
    return tensors, load_adapter(tensors, STAGES, cut.shapes, frames=task.spec.frames)


def _routes(
    task: LoadedTask, segment: SegmentRecord, tensors: tuple[StoredTensor, ...], *, source_bytes: int
) -> list[RouteRecord]:
    decode = dict(zip((name for name, _ in segment.stages), segment.gflops, strict=True))
    whole, cut = task.backbone.whole_gflops(), middle_cut(task)
    adapter = RouteRecord(
        segment=segment.segment,
        route="adapter",
        stages=STAGES,
        cut=cut,
        scope="segment",
        cka=None,
        ridge_r2=None,
        fidelity=0.75,
        fidelity_confident=None,
        confident_frames=0,
        gflops=task.spec.frames * decode[STAGES[-1]] + task.backbone.tail_gflops(cut),
        bytes=0,
        adapter=tensors,
    )
    pixel = RouteRecord(
        segment=segment.segment,
        route="pixel",
        stages=(RGB_STAGE,),
        cut="",
        scope="segment",
        cka=None,
        ridge_r2=None,
        fidelity=0.5,
        fidelity_confident=None,
        confident_frames=0,
        gflops=task.spec.frames * decode[RGB_STAGE] + whole,
        bytes=0,
    )
    routes = (adapter, pixel, source_route(segment.segment, gflops=whole))
    return [with_bytes(route, segment, source_bytes=source_bytes) for route in routes]
