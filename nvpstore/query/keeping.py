"""Stored answers are written, merged and dropped: one log entry for all that a query adds to a video."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.catalog.answers import IndexedAnswers, StoredResult, stored_results
from nvpstore.errors import CommitDropped, StoreError
from nvpstore.query.answers import Answers, Found, Known, PartReader, Place, covered_frames
from nvpstore.query.left import Left, what_is_left
from nvpstore.query.limits import MOST_FOUND
from nvpstore.query.plan import Plan
from nvpstore.storage import keys
from nvpstore.storage.log import Log, LogDraft
from nvpstore.storage.ranges import RangeReader
from nvpstore.storage.results import AnswerPart, Intervals, encode_results, intervals
from nvpstore.storage.results import Answers as StoredAnswers
from nvpstore.types import StoredObject

MOST_OBJECTS = 16  # of one video and result; one more, and all become one
_TRIES = 8  # commits by others between our reading and our writing


@dataclass(frozen=True, slots=True)
class _Draft:
    """What one commit is to say about a video."""

    stored: tuple[StoredAnswers, ...]
    removed: tuple[str, ...]


class KeptAnswers:
    """One archive's stored answers, for all queries of a process. Can be shared by threads."""

    def __init__(
        self,
        log: Log,
        newest: Callable[[], Snapshot],
        ranges: RangeReader,
        *,
        writes: bool = True,
        found_bytes: int = MOST_FOUND,
    ) -> None:
        """`newest` gives the newest state. Without `writes` answers are only read.

        Of what a query finds, `found_bytes` stay in memory until it ends; more are stored before.
        """
        self._found_bytes = found_bytes
        self._log, self._newest, self._ranges = log, newest, ranges
        self._writes = writes
        self.problem: str | None = None  # why nothing is written any more

    def at(self, snapshot: Snapshot) -> AnswersAt:
        """The answers that are stored as of a snapshot, for one query on it."""
        return AnswersAt(kept=self, snapshot=snapshot)

    @contextlib.contextmanager
    def answering(self, plan: Plan, snapshot: Snapshot, warnings: list[str]) -> Iterator[Answers]:
        """What is stored of a plan's answers. What the block adds is stored after it, also where it failed.

        `warnings` gets more lines.
        """

        def on_found(answers: Answers) -> None:
            if answers.found_bytes > self._found_bytes or not self._writes:
                self.store(answers)

        answers = Answers(plan, PartReader(snapshot, self._ranges), on_found=on_found)
        try:
            yield answers
        finally:
            warnings += self.store(answers)

    def left(self, plan: Plan, snapshot: Snapshot, check: Callable[[], None]) -> Left:
        """What is left of a plan besides its stored answers, as the index tells; stores nothing."""
        answers = Answers(plan, PartReader(snapshot, self._ranges), on_found=Answers.clear)
        return what_is_left(plan, answers.answered(), check)

    def store(self, answers: Answers) -> list[str]:
        """Store what a query found anew, and replace what it found damaged. Returns warnings.

        Answers are derived: where they cannot be written, nothing more is, and no query fails for it.
        """
        warnings = [f"stored answers {key} are damaged: computed again" for key in answers.damaged]
        by_video: dict[str, dict[Place, Mapping[tuple[int, str], Found]]] = {}
        for place, found in answers.found.items():
            by_video.setdefault(place.video_id, {})[place] = found
        damaged, snapshot = dict(answers.damaged), answers.snapshot
        answers.clear()
        for video_id in sorted({*by_video, *damaged.values()}) if self._writes else ():
            lost = [key for key, owner in damaged.items() if owner == video_id]
            try:
                self._store_video(video_id, by_video.get(video_id, {}), lost, snapshot)
            except StoreError as error:
                self._writes, self.problem = False, str(error)
                warnings.append(f"answers are not stored: {error}")
                break
        return warnings

    def _store_video(
        self,
        video_id: str,
        found: Mapping[Place, Mapping[tuple[int, str], Found]],
        damaged: Sequence[str],
        snapshot: Snapshot,
    ) -> None:
        for _ in range(_TRIES):
            draft = self._draft(video_id, found, damaged, snapshot)
            if not draft.stored and not draft.removed:
                return
            try:
                commit_answers(self._log, video_id, draft.stored, draft.removed, snapshot=snapshot)
            except CommitDropped:
                snapshot = self._newest()  # others stored some, or the video is another now
            else:
                return

    def _draft(
        self,
        video_id: str,
        found: Mapping[Place, Mapping[tuple[int, str], Found]],
        damaged: Sequence[str],
        snapshot: Snapshot,
    ) -> _Draft:
        held = stored_results(snapshot, video_id=video_id)
        # Without an index nobody knows what they cover.
        lost = {result.key for result in held if result.key in damaged or not result.frames}
        stored, removed = [], set(lost)
        for place, new in found.items():
            known = Known(snapshot, place.question)
            known.load([video_id])
            if known.place(video_id) != place:
                continue  # erased, fitted anew or routed anew: what was computed answers nothing now
            there = [part for part in known.all_parts(video_id) if part.key not in lost]
            parts = new_parts(new, covered_frames(there))
            objects = {part.key for part in there}
            if parts and len(objects) >= MOST_OBJECTS:
                with contextlib.suppress(StoreError):  # one day it will be found damaged
                    parts = merged(parts, there, PartReader(snapshot, self._ranges))
                    removed |= objects
            if parts:
                stored.append(_answers(place, parts))
        return _Draft(tuple(stored), tuple(sorted(removed)))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersAt:
    """Stored answers as one query is given them, on its snapshot."""

    kept: KeptAnswers
    snapshot: Snapshot

    def answering(self, plan: Plan, warnings: list[str]) -> AbstractContextManager[Answers]:
        return self.kept.answering(plan, self.snapshot, warnings)

    def left(self, plan: Plan, check: Callable[[], None]) -> Left:
        """What is left of a plan to compute. `check` is called now and then, and may raise."""
        return self.kept.left(plan, self.snapshot, check)


def commit_answers(
    log: Log,
    video_id: str,
    stored: Sequence[StoredAnswers],
    removed: Sequence[str],
    *,
    snapshot: Snapshot,
) -> None:
    """One entry: these answers in force, those replaced. Raises CommitDropped, with nothing left behind."""
    attempt = keys.new_attempt(later_than=snapshot.latest_attempt)
    objects: list[StoredObject] = []
    try:
        for answers in stored:
            encoded = encode_results(answers, attempt)
            objects.append(log.store.put(encoded.key, encoded.data))
        draft = LogDraft(
            kind="results",
            attempt=attempt,
            subject=video_id,
            objects=tuple(objects),
            removed=tuple(removed),
        )
        log.append(draft, after=snapshot.number)
    except CommitDropped:
        with contextlib.suppress(StoreError):  # else gc finds them; after an erasure nothing should stay
            log.store.delete_all([obj.key for obj in objects])
        raise


def drop_answers(
    catalog: Catalog, *, video_id: str | None = None, task: str | None = None
) -> list[StoredResult]:
    """Drop stored answers of a video or task (its name or a version) or all; gc deletes them later.

    Returns what was dropped. Raises CommitDropped where others go on storing such answers.
    """
    dropped: dict[str, StoredResult] = {}
    for _ in range(_TRIES):
        snapshot = catalog.snapshot()
        found = stored_results(snapshot, video_id=video_id, task=task)
        if not found:
            break
        with contextlib.suppress(CommitDropped):
            for owner in dict.fromkeys(result.video_id for result in found):
                own = [result for result in found if result.video_id == owner]
                commit_answers(catalog.log, owner, (), [result.key for result in own], snapshot=snapshot)
                dropped |= {result.key: result for result in own}
            break
    else:
        raise CommitDropped(
            f"answers in {catalog.log.store.root}: others stored more all the time; try again"
        )
    return list(dropped.values())


# ---------------------------------------------------------------- parts


def new_parts(
    found: Mapping[tuple[int, str], Found], covered: Mapping[tuple[int, str], Sequence[Intervals]]
) -> list[AnswerPart]:
    """What was `found` and is not `covered` yet, each frame once, by segment and route."""
    parts = []
    for (segment, route), some in sorted(found.items()):
        held = [one.listed() for one in covered.get((segment, route), ())]
        seen = np.concatenate([np.empty(0, dtype=np.int64), *held])
        frames, tables = [], []
        for asked, rows in zip(some.frames, some.rows, strict=True):
            new = np.setdiff1d(asked, seen)
            seen = np.concatenate([seen, new])
            frames.append(new)
            tables.append(_rows_on(rows, new))
        new = np.concatenate(frames)
        if len(new):
            rows = _by_frame(pa.concat_tables(tables))
            parts.append(AnswerPart(segment=segment, route=route, covered=intervals(new), rows=rows))
    return parts


def merged(
    parts: Sequence[AnswerPart], there: Sequence[IndexedAnswers], reader: PartReader
) -> list[AnswerPart]:
    """`parts` and those that are stored already, one for each segment and route. Raises StoreError."""
    schema = parts[0].rows.schema
    together: dict[tuple[int, str], list[AnswerPart]] = {}
    for part in parts:
        together.setdefault((part.segment, part.route), []).append(part)
    for stored in there:
        rows = reader.read(stored)
        table = schema.empty_table() if rows is None else rows.select(schema.names).cast(schema)
        part = AnswerPart(segment=stored.segment, route=stored.route, covered=stored.covered, rows=table)
        together.setdefault((part.segment, part.route), []).append(part)
    return [
        AnswerPart(
            segment=segment,
            route=route,
            covered=intervals(np.concatenate([part.covered.listed() for part in some])),
            rows=_by_frame(pa.concat_tables([part.rows for part in some])),
        )
        for (segment, route), some in sorted(together.items())
    ]


def _answers(place: Place, parts: Sequence[AnswerPart]) -> StoredAnswers:
    task = place.question.task
    return StoredAnswers(
        video_id=place.video_id,
        task=task.name,
        version=task.version,
        result=place.result,
        parts=tuple(parts),
    )


def _rows_on(rows: pa.Table, frames: NDArray[np.int64]) -> pa.Table:
    return rows.filter(pa.array(np.isin(rows["frame"].to_numpy(), frames)))


def _by_frame(rows: pa.Table) -> pa.Table:
    # Of one frame the rows stay in their order.
    return rows.take(pa.array(np.argsort(rows["frame"].to_numpy(), kind="stable"))).combine_chunks()
