"""A batch, from its statement to its committed result: compute what is left, then write, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from nvpstore.batches.output import Manifest, Output, next_run
from nvpstore.batches.work import PartDone, WorkPart, divide
from nvpstore.engine.contract import Engine
from nvpstore.errors import UsageError
from nvpstore.query.part import WorkLeft
from nvpstore.storage.keys import new_attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """`frames_done` of `frames_total` to compute; `eta_seconds` None until a first part is done."""

    parts_done: int
    parts_total: int
    frames_done: int
    frames_total: int
    eta_seconds: float | None

    @property
    def phase(self) -> str:
        return "batch"

    @property
    def done(self) -> int:
        return self.frames_done

    @property
    def total(self) -> int:
        return self.frames_total

    @property
    def psnr(self) -> None:
        return None


OnProgress = Callable[[BatchProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEstimate:
    """What a batch would take. `frames` are still to compute, `answered_frames` stored already, counted once
    a task; `bytes` to read, `gflops` to compute. `seconds` at `frames_a_second` of one worker, `money` at a
    price of its hour: None where these were not given.
    """

    videos: int
    segments: int
    frames: int
    answered_frames: int
    bytes: int
    gflops: float | None
    parts: int
    seconds: float | None = None
    money: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """What a batch did. `touched_videos` had something to compute; `already_there`: an equal one was finished
    before, and nothing was done.
    """

    uri: str
    run: int
    rows: int
    files: int
    bytes: int
    snapshot: int
    touched_videos: int
    decoded_frames: int
    answered_frames: int
    seconds: float
    already_there: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """How an archive is asked: what is left of a statement, its rows in batches with the attempts of all
    videos that they are of, these attempts alone, by id, and what a worker does with a part."""

    left: Callable[[str], WorkLeft]
    stream: Callable[[str], tuple[Iterator[pa.RecordBatch], dict[str, str]]]
    videos: Callable[[], dict[str, str]]
    answer: Callable[[str], Callable[[WorkPart], PartDone]]


def run_batch(
    sql: str,
    question: Question,
    output: Output,
    engine: Engine,
    *,
    workers: int,
    scratch: Path,
    partition_by: Sequence[str] = (),
    incremental: bool = False,
    on_progress: OnProgress | None = None,
) -> BatchReport:
    """Compute, write, commit. Killed anywhere, the same call goes on with what is not stored yet.

    Raises UsageError where the output holds the result of another statement, or of this one as of other
    videos without `incremental`; else as queries and stores do.
    """
    began = time.monotonic()
    with output.alone():
        manifests = output.manifests()
        _check_same(manifests, sql, output)
        output.remove_leftovers(manifests)
        new = _new_videos(manifests, question, output, incremental=incremental)
        if manifests and not new:
            return _nothing_new(manifests, output, began)
        asked = of_videos(sql, new) if manifests else sql
        left = question.left(asked)
        parts = divide(left.work, workers=workers)
        done = _compute(engine, question.answer(asked), parts, on_progress)
        written = _write(
            question.stream(asked),
            output,
            scratch=scratch,
            partition_by=partition_by,
            only=new if manifests else None,
        )
        manifest = next_run(manifests, {"sql": sql, "snapshot": left.snapshot, **written})
        output.commit(manifest)
    return _report(manifest, left, done, output, began)


def _new_videos(
    manifests: Sequence[Manifest], question: Question, output: Output, *, incremental: bool
) -> list[str]:
    """The videos that no run answered yet. Raises UsageError for what may not be added to."""
    videos, known = question.videos(), _known(manifests)
    _check_unchanged(known, videos, output)
    new = sorted(videos.keys() - known.keys())
    if manifests and new and not incremental:
        raise UsageError(
            f"{output.store.root} holds this batch as of {len(known)} videos, {len(new)} came since: "
            "--incremental adds them, or name another place"
        )
    return new


def _write(
    stream: tuple[Iterator[pa.RecordBatch], dict[str, str]],
    output: Output,
    *,
    scratch: Path,
    partition_by: Sequence[str],
    only: Sequence[str] | None,
) -> dict[str, Any]:
    """Put the rows; what the manifest is to say about them. `only`: of these videos (None: of all)."""
    scratch.mkdir(parents=True, exist_ok=True)
    # Of one state: a video that comes now is in both, rows and manifest, or in neither.
    batches, answered = stream
    if only is not None:
        answered = {video: answered[video] for video in only if video in answered}
    with TemporaryDirectory(dir=scratch) as folder:
        rows, columns, files = output.write(
            batches, attempt=new_attempt(), folder=Path(folder), partition_by=partition_by
        )
    return {"rows": rows, "columns": columns, "files": files, "videos": answered}


def _report(
    manifest: Manifest, left: WorkLeft, done: Sequence[PartDone], output: Output, began: float
) -> BatchReport:
    return BatchReport(
        uri=output.store.root,
        run=manifest.run,
        rows=manifest.rows,
        files=len(manifest.files),
        bytes=sum(file.size_bytes for file in manifest.files),
        snapshot=left.snapshot,
        touched_videos=left.videos,
        decoded_frames=sum(part.decoded_frames for part in done),
        answered_frames=left.answered_frames,
        seconds=time.monotonic() - began,
    )


def estimate_batch(
    left: WorkLeft, *, workers: int, frames_a_second: float | None = None, price_an_hour: float | None = None
) -> BatchEstimate:
    """What `left` would take; `frames_a_second` of one worker, `price_an_hour` of one worker."""
    seconds = None if not frames_a_second else left.frames / (frames_a_second * workers)
    money = None
    if seconds is not None and price_an_hour is not None:
        money = seconds * workers / 3600 * price_an_hour
    return BatchEstimate(
        videos=left.videos,
        segments=left.work.num_rows,
        frames=left.frames,
        answered_frames=left.answered_frames,
        bytes=left.bytes,
        gflops=left.gflops,
        parts=len(divide(left.work, workers=workers)),
        seconds=seconds,
        money=money,
    )


def of_videos(sql: str, video_ids: Sequence[str]) -> str:
    """The rows of a statement that are about these videos: it must have a column `video_id`."""
    listed = ", ".join(f"'{video_id}'" for video_id in video_ids)
    # On lines of its own, so that a comment in it ends before our parenthesis.
    return f"SELECT * FROM (\n{sql.strip().rstrip(';')}\n) WHERE video_id IN ({listed})"


def _compute(
    engine: Engine,
    answer: Callable[[WorkPart], PartDone],
    parts: Sequence[WorkPart],
    on_progress: OnProgress | None,
) -> list[PartDone]:
    began, done, frames = time.monotonic(), list[PartDone](), 0
    total = sum(part.frames for part in parts)
    sizes = {part.number: part.frames for part in parts}
    for one in engine.run(answer, parts):
        done.append(one)
        frames += sizes[one.number]
        if on_progress is not None:
            pace = (time.monotonic() - began) / frames
            on_progress(
                BatchProgress(
                    parts_done=len(done),
                    parts_total=len(parts),
                    frames_done=frames,
                    frames_total=total,
                    eta_seconds=pace * (total - frames),
                )
            )
    return done


def _check_same(manifests: Sequence[Manifest], sql: str, output: Output) -> None:
    if manifests and manifests[0].sql != sql:
        raise UsageError(f"{output.store.root} holds the result of another statement: name another place")


def _check_unchanged(known: Mapping[str, str], videos: Mapping[str, str], output: Output) -> None:
    changed = [video for video, attempt in videos.items() if known.get(video, attempt) != attempt]
    if changed:
        raise UsageError(
            f"{output.store.root} holds rows of {len(changed)} videos as they were before they were fitted "
            f"anew, such as {changed[0]}: name another place"
        )


def _known(manifests: Sequence[Manifest]) -> dict[str, str]:
    known: dict[str, str] = {}
    for manifest in manifests:
        known |= manifest.videos
    return known


def _nothing_new(manifests: Sequence[Manifest], output: Output, began: float) -> BatchReport:
    last = manifests[-1]
    return BatchReport(
        uri=output.store.root,
        run=last.run,
        rows=last.rows,
        files=len(last.files),
        bytes=sum(file.size_bytes for file in last.files),
        snapshot=last.snapshot,
        touched_videos=0,
        decoded_frames=0,
        answered_frames=0,
        seconds=time.monotonic() - began,
        already_there=True,
    )
