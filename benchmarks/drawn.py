"""An archive whose networks are drawn, not fitted: shapes and sizes are real, answers mean nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from nvpstore.adapters.micro import MicroAdapter
from nvpstore.adapters.stored import store_adapter
from nvpstore.codec.artifact import store_latents, store_weights
from nvpstore.codec.build import Architecture, build_architecture, find_preset, stage_gflops
from nvpstore.codec.hnerv import Decoder
from nvpstore.storage import keys
from nvpstore.storage.documents import encode_meta, encode_task
from nvpstore.storage.log import LogDraft, create_archive, open_log
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.storage.tables import (
    SEGMENTS_PER_FILE,
    encode_latents,
    encode_manifest,
    encode_routes,
    encode_weights,
)
from nvpstore.tasks.registry import LoadedTask, builtin_spec, load
from nvpstore.types import (
    RouteRecord,
    SegmentRecord,
    StoredObject,
    StoredStage,
    TaskRecord,
    TaskRoutes,
    VideoMeta,
    VideoRecord,
)

SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is drawn: `tasks` are names with the stage and the cut of their one route (stage rgb: pixels).

    With `one_decoder` all segments have the same weights, each stored as its own: drawn once, which is fast.
    """

    preset: str
    height: int
    width: int
    segments: int
    frames: int
    tasks: Mapping[str, tuple[str, str]]
    one_decoder: bool = False


def draw_archive(root: str, shape: Shape) -> str:
    """Writes an archive of one video to `root`; its id."""
    torch.manual_seed(SEED)
    store = open_store(root)
    create_archive(store)
    arch = build_architecture(shape.height, shape.width, shape.frames, find_preset(shape.preset))
    video, objects = _video(store, arch, shape)
    for name, (stage, cut) in shape.tasks.items():
        task, record = _task(name)
        stored = store.put(keys.task_key(name, record.version), encode_task(record))
        _commit(store, "task", name, [stored])
        routes = _routes(video, arch, task, record, stage, cut)
        key = keys.routes_key(video.video_id, record.version, routes.attempt)
        objects.append(store.put(key, encode_routes(key, routes).data))
    _commit(store, "video", video.video_id, objects)
    return video.video_id


def _task(name: str) -> tuple[LoadedTask, TaskRecord]:
    """The built-in task under another name: another version, the same cost."""
    task = load(replace(builtin_spec("labels"), name=name))
    return task, task.record()


def _commit(store: ObjectStore, kind: str, subject: str, objects: Sequence[StoredObject]) -> None:
    draft = LogDraft(
        kind=kind,  # type: ignore[arg-type]
        attempt=keys.new_attempt(),
        subject=subject,
        objects=tuple(objects),
    )
    open_log(store).append(draft)


def _video(store: ObjectStore, arch: Architecture, shape: Shape) -> tuple[VideoRecord, list[StoredObject]]:
    video_id, attempt = hashlib.sha256(repr(shape).encode()).hexdigest()[:32], keys.new_attempt()
    drawn = _weights(arch, shape)
    latents = [
        store_latents(
            torch.randn(shape.frames, *arch.latent_shape),
            segment=n,
            start_frame=n * shape.frames,
            pts=(np.arange(shape.frames, dtype=np.int64) + n * shape.frames) * 512,
        )
        for n in range(shape.segments)
    ]
    files = [
        (
            encode_weights(keys.weights_key(video_id, attempt, first), [s for n in some for s in drawn[n]]),
            encode_latents(keys.latents_key(video_id, attempt, first), [latents[n] for n in some]),
        )
        for first, some in _file_parts(shape.segments)
    ]
    weights = [group for file, _ in files for group in file.row_groups]
    coded = [group for _, file in files for group in file.row_groups]
    count = len(arch.stage_names)
    segments = tuple(
        SegmentRecord(
            segment=n,
            scene=n,
            start_frame=n * shape.frames,
            pts=latents[n].pts,
            psnr=30.0,
            frame_psnr=np.full(shape.frames, 30, np.float32),
            codec=arch.codec,
            architecture=arch.to_json(),
            stages=tuple(zip(arch.stage_names, weights[n * count : (n + 1) * count], strict=True)),
            gflops=stage_gflops(arch),
            latents=coded[n],
        )
        for n in range(shape.segments)
    )
    video = VideoRecord(
        video_id=video_id,
        attempt=attempt,
        sha256=video_id * 2,
        name="drawn.mp4",
        source_uri=None,
        source_bytes=1,
        container="mp4",
        source_codec="h264",
        width=shape.width,
        height=shape.height,
        rotation_degrees=0,
        time_base=Fraction(1, 12800),
        average_fps=Fraction(25),
        preset=shape.preset,
        psnr=30.0,
        psnr_p5=29.0,
        resize_bound_psnr=float("nan"),
        state="ready",
        fit_seconds=0.0,
        segments=segments,
        footers={file.row_groups[0].key: file.footer for pair in files for file in pair},
    )
    meta = keys.meta_key(video_id, keys.new_attempt())
    return video, [
        *(store.put(file.row_groups[0].key, file.data) for pair in files for file in pair),
        store.put(keys.manifest_key(video_id, attempt), encode_manifest(video)),
        store.put(meta, encode_meta(VideoMeta(video_id=video_id, name=video.name))),
    ]


def _file_parts(segments: int) -> Iterator[tuple[int, range]]:
    """The first segment of each file, and its segments."""
    for first in range(0, segments, SEGMENTS_PER_FILE):
        yield first, range(first, min(first + SEGMENTS_PER_FILE, segments))


def _weights(arch: Architecture, shape: Shape) -> Sequence[Sequence[StoredStage]]:
    """The stages of each segment."""
    if not shape.one_decoder:
        return [store_weights(Decoder(arch), segment=n) for n in range(shape.segments)]
    stages = store_weights(Decoder(arch), segment=0)
    return [[replace(stage, segment=n) for stage in stages] for n in range(shape.segments)]


def _routes(
    video: VideoRecord, arch: Architecture, task: LoadedTask, record: TaskRecord, stage: str, cut: str
) -> TaskRoutes:
    adapters = stage != "rgb"
    stored = ()
    if adapters:
        shapes = task.backbone.cut(cut).shapes
        stored = store_adapter(MicroAdapter((stage,), [arch.stage_shape(stage)[0]], shapes))
    tail = task.backbone.tail_gflops(cut) if adapters else task.backbone.whole_gflops()
    decode = stage_gflops(arch)[arch.stage_names.index(stage)]
    return TaskRoutes(
        video_id=video.video_id,
        task=record.name,
        version=record.version,
        attempt=keys.new_attempt(),
        routes=tuple(
            RouteRecord(
                segment=segment.segment,
                route="adapter" if adapters else "pixel",
                stages=(stage,),
                cut=cut if adapters else "",
                scope="segment",
                cka=None,
                ridge_r2=None,
                fidelity=None,
                fidelity_confident=None,
                confident_frames=0,
                gflops=decode + tail,
                bytes=segment.prefix(stage).size_bytes + segment.latents.size_bytes,
                adapter=stored,
            )
            for segment in video.segments
        ),
    )
