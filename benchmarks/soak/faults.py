"""`python -m benchmarks.soak faults`: 500 operations on S3 over a line that breaks one request in twenty.

A proxy before the server refuses, resets before and after it passed a request on, cuts answers short or
stalls for 2 seconds. Objects are put, read whole and in ranges, and listed; videos are stored, tagged and
asked. Every result must be right, or the error a StoreError; afterwards, over a whole line, nothing may be
damaged or half visible, every object that was reported as written must be there and nobody else's.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.servers.proxy import Faults, Proxy
from benchmarks.servers.weed import Weed
from benchmarks.soak import clips
from benchmarks.soak.look import look
from benchmarks.soak.outcome import Options, Outcome
from benchmarks.soak.race import ask
from nvpstore.archive import Archive
from nvpstore.errors import StoreError
from nvpstore.storage import keys

OPERATIONS = 500
RATE = 0.05
BUCKET = "faulty"
CLIPS = 4
_OBJECTS = "adapters/"  # where there is nothing else yet
# How often each is drawn.
_SHARES: Mapping[str, int] = {
    "put": 20,
    "get": 20,
    "range": 20,
    "list": 8,
    "query": 12,
    "frames": 6,
    "tag": 8,
    "open": 3,
    "ingest": 3,
}


def run(options: Options) -> Outcome:
    operations, broken = options.count(OPERATIONS), list[str]()
    with tempfile.TemporaryDirectory(prefix="soak-faults-") as folder, Weed() as weed:
        weed.make_bucket(BUCKET)
        os.environ.update(weed.environment)
        with Proxy(weed.endpoint) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
            user = User(Path(folder), options.seed)
            started = time.monotonic()
            proxy.reset(Faults(rate=RATE, seed=options.seed))
            for number in range(operations):
                user.do_one(number)
            seconds = time.monotonic() - started
            requests, faults = len(proxy.requests), Counter(r.fault for r in proxy.requests if r.fault)
            proxy.reset()
            broken += user.broken + user.finally_wrong()
    return Outcome(
        question="is every result right, or a clear error, over a line that breaks?",
        figures={
            "operations": dict(user.done),
            "failed_with_a_store_error": dict(user.failed),
            "requests": requests,
            "faults": dict(faults),
            "seconds_under_faults": round(seconds, 1),
        },
        broken=tuple(broken),
    )


class User:
    """Does one thing after the other and knows what each must result in."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self._root = f"s3://{BUCKET}/archive"
        self._clips = clips.write_clips(folder / "clips", CLIPS)
        self._archive = clips.create(self._root, folder / "cache", grace_seconds=3600)
        first = self._archive.ingest(self._clips[0], preset="micro", device="cpu").video_id
        self._stored, self._tags = {first}, {first: {""}}
        self._objects: dict[str, bytes] = {}
        self._maybe: set[str] = set()  # keys of puts that failed: there or not, but never anything else
        self._rows: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.broken: list[str] = []

    def do_one(self, number: int) -> None:
        kind = self._rng.choices(list(_SHARES), weights=list(_SHARES.values()))[0]
        action: Callable[[], bool] = getattr(self, f"_{kind}")
        self.done[kind] += 1
        try:
            if not action():
                self.broken.append(f"operation {number}, {kind}: a wrong result")
        except StoreError:
            self.failed[kind] += 1
        except Exception as error:
            self.broken.append(f"operation {number}, {kind}: {type(error).__name__}: {error}")

    def finally_wrong(self) -> list[str]:
        """Over a whole line: what is not as it was reported."""
        archive = clips.opened(self._root, self._folder / "fresh")
        seen = look(archive)
        lines = list(seen.broken)
        if seen.videos.keys() != self._stored:
            lines.append(f"{len(self._stored)} videos were reported as stored, {len(seen.videos)} are there")
        lines += [
            f"the tag of video {video_id} is {dict(video.tags)}"
            for video_id, video in seen.videos.items()
            if video.tags.get("n", "") not in self._tags.get(video_id, {""})
        ]
        lines += self._wrongly_listed(set(archive.store.list(_OBJECTS)))
        wrong = [key for key, data in self._objects.items() if archive.store.get(key) != data]
        return lines + [f"{key} differs from what was put" for key in wrong]

    # ------------------------------------------------------------ objects

    def _put(self) -> bool:
        key = keys.archive_adapters_key(f"{self._rng.getrandbits(256):064x}", keys.new_attempt())
        data = self._rng.randbytes(self._rng.choice([0, 100, 50_000, 400_000]))
        self._maybe.add(key)
        stored = self._archive.store.put(key, data)
        self._objects[key] = data
        return stored.size_bytes == len(data)

    def _get(self) -> bool:
        key, data = self._drawn()
        return self._archive.store.get(key) == data

    def _range(self) -> bool:
        key, data = self._drawn()
        start = self._rng.randrange(len(data) + 1)
        size = self._rng.randrange(len(data) - start + 1)
        return self._archive.store.get_range(key, start, size) == data[start : start + size]

    def _list(self) -> bool:
        wrong = self._wrongly_listed(set(self._archive.store.list(_OBJECTS)))
        self.broken += wrong
        return not wrong

    def _wrongly_listed(self, listed: set[str]) -> list[str]:
        lines = [f"{key} was put and is not listed" for key in self._objects.keys() - listed]
        return lines + [f"{key} is listed and was never put" for key in listed - self._maybe]

    def _drawn(self) -> tuple[str, bytes]:
        if not self._objects:
            self._put()
        return self._rng.choice(list(self._objects.items()))

    # ------------------------------------------------------------ videos

    def _ingest(self) -> bool:
        clip = self._rng.choice(self._clips)
        video_id = clips.video_id_of(clip)
        try:
            archive = clips.opened(self._root, self._folder / "cache")
            return archive.ingest(clip, preset="micro", device="cpu").video_id == video_id
        finally:
            # A commit whose answer was lost for good may be there; the next look says.
            if self._is_stored(video_id):
                self._stored.add(video_id)
                self._tags.setdefault(video_id, {""})

    def _is_stored(self, video_id: str) -> bool:
        while True:
            try:
                return self._opened(fresh=False).catalog.snapshot().has_video(video_id)
            except StoreError:
                continue

    def _tag(self) -> bool:
        video_id, value = self._rng.choice(sorted(self._stored)), str(self._rng.getrandbits(32))
        self._tags[video_id].add(value)
        said = self._archive.tag(video_id, tags={"n": value})
        # This one is committed: from now on no earlier one may be found.
        self._tags[video_id] = {value}
        return said.tags["n"] == value

    def _query(self) -> bool:
        mode = self._rng.choice(["on", "read", "off"])
        answers = ask(self._opened(fresh=self._rng.random() < 0.3, answers=mode))
        right = answers.keys() == self._stored
        for video_id, found in answers.items():
            right = right and self._rows.setdefault(video_id, found) == found
        return right

    def _frames(self) -> bool:
        video_id = self._rng.choice(sorted(self._stored))
        archive = self._opened(fresh=True)
        shown = [batch.rgb_thwc.tobytes() for batch in archive.frames(video_id)]
        return bool(self._shown.setdefault(video_id, shown) == shown)

    def _open(self) -> bool:
        return {row["video_id"] for row in self._opened(fresh=True).videos()} == self._stored

    def _opened(self, *, fresh: bool, answers: str = "off") -> Archive:
        cache = self._folder / (f"cache-{self._rng.getrandbits(32):08x}" if fresh else "cache")
        return clips.opened(self._root, cache, answers=answers)
