"""`python -m benchmarks.soak race`: 8 processes ingest the same 5 videos, 2 query, 1 runs gc.

Half of the ingesting processes share this machine's cache, so that they wait for each other; the others have
caches of their own, as if on other machines, so that several fit the same video and one commits. Each query
lists the videos of its snapshot and all their answers, which must be the final ones. In the end there are 5
videos, each committed once, and after the grace nothing but what the log names.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.servers.weed import Weed
from benchmarks.soak import clips
from benchmarks.soak.children import Child, ChildFailed, Flag, ready
from benchmarks.soak.look import Row, Seen, look, same_rows
from benchmarks.soak.outcome import Options, Outcome
from nvpstore.archive import Archive
from nvpstore.errors import CommitDropped

PROCESSES, CLIPS, QUERYING = 8, 5, 2
GRACE_SECONDS = 20
TRIES = 5
BUCKET = "race"
# Which videos there are, and all answers, of one snapshot.
QUESTION = (
    "SELECT v.video_id, v.frames, c.frame, c.rank, c.label, c.score FROM videos v "
    "LEFT JOIN labels(route := 'adapter', top := 2) c USING (video_id) ORDER BY ALL"
)


@dataclass(slots=True, kw_only=True)
class Ingested:
    """What one process did: committed videos itself, found them there already, was dropped for its age."""

    committed: int = 0
    already: int = 0
    dropped: int = 0


@dataclass(slots=True, kw_only=True)
class Asked:
    """What one process was answered: the rows of each video as first seen, and what was wrong later."""

    queries: int = 0
    rows: dict[str, list[Row]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def run(options: Options) -> Outcome:
    ready()
    processes, videos = max(3, round(PROCESSES * options.scale)), max(2, round(CLIPS * options.scale))
    broken: list[str] = []
    places: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="soak-race-") as folder:
        race = Race(Path(folder, "local"), processes=processes, videos=videos, seed=options.seed)
        places["local"] = race.run(Path(folder, "archive").as_uri(), broken)
        if options.s3:
            with Weed() as weed:
                weed.make_bucket(BUCKET)
                os.environ.update(weed.environment)
                race = Race(Path(folder, "s3"), processes=processes, videos=videos, seed=options.seed)
                places["s3"] = race.run(f"s3://{BUCKET}/archive", broken)
    return Outcome(
        question="do processes that store the same videos at once, with queries and gc, disturb each other?",
        figures={"processes": processes, "videos": videos, "querying": QUERYING, "places": places},
        broken=tuple(broken),
    )


class Race:
    """One race for one archive."""

    def __init__(self, folder: Path, *, processes: int, videos: int, seed: int) -> None:
        self._folder, self._processes, self._seed = folder, processes, seed
        self._clips = clips.write_clips(folder / "clips", videos)

    def run(self, root: str, broken: list[str]) -> dict[str, Any]:
        started = time.monotonic()
        Child(lambda: _create(root, self._cache(0))).result()
        stop = Flag()
        ingesting = [Child(self._ingesting(root, number)) for number in range(self._processes)]
        asking = [Child(self._asking(root, number, stop)) for number in range(QUERYING)]
        collecting = Child(lambda: _collect(clips.opened(root, self._cache(0)), stop))
        ingested = _results(ingesting, broken)
        stop.set()
        asked, collected = _results(asking, broken), _results([collecting], broken)
        figures = {
            "committed": sum(each.committed for each in ingested),
            "found_stored_already": sum(each.already for each in ingested),
            "dropped_by_age": sum(each.dropped for each in ingested),
            "queries": sum(each.queries for each in asked),
            "collections": sum(collected),
            "seconds": round(time.monotonic() - started, 1),
        }
        broken += self._wrong(root, figures, asked)
        return figures

    def _wrong(self, root: str, figures: Mapping[str, Any], asked: list[Asked]) -> list[str]:
        seen, orphans = Child(lambda: _finally(root, self._folder / "fresh")).result()
        lines = list(seen.broken)
        if len(seen.videos) != len(self._clips) or figures["committed"] != len(self._clips):
            lines.append(
                f"{len(self._clips)} videos: {len(seen.videos)} there, {figures['committed']} commits"
            )
        if orphans:
            lines.append(f"gc leaves {orphans} orphans")
        for each in asked:
            lines += each.wrong
            lines += [
                f"a query's rows of video {video_id} are not the final ones"
                for video_id, rows in each.rows.items()
                if video_id not in seen.videos or not same_rows(tuple(rows), seen.videos[video_id].rows)
            ]
        return lines

    def _cache(self, number: int) -> Path:
        """Of process `number`; even ones share one."""
        return self._folder / (f"cache-{number}" if number % 2 else "cache")

    def _ingesting(self, root: str, number: int) -> Callable[[], Ingested]:
        order = list(self._clips)
        # Neighbours begin alike, to meet at the commit; later ones do not.
        if number >= self._processes // 2:
            random.Random(self._seed * 100 + number).shuffle(order)

        def act() -> Ingested:
            archive, done = clips.opened(root, self._cache(number)), Ingested()
            for clip in order:
                _ingest(archive, clip, done)
            return done

        return act

    def _asking(self, root: str, number: int, stop: Flag) -> Callable[[], Asked]:
        def act() -> Asked:
            # One of them keeps its answers, in the archive.
            answers = "on" if number == 0 else "off"
            archive, asked = clips.opened(root, self._cache(number), answers=answers), Asked()
            while not stop.is_set():
                if archive.tasks():  # before the first commit there is no table of answers
                    note(asked, ask(archive))
            return asked

        return act


def ask(archive: Archive) -> dict[str, tuple[int, list[Row]]]:
    """Frames and rows of each video, of one snapshot."""
    answers: dict[str, tuple[int, list[Row]]] = {}
    for video_id, frames, *row in archive.sql(QUESTION).fetchall():
        rows = answers.setdefault(video_id, (frames, []))[1]
        if row[0] is not None:
            rows.append(tuple(row))
    return answers


def note(asked: Asked, answers: Mapping[str, tuple[int, list[Row]]]) -> None:
    """Add one query's answers to what is known, and say what of them is wrong."""
    asked.queries += 1
    for video_id in asked.rows.keys() - answers.keys():
        asked.wrong.append(f"video {video_id} was answered for before query {asked.queries}, but not by it")
    for video_id, (frames, rows) in answers.items():
        known = asked.rows.setdefault(video_id, rows)
        if sorted({row[0] for row in rows}) != list(range(frames)):
            asked.wrong.append(f"query {asked.queries} answers for some frames of video {video_id} only")
        elif not same_rows(tuple(known), tuple(rows)):
            asked.wrong.append(f"query {asked.queries} answers otherwise for video {video_id} than before")


def _ingest(archive: Archive, clip: Path, done: Ingested) -> None:
    for _ in range(TRIES):
        try:
            video = archive.ingest(clip, preset="micro", tags={"race": "1"}, device="cpu")
        except CommitDropped:  # too slow for the short grace: the message says to run it again
            done.dropped += 1
            continue
        if video.already_stored:
            done.already += 1
        else:
            done.committed += 1
        return
    raise TimeoutError(f"{clip.name}: dropped {TRIES} times")


def _collect(archive: Archive, stop: Flag) -> int:
    runs = 0
    while not stop.is_set():
        archive.gc()
        runs += 1
        time.sleep(0.1)
    return runs


def _finally(root: str, cache: Path) -> tuple[Seen, int]:
    """What another machine sees, and how many orphans gc leaves once the grace is over."""
    time.sleep(GRACE_SECONDS + 1)
    archive = clips.opened(root, cache)
    archive.gc()
    return look(archive), archive.verify().orphans


def _results(children: list[Child[Any]], broken: list[str]) -> list[Any]:
    found = []
    for child in children:
        try:
            found.append(child.result())
        except ChildFailed as error:
            broken.append(str(error))
    return found


def _create(root: str, cache: Path) -> None:
    clips.create(root, cache, grace_seconds=GRACE_SECONDS)
