"""What a task learns of one stored segment: a share of its pictures asked about, routes measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.catalog import IndexedVideo, Snapshot
from nvpstore.codec.artifact import content_rgb
from nvpstore.codec.build import Architecture
from nvpstore.codec.hnerv import Decoder
from nvpstore.errors import SourceError
from nvpstore.ingest.layout import with_bytes
from nvpstore.ingest.pipeline import SEED
from nvpstore.ingest.references import ReferenceBuilder, affordable_units
from nvpstore.ingest.routes import RouteSettings, SegmentRoutes
from nvpstore.ingest.units import UnitPlan, units_to_train
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import RGB_STAGE, RouteRecord, SegmentRecord

BATCH = 16  # pictures read at a time
# A share of a segment's frames is few: epochs alone would be a handful of steps.
SETTINGS = RouteSettings(adapters=3, epochs=8, least_steps=480)

Reference = Literal["original", "decoded"]


class StoredSegment(Protocol):
    """A whole segment as it is stored, its decoder and latents on the device that trains."""

    @property
    def arch(self) -> Architecture: ...
    @property
    def decoder(self) -> Decoder: ...
    @property
    def latents(self) -> Tensor: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...


class Reader(Protocol):
    """Reads an archive as queries do (query.operators), to `device`."""

    device: str

    def fetch(self, snapshot: Snapshot, video_id: str, segment: int, stage: str) -> StoredSegment: ...

    def source(self, snapshot: Snapshot, video_id: str, frames: NDArray[np.int64]) -> Mapping[str, Any]:
        """`{"rgb": pixels}` of the original's `frames`; SourceError where it is gone or another file."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A segment's routes; how many pictures were learned from and judged by."""

    routes: tuple[RouteRecord, ...]
    taught: int
    judged: int


class Learning:
    """One task, on segments one after another. `task` and `reader` are on one device."""

    def __init__(self, task: LoadedTask, reader: Reader, *, share: float, measured: int) -> None:
        """A `share` of each segment's frames to learn from, at most `measured` others to judge by."""
        self.task, self.reader, self.share = task, reader, share
        self._measured = min(measured, affordable_units(task) * task.spec.frames)

    def reference(self, snapshot: Snapshot, video: IndexedVideo) -> Reference:
        """The original where it can be read; else what is decoded has to do."""
        if video.source_uri is None:
            return "decoded"
        try:
            self.reader.source(snapshot, video.video_id, np.zeros(1, dtype=np.int64))
        except SourceError:
            return "decoded"
        return "original"

    def plan(self, frames: int, reference: Reference) -> UnitPlan:
        """What is asked about in a segment of so many frames."""
        # Against decoded pictures an agreement would say nothing about the source's.
        measured = self._measured if reference == "original" else 0
        return units_to_train(self.task.spec, frames=frames, share=self.share, measured=measured)

    def segment(
        self, snapshot: Snapshot, video: IndexedVideo, record: SegmentRecord, reference: Reference
    ) -> Learned:
        """Adapters trained behind what is stored, and all routes measured."""
        stored = self.reader.fetch(snapshot, video.video_id, record.segment, RGB_STAGE)
        plan = self.plan(record.frames, reference)
        size = (stored.height, stored.width)
        builder = ReferenceBuilder(self.task, plan, size=size, seed=SEED)
        for positions in _batches(plan.pictures):
            if reference == "original":
                frames = np.array(positions, dtype=np.int64) + record.start_frame
                pixels = self.reader.source(snapshot, video.video_id, frames)[RGB_STAGE].for_backbone()
            else:
                pixels = _decoded(stored, positions)
            builder.add(positions, pixels)
        routes = SegmentRoutes(
            stored.decoder,
            stored.latents,
            builder.build(),
            segment=record.segment,
            arch=stored.arch,
            settings=SETTINGS,
            seed=SEED,
        ).measure(None)
        return Learned(
            routes=tuple(with_bytes(r, record, source_bytes=video.source_bytes) for r in routes),
            taught=plan.taught,
            judged=plan.judged,
        )


def _decoded(stored: StoredSegment, positions: Sequence[int]) -> Tensor:
    """What is stored, as pixel routes show it to a backbone: [t, 3, h, w] in 0 … 255."""
    rows = torch.tensor(positions, device=stored.latents.device)
    with torch.inference_mode():
        return content_rgb(stored.decoder.taps(stored.latents[rows], (RGB_STAGE,))[RGB_STAGE], stored.arch)


@torch.inference_mode()
def _batches(positions: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(positions), BATCH):
        yield positions[first : first + BATCH]
