"""Materialised answers: what queries computed before is read, and only the rest is computed.

Rows are kept by what they depend on, never by what was asked: no predicate, no sampling. Whatever is wrong
with what is stored, a query only takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nvpstore.catalog import Snapshot
from nvpstore.catalog.answers import IndexedAnswers, has_answers, stored_answers
from nvpstore.errors import IntegrityError, ObjectMissing, StoreError
from nvpstore.query.left import Answered
from nvpstore.query.plan import Group, Key, Plan, Scan, Step, groups_of, steps_of, top_of
from nvpstore.query.relation import output_schema
from nvpstore.query.routes import Route
from nvpstore.query.rows import attach
from nvpstore.storage.documents import canonical_digest
from nvpstore.storage.ranges import Prefetched, RangeReader
from nvpstore.storage.results import Intervals, decode_rows
from nvpstore.types import TaskRecord

Frames = NDArray[np.int64]

ROW_FORMAT = 1  # a change of what any stored row means makes another of it
# Rows are the same on every machine but for rounding, so that neither device nor release is part of the key.
DTYPE = "float32"
_ID_DIGITS = 32
_STEPS = 1024  # whose videos are looked up at once
_AHEAD = 64  # steps whose stored rows are fetched at once; fewer at first, where few may be enough
_BRIDGE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a frame is asked, whichever frames are: `top` labels (0 where that means nothing) of a task.

    `steady`: by which weights and over which sampling answers were made steady; what a frame is then told
    depends on the frames before it. Empty without a stabilizer.
    """

    task: TaskRecord
    top: int
    steady: str = ""


def question_of(scan: Scan) -> Question | None:
    """What `scan` asks; None where answers are not kept: pictures for people, and what is not computed."""
    if scan.task is None or not scan.computes:
        return None
    return Question(task=scan.task, top=top_of(scan) if scan.ranks else 0, steady=steady_id(scan))


def steady_id(scan: Scan) -> str:
    """What a scan's steadied answers depend on beside their frames: the weights, and how it samples."""
    if scan.stabilizer is None:
        return ""
    options = scan.options
    return f"{scan.stabilizer.sha256} every {options.every} stride {options.stride}"


def result_id(question: Question, *, attempt: str, routes: str) -> str:
    """A digest of what all answers to `question` on one video depend on, but for the route of a segment.

    `attempt` is the video's, `routes` that of its routes object ("" without one).
    """
    about = {"rows": ROW_FORMAT, "attempt": attempt, "routes": routes, "top": question.top, "dtype": DTYPE}
    # Only where there is one, so that answers from before there were any keep their ids.
    about |= {"steady": question.steady} if question.steady else {}
    return canonical_digest(about)[:_ID_DIGITS]


def route_id(route: Route) -> str:
    """A digest of how a segment's frames are answered."""
    adapter = route.adapter.sha256 if route.adapter else ""
    about = {"route": route.route, "stages": list(route.stages), "cut": route.cut, "adapter": adapter}
    return canonical_digest(about)[:_ID_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose answers: of one question on one video, under `result`."""

    question: Question
    video_id: str
    result: str


class Known:
    """The stored answers to one question, looked up some videos at a time."""

    def __init__(self, snapshot: Snapshot, question: Question) -> None:
        self._snapshot, self.question = snapshot, question
        self.any = has_answers(snapshot, question.task.version)
        self._results: dict[str, str] = {}
        self._before: dict[str, str] = {}
        self._parts: dict[str, dict[int, list[IndexedAnswers]]] = {}

    def load(self, video_ids: Sequence[str]) -> None:
        """Look up these videos; of those before only their places are known, and soon forgotten."""
        # Steps are read ahead: the last ones of the videos before are still being computed.
        self._before = self._results
        self._results = _result_ids(self._snapshot, self.question, video_ids)
        self._parts = {}
        found = stored_answers(self._snapshot, self.question.task.version, video_ids) if self.any else []
        for part in found:
            if self._results.get(part.video_id) == part.result:
                self._parts.setdefault(part.video_id, {}).setdefault(part.segment, []).append(part)

    def place(self, video_id: str) -> Place | None:
        """Where answers on a video that was looked up belong; None for an unknown one."""
        result = self._results.get(video_id) or self._before.get(video_id)
        if result is None:
            return None
        return Place(question=self.question, video_id=video_id, result=result)

    def parts(self, key: Key, route: str) -> list[IndexedAnswers]:
        """What is stored of a segment by a route."""
        segments = self._parts.get(key[0], {})
        return [part for part in segments.get(key[1], ()) if part.route == route]

    def all_parts(self, video_id: str) -> list[IndexedAnswers]:
        """What is stored of a video, by all routes."""
        return [part for parts in self._parts.get(video_id, {}).values() for part in parts]


def _result_ids(snapshot: Snapshot, question: Question, video_ids: Sequence[str]) -> dict[str, str]:
    found = snapshot.ask(
        "SELECT v.video_id, v.attempt, coalesce(any_value(r.attempt), '') AS routes "
        "FROM (SELECT unnest($ids::VARCHAR[]) AS video_id) JOIN idx.store.videos v USING (video_id) "
        "LEFT JOIN idx.store.routes r ON r.video_id = v.video_id AND r.version = $version GROUP BY ALL",
        {"ids": list(video_ids), "version": question.task.version},
    )
    ids = {row["video_id"]: (row["attempt"], row["routes"]) for row in found}
    return {v: result_id(question, attempt=a, routes=r) for v, (a, r) in ids.items()}


class PartReader:
    """Reads parts as they are indexed in a snapshot."""

    def __init__(self, snapshot: Snapshot, ranges: RangeReader) -> None:
        self.snapshot, self._ranges = snapshot, ranges
        self._footers: dict[str, bytes] = {}

    def read(self, part: IndexedAnswers) -> pa.Table | None:
        """A part's rows, verified; None where it has none. Raises what the store raises."""
        if part.row_group is None:
            return None
        if part.key not in self._footers:
            self._footers[part.key] = self.snapshot.footer(part.key)
        (data,) = self._ranges.read([part.row_group], as_of=self.snapshot.number)
        return decode_rows(data, self._footers[part.key], part.row_group)

    def fetch_ahead(self, parts: Sequence[IndexedAnswers]) -> Prefetched:
        """Fetches in the background what later reads will find here, until it is dropped."""
        ranges = list(dict.fromkeys(part.row_group for part in parts if part.row_group is not None))
        if len(ranges) < 2:
            return Prefetched(lambda: None)
        return self._ranges.prefetch(ranges, as_of=self.snapshot.number, bridge_bytes=_BRIDGE_BYTES)


@dataclass(slots=True)
class Tally:
    """What stored answers spared a query: frames, counted once a scan, and rows read."""

    frames: int = 0
    rows: int = 0


@dataclass(slots=True)
class Found:
    """Rows that a query computed: frames asked, and their rows, in the order of their arrival."""

    frames: list[Frames] = field(default_factory=list)
    rows: list[pa.Table] = field(default_factory=list)


class Answers:
    """Stored answers as one query sees them, and what it adds. For one thread.

    `damaged` are objects that could not be read as they were committed; `found` what is new, by place, then
    by segment and route.
    """

    def __init__(self, plan: Plan, reader: PartReader, *, on_found: Callable[[Answers], None]) -> None:
        """`on_found` is called after each addition: it may store and `clear` what is new."""
        self._plan, self._reader, self._on_found = plan, reader, on_found
        snapshot = reader.snapshot
        questions = [question_of(scan) for scan in plan.scans]
        self._known = {q: Known(snapshot, q) for q in questions if q is not None}
        self._of_scan = [None if q is None else self._known[q] for q in questions]
        self._rows: dict[Step, dict[int, pa.Table]] = {}
        self.tally = Tally()
        self.damaged: dict[str, str] = {}  # key: video
        self.found: dict[Place, dict[tuple[int, str], Found]] = {}
        self.found_bytes = 0

    @property
    def snapshot(self) -> Snapshot:
        return self._reader.snapshot

    # ------------------------------------------------------------ reading

    def steps(self) -> Generator[tuple[Step, list[Group]], None, None]:
        """As `plan.iterate_steps`, without the frames that are answered: groups may be none.

        Their rows are at `take` until they are taken.
        """
        window = 1
        for batch in self._plan.steps.to_batches(max_chunksize=_STEPS):
            self._load(batch)
            steps = steps_of(batch)
            while some := list(islice(steps, window)):
                held = self._fetch_ahead(some)
                try:
                    for step in some:
                        yield step, self._left(step)
                finally:
                    held.drop()
                window = min(2 * window, _AHEAD)

    def take(self, step: Step) -> dict[int, pa.Table]:
        """The stored rows of a step that `steps` gave, by scan, as rows of the task table."""
        return self._rows.pop(step, {})

    def answered(self) -> Answered:
        """Of each step the frames [t] that each scan asks for, and which of them are stored, bool [t].

        Reads no rows; nothing where no answers to any of the questions are stored.
        """
        if not any(known.any for known in self._known.values()):
            return
        for batch in self._plan.steps.to_batches(max_chunksize=_STEPS):
            self._load(batch)
            for step in steps_of(batch):
                wanted = {index: _frames(self._plan.scans[index], step) for index in step.scans}
                yield step, {i: (frames, self._covered(i, step, frames)[0]) for i, frames in wanted.items()}

    def _load(self, batch: pa.RecordBatch) -> None:
        videos = pc.unique(batch["video_id"].cast(pa.string())).to_pylist()
        for known in self._known.values():
            known.load(videos)

    def _left(self, step: Step) -> list[Group]:
        """What is left to compute of a step; its stored rows are put where `take` finds them."""
        frames, rows = {}, {}
        for index in step.scans:
            wanted = _frames(self._plan.scans[index], step)
            covered, parts = self._covered(index, step, wanted)
            if parts:
                covered, rows[index] = self._stored_rows(index, step, wanted, parts)
                if self._plan.scans[index].stabilizer is not None and not covered.all():
                    covered[:] = False  # memory begins at the first frame
                    del rows[index]
            frames[index] = wanted[~covered]
        if not rows:
            return groups_of(self._plan, step)
        self._rows[step] = rows
        self.tally.rows += sum(table.num_rows for table in rows.values())
        groups = groups_of(self._plan, step)
        return [part for group in groups for part in _parted(self._plan, step, group, frames)]

    def _covered(
        self, index: int, step: Step, wanted: Frames
    ) -> tuple[NDArray[np.bool_], list[IndexedAnswers]]:
        parts = [part for part in self._parts(index, step) if part.covered.holds(wanted).any()]
        covered = _any_holds([part.covered for part in parts], wanted)
        if self._plan.scans[index].stabilizer is not None and not covered.all():
            return np.zeros_like(covered), []  # memory begins at the first frame: all of them, or none
        return covered, parts

    def _parts(self, index: int, step: Step) -> list[IndexedAnswers]:
        known, key = self._of_scan[index], (step.video_id, step.segment)
        if known is None or not known.any:
            return []
        parts = known.parts(key, route_id(self._plan.scans[index].routes[key]))
        return [part for part in parts if part.key not in self.damaged]

    def _stored_rows(
        self, index: int, step: Step, wanted: Frames, parts: Sequence[IndexedAnswers]
    ) -> tuple[NDArray[np.bool_], pa.Table]:
        """Which of `wanted` could be read after all, and their rows."""
        scan, read = self._plan.scans[index], []
        tables = [output_schema(scan.kind).empty_table()]
        for part in parts:
            try:
                table = self._reader.read(part)
            except StoreError as error:
                if isinstance(error, (IntegrityError, ObjectMissing)):
                    self.damaged[part.key] = part.video_id
                continue
            read.append(part.covered)
            if table is not None:
                tables.append(_as_output(scan, table))
        covered = _any_holds(read, wanted)
        rows = pa.concat_tables(tables)
        keep = np.flatnonzero(np.isin(rows["frame"].to_numpy(), wanted))
        order = keep[np.argsort(rows["frame"].to_numpy()[keep], kind="stable")]
        self.tally.frames += int(covered.sum())
        key = (step.video_id, step.segment)
        return covered, attach(scan, scan.work_of(key), scan.routes[key], rows.take(pa.array(order)))

    def _fetch_ahead(self, steps: Sequence[Step]) -> Prefetched:
        parts = [part for step in steps for index in step.scans for part in self._parts(index, step)]
        return self._reader.fetch_ahead(parts)

    # ------------------------------------------------------------ adding

    def add(self, index: int, key: Key, frames: Frames, outputs: pa.Table) -> None:
        """Note that scan `index` computed `outputs` (by frame) for `frames` [t] of a segment."""
        known, scan = self._of_scan[index], self._plan.scans[index]
        place = None if known is None else known.place(key[0])
        columns = output_schema(scan.kind).names
        if place is None or not set(columns) <= set(outputs.schema.names):
            return
        route = route_id(scan.routes[key])
        found = self.found.setdefault(place, {}).setdefault((key[1], route), Found())
        found.frames.append(frames)
        found.rows.append(_as_output(scan, outputs))
        self.found_bytes += outputs.nbytes + frames.nbytes
        self._on_found(self)

    def clear(self) -> None:
        """Forget what is new."""
        self.found, self.found_bytes = {}, 0


def _parted(plan: Plan, step: Step, group: Group, left: Mapping[int, Frames]) -> Iterator[Group]:
    """What is left of a group, grouped anew: `left` are the frames that each scan still needs."""
    needs = np.stack([np.isin(group.frames, left[index], assume_unique=True) for index in group.scans])
    masks, members = np.unique(needs, axis=1, return_inverse=True)
    for number, mask in enumerate(masks.T):
        if not mask.any():
            continue
        scans = tuple(index for index, needed in zip(group.scans, mask, strict=True) if needed)
        routes = [plan.scans[index].routes[(step.video_id, step.segment)] for index in scans]
        taps = tuple(tap for tap in group.taps if any(tap in route.stages for route in routes))
        stage = taps[-1] if taps else group.stage
        frames = group.frames[members == number]
        yield Group(scans=scans, frames=frames, taps=taps, stage=stage, clip=group.clip)


def _frames(scan: Scan, step: Step) -> Frames:
    frames: Frames = scan.work_of((step.video_id, step.segment))["frame"].to_numpy()
    return frames


def _any_holds(covered: Iterable[Intervals], frames: Frames) -> NDArray[np.bool_]:
    held = np.zeros(len(frames), dtype=np.bool_)
    for one in covered:
        held |= one.holds(frames)
    return held


def _as_output(scan: Scan, rows: pa.Table) -> pa.Table:
    schema = output_schema(scan.kind)
    return rows.select(schema.names).cast(schema)


def covered_frames(parts: Iterable[IndexedAnswers]) -> Mapping[tuple[int, str], list[Intervals]]:
    """What parts of one video cover, by segment and route."""
    covered: dict[tuple[int, str], list[Intervals]] = {}
    for part in parts:
        covered.setdefault((part.segment, part.route), []).append(part.covered)
    return covered
