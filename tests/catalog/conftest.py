"""A small archive made of real objects, for the catalog's tests. Bytes of tensors mean nothing here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from nvpstore.catalog import Catalog
from nvpstore.storage import keys
from nvpstore.storage.documents import encode_meta, encode_task, encode_view
from nvpstore.storage.log import LogDraft, LogEntry, create_archive, open_log
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.storage.results import AnswerPart, Answers, encode_results, intervals
from nvpstore.storage.tables import encode_latents, encode_manifest, encode_routes, encode_weights
from nvpstore.types import (
    RouteRecord,
    SavedView,
    SegmentRecord,
    StoredLatents,
    StoredObject,
    StoredStage,
    StoredTensor,
    TaskRecord,
    TaskRoutes,
    VideoMeta,
    VideoRecord,
)

STAGES = ("0", "1", "rgb")
EVEN_PTS = (0, 512, 1024, 1536)
UNEVEN_PTS = (0, 512, 1024, 1700)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class SmallArchive:
    """Writes videos, tasks, routes and metadata as ingest does: objects first, then the entry."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.archive_id = create_archive(store).subject
        self.log = open_log(store)

    def commit(self, kind: str, subject: str, objects: Sequence[StoredObject]) -> LogEntry:
        draft = LogDraft(
            kind=kind,  # type: ignore[arg-type]
            attempt=keys.new_attempt(),
            subject=subject,
            objects=tuple(objects),
        )
        return self.log.append(draft)

    def put_video(
        self,
        source: str,
        *,
        segments: int = 2,
        pts: Sequence[int] = EVEN_PTS,
        name: str | None = None,
        pixel_aspect: Fraction = Fraction(1),
    ) -> tuple[VideoRecord, list[StoredObject]]:
        """All objects of a video, not committed yet."""
        attempt, sha256 = keys.new_attempt(), digest(source)
        video_id = sha256[:32]
        weights = encode_weights(
            keys.weights_key(video_id, attempt, 0),
            [stage(n, s, attempt) for n in range(segments) for s in STAGES],
        )
        latents = encode_latents(
            keys.latents_key(video_id, attempt, 0), [latents_of(n, pts) for n in range(segments)]
        )
        parts = weights.row_groups
        records = tuple(
            SegmentRecord(
                segment=n,
                scene=n // 2,
                start_frame=n * len(pts),
                pts=np.array(pts) + n * 2048 + 100,
                psnr=30.0 + n,
                frame_psnr=np.linspace(29, 31, len(pts)).astype(np.float32),
                codec="hnerv",
                architecture='{"widths":[8,4]}',
                stages=tuple(zip(STAGES, parts[3 * n : 3 * n + 3], strict=True)),
                gflops=(0.1, 0.25, 1.0),
                latents=latents.row_groups[n],
            )
            for n in range(segments)
        )
        audio = self.store.put(keys.audio_key(video_id, attempt), b"audio" * 20)
        video = VideoRecord(
            video_id=video_id,
            attempt=attempt,
            sha256=sha256,
            name=name or f"{source}.mp4",
            source_uri=f"/footage/{source}.mp4",
            source_bytes=12345,
            container="mp4",
            source_codec="h264",
            width=320,
            height=180,
            rotation_degrees=0,
            time_base=Fraction(1, 12800),
            average_fps=Fraction(25),
            preset="micro",
            psnr=30.5,
            psnr_p5=29.0,
            resize_bound_psnr=float("nan"),
            state="ready",
            fit_seconds=1.5,
            segments=records,
            footers={parts[0].key: weights.footer, latents.row_groups[0].key: latents.footer},
            audio=audio,
            pixel_aspect=pixel_aspect,
        )
        objects = [
            self.store.put(parts[0].key, weights.data),
            self.store.put(latents.row_groups[0].key, latents.data),
            audio,
            self.store.put(keys.manifest_key(video_id, attempt), encode_manifest(video)),
        ]
        return video, objects

    def add_video(self, source: str, **options: object) -> VideoRecord:
        video, objects = self.put_video(source, **options)  # type: ignore[arg-type]
        self.commit("video", video.video_id, objects)
        return video

    def add_task(self, name: str = "labels", spec: str = "{}") -> TaskRecord:
        task = TaskRecord(
            name=name,
            version=digest(name + spec),
            kind="classification",
            cuts=3,
            labels=("cat", "rocket"),
            spec=spec,
        )
        obj = self.store.put(keys.task_key(name, task.version), encode_task(task))
        self.commit("task", name, [obj])
        return task

    def add_routes(self, video: VideoRecord, task: TaskRecord, *, fidelity: float = 0.97) -> TaskRoutes:
        routes = routes_of(video, task, fidelity=fidelity)
        key = keys.routes_key(video.video_id, task.version, routes.attempt)
        self.commit("routes", video.video_id, [self.store.put(key, encode_routes(key, routes).data)])
        return routes

    def add_answers(
        self, video: VideoRecord, task: TaskRecord, *, first: int = 0, removed: Sequence[str] = ()
    ) -> StoredObject:
        attempt = keys.new_attempt()
        encoded = encode_results(answers_of(video, task, first=first), attempt)
        stored = self.store.put(encoded.key, encoded.data)
        self.log.append(
            LogDraft(
                kind="results",
                attempt=attempt,
                subject=video.video_id,
                objects=(stored,),
                removed=tuple(removed),
            )
        )
        return stored

    def put_view(self, view: SavedView, *, under: str = "") -> StoredObject:
        """A view's object, not committed yet; `under` another name where that is given."""
        return self.store.put(keys.view_key(under or view.name, keys.new_attempt()), encode_view(view))

    def add_view(self, name: str, sql: str = "SELECT 1 AS one") -> SavedView:
        view = view_of(name, sql)
        self.commit("view", name, [self.put_view(view)])
        return view

    def add_meta(self, video_id: str, *, name: str, tags: Mapping[str, str]) -> VideoMeta:
        recorded = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
        meta = VideoMeta(video_id=video_id, name=name, tags=tags, recorded_at=recorded, hold=True)
        key = keys.meta_key(video_id, keys.new_attempt())
        self.commit("meta", video_id, [self.store.put(key, encode_meta(meta))])
        return meta


def view_of(name: str, sql: str = "SELECT 1 AS one") -> SavedView:
    return SavedView(name=name, sql=sql, saved_at=datetime(2026, 5, 1, 12, 30, tzinfo=UTC))


def answers_of(video: VideoRecord, task: TaskRecord, *, first: int, result: str = "0" * 32) -> Answers:
    """Rows on every second of six frames from `first` on, and a part without rows."""
    frames = np.arange(first, first + 6)
    schema = pa.schema({"frame": pa.int64(), "label": pa.string()})
    found = pa.table([frames[::2], [f"cat {n}" for n in frames[::2]]], schema=schema)
    return Answers(
        video_id=video.video_id,
        task=task.name,
        version=task.version,
        result=result,
        parts=(
            AnswerPart(segment=0, route="a" * 32, covered=intervals(frames), rows=found),
            AnswerPart(segment=1, route="b" * 32, covered=intervals(frames[:2]), rows=found[:0]),
        ),
    )


def stage(segment: int, name: str, content: str) -> StoredStage:
    tensor = StoredTensor(
        name=f"{name}.weight",
        shape=(4, 4),
        dtype="float32",
        encoding="raw",
        scale=b"",
        payload=digest(f"{content}{segment}{name}").encode(),
    )
    return StoredStage(segment=segment, stage=name, tensors=(tensor,))


def latents_of(segment: int, pts: Sequence[int]) -> StoredLatents:
    return StoredLatents(
        segment=segment,
        frames=np.arange(len(pts)) + segment * len(pts),
        pts=np.array(pts) + segment * 2048 + 100,
        shape=(2, 4),
        encoding="int8",
        scale=b"\x01",
        payload=np.full((len(pts), 8), segment, np.uint8),
    )


def routes_of(video: VideoRecord, task: TaskRecord, *, fidelity: float) -> TaskRoutes:
    adapter = RouteRecord(
        segment=0,
        route="adapter",
        stages=("0", "1"),
        cut="blocks.8",
        scope="segment",
        cka=0.9,
        ridge_r2=None,
        fidelity=fidelity,
        fidelity_confident=1.0,
        confident_frames=3,
        gflops=0.4,
        bytes=999,
        adapter=stage(0, "micro", video.attempt).tensors,
    )
    routes = [
        route
        for n in range(len(video.segments))
        for route in (
            replace(adapter, segment=n, adapter=stage(n, "micro", video.attempt).tensors),
            replace(adapter, segment=n, route="pixel", stages=("rgb",), cut="", cka=None, adapter=()),
        )
    ]
    return TaskRoutes(
        video_id=video.video_id,
        task=task.name,
        version=task.version,
        attempt=keys.new_attempt(),
        routes=tuple(routes),
    )


@pytest.fixture
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> SmallArchive:
    """In memory, or where `parametrize("archive", …, indirect=True)` says."""
    if getattr(request, "param", "memory") == "local":
        return SmallArchive(open_store(str(tmp_path / "archive")))
    return SmallArchive(open_store(f"memory://{keys.new_attempt()}"))


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def catalog(archive: SmallArchive, cache_dir: Path) -> Catalog:
    return Catalog(archive.store, cache_dir)
