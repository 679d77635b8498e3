"""The write path: probe → segment → fit → quantise → measure → routes → put → log entry.

Everything is finished on this machine first, then put at once: a fit may take longer than any upload may.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np

from nvpstore.codec.build import Preset, find_preset, stage_gflops
from nvpstore.codec.fit import CHECKPOINT_SECONDS, FitProgress
from nvpstore.errors import AttemptTooOld, CommitDropped, SourceError
from nvpstore.ingest.finished import keep_finished, kept_finished
from nvpstore.ingest.layout import laid_out, with_bytes
from nvpstore.ingest.segment import FinishedSegment, finish_segment, psnr
from nvpstore.storage import keys
from nvpstore.storage.commit import Base, PreparedVideo, commit_video
from nvpstore.storage.log import Log
from nvpstore.storage.tables import (
    SEGMENTS_PER_FILE,
    encode_latents,
    encode_weights,
)
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import (
    FrameBatch,
    RouteRecord,
    SegmentRecord,
    SegmentSpan,
    SourceScan,
    StoredObject,
    TaskRoutes,
    VideoMeta,
    VideoRecord,
    VideoState,
)
from nvpstore.video.audio import copy_audio
from nvpstore.video.source import digest_file, read_frames, scan

KeepSource = Literal["reference", "copy", "none"]
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestRequest:
    """What to store and how. `device` is "cpu" or "cuda".

    `source_uri` says where the original is to be found where that is not `path`. With `refit` a stored video
    is replaced. `tone_map`: HDR may be mapped to SDR.
    """

    path: Path
    name: str
    preset: str
    tags: Mapping[str, str] = field(default_factory=dict)
    recorded_at: datetime | None = None
    device: str = "cpu"
    keep_source: KeepSource = "reference"
    source_uri: str | None = None
    refit: bool = False
    tone_map: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestProgress:
    """`done` of `total` epochs × frames in phase "fit", of frames in "scan", of segments in "store"."""

    phase: str
    done: int
    total: int
    psnr: float | None = None
    eta_seconds: float | None = None


OnProgress = Callable[[IngestProgress], None]


class Ingest:
    """One video's way into the archive. Killed anywhere, a rerun continues from the last checkpoint."""

    def __init__(
        self,
        request: IngestRequest,
        tasks: Sequence[LoadedTask],
        *,
        log: Log,
        work_dir: Path,
        on_progress: OnProgress,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.request, self.tasks, self.log = request, tasks, log
        self.preset = find_preset(request.preset)
        self.on_progress = on_progress
        self.work_dir, self.checkpoint_seconds = work_dir, checkpoint_seconds

    def run(self, video_id: str, base: Callable[[], Base]) -> VideoRecord:
        """Fit, put all objects, and commit them in one log entry. `base` tells the state to commit on.

        Raises SourceError where the file is not `video_id`, CommitDropped where the video was fitted by
        others, or erased, meanwhile; AttemptTooOld where the upload took so long that gc may have come
        between, after which a rerun has only to upload again.
        """
        source = self._scan()
        if source.video_id != video_id:
            raise SourceError(
                f"{source.info.path}: is another file by now: {source.video_id}, not {video_id}"
            )
        work = self._work_folder(source)
        prepared = self._prepare(source, work)
        try:
            video = self._commit(prepared, base)
        except AttemptTooOld:
            raise  # the upload alone: a rerun finds the finished segments
        except CommitDropped:
            # Stored by others, or erased: then nothing of it may stay here.
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
        return video

    def scanned(self) -> SourceScan:
        """The file with its segments. Raises SourceError for a file that is no whole video."""
        return self._scan()

    def finished_file(self, source: SourceScan, segment: int) -> Path:
        """Where a segment of `source` is kept once it is finished."""
        return self._work_folder(source) / f"segment-{segment}.finished"

    def finish(self, source: SourceScan, segment: int) -> Path:
        """Finish one segment ahead of `run`, which then finds it; returns its file."""
        self._finish(source.segments[segment], source, self._work_folder(source))
        return self.finished_file(source, segment)

    def _commit(self, prepared: PreparedVideo, base: Callable[[], Base]) -> VideoRecord:
        now = base()
        try:
            return commit_video(self.log, prepared, now, replaces=self.request.refit)
        except CommitDropped:
            # Somebody may have added it meanwhile, which is no reason not to store the fit.
            again = base()
            if now.stored or not again.stored or again.fitted:
                raise
            return commit_video(self.log, prepared, again, replaces=self.request.refit)

    def _prepare(self, source: SourceScan, work: Path) -> PreparedVideo:
        """Fit and measure every segment; finished files lie in `work`, under a provisional attempt."""
        attempt = keys.new_attempt()
        files: dict[str, Path] = {}
        segments: list[SegmentRecord] = []
        finished: list[FinishedSegment] = []
        footers: dict[str, bytes] = {}
        routes: list[list[RouteRecord]] = [[] for _ in self.tasks]
        for group in _groups(source.segments):
            done = [self._finish(span, source, work) for span in group]
            records = _write_group(source.video_id, attempt, done, work, files, footers)
            for record, segment in zip(records, done, strict=True):
                for collected, own in zip(routes, segment.routes, strict=True):
                    collected += [with_bytes(r, record, source_bytes=source.info.size_bytes) for r in own]
            segments += records
            finished += [segment.without_payload() for segment in done]
        audio = self._write_audio(source, attempt, work, files)
        video = self._video_record(source, attempt, segments, finished, footers, audio)
        if self.request.keep_source == "copy":
            files[keys.source_key(video.video_id, attempt)] = self.request.path
        meta = VideoMeta(
            video_id=video.video_id,
            name=self.request.name,
            tags=self.request.tags,
            recorded_at=self.request.recorded_at,
        )
        return PreparedVideo(video=video, routes=self._routes(video, routes), files=files, meta=meta)

    def _scan(self) -> SourceScan:
        def report(frames: int) -> None:
            self.on_progress(IngestProgress(phase="scan", done=frames, total=0))

        return scan(
            str(self.request.path),
            max_segment_frames=self.preset.max_segment_frames,
            tone_map=self.request.tone_map,
            progress=report,
        )

    def _work_folder(self, source: SourceScan) -> Path:
        """This fit's checkpoints: same bytes, preset, tasks and device. `rm` finds them by the video's id."""
        versions = [task.spec.version for task in self.tasks]
        what = json.dumps([source.sha256, repr(self.preset), versions, self.request.device])
        return self.work_dir / source.video_id / hashlib.sha256(what.encode()).hexdigest()[:32]

    def _finish(self, span: SegmentSpan, source: SourceScan, work: Path) -> FinishedSegment:
        path = self.finished_file(source, span.segment)
        found = kept_finished(path)
        if found is None:
            checkpoint = work / f"segment-{span.segment}.pt"
            found = self._fit(span, source, checkpoint)
            keep_finished(path, found)
            checkpoint.unlink()
        return found

    def _fit(self, span: SegmentSpan, source: SourceScan, checkpoint: Path) -> FinishedSegment:
        def read() -> Iterator[FrameBatch]:
            return read_frames(
                source.info.path,
                start_frame=span.start_frame,
                end_frame=span.start_frame + span.frames,
                scan=source,
            )

        def report(fit: FitProgress) -> None:
            self.on_progress(_fit_progress(fit, span, source, self.preset))

        return finish_segment(
            read,
            span,
            self.preset,
            self.tasks,
            size=(source.info.height, source.info.width),
            device=self.request.device,
            seed=SEED,
            checkpoint=checkpoint,
            checkpoint_seconds=self.checkpoint_seconds,
            progress=report,
        )

    def _write_audio(
        self, source: SourceScan, attempt: str, work: Path, files: dict[str, Path]
    ) -> StoredObject | None:
        """The source's sound and subtitles, so that an export has them when the source is gone; None where
        there are none.
        """
        path = work / "audio.mka"
        if not copy_audio(source.info.path, path):
            return None
        key = keys.audio_key(source.video_id, attempt)
        files[key] = path
        sha256, size_bytes = digest_file(str(path))
        return StoredObject(key=key, size_bytes=size_bytes, sha256=sha256)

    def _video_record(
        self,
        source: SourceScan,
        attempt: str,
        segments: Sequence[SegmentRecord],
        finished: Sequence[FinishedSegment],
        footers: Mapping[str, bytes],
        audio: StoredObject | None,
    ) -> VideoRecord:
        info = source.info
        values = finished[0].values_per_frame
        overall = _overall_psnr([s.squared_error for s in finished], values)
        return VideoRecord(
            video_id=source.video_id,
            attempt=attempt,
            sha256=source.sha256,
            name=self.request.name,
            source_uri=self._source_uri(source.video_id, attempt),
            source_bytes=info.size_bytes,
            container=info.container,
            source_codec=info.codec,
            width=info.width,
            height=info.height,
            rotation_degrees=info.rotation_degrees,
            time_base=info.time_base,
            average_fps=info.average_fps,
            pixel_aspect=info.pixel_aspect,
            preset=self.preset.name,
            psnr=overall,
            psnr_p5=float(np.percentile(np.concatenate([s.frame_psnr for s in finished]), 5)),
            resize_bound_psnr=_overall_psnr([s.resize_squared_error for s in finished], values),
            state=self._state(overall),
            fit_seconds=sum(s.fit_seconds for s in finished),
            segments=tuple(segments),
            footers=footers,
            audio=audio,
        )

    def _state(self, overall_psnr: float) -> VideoState:
        target = self.preset.target_psnr
        return "ready" if target is None or overall_psnr >= target else "below_target"

    def _source_uri(self, video_id: str, attempt: str) -> str | None:
        if self.request.keep_source == "none":
            return None
        if self.request.keep_source == "copy":
            return keys.source_key(video_id, attempt)
        return self.request.source_uri or self.request.path.resolve().as_uri()

    def _routes(self, video: VideoRecord, routes: Sequence[list[RouteRecord]]) -> tuple[TaskRoutes, ...]:
        return tuple(
            laid_out(
                TaskRoutes(
                    video_id=video.video_id,
                    task=task.spec.name,
                    version=task.spec.version,
                    attempt=video.attempt,
                    routes=tuple(own),
                )
            )
            for task, own in zip(self.tasks, routes, strict=True)
        )


def _write_group(
    video_id: str,
    attempt: str,
    done: Sequence[FinishedSegment],
    work: Path,
    files: dict[str, Path],
    footers: dict[str, bytes],
) -> list[SegmentRecord]:
    """Write one weights and one latents file; returns the segments' records with their ranges."""
    first = done[0].span.segment
    weights_key = keys.weights_key(video_id, attempt, first)
    latents_key = keys.latents_key(video_id, attempt, first)
    weights = encode_weights(weights_key, [stage for s in done for stage in s.weights])
    latents = encode_latents(latents_key, [s.latents for s in done])
    for key, table in ((weights_key, weights), (latents_key, latents)):
        files[key] = _written(work / key.rpartition("/")[2], table.data)
        footers[key] = table.footer
    stage_ranges, latent_ranges = iter(weights.row_groups), iter(latents.row_groups)
    return [
        SegmentRecord(
            segment=s.span.segment,
            scene=s.span.scene,
            start_frame=s.span.start_frame,
            pts=s.pts,
            psnr=float(psnr(np.array([s.squared_error.mean() / s.values_per_frame]))[0]),
            frame_psnr=s.frame_psnr.astype(np.float32),
            codec=s.arch.codec,
            architecture=s.arch.to_json(),
            stages=tuple((stage.stage, next(stage_ranges)) for stage in s.weights),
            gflops=stage_gflops(s.arch),
            latents=next(latent_ranges),
        )
        for s in done
    ]


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _groups(spans: Sequence[SegmentSpan]) -> Iterator[Sequence[SegmentSpan]]:
    for first in range(0, len(spans), SEGMENTS_PER_FILE):
        yield spans[first : first + SEGMENTS_PER_FILE]


def _overall_psnr(squared_errors: Sequence[np.ndarray], values_per_frame: int) -> float:
    mean = np.concatenate(squared_errors).mean() / values_per_frame
    return float(psnr(np.array([mean]))[0])


def _fit_progress(fit: FitProgress, span: SegmentSpan, source: SourceScan, preset: Preset) -> IngestProgress:
    """Progress over the whole video: time left by what is still to fit at this segment's speed."""
    work = [s.frames * preset.epochs_for(s.frames) for s in source.segments]
    here = round(work[span.segment] * fit.epoch / fit.epochs)  # frames that are alike are seen more seldom
    done = sum(work[: span.segment]) + here
    seconds_each = fit.elapsed_seconds / max(1, here)
    return IngestProgress(
        phase="fit",
        done=done,
        total=sum(work),
        psnr=fit.psnr if math.isfinite(fit.psnr) else None,
        eta_seconds=(sum(work) - done) * seconds_each,
    )
