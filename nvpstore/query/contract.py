"""What runs a plan's steps: the tensor side, as the runner sees it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.query.plan import Scan
from nvpstore.query.read_ahead import Fetching
from nvpstore.query.routes import Route
from nvpstore.query.sharing import Sharing
from nvpstore.storage.ranges import Traffic
from nvpstore.types import StoredObject, TaskRecord


class SegmentHandle(Protocol):
    """A segment's weights and latents: the frame that it starts at, and what it took to have them here."""

    @property
    def start_frame(self) -> int: ...
    @property
    def traffic(self) -> Traffic: ...


class RouteHandle(Protocol):
    """A route ready for use, its adapter loaded where it has one."""

    @property
    def route_bytes(self) -> int: ...
    @property
    def traffic(self) -> Traffic: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Frames of one segment on their way through a step: `frames` int64 [t], `ts` float64 [t] in seconds.

    Of a task that answers for clips, their first frames; `end_ts` float64 [t] is then the time of the last
    frame that each stands for. `height` and `width` are the video's.
    """

    video_id: str
    segment: int
    frames: NDArray[np.int64]
    ts: NDArray[np.float64]
    height: int
    width: int
    end_ts: NDArray[np.float64] | None = None


class SteadyHandle(Protocol):
    """A stabilizer ready for use, and what it took to have it here."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def traffic(self) -> Traffic: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Steadied:
    """Outputs of some frames, and the memory after the last of them, in `size_bytes` of memory."""

    outputs: Any
    memory: Any
    size_bytes: int


class Operators(Fetching, Protocol):
    """The tensor side of a query. Values between its methods are opaque to the planner and the runner;
    `snapshot` is the one that the query was given. Used by several queries at once; `decode`, `adapt`,
    `tail` and `steady` by one at a time.

    Failures are `NvpError`s; anything else is a bug and ends the query whatever `on_error` says.
    """

    @property
    def sharing(self) -> Sharing:
        """What its queries share: one for as long as it lives."""

    def identity(self, snapshot: Any, video_id: str, segment: int) -> Hashable:
        """Tells this segment's weights from all others, those of an earlier fit included."""

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> SegmentHandle:
        """The stages up to and including `stage` and the latents, verified: one request each."""

    def load(self, snapshot: Any, route: Route, scan: Scan) -> RouteHandle:
        """The route's adapter (`route.adapter`, None for pixel and source routes) and the task's tail."""

    def decode(self, handle: Any, frames: NDArray[np.int64], taps: tuple[str, ...]) -> Mapping[str, Any]:
        """Features of the video's `frames` [t] at each of `taps`, decoded once to the deepest."""

    def source(self, snapshot: Any, video_id: str, frames: NDArray[np.int64]) -> Mapping[str, Any]:
        """`{"rgb": the original's pixels}` of `frames` [t], decoded from the source file."""

    def times(self, snapshot: Any, video_id: str, segment: int) -> NDArray[np.float64]:
        """`ts` [t] of all frames of a segment."""

    def start_frame(self, snapshot: Any, video_id: str, segment: int) -> int:
        """The segment's first frame."""

    def adapt(self, features: Mapping[str, Any], route: Any) -> Any:
        """The tapped features through the micro adapter: the tensors of the route's cut."""

    def tail(self, route: Any, features: Any) -> Any:
        """The rest of the backbone; the whole of it, preprocessing included, for pixels."""

    def steadier(self, snapshot: Any, stored: StoredObject, task: TaskRecord | None) -> SteadyHandle:
        """A stabilizer ready for use: of a task, or (None) of pictures."""

    def steady(
        self, steadier: Any, route: Any, features: Any, ts: NDArray[np.float64], before: Any
    ) -> Steadied:
        """What `tail` gives for the same `features` (None as `route`: pixels for `frames`), made steady one
        frame after another: `ts` [t] are their times, `before` is the memory after those before them (None:
        these are a segment's first).
        """

    def upscaled(
        self,
        snapshot: Any,
        video_id: str,
        segment: int,
        frames: NDArray[np.int64],
        *,
        factor: int,
        stabilizer: StoredObject | None,
    ) -> Any:
        """Pixels of a segment's `frames` [t], ascending, `factor` times as large as the source, made steady
        before by a `stabilizer`. A function of their scene and place: whoever asks, the same."""

    def embed_texts(self, task: TaskRecord, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """[n, d], of unit length, in the space of the task's embeddings; None: its model reads no text."""

    def rows(self, scan: Scan, outputs: Any, batch: Batch) -> pa.Table:
        """`outputs` as rows: `relation.output_schema(scan.kind)`, `frame` ascending and of `batch.frames`.

        Columns outside `scan.columns` may be missing. For `frames`, `outputs` are pixels.
        """

    def size_bytes(self, value: Any) -> int:
        """Memory of what `fetch`, `load`, `decode`, `source` or `tail` gave."""

    def frame_bytes(self, handle: Any, taps: tuple[str, ...]) -> int:
        """Memory that `decode` takes for a frame, what it gives included, and what shows it for `rgb`."""

    def source_frame_bytes(self, snapshot: Any, video_id: str) -> int:
        """The same of `source`."""
