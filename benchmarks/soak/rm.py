"""`python -m benchmarks.soak rm`: a video is erased while others refit, tag, query and show it.

Each round stores a video with a name and a tag that occur nowhere else. Then processes that share this
machine's cache, and one with its own, work on it, until at a random moment it is erased. What had begun
before the erasure may finish before it or fail with an NvpError, but never bring the video back: in the end
it is not listed, and its name, its tag, bytes of it and files with the digest of anything of it are nowhere
under the root or in this machine's cache. Another video stays as it was.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.servers.weed import Weed
from benchmarks.soak import clips
from benchmarks.soak.children import Child, ChildFailed, Flag, ready
from benchmarks.soak.look import Seen, look
from benchmarks.soak.outcome import Options, Outcome
from benchmarks.soak.phases import Watch, traced
from benchmarks.soak.race import ask
from benchmarks.soak.traces import Traces, search, traces_of
from nvpstore.archive import Archive
from nvpstore.errors import CommitDropped, NvpError

ROUNDS = 30
S3_ROUNDS = 10
GRACE_SECONDS = 60
BUCKET = "erasures"
PRESET = "micro"

Action = Callable[[Archive], None]


def run(options: Options) -> Outcome:
    ready()
    rng, broken = random.Random(options.seed), list[str]()
    places: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="soak-rm-") as folder:
        rounds = options.count(ROUNDS)
        places["local"] = _series(Path(folder, "local"), Path(folder, "root").as_uri(), rounds, rng, broken)
        if options.s3:
            with Weed() as weed:
                weed.make_bucket(BUCKET)
                os.environ.update(weed.environment)
                rounds = options.count(S3_ROUNDS)
                places["s3"] = _series(Path(folder, "s3"), f"s3://{BUCKET}/root", rounds, rng, broken)
    return Outcome(
        question="does an erased video come back, or leave anything, when others work on it meanwhile?",
        figures={"rounds": sum(place["rounds"] for place in places.values()), "places": places},
        broken=tuple(broken),
    )


def _series(folder: Path, root: str, rounds: int, rng: random.Random, broken: list[str]) -> dict[str, Any]:
    started = time.monotonic()
    series = Series(folder, root, rng)
    for number in range(1, rounds + 1):
        broken += [f"{root} round {number}: {line}" for line in series.round(number)]
    return {
        "rounds": rounds,
        "ended": {name: dict(sorted(ends.items())) for name, ends in series.ends.items()},
        "seconds": round(time.monotonic() - started, 1),
    }


class Series:
    """Rounds on one archive. `ends` counts how each kind of work ended."""

    def __init__(self, folder: Path, root: str, rng: random.Random) -> None:
        self._folder, self._root, self._rng = folder, root, rng
        self._cache, self._other_cache = folder / "cache", folder / "other-cache"
        self._stays, self._goes = clips.write_clips(folder / "clips", 2)
        self._video_id = clips.video_id_of(self._goes)
        self.ends: dict[str, Counter[str]] = {}
        Child(self._begin).result()
        self._seen = Child(lambda: look(self._opened())).result()
        self._longest_wait = 3.0  # seconds

    def round(self, number: int) -> list[str]:
        """One erasure amid others' work. Returns what is broken."""
        name, tag = f"name{self._rng.getrandbits(64):016x}", f"tag{self._rng.getrandbits(64):016x}"
        traces = Child(lambda: self._store(name, tag)).result()
        stop, watch = Flag(), Watch()
        lines: list[str] = []
        try:
            workers = self._workers(stop, watch, tag)
            self._wait_until_begun(watch, workers["refit"])
            time.sleep(self._rng.uniform(0, self._longest_wait))
            Child(self._erase).result()
            stop.set()
            for kind, child in workers.items():
                self._note(kind, child.result())
            lines += Child(lambda: self._wrong(traces)).result()
        except ChildFailed as error:
            lines.append(str(error))
        return lines

    # ------------------------------------------------------------ what goes on

    def _workers(self, stop: Flag, watch: Watch, tag: str) -> dict[str, Child[str]]:
        def refit(archive: Archive) -> None:
            with traced(watch):
                archive.ingest(self._goes, preset=PRESET, refit=True, tags={"t": tag}, device="cpu")

        def label(archive: Archive) -> None:
            archive.tag(self._video_id, tags={"t": tag, "n": str(time.monotonic_ns())})

        def show(archive: Archive) -> None:
            list(archive.frames(self._video_id))

        own = self._other_cache
        return {
            # Begun anew after the erasure it could rightly store the video again: so it runs once.
            "refit": Child(lambda: _ended(refit, clips.opened(self._root, own))),
            "tag": Child(lambda: _until(stop, label, self._opened())),
            "query": Child(lambda: _until(stop, _ask, self._opened())),
            "keep": Child(lambda: _until(stop, _ask, self._opened(answers="on"))),
            "frames": Child(lambda: _until(stop, show, self._opened())),
            "gc": Child(lambda: _until(stop, _collect, self._opened())),
        }

    def _wait_until_begun(self, watch: Watch, child: Child[str]) -> None:
        """Until the refit reads the source: then it has looked whether the video was erased."""
        while child.is_running() and watch.phase in ("between", "index", "put task", "put log"):
            time.sleep(0.005)

    def _erase(self) -> None:
        archive = self._opened()
        for _ in range(5):
            try:
                archive.erase(self._video_id)
                return
            except CommitDropped:  # tagged too often meanwhile: the message says to try again
                continue
        raise TimeoutError("rm was dropped 5 times")

    def _note(self, kind: str, end: str) -> None:
        self.ends.setdefault(kind, Counter())[end] += 1
        if kind == "refit":
            # How long a fit takes is the machine's affair: half of them should be overtaken.
            self._longest_wait *= 0.7 if end == "done" else 1.3

    # ------------------------------------------------------------ before and after

    def _begin(self) -> None:
        archive = clips.create(self._root, self._cache, grace_seconds=GRACE_SECONDS)
        archive.ingest(self._stays, preset=PRESET, device="cpu")

    def _store(self, name: str, tag: str) -> Traces:
        archive = self._opened()
        archive.ingest(self._goes, preset=PRESET, name=name, tags={"t": tag}, device="cpu")
        list(archive.frames(self._video_id))
        return traces_of(archive, self._video_id, [name, tag, self._goes.name])

    def _wrong(self, traces: Traces) -> list[str]:
        archive = self._opened()
        seen: Seen = look(archive)
        lines = list(seen.broken)
        if self._video_id in seen.videos:
            lines.append("the erased video is listed")
        lines += [
            f"video {video_id} was lost or has changed"
            for video_id, video in self._seen.videos.items()
            if video_id not in seen.videos or not seen.videos[video_id].same(video)
        ]
        lines += [f"{key} is left" for key in archive.store.list("") if f"/{self._video_id}/" in key]
        return lines + search(traces, archive, [self._cache])

    def _opened(self, *, answers: str = "off") -> Archive:
        return clips.opened(self._root, self._cache, answers=answers)


def _until(stop: Flag, action: Action, archive: Archive) -> str:
    """Again and again, the last time begun before the flag was set; says how it ended."""
    while not stop.is_set():
        try:
            action(archive)
        except NvpError as error:
            return type(error).__name__
    return "done"


def _ended(action: Action, archive: Archive) -> str:
    try:
        action(archive)
    except NvpError as error:
        return type(error).__name__
    return "done"


def _ask(archive: Archive) -> None:
    for video_id, (frames, rows) in ask(archive).items():
        if sorted({row[0] for row in rows}) != list(range(frames)):
            raise AssertionError(f"a query answers for some frames of video {video_id} only")


def _collect(archive: Archive) -> None:
    archive.gc()
    time.sleep(0.05)
