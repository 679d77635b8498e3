"""`python -m benchmarks.soak flips`: 1,000 single flipped bits, spread over everything that is stored.

Each bit is flipped in an archive that is whole but for it. Then whatever uses these bytes runs: all frames of
all videos are decoded (payloads), videos are copied (footers of weights and latents), the index is built from
the log (entries, manifests, routes, what people said, tasks), the original is exported. That must end in an
error, and `verify` must report damage. In any case all questions are asked too: with an index from before and
with a fresh one, and each answer must be an error or what it was.

Caches heal: what is flipped in the index or in cached ranges may change no answer; `verify` lists it apart.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import fsspec

from benchmarks.soak import clips
from benchmarks.soak.children import Child, ready
from benchmarks.soak.outcome import Options, Outcome
from benchmarks.soak.specimen import Place, answers, build, places, shown
from nvpstore.archive import Archive
from nvpstore.errors import ArchiveError, IntegrityError, SourceError, StoreError

FLIPS = 1000
WORKERS, MANY_FLIPS = 2, 200
IN_MEMORY = "memory://soak-flips"  # as far away as an object store: what is read of it is cached
NOTICED = (StoreError, ArchiveError, SourceError)  # SourceError: an original is not the one ingested

Use = Callable[[Archive], object]


@dataclass(slots=True, kw_only=True)
class Count:
    """Of one stratum. `used`: flips whose bytes something reads; `noticed`: by that; `verified`: by verify.

    A damaged cache file that was used is gone, or whole again: so it was noticed. `right_answers` and
    `errors` are what the questions asked beside came to.
    """

    flips: int = 0
    used: int = 0
    noticed: int = 0
    verified: int = 0
    right_answers: int = 0
    errors: int = 0
    changed_answers: int = 0

    def add(self, other: Count) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def run(options: Options) -> Outcome:
    ready()
    started = time.monotonic()
    flips = options.count(FLIPS)
    # Each worker builds an archive of its own first.
    side_by_side = WORKERS if flips >= MANY_FLIPS else 1
    shares = [range(worker, flips, side_by_side) for worker in range(side_by_side)]
    workers = [Child(partial(_share, options.seed, numbers)) for numbers in shares]
    counts: dict[str, Count] = {}
    broken: list[str] = []
    for worker in workers:
        found, lines = worker.result()
        broken += lines
        for stratum, count in found.items():
            counts.setdefault(stratum, Count()).add(count)
    return Outcome(
        question="is every flipped bit noticed when it is used, and by verify?",
        figures={
            "flips": sum(count.flips for count in counts.values()),
            "strata": {stratum: asdict(count) for stratum, count in counts.items()},
            "seconds": round(time.monotonic() - started, 1),
        },
        broken=tuple(broken),
    )


def _share(seed: int, numbers: range) -> tuple[dict[str, Count], list[str]]:
    """The flips with these numbers, on an archive of their own."""
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-flips-") as folder:
        flipper = Flipper(Path(folder), broken)
        for number in numbers:
            flipper.flip(flipper.strata[number % len(flipper.strata)], number, seed)
    return flipper.counts, broken


class Flipper:
    """The archive, what it answers, and one flip after the other."""

    def __init__(self, folder: Path, broken: list[str]) -> None:
        self._folder, self._broken = folder, broken
        self._rng = random.Random()
        archive = build(folder)
        self._root = Path(archive.store.root)
        self._places = places(archive)
        self._expected = answers(archive)
        self._warm, self._pristine = folder / "cache", folder / "pristine"
        self._far = _Far(folder, self._root)
        if answers(self._far.archive()) != self._expected:
            raise AssertionError("the copy in memory answers otherwise")
        shutil.copytree(self._far.cache, self._pristine)
        self._caches = {
            "index file": sorted(self._pristine.rglob("*.duckdb")),
            "range cache": sorted(p for p in self._pristine.glob("*/ranges/*/*") if p.is_file()),
        }
        self.strata = [*sorted(self._places), *self._caches]
        self.counts = {stratum: Count() for stratum in self.strata}

    def flip(self, stratum: str, number: int, seed: int) -> None:
        """Flip one bit, look what is noticed, and flip it back."""
        self._rng.seed(f"{seed}/{number}")
        count = self.counts[stratum]
        count.flips += 1
        where = f"flip {number} in {stratum}"
        if stratum in self._caches:
            self._in_cache(self._rng.choice(self._caches[stratum]), count, where)
        else:
            self._in_store(stratum, _drawn(self._places[stratum], self._rng), count, where)

    # ------------------------------------------------------------ in the store

    def _in_store(self, stratum: str, place: Place, count: Count, where: str) -> None:
        path = self._root / place.key
        at, bit = self._rng.randrange(place.start, place.end), self._rng.randrange(8)
        where += f" ({place.key} byte {at} bit {bit})"
        with _flipped(path, at, bit):
            if stratum in _USES:
                count.used += 1
                count.noticed += self._is_noticed(_USES[stratum], where)
            cache = self._rng.choice([self._warm, self._folder / "fresh"])
            # Kept answers are read where they are what is damaged, and computed elsewhere.
            mode = "read" if stratum == "result" else "off"
            self._check_answers(str(self._root), cache, count, where, mode=mode)
            shutil.rmtree(self._folder / "fresh", ignore_errors=True)
            if self._is_verified():
                count.verified += 1
            else:
                self._broken.append(f"{where}: not noticed by verify")

    def _is_noticed(self, use: Use, where: str) -> bool:
        cache = self._folder / "used"
        shutil.copytree(self._warm, cache)
        try:
            use(clips.opened(str(self._root), cache))
        except NOTICED:
            return True
        finally:
            shutil.rmtree(cache)
        self._broken.append(f"{where}: not noticed when it was used")
        return False

    def _is_verified(self) -> bool:
        try:
            return bool(clips.opened(str(self._root), self._warm).verify().damages)
        except NOTICED:  # not even opened
            return True

    def _check_answers(self, root: str, cache: Path, count: Count, where: str, *, mode: str = "off") -> None:
        try:
            right = answers(clips.opened(root, cache, answers=mode)) == self._expected
        except NOTICED:
            count.errors += 1
            return
        count.right_answers += right
        count.changed_answers += not right
        if not right:
            self._broken.append(f"{where}: an answer has changed")

    # ------------------------------------------------------------ in caches

    def _in_cache(self, pristine: Path, count: Count, where: str) -> None:
        at, bit = self._rng.randrange(pristine.stat().st_size), self._rng.randrange(8)
        path = self._far.cache / pristine.relative_to(self._pristine)
        where += f" ({pristine.name} byte {at} bit {bit})"
        self._damage(path, at, bit)
        damaged = path.read_bytes()
        count.used += 1
        self._check_answers(IN_MEMORY, self._far.cache, count, where)
        count.noticed += not path.exists() or path.read_bytes() != damaged
        self._damage(path, at, bit)
        found = self._far.archive().verify().damaged_caches
        if str(path) in found or not path.exists():
            count.verified += 1
        else:
            self._broken.append(f"{where}: not noticed by verify")

    def _damage(self, path: Path, at: int, bit: int) -> None:
        """The cache as it was, but for this bit."""
        shutil.rmtree(self._far.cache)
        shutil.copytree(self._pristine, self._far.cache)
        _flip(path, at, bit)


class _Far:
    """The same archive where reading goes through the cache on disk."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.cache = folder / "far-cache"
        memory = fsspec.filesystem("memory")
        for path in root.rglob("*"):
            if path.is_file():
                memory.pipe_file(f"{IN_MEMORY}/{path.relative_to(root)}", path.read_bytes())

    def archive(self) -> Archive:
        return clips.opened(IN_MEMORY, self.cache)


def _decode(archive: Archive) -> object:
    return list(shown(archive))


def _rebuild(archive: Archive) -> object:
    archive.rebuild_catalog()
    return None


def _copy(archive: Archive) -> object:
    with tempfile.TemporaryDirectory() as folder:
        target = clips.create(f"{folder}/copy", Path(folder, "cache"), grace_seconds=60)
        report = archive.copy_to(target)
        if report.failures:
            raise IntegrityError(report.failures[0].error)
    return report


def _export(archive: Archive) -> object:
    with tempfile.TemporaryDirectory() as folder:
        for video in archive.videos():
            if archive.store.list(f"sources/{video['video_id']}/"):
                archive.export(video["video_id"], Path(folder, "original.mp4"), original=True)
    return None


# What reads the bytes of each stratum. Superseded objects wait for gc and are read by `verify` only; a
# damaged checkpoint is passed over.
_USES: Mapping[str, Use] = {
    "weights payload": _decode,
    "latents payload": _decode,
    "weights footer": _copy,
    "latents footer": _copy,
    "routes payload": _rebuild,
    "routes footer": _rebuild,
    "manifest": _rebuild,
    "meta": _rebuild,
    "task": _rebuild,
    "log": _rebuild,
    "source": _export,
}


@contextmanager
def _flipped(path: Path, at: int, bit: int) -> Iterator[None]:
    _flip(path, at, bit)
    yield
    _flip(path, at, bit)


def _flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def _drawn(some: list[Place], rng: random.Random) -> Place:
    """A place, as likely as it is long, so that every byte of a stratum is as likely as the next."""
    return rng.choices(some, weights=[place.end - place.start for place in some])[0]
