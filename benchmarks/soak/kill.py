"""`python -m benchmarks.soak kill`: 200 times kill -9 within ingest, refit, query, tag, gc, rm and copy.

First each operation runs undisturbed, which shows its phases and how long they take. Then every phase has its
turn: a process does the operation, and the kernel kills it at a random moment of that phase (or of the whole
operation). After each kill all is looked at, the operation runs again, and all is looked at again:

- `verify` finds nothing damaged; every video that is listed answers for all its frames and shows them;
- what was there is there still with equal rows, and the video in question is as before or as after;
- after the rerun it is as after; no video has a second first entry in the log without an erasure between.

In the end, once the grace is over, gc leaves nothing that the log does not name.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.servers.weed import Weed
from benchmarks.soak import clips
from benchmarks.soak.children import Child, ChildFailed, ready
from benchmarks.soak.look import Seen, look
from benchmarks.soak.operations import Work, copied
from benchmarks.soak.outcome import Options, Outcome
from benchmarks.soak.phases import Kill, Span, Watch, traced

KILLS = 200
S3_SHARE = 0.2  # of the kills, where there is a server
GRACE_SECONDS = 8
CLIPS = 3
OPERATIONS = ("ingest", "query", "refit", "tag", "copy", "gc", "rm")  # in this order each finds what it needs
BUCKET = "kill"
WORKERS, MANY_KILLS = 2, 40  # series side by side
MOST_BROKEN = 20

Target = tuple[str, str]  # operation, phase


@dataclass(slots=True, kw_only=True)
class Counts:
    """`killed` by operation and by the phase it was really in; `ran_to_end`: the kill came too late."""

    killed: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    ran_to_end: int = 0
    changed: int = 0

    @property
    def kills(self) -> int:
        return sum(sum(phases.values()) for phases in self.killed.values())


def run(options: Options) -> Outcome:
    ready()
    kills = options.count(KILLS)
    on_s3 = round(kills * S3_SHARE) if options.s3 else 0
    places: dict[str, Any] = {}
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-kill-") as folder:
        # Each series has to learn first how long everything takes.
        count = WORKERS if kills >= MANY_KILLS else 1
        shares = [len(range(worker, kills - on_s3, count)) for worker in range(count)]
        workers = {
            f"local {number}": Child(
                partial(_series, Path(folder, str(number)), "", share, options.seed + number)
            )
            for number, share in enumerate(shares)
        }
        _gather(workers, places, broken)
        if on_s3:
            with Weed() as weed:
                weed.make_bucket(BUCKET)
                os.environ.update(weed.environment)
                series = partial(_series, Path(folder, "s3"), f"s3://{BUCKET}", on_s3, options.seed)
                _gather({"s3": Child(series)}, places, broken)
    return Outcome(
        question="is anything lost, doubled or half visible after kill -9 at any moment?",
        figures={"kills": sum(place["kills"] for place in places.values()), "places": places},
        broken=tuple(broken),
    )


def _gather(workers: Mapping[str, Child[Any]], places: dict[str, Any], broken: list[str]) -> None:
    for place, worker in workers.items():
        figures, lines = worker.result()
        places[place] = figures
        broken += [f"{place} {line}" for line in lines]


def _series(folder: Path, base: str, kills: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    started, rng, broken = time.monotonic(), random.Random(seed), list[str]()
    series = Series(folder, base or folder.as_uri(), rng)
    durations = series.rehearse()
    rounds = 0
    for target in _in_turn(durations, rng):
        if series.counts.kills >= kills or len(broken) >= MOST_BROKEN:
            break
        rounds += 1
        broken += [f"round {rounds}, {' '.join(target)}: {line}" for line in series.round(target)]
    broken += [f"in the end: {line}" for line in series.end()]
    return {
        "kills": series.counts.kills,
        "rounds": rounds,
        "kill_came_too_late": series.counts.ran_to_end,
        "video_came_or_went": series.counts.changed,
        "killed_in": {name: dict(sorted(phases.items())) for name, phases in series.counts.killed.items()},
        "seconds": round(time.monotonic() - started, 1),
    }, broken


def _in_turn(durations: Mapping[Target, Sequence[float]], rng: random.Random) -> Iterator[Target]:
    """All phases of all operations, each as often as the next, in an order drawn anew each time."""
    while True:
        turn = list(durations)
        rng.shuffle(turn)
        yield from turn


class Series:
    """Rounds on one archive. `base` is a URI below which archives are made."""

    def __init__(self, folder: Path, base: str, rng: random.Random) -> None:
        self._folder, self._base, self._rng = folder, base, rng
        self._root, self._cache = f"{base}/source", folder / "cache"
        self._clips = clips.write_clips(folder / "clips", CLIPS)
        self._numbers = count()
        self._spans: dict[Target, list[float]] = {}
        self.counts = Counts()
        Child(lambda: _create(self._root, self._cache)).result()
        self._ids: dict[Path, str] = {}
        self._seen = Seen(videos={}, broken=())

    def rehearse(self) -> Mapping[Target, Sequence[float]]:
        """Run each operation undisturbed; from then on their phases and how long these take are known."""
        for name in OPERATIONS:
            if name == "gc":
                time.sleep(GRACE_SECONDS)
            self._undisturbed(name)
        return self._spans

    def round(self, target: Target) -> list[str]:
        """One kill and all that follows. Returns what is broken."""
        work = self._prepared(target[0])
        before = self._seen
        self._kill(work, target[1])
        try:
            lines = self._check(work, before, done=False)
            between = self._seen
            Child(lambda: work.run(self._opened())).result()
            lines += self._check(work, between, done=True)
        except ChildFailed as error:
            # Go on from what there is, so that one fault is one line.
            self._seen = Child(lambda: look(self._opened())).result()
            return [str(error)]
        return lines

    def end(self) -> list[str]:
        """After the grace nothing may be left that no entry names. Returns what is broken."""
        time.sleep(GRACE_SECONDS + 1)

        def clean() -> int:
            archive = self._opened()
            archive.gc()
            return int(archive.verify().orphans)

        orphans = Child(clean).result()
        return [f"gc leaves {orphans} orphans"] if orphans else []

    # ------------------------------------------------------------ one operation

    def _undisturbed(self, name: str) -> None:
        work = self._prepared(name)
        watch = Watch()
        self._learn(name, Child(lambda: self._traced(work, watch)).result())
        self._seen = self._look()

    def _kill(self, work: Work, phase: str) -> None:
        seconds = self._spans[work.name, phase]
        occurrence = self._rng.randrange(len(seconds))
        kill = Kill(
            phase=phase, occurrence=occurrence, after_seconds=self._rng.uniform(0, seconds[occurrence])
        )
        watch = Watch()

        child = Child(lambda: self._traced(work, watch, kill))
        if child.was_killed():
            self.counts.killed[work.name][watch.phase] += 1
        else:
            self.counts.ran_to_end += 1
            self._learn(work.name, child.result())

    def _traced(self, work: Work, watch: Watch, kill: Kill | None = None) -> list[Span]:
        archive = self._opened()
        with traced(watch, kill) as spans:
            work.run(archive)
        return spans

    def _learn(self, name: str, spans: Sequence[Span]) -> None:
        """How long each phase took, the last time that nothing disturbed it."""
        times: dict[str, list[float]] = defaultdict(list)
        for span in spans:
            times[span.phase].append(span.seconds)
        for phase, seconds in times.items():
            self._spans[name, phase] = seconds

    def _check(self, work: Work, before: Seen, *, done: bool) -> list[str]:
        # At times another machine looks, that has seen nothing before.
        fresh = self._rng.random() < 0.2
        after = self._look(fresh=fresh)
        if not done and before.videos.keys() != after.videos.keys():
            self.counts.changed += 1
        lines = [*after.broken, *work.wrong(before.videos, after.videos, done=done)]
        if work.target:
            copy = self._look_at_copy(work.target)
            lines += [*copy.broken, *copied(after, copy, done=done)]
        self._seen = after
        return lines

    # ------------------------------------------------------------ what it works on

    def _prepared(self, name: str) -> Work:
        """The operation on a video that it can be done to, which is stored or erased for it if need be."""
        stored = sorted(path for path, video_id in self._ids.items() if video_id in self._seen.videos)
        absent = [path for path in self._clips if path not in stored]
        if name == "ingest" and not absent:
            absent = [self._erased(self._rng.choice(stored))]
        if name not in ("ingest", "gc") and not stored:
            stored = [self._stored(absent[0])]
        work = Work(name=name, word=f"word-{next(self._numbers)}")
        if name in ("gc", "query"):
            return work
        if name == "copy":
            return replace(work, target=f"{self._base}/copy-{next(self._numbers)}")
        clip = self._rng.choice(absent if name == "ingest" else stored)
        self._ids[clip] = clips.video_id_of(clip)
        return replace(work, clip=clip, video_id=self._ids[clip])

    def _stored(self, clip: Path) -> Path:
        self._ids[clip] = clips.video_id_of(clip)
        work = Work(name="ingest", clip=clip, video_id=self._ids[clip], word=f"word-{next(self._numbers)}")
        Child(lambda: work.run(self._opened())).result()
        self._seen = self._look()
        return clip

    def _erased(self, clip: Path) -> Path:
        work = Work(name="rm", video_id=self._ids[clip])
        Child(lambda: work.run(self._opened())).result()
        self._seen = self._look()
        return clip

    # ------------------------------------------------------------ looking

    def _opened(self) -> Any:
        return clips.opened(self._root, self._cache)

    def _look(self, *, fresh: bool = False) -> Seen:
        cache = self._folder / "fresh-cache" if fresh else self._cache
        try:
            return Child(lambda: look(clips.opened(self._root, cache))).result()
        finally:
            shutil.rmtree(self._folder / "fresh-cache", ignore_errors=True)

    def _look_at_copy(self, target: str) -> Seen:
        def act() -> Seen:
            archive = clips.opened_if_there(target, self._folder / "copy-cache")
            return Seen(videos={}, broken=()) if archive is None else look(archive)

        return Child(act).result()


def _create(root: str, cache: Path) -> None:
    clips.create(root, cache, grace_seconds=GRACE_SECONDS)
