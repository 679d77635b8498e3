"""Frames of stored segments as tensors: at a backbone's cut, most without a picture, or as pixels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.adapters.micro import MicroAdapter
from nvpstore.adapters.stored import load_adapter
from nvpstore.archive import Archive
from nvpstore.catalog import Snapshot
from nvpstore.config import Settings
from nvpstore.errors import RouteError, StoreError, UsageError
from nvpstore.query.operators import FetchedSegment, TorchOperators
from nvpstore.query.operators.pixels import Pixels
from nvpstore.storage.objects import open_store
from nvpstore.storage.range_cache import RangeCache
from nvpstore.storage.ranges import RangeReader
from nvpstore.storage.tables import decode_route
from nvpstore.storage.weights import FOLDER as WEIGHTS_FOLDER
from nvpstore.storage.weights import weights_file
from nvpstore.tasks.backbone import Backbone, Features
from nvpstore.tasks.registry import LoadedTask, load
from nvpstore.tasks.spec import TaskSpec
from nvpstore.types import RGB_STAGE, ByteRange

Key = tuple[str, int]  # video, segment
Name = TypeVar("Name")
Value = TypeVar("Value")
OPEN_SEGMENTS = 4  # whose decoders a process keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The archive that a process reads, with the settings to open it by; can be pickled."""

    root: str
    settings: Settings
    device: str = "cpu"


class Reader(Protocol):
    """Gives the tensors of frames, each [t, …], alike in shape for all segments; can be pickled."""

    @property
    def place(self) -> Place: ...

    def read(self, opened: Opened, key: Key, frames: NDArray[np.int64]) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """What a segment's adapter is read from. `latents_key` names the fit that it was trained on."""

    cut: str
    stages: tuple[str, ...]
    adapter: ByteRange
    latents_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CutReader:
    """The tensors of a task's `cut`, each [t, *shape]: a partial decode and a micro adapter.

    Where a segment's adapter is at an earlier cut, the backbone's part between the two runs behind it. A
    segment without either comes from its pixels, through preprocessing and the backbone.
    """

    place: Place
    spec: TaskSpec
    cut: str
    shapes: tuple[tuple[int, ...], ...]
    segments: Mapping[Key, Adapted]

    def read(self, opened: Opened, key: Key, frames: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Raises StoreError for a segment that was fitted anew since."""
        known = self.segments.get(key)
        # A backbone that is built in inference mode could never be trained through by this process.
        with torch.no_grad():
            cut = (
                self._seen(opened, key, frames)
                if known is None
                else self._adapted(opened, key, known, frames)
            )
        return tuple(tensor.cpu() for tensor in cut)

    def _adapted(self, opened: Opened, key: Key, known: Adapted, frames: NDArray[np.int64]) -> Features:
        segment = opened.segment(key, known.stages[-1])
        assert segment.record.latents is not None, "adapters are of fitted segments"
        if segment.record.latents.key != known.latents_key:
            raise StoreError(
                f"video {key[0]} was fitted anew since the frames were chosen: choose them again"
            )
        taps = opened.operators.decode(segment, frames, known.stages)
        if known.cut == self.cut:
            here: Features = opened.adapter(known, self.shapes)(taps)
            return here
        backbone = opened.backbone(self.spec)
        earlier: Features = opened.adapter(known, backbone.cut(known.cut).shapes)(taps)
        later: Features = backbone.between(known.cut, self.cut)(*earlier)
        return later

    def _seen(self, opened: Opened, key: Key, frames: NDArray[np.int64]) -> Features:
        pixels = opened.pixels(key, frames)
        x = self.spec.prepare(pixels.for_backbone().to(self.place.device), size=pixels.size)
        return opened.backbone(self.spec).features(x, [self.cut])[0][self.cut]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelReader:
    """RGB uint8 [t, 3, height, width] of a full decode, or of the original of what is only added.

    With `size` = (height, width) resized to it, bilinear and antialiased.
    """

    place: Place
    size: tuple[int, int] | None

    def read(self, opened: Opened, key: Key, frames: NDArray[np.int64]) -> tuple[Tensor, ...]:
        rgb = opened.pixels(key, frames).for_people().cpu()
        if self.size is not None and tuple(rgb.shape[2:]) != self.size:
            resized = F.interpolate(rgb.float(), self.size, mode="bilinear", antialias=True)
            rgb = resized.round().clamp(0, 255).to(torch.uint8)
        return (rgb,)


class Opened:
    """An archive as one process reads it. The last segments stay decoded to weights."""

    def __init__(self, place: Place, *, threads: int) -> None:
        self._archive = Archive(open_store(place.root), replace(place.settings, threads=threads))
        self._device = place.device
        self._segments: OrderedDict[tuple[Key, str], FetchedSegment] = OrderedDict()
        self._adapters: OrderedDict[ByteRange, MicroAdapter] = OrderedDict()

    @cached_property
    def snapshot(self) -> Snapshot:
        return self._archive.catalog.snapshot()

    @cached_property
    def operators(self) -> TorchOperators:
        catalog, settings = self._archive.catalog, self._archive.settings
        operators = TorchOperators(
            self._archive.store,
            threads=settings.threads,
            cache_dir=catalog.folder,
            cache_bytes=settings.cache_bytes,
        )
        operators.device = self._device
        return operators

    @cached_property
    def _ranges(self) -> RangeReader:
        folder, budget = self._archive.catalog.folder / "ranges", self._archive.settings.cache_bytes
        return RangeReader(self._archive.store, cache=RangeCache(folder, budget_bytes=budget))

    def segment(self, key: Key, stage: str) -> FetchedSegment:
        """A segment's decoder up to a stage."""
        return _kept(self._segments, (key, stage), lambda: self.operators.fetch(self.snapshot, *key, stage))

    def adapter(self, known: Adapted, shapes: tuple[tuple[int, ...], ...]) -> MicroAdapter:
        def read() -> MicroAdapter:
            (data,) = self._ranges.read([known.adapter], as_of=self.snapshot.number)
            footer = self.snapshot.footer(known.adapter.key)
            tensors = decode_route(data, footer, known.adapter)
            return load_adapter(tensors, known.stages, shapes).to(self._device)

        return _kept(self._adapters, known.adapter, read)

    def pixels(self, key: Key, frames: NDArray[np.int64]) -> Pixels:
        """Of a full decode, or of the original of what is only added."""
        record = self.snapshot.segment(*key)
        if frames.min() < record.start_frame or frames.max() >= record.start_frame + record.frames:
            raise StoreError(f"video {key[0]} was fitted since the frames were chosen: choose them again")
        if record.fitted:
            shown: Any = self.operators.decode(self.segment(key, RGB_STAGE), frames, (RGB_STAGE,))
        else:
            shown = self.operators.source(self.snapshot, key[0], frames)
        pixels: Pixels = shown[RGB_STAGE]
        return pixels

    def backbone(self, spec: TaskSpec) -> Backbone:
        return _task(self._archive, spec, self._device).backbone


def _kept(kept: OrderedDict[Name, Value], key: Name, make: Callable[[], Value]) -> Value:
    if key not in kept:
        kept[key] = make()
        if len(kept) > OPEN_SEGMENTS:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


# ---------------------------------------------------------------- which adapters


_ADAPTERS = """
    SELECT r.video_id, r.segment, r.cut, r.stages, r.fidelity, r.gflops, r.key, r."offset", r.size_bytes,
        r.sha256, s.latents_key
    FROM idx.store.routes r JOIN idx.store.segments s USING (video_id, segment)
    WHERE r.version = $version AND r.route = 'adapter' AND s.latents_key IS NOT NULL
    ORDER BY r.fidelity NULLS FIRST, r.gflops DESC"""


def cut_reader(archive: Archive, task: str, *, cut: str | None, device: str) -> CutReader:
    """The frames of `task` (NAME or NAME@VERSION) at `cut`; None: where most segments have an adapter.

    Of a segment's adapters there the one of highest fidelity is read, of equal ones the cheapest; else the
    latest before it. Raises TaskError for an unknown task or cut, UsageError for one of clips, RouteError
    where no `cut` is given and no segment has an adapter.
    """
    snapshot = archive.catalog.snapshot()
    name, _, version = task.partition("@")
    record = snapshot.task(name, version or None)
    spec = TaskSpec.from_json(record.spec)
    if spec.clip is not None:
        raise UsageError(f"task {task} answers for clips: features of frames are those of tasks of pictures")
    by_cut: dict[str, dict[Key, Adapted]] = {}
    for row in snapshot.ask(_ADAPTERS, {"version": record.version}):
        # The best comes last, and stays.
        by_cut.setdefault(row["cut"], {})[row["video_id"], row["segment"]] = _adapted(row)
    if cut is None and not by_cut:
        raise RouteError(
            f"no segment has an adapter of {task}: train it (nvp tasks train {name}) or give cut"
        )
    chosen = cut or max(by_cut, key=lambda one: (len(by_cut[one]), one))
    backbone = _task(archive, spec, "cpu").backbone  # for its shapes: who reads has the device
    shapes = backbone.cut(chosen).shapes
    names = [one.name for one in backbone.cuts]
    segments: dict[Key, Adapted] = {}
    for earlier in names[: names.index(chosen) + 1]:
        segments |= by_cut.get(earlier, {})
    return CutReader(
        place=Place(root=archive.store.root, settings=archive.settings, device=device),
        spec=spec,
        cut=chosen,
        shapes=shapes,
        segments=segments,
    )


def _task(archive: Archive, spec: TaskSpec, device: str) -> LoadedTask:
    """Built once a process."""
    folder = archive.catalog.folder / WEIGHTS_FOLDER
    return load(spec, device, find=partial(weights_file, archive.store, folder=folder))


def _adapted(row: Mapping[str, Any]) -> Adapted:
    return Adapted(
        cut=row["cut"],
        stages=tuple(row["stages"]),
        adapter=ByteRange(
            key=row["key"], offset=row["offset"], size_bytes=row["size_bytes"], sha256=row["sha256"]
        ),
        latents_key=row["latents_key"],
    )
