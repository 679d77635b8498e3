"""What a run really took: counted and timed where it happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nvpstore.storage.ranges import Traffic

STEPS = ("fetch", "decode", "adapt", "tail", "rows", "source", "duckdb")


@dataclass(slots=True, kw_only=True)
class Measured:
    """Counters of one run. Bytes by what they are of, as indexed; `traffic` says what it took to have them.

    `frames_decoded` maps the deepest stage of a decode ("" for source reads) to frames; `shared_decodes`
    counts frames that a scan, of this query or another, read without another decode;
    `answered_frames` those whose rows were stored, counted once a scan. `seconds` by step, wall time.
    """

    prefix_bytes: int = 0
    latents_bytes: int = 0
    route_bytes: int = 0
    source_bytes: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    fetches: int = 0
    frames_decoded: dict[str, int] = field(default_factory=dict)
    shared_decodes: int = 0
    answered_frames: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @property
    def bytes(self) -> int:
        return self.prefix_bytes + self.latents_bytes + self.route_bytes + self.source_bytes

    @property
    def frames(self) -> int:
        return sum(self.frames_decoded.values())

    def decoded(self, stage: str, *, frames: int, reads: int) -> None:
        """Notes `frames` frames decoded to `stage`; `reads` counts each once a scan that read it."""
        if frames:
            self.frames_decoded[stage] = self.frames_decoded.get(stage, 0) + frames
        self.shared_decodes += reads - frames

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the block's wall time to `seconds[step]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - start


class Totals:
    """What all runs of this process took together, for who watches it. Shared by threads."""

    def __init__(self) -> None:
        self._adding = threading.Lock()
        self._sum = Measured()

    def add(self, run: Measured) -> None:
        """A run that ended, well or not."""
        with self._adding:
            total = self._sum
            total.traffic += run.traffic
            total.shared_decodes += run.shared_decodes
            total.answered_frames += run.answered_frames
            for stage, frames in run.frames_decoded.items():
                total.frames_decoded[stage] = total.frames_decoded.get(stage, 0) + frames

    def read(self) -> Measured:
        """A copy as of now, of what is counted over runs: traffic, decoded, shared and answered frames."""
        with self._adding:
            total = self._sum
            return Measured(
                traffic=total.traffic,
                frames_decoded=dict(total.frames_decoded),
                shared_decodes=total.shared_decodes,
                answered_frames=total.answered_frames,
            )


TOTALS = Totals()
