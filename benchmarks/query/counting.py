"""A session of queries that counts what really happens: ranges read, frames decoded, tails run."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.catalog import Catalog
from nvpstore.config import Settings, load_settings
from nvpstore.query.keeping import KeptAnswers
from nvpstore.query.operators import TorchOperators
from nvpstore.query.request import Request
from nvpstore.query.run import execute
from nvpstore.storage.local import LocalStore
from nvpstore.storage.ranges import RangeReader


class CountedStore(LocalStore):
    """Counts the bytes that ranged reads brought."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read_bytes = 0
        self._lock = threading.Lock()  # ranges are read by several threads

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        data = super().get_range(key, offset, size_bytes)
        with self._lock:
            self.read_bytes += len(data)
        return data


class Counting(TorchOperators):
    """`begun`: segments whose bytes were asked for, ahead of use too; `decoded`: how often each (segment,
    frame) was; `adapter_frames` and `whole_frames`: through a tail, through a whole backbone."""

    def __init__(self, store: CountedStore, *, threads: int) -> None:
        super().__init__(store, threads=threads)
        self.counted_store = store
        self.begun: set[int] = set()
        self.fetched: set[int] = set()
        self.decoded: Counter[tuple[int, int]] = Counter()
        self.adapter_frames = 0
        self.whole_frames = 0

    def prefetch(self, snapshot: Any, *, segment: tuple[str, int, str] | None, adapters: Any) -> Any:
        if segment is not None:
            self.begun.add(segment[1])
        return super().prefetch(snapshot, segment=segment, adapters=adapters)

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> Any:
        self.begun.add(segment)
        self.fetched.add(segment)
        return super().fetch(snapshot, video_id, segment, stage)

    def decode(self, handle: Any, frames: NDArray[Any], taps: tuple[str, ...]) -> Mapping[str, object]:
        self.decoded.update((handle.record.segment, int(frame)) for frame in frames)
        return super().decode(handle, frames, taps)

    def tail(self, route: Any, features: Any) -> Tensor:
        outputs = super().tail(route, features)
        if route.adapter is None:
            self.whole_frames += len(outputs)
        else:
            self.adapter_frames += len(outputs)
        return outputs

    @property
    def decodes(self) -> int:
        """Frames decoded, again each time they are."""
        return self.decoded.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`seconds` from the text to the last row."""

    seconds: float
    rows: pa.Table


class Session:
    """A process's view of an archive, its index up to date. Stored answers are used with `answers`."""

    def __init__(self, root: Path, settings: Settings, *, answers: bool = False) -> None:
        self.settings = settings
        self.store = CountedStore(root)
        self.catalog = Catalog(self.store, settings.cache_dir)
        self.kept = (
            KeptAnswers(self.catalog.log, self.catalog.snapshot, RangeReader(self.store)) if answers else None
        )
        self.operators = self.renewed()

    def renewed(self) -> Counting:
        """Operators that have fetched nothing yet, which `ask` uses from now on. Backbones stay loaded."""
        self.operators = Counting(self.store, threads=self.settings.threads)
        self.store.read_bytes = 0
        return self.operators

    def ask(self, sql: str) -> Asked:
        began = time.perf_counter()
        snapshot = self.catalog.snapshot()
        result = execute(
            Request(
                sql=sql,
                snapshot=snapshot,
                operators_factory=lambda: self.operators,
                settings=self.settings,
                answers=self.kept.at(snapshot) if self.kept else None,
            )
        )
        rows = result.arrow()
        return Asked(seconds=time.perf_counter() - began, rows=rows)


def settings_in(cache: Path) -> Settings:
    """The environment's settings with a cache folder of their own."""
    return load_settings({"NVP_CACHE": str(cache)})
