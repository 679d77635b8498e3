"""`python -m benchmarks.soak fits`: 10 times kill -9 at a random moment of an ingest, then a rerun.

An ingest runs undisturbed, which says how long it takes and what it comes to. Then each round has an archive
of its own: the kernel kills the process that ingests at a random moment of that time; what can be seen is
looked at; the ingest runs again. Every second round keeps its place in the fit after each step, the others at
the setting's default, so that most of their fit is lost.

- after the kill nothing is listed, or the whole video; `verify` finds no damage;
- the rerun ends with the same video, its PSNR within 0.2 dB of the undisturbed one and as many bytes;
- where each step was kept, the rerun's first epoch is none before the last that the killed one told of;
- once the grace is over, gc leaves nothing that the log does not name.
"""

from __future__ import annotations

import mmap
import random
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.soak import clips
from benchmarks.soak.children import Child, ChildFailed, ready
from benchmarks.soak.outcome import Options, Outcome
from benchmarks.soak.phases import die_in
from nvpstore.codec.build import PRESETS
from nvpstore.ingest.pipeline import IngestProgress

KILLS = 10
FRAMES = 24
GRACE_SECONDS = 8
NEAR_DB = 0.2
# The fit is most of the time; its scenes, routes and puts are the rest.
PRESET = replace(
    PRESETS["micro"], name="soak-fits", epochs=40, max_segment_frames=12, target_psnr=None, adapter_epochs=1
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What an ingest came to; `seconds` it took, `first`: epochs × frames after its first epoch, −1: none."""

    psnr: float
    stored_bytes: int
    seconds: float
    first: int


class Place:
    """Epochs × frames that a process told to be done, also after its death. Made before it is forked."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)
        self.tell(-1)

    def tell(self, done: int) -> None:
        self._shared[:] = struct.pack("q", done)

    @property
    def done(self) -> int:
        (done,) = struct.unpack("q", self._shared[:])
        return int(done)


def run(options: Options) -> Outcome:
    PRESETS[PRESET.name] = PRESET
    ready()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="soak-fits-") as name:
        folder = Path(name)
        (clip,) = clips.write_clips(folder / "clips", 1, frames=FRAMES)
        whole = Child(lambda: _ingest(folder / "whole", clip, Place(), each_step=True)).result()
        rounds = [
            Round(folder / str(number), clip, whole, each_step=number % 2 == 0)
            for number in range(options.count(KILLS))
        ]
        for each in rounds:
            each.run(rng.uniform(0, whole.seconds))
        time.sleep(GRACE_SECONDS + 1)
        broken = [line for number, each in enumerate(rounds) for line in each.end(number)]
    return Outcome(
        question="does an ingest that was killed at any moment go on, and come to the same?",
        figures={
            "kills": sum(each.killed for each in rounds),
            "undisturbed": {"psnr": whole.psnr, "bytes": whole.stored_bytes, "seconds": whole.seconds},
            "rounds": [each.figures for each in rounds],
        },
        broken=tuple(broken),
    )


class Round:
    """One kill and all that follows, in an archive of its own."""

    def __init__(self, folder: Path, clip: Path, whole: Stored, *, each_step: bool) -> None:
        self._folder, self._clip, self._whole, self._each_step = folder, clip, whole, each_step
        self._broken: list[str] = []
        self.figures: dict[str, Any] = {}
        self.killed = False

    def run(self, after_seconds: float) -> None:
        place, again = Place(), Place()

        def dies() -> Stored:
            die_in(after_seconds)
            return self._ingest(place)

        self.killed = Child(dies).was_killed()
        seen = Child(lambda: _seen(self._folder)).result()
        try:
            stored = Child(lambda: self._ingest(again)).result()
        except ChildFailed as error:
            self._broken.append(f"the rerun failed: {error}")
            return
        after = Child(lambda: _seen(self._folder)).result()
        self._broken += [*self._half(seen), *self._other(stored, after, place.done)]
        self.figures = {
            "killed_after_seconds": round(after_seconds, 3),
            "each_step_kept": self._each_step,
            "done_when_killed": place.done,
            # None: nothing of the fit was left to do.
            "done_when_gone_on": stored.first if stored.first >= 0 else None,
            "visible_after_the_kill": seen[0],
            "psnr": stored.psnr,
        }

    def end(self, number: int) -> list[str]:
        """After the grace nothing may be left that no entry names. Returns all that is broken."""

        def clean() -> tuple[int, int]:
            archive = clips.opened(_root(self._folder), self._folder / "cache")
            archive.gc()
            return int(archive.verify().orphans), len(archive.videos())

        left = Child(clean).result()
        if left != (0, 1):
            self._broken.append(f"after gc: {left[0]} orphans, {left[1]} videos")
        return [f"round {number}: {line}" for line in self._broken]

    def _ingest(self, place: Place) -> Stored:
        return _ingest(self._folder, self._clip, place, each_step=self._each_step)

    def _half(self, seen: tuple[int, Sequence[str]]) -> list[str]:
        videos, damages = seen
        return [*damages, *([f"{videos} videos after the kill"] if videos > 1 else [])]

    def _other(self, stored: Stored, seen: tuple[int, Sequence[str]], told: int) -> list[str]:
        lines = list(self._half(seen))
        if seen[0] != 1:
            lines.append(f"{seen[0]} videos after the rerun")
        if abs(stored.psnr - self._whole.psnr) > NEAR_DB:
            lines.append(f"{stored.psnr:.2f} dB, undisturbed {self._whole.psnr:.2f}")
        if self._each_step and 0 <= stored.first < told:
            lines.append(f"went on at {stored.first}, where {told} were done")
        return lines


def _ingest(folder: Path, clip: Path, place: Place, *, each_step: bool) -> Stored:
    first = -1

    def told(progress: IngestProgress) -> None:
        nonlocal first
        if progress.phase == "fit":
            first = progress.done if first < 0 else first
            place.tell(progress.done)

    archive = clips.opened_if_there(_root(folder), folder / "cache") or clips.create(
        _root(folder), folder / "cache", grace_seconds=GRACE_SECONDS
    )
    if each_step:
        archive.settings = replace(archive.settings, checkpoint_seconds=0.0)
    began = time.monotonic()
    video = archive.ingest(clip, preset=PRESET.name, device="cpu", progress=told)
    assert video.psnr is not None, "it was fitted"
    return Stored(
        psnr=video.psnr, stored_bytes=video.stored_bytes, seconds=time.monotonic() - began, first=first
    )


def _seen(folder: Path) -> tuple[int, list[str]]:
    """(videos that are listed, what is damaged); none where there is no archive yet."""
    archive = clips.opened_if_there(_root(folder), folder / "cache")
    if archive is None:
        return 0, []
    return len(archive.videos()), [f"verify: {damage}" for damage in archive.verify(deep=True).damages]


def _root(folder: Path) -> str:
    return (folder / "archive").as_uri()
