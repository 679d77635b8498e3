"""The tensor side of queries: fetch, decode, adapt, tail, rows (a `query.steps.Operators`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nvpstore.adapters.micro import MicroAdapter
from nvpstore.adapters.stored import load_adapter
from nvpstore.codec.artifact import load_decoder, load_latents
from nvpstore.codec.build import Architecture
from nvpstore.codec.hnerv import Decoder
from nvpstore.query.contract import Steadied
from nvpstore.query.flights import weights_key
from nvpstore.query.operators.once import once_each
from nvpstore.query.operators.pixels import DecodedPixels, Pixels, SourcePixels, image_rows
from nvpstore.query.operators.steady import (
    LoadedSteadier,
    Memory,
    SteadyFrames,
    load_steadier,
    steady_answers,
    steady_pictures,
)
from nvpstore.query.operators.upscaled import Upscaling, scene_of
from nvpstore.query.read_ahead import ahead
from nvpstore.query.remembered import Remembered
from nvpstore.query.sharing import Sharing
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.originals import original_file
from nvpstore.storage.range_cache import RangeCache
from nvpstore.storage.ranges import AHEAD_BYTES, Prefetched, RangeReader, RangesRead, Traffic
from nvpstore.storage.tables import decode_latents, decode_route, decode_stages
from nvpstore.storage.weights import FOLDER as WEIGHTS_FOLDER
from nvpstore.storage.weights import weights_file
from nvpstore.tasks.heads import View
from nvpstore.tasks.registry import LoadedTask, load
from nvpstore.tasks.spec import TaskSpec
from nvpstore.types import (
    RGB_STAGE,
    ByteRange,
    FrameBatch,
    SegmentRecord,
    SourceScan,
    StoredObject,
    TaskRecord,
)
from nvpstore.video.reader import FrameReader, IdleReaders
from nvpstore.video.source import probe

if TYPE_CHECKING:
    from nvpstore.catalog import Snapshot
    from nvpstore.query.contract import Batch
    from nvpstore.query.plan import Scan
    from nvpstore.query.routes import Route

# Adapters that a query passes over lie between those that it uses: these many bytes cost less than a request.
ADAPTER_BRIDGE_BYTES = 64 << 10
BATCH_BYTES = 256 << 20
IDLE_READERS = 2  # originals that stay open between batches; each holds its decoder's pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedSegment:
    """A segment's decoder, as deep as it was fetched, and its latents [t, …]."""

    record: SegmentRecord
    arch: Architecture
    decoder: Decoder
    latents: Tensor
    height: int
    width: int
    prefix_bytes: int
    latents_bytes: int
    traffic: Traffic

    @property
    def start_frame(self) -> int:
        return self.record.start_frame


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRoute:
    """A route's adapter (None for pixel and source routes) and the task behind it."""

    task: LoadedTask
    cut: str
    adapter: MicroAdapter | None
    route_bytes: int
    traffic: Traffic


class TorchOperators:
    """Runs on CUDA where there is a device, else on the CPU."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        threads: int,
        cache_dir: Path | None = None,
        cache_bytes: int = 0,
        ahead_bytes: int = AHEAD_BYTES,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        """`cache_dir` is the archive's own cache folder; without one, nothing that is fetched is kept.

        At most `ahead_bytes` are fetched before they are needed; `batch_bytes` bounds what upscaling takes.
        """
        self.store = store
        self._originals = None if cache_dir is None else _cache(cache_dir / "originals", cache_bytes)
        ranges = None if cache_dir is None else _cache(cache_dir / "ranges", cache_bytes)
        self._ranges = RangeReader(store, cache=ranges, ahead_bytes=ahead_bytes)
        folder = None if cache_dir is None else cache_dir / WEIGHTS_FOLDER
        self._find_weights = partial(weights_file, store, folder=folder)
        self._index = Remembered()
        self._readers = IdleReaders(most=IDLE_READERS)
        self._upscaling = Upscaling(memory_bytes=batch_bytes)
        self.sharing = Sharing()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(threads)

    def identity(self, snapshot: Snapshot, video_id: str, segment: int) -> Hashable:
        """The latents' place: its key holds the attempt. Of what is not fitted, the original's name."""
        return self._index.segment(snapshot, video_id, segment).latents or (video_id, segment)

    def fetch(self, snapshot: Snapshot, video_id: str, segment: int, stage: str) -> FetchedSegment:
        """The stage prefix by one request, the latents by one more; each row group verified by digest."""
        record = self._index.segment(snapshot, video_id, segment)
        video = self._index.video(snapshot, video_id)
        *groups, at = wanted = _segment_ranges(record, stage)
        read = self._read(wanted, snapshot)
        prefix = b"".join(read.data[:-1])
        tensors = decode_stages(prefix, groups[0].offset, self._index.footer(snapshot, groups[0].key), groups)
        latents = decode_latents(read.data[-1], at.offset, self._index.footer(snapshot, at.key), at)
        arch = Architecture.from_json(record.architecture)
        return FetchedSegment(
            record=record,
            arch=arch,
            decoder=load_decoder(arch, tensors, device=self.device),
            latents=load_latents(latents).to(self.device),
            height=video.height,
            width=video.width,
            prefix_bytes=len(prefix),
            latents_bytes=at.size_bytes,
            traffic=read.traffic,
        )

    def load(self, snapshot: Snapshot, route: Route, scan: Scan) -> LoadedRoute:
        """The adapter by one request, if it was not begun before; the backbone is built once a process."""
        assert scan.task is not None, "frames have no route to load"
        task = self._task(scan.task)
        if route.adapter is None:
            return LoadedRoute(task=task, cut=route.cut, adapter=None, route_bytes=0, traffic=Traffic())
        at = route.adapter
        adapter, traffic = self.adapter(snapshot, task, at, cut=route.cut, stages=route.stages)
        return LoadedRoute(
            task=task, cut=route.cut, adapter=adapter, route_bytes=at.size_bytes, traffic=traffic
        )

    def adapter(
        self, snapshot: Snapshot, task: LoadedTask, at: ByteRange, *, cut: str, stages: tuple[str, ...]
    ) -> tuple[MicroAdapter, Traffic]:
        """The adapter in a row group, and what it took to have it here."""
        read = self._read([at], snapshot)
        tensors = decode_route(read.data[0], self._index.footer(snapshot, at.key), at)
        shapes = task.backbone.cut(cut).shapes
        adapter = load_adapter(tensors, stages, shapes, frames=task.spec.frames)
        return adapter.to(self.device), read.traffic

    def prefetch(
        self, snapshot: Snapshot, *, segment: tuple[str, int, str] | None, adapters: tuple[ByteRange, ...]
    ) -> Prefetched:
        """Begins what `fetch` and `load` will need: a segment up to a stage, adapters of a routes object."""
        wanted = list(adapters)
        if segment is not None:
            video_id, number, stage = segment
            record = self._index.segment(snapshot, video_id, number)
            names = [name for name, _ in record.stages]
            deeper = names[names.index(stage) :]
            if not self.sharing.holds([weights_key(record.latents, name) for name in deeper]):
                wanted += _segment_ranges(record, stage)
        return self._ranges.prefetch(wanted, as_of=snapshot.number, bridge_bytes=ADAPTER_BRIDGE_BYTES)

    @torch.inference_mode()
    def decode(
        self, handle: FetchedSegment, frames: NDArray[np.int64], taps: tuple[str, ...]
    ) -> Mapping[str, object]:
        """Stage features [t, c, h, w]; for `rgb`, Pixels. Neighbours with one latent are decoded once."""
        positions = torch.from_numpy(frames - handle.record.start_frame).to(self.device)
        latents = handle.latents[positions]
        features: dict[str, object] = dict(once_each(lambda x: handle.decoder.taps(x, taps), latents))
        if isinstance(rgb := features.get(RGB_STAGE), Tensor):
            features[RGB_STAGE] = DecodedPixels(
                rgb=rgb, arch=handle.arch, height=handle.height, width=handle.width
            )
        return features

    def size_bytes(self, value: object) -> int:
        """Of tensors, pixels, decoders and adapters, and of mappings of them."""
        if isinstance(value, Tensor):
            return value.untyped_storage().nbytes()
        if isinstance(value, Mapping):
            return sum(self.size_bytes(part) for part in value.values())
        if isinstance(value, DecodedPixels | SourcePixels):
            return self.size_bytes(value.rgb)
        if isinstance(value, FetchedSegment):
            return self.size_bytes(value.latents) + _parameter_bytes(value.decoder)
        if isinstance(value, LoadedRoute):
            return 0 if value.adapter is None else _parameter_bytes(value.adapter)
        raise TypeError(f"no size of {type(value).__name__}")

    def frame_bytes(self, handle: FetchedSegment, taps: tuple[str, ...]) -> int:
        """The taps, and the deepest stage three times over: convolution, shuffle, activation.

        Pictures are shown at source size, as floats and as bytes.
        """
        shapes = [math.prod(handle.arch.stage_shape(stage)) for stage in taps]
        shown = _picture_bytes(handle.height, handle.width) if RGB_STAGE in taps else 0
        return 4 * (sum(shapes) + 3 * max(shapes)) + shown

    def source_frame_bytes(self, snapshot: Snapshot, video_id: str) -> int:
        video = self._index.video(snapshot, video_id)
        return _picture_bytes(video.height, video.width)

    def source(self, snapshot: Snapshot, video_id: str, frames: NDArray[np.int64]) -> Mapping[str, object]:
        """`{"rgb": Pixels}` read from the original; SourceError where it is gone or another file."""
        reader = self._readers.take(video_id, int(frames[0]))
        if reader is None:
            reader = FrameReader(self._source_scan(snapshot, video_id))
        try:
            # A clip that its segment's end cuts short has its last picture several times.
            wanted, places = np.unique(frames, return_inverse=True)
            read = torch.from_numpy(reader.read(wanted)).permute(0, 3, 1, 2)
            rgb = read if len(wanted) == len(frames) else read[torch.from_numpy(places)]
        except BaseException:
            reader.close()
            raise
        self._readers.give_back(video_id, reader)
        return {RGB_STAGE: SourcePixels(rgb=rgb)}

    def times(self, snapshot: Snapshot, video_id: str, segment: int) -> NDArray[np.float64]:
        """`ts` of all frames of a segment."""
        video = self._index.video(snapshot, video_id)
        elapsed = self._index.segment(snapshot, video_id, segment).pts - (video.pts_origin or 0)
        return elapsed * video.time_base.numerator / video.time_base.denominator

    def start_frame(self, snapshot: Snapshot, video_id: str, segment: int) -> int:
        """The segment's first frame."""
        return self._index.segment(snapshot, video_id, segment).start_frame

    @torch.inference_mode()
    def adapt(self, features: Mapping[str, Tensor], route: LoadedRoute) -> Sequence[Tensor]:
        """Stage features → the cut's tensors."""
        assert route.adapter is not None, "only adapter routes adapt"
        cut: tuple[Tensor, ...] = route.adapter(features)
        return cut

    @torch.inference_mode()
    def tail(self, route: LoadedRoute, features: Sequence[Tensor] | Pixels) -> Tensor:
        """The cut's tensors through the tail, or pixels through preprocessing and the whole backbone.

        Neighbours that are equal are answered once.
        """
        if route.adapter is not None:
            assert isinstance(features, Sequence), "adapter routes start from the cut's tensors"
            output: Tensor = once_each(route.task.backbone.tail(route.cut), *features)
            return output
        assert not isinstance(features, Sequence), "pixel and source routes start from pixels"
        rgb = features.for_backbone().to(self.device)
        x = route.task.spec.prepare(rgb, size=features.size)
        return once_each(route.task.backbone.whole, x)

    def steadier(self, snapshot: Snapshot, stored: StoredObject, task: TaskRecord | None) -> LoadedSteadier:
        """The stabilizer by one request, with the task's backbone."""
        whole = ByteRange(key=stored.key, offset=0, size_bytes=stored.size_bytes, sha256=stored.sha256)
        read = self._read([whole], snapshot)
        return load_steadier(
            read.data[0],
            task=None if task is None else self._task(task),
            device=self.device,
            traffic=read.traffic,
        )

    @torch.inference_mode()
    def steady(
        self,
        steadier: LoadedSteadier,
        route: LoadedRoute | None,
        features: Sequence[Tensor] | Pixels,
        ts: NDArray[np.float64],
        before: Memory | None,
    ) -> Steadied:
        """The cut's tensors or pixels as answers; without a route pixels as pixels; frame after frame."""
        if route is not None:
            return steady_answers(steadier, route, features, ts, before)
        assert not isinstance(features, Sequence), "pictures are made of pixels"
        return steady_pictures(steadier, features, ts, before, self.device)

    def embed_texts(self, task: TaskRecord, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """The task's text side on `texts`, [n, d] of unit length; None where it has none."""
        words = self._task(task).words
        return None if words is None else words.embed(texts).float().cpu().numpy()

    def rows(self, scan: Scan, outputs: Tensor | Pixels, batch: Batch) -> pa.Table:
        """The kind's columns and `frame`."""
        if scan.task is None:
            assert not isinstance(outputs, Tensor), "frames are made of pixels"
            return image_rows(outputs.for_people(), batch, scan.options.image_format)
        assert isinstance(outputs, Tensor), "tasks answer with a tensor"
        task = self._task(scan.task)
        region = task.spec.preprocessing.region(batch.height, batch.width)
        view = View(height=batch.height, width=batch.width, region=region)
        units, table = task.head.rows(outputs.cpu(), top=scan.options.top, view=view, columns=scan.columns)
        if batch.end_ts is not None:
            table = table.append_column("end_ts", pa.array(batch.end_ts[units]))
        return table.add_column(0, "frame", pa.array(batch.frames[units]))

    def decode_frames(
        self,
        snapshot: Snapshot,
        video_id: str,
        *,
        start: float | None,
        end: float | None,
        batch_frames: int,
        stabilizer: StoredObject | None = None,
        upscale: int = 1,
    ) -> Iterator[FrameBatch]:
        """Frames with start ≤ ts < end, at source size or `upscale` times as large, in order; with a
        `stabilizer` steady ones."""
        video = snapshot.video(video_id)
        origin, time_base = video.pts_origin or 0, float(video.time_base)
        first, last = (-np.inf if start is None else start), (np.inf if end is None else end)
        inside: dict[int, NDArray[np.int64]] = {}
        records = snapshot.segments(video_id)
        for record in records:
            ts = (record.pts - origin) * time_base
            inside[record.segment] = np.flatnonzero((ts >= first) & (ts < last))

        def begin(record: SegmentRecord) -> Prefetched:
            segment = (video_id, record.segment, RGB_STAGE) if record.fitted else None
            return self.prefetch(snapshot, segment=segment, adapters=())

        pixels_of = self._steady_pixels_of(snapshot, video_id, stabilizer)
        if upscale != 1:
            wanted = np.concatenate([record.start_frame + inside[record.segment] for record in records])
            yield from self._upscaling.batches(
                records, pixels_of, wanted=wanted, factor=upscale, batch_frames=batch_frames
            )
            return
        needed = [record for record in records if len(inside[record.segment])]
        with closing(ahead(needed, begin)) as turns:
            for record in turns:
                yield from _shown(record, inside[record.segment], pixels_of(record), batch_frames)

    def upscaled(
        self,
        snapshot: Snapshot,
        video_id: str,
        segment: int,
        frames: NDArray[np.int64],
        *,
        factor: int,
        stabilizer: StoredObject | None,
    ) -> SourcePixels:
        """Pixels of a segment's `frames` [t], ascending, `factor` times as large: whoever asks, the same."""
        digest = None if stabilizer is None else stabilizer.sha256
        return self._upscaling.pixels(
            scene_of(snapshot.segments(video_id), segment),
            self._steady_pixels_of(snapshot, video_id, stabilizer),
            frames,
            key=(video_id, self._index.video(snapshot, video_id).attempt, digest),
            factor=factor,
        )

    def decode_frame(
        self, snapshot: Snapshot, video_id: str, record: SegmentRecord, frame: int
    ) -> FrameBatch:
        """One frame of a segment, at source size. Nothing but that segment is fetched."""
        position = np.array([frame - record.start_frame])
        (shown,) = _shown(record, position, self._pixels_of(snapshot, video_id, record), batch_frames=1)
        return shown

    def _steady_pixels_of(
        self, snapshot: Snapshot, video_id: str, stabilizer: StoredObject | None
    ) -> Callable[[SegmentRecord], Callable[[NDArray[np.int64]], Mapping[str, object]]]:
        """`_pixels_of` a video's segments, each from its first frame on made steady by a `stabilizer`."""
        if stabilizer is None:
            return partial(self._pixels_of, snapshot, video_id)
        steadier = self.steadier(snapshot, stabilizer, None)
        video = snapshot.video(video_id)

        def steady(record: SegmentRecord) -> Callable[[NDArray[np.int64]], Mapping[str, object]]:
            frames = self._pixels_of(snapshot, video_id, record)
            ts = ((record.pts - (video.pts_origin or 0)) * float(video.time_base)).astype(np.float64)
            return SteadyFrames(steadier, frames, ts=ts, start_frame=record.start_frame, device=self.device)

        return steady

    def _pixels_of(
        self, snapshot: Snapshot, video_id: str, record: SegmentRecord
    ) -> Callable[[NDArray[np.int64]], Mapping[str, object]]:
        """What gives `{"rgb": Pixels}` of a segment's frames: its decoder, fetched, or the original."""
        if not record.fitted:
            return partial(self.source, snapshot, video_id)
        handle = self.fetch(snapshot, video_id, record.segment, RGB_STAGE)
        return partial(self.decode, handle, taps=(RGB_STAGE,))

    def _source_scan(self, snapshot: Snapshot, video_id: str) -> SourceScan:
        """What reading the original at any frame needs, from the catalog instead of a pass over the file."""
        video = self._index.video(snapshot, video_id)
        path = original_file(self.store, video, cache=self._originals, as_of=snapshot.number)
        pts = np.concatenate([segment.pts for segment in snapshot.segments(video_id)])
        return SourceScan(info=probe(str(path)), sha256=video.sha256, pts=pts, segments=())

    def _task(self, record: TaskRecord) -> LoadedTask:
        return load(TaskSpec.from_json(record.spec), self.device, find=self._find_weights)

    def _read(self, wanted: Sequence[ByteRange], snapshot: Snapshot) -> RangesRead:
        return self._ranges.read_counted(wanted, as_of=snapshot.number)


def _picture_bytes(height: int, width: int) -> int:
    """A picture as bytes, and twice as floats: for preprocessing, and for what that gives."""
    return 3 * height * width * (1 + 2 * 4)


def _parameter_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())


def _cache(folder: Path, budget_bytes: int) -> RangeCache:
    return RangeCache(folder, budget_bytes=budget_bytes)


def _segment_ranges(record: SegmentRecord, stage: str) -> list[ByteRange]:
    """The row groups of all stages up to and including `stage`, which are neighbours, and the latents."""
    assert record.latents is not None, "only fitted segments are decoded"
    names = [name for name, _ in record.stages]
    return [*(group for _, group in record.stages[: names.index(stage) + 1]), record.latents]


def _shown(
    record: SegmentRecord,
    positions: NDArray[np.int64],
    frames: Callable[[NDArray[np.int64]], Mapping[str, object]],
    batch_frames: int,
) -> Iterator[FrameBatch]:
    """A segment's frames at `positions` [t] in it, as people see them."""
    for part in np.split(positions, range(batch_frames, len(positions), batch_frames)):
        pixels = frames(part + record.start_frame)[RGB_STAGE]
        assert isinstance(pixels, DecodedPixels | SourcePixels), "the rgb stage gives pixels"
        # TxCxHxW -> TxHxWxC
        rgb = pixels.for_people().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        first = int(part[0]) + record.start_frame
        yield FrameBatch(first_frame=first, rgb_thwc=rgb, pts=record.pts[part])
