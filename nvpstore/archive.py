"""The archive: one object behind the command line, the service and Python programs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb
import pyarrow as pa

from nvpstore.batches.work import PartDone, WorkPart
from nvpstore.catalog import Catalog, Snapshot
from nvpstore.catalog.answers import StoredResult, stored_results
from nvpstore.config import Settings, load_settings
from nvpstore.engine.choice import EngineName, made_engine
from nvpstore.errors import CommitDropped, StoreError, UsageError
from nvpstore.exports import (
    ExportSummary,
    Form,
    Picture,
    export_excerpt,
    export_original,
    export_whole,
    pixel_aspect,
    told,
)
from nvpstore.query.attached import attach_views
from nvpstore.query.children import Children
from nvpstore.query.compared import SteadyAnswers, Which, compare_answers
from nvpstore.query.keeping import KeptAnswers, drop_answers
from nvpstore.query.limits import Limits
from nvpstore.query.names import FRAMES
from nvpstore.query.parse import PlanFormat
from nvpstore.query.part import answer_part, work_left
from nvpstore.query.progress import OnProgress
from nvpstore.query.request import Request
from nvpstore.query.result import Result
from nvpstore.query.run import Stream, execute, execute_stream
from nvpstore.storage import keys
from nvpstore.storage.gc import Garbage, collect
from nvpstore.storage.log import GRACE_SECONDS, Log, create_archive
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.storage.originals import original_file
from nvpstore.storage.range_cache import RangeCache
from nvpstore.storage.ranges import RangeReader
from nvpstore.types import FrameBatch, SavedView, StoredObject, VideoMeta, VideoState
from nvpstore.upkeep.caches import drop_damaged
from nvpstore.upkeep.copying import CopyReport, copy_videos, videos_where
from nvpstore.upkeep.erasure import Erasure, erase_video
from nvpstore.upkeep.meta import change_meta, in_utc
from nvpstore.upkeep.progress import OnProgress as OnUpkeep
from nvpstore.upkeep.renewal import renew_checkpoints
from nvpstore.upkeep.report import VerifyReport
from nvpstore.upkeep.verify import verify
from nvpstore.upkeep.views import drop_view, save_view
from nvpstore.video.source import probe

if TYPE_CHECKING:
    from nvpstore.adapters.stabilizer import Variant
    from nvpstore.batches.driver import BatchEstimate, BatchReport, Question
    from nvpstore.batches.driver import OnProgress as OnBatch
    from nvpstore.ingest.adding import KeepAdded
    from nvpstore.ingest.estimate import Estimate
    from nvpstore.ingest.pipeline import IngestProgress, KeepSource
    from nvpstore.ingest.stabilizing import StabilizerSummary
    from nvpstore.ingest.training import TrainedVideo
    from nvpstore.ingest.writer import Writer
    from nvpstore.query.operators import TorchOperators
    from nvpstore.upkeep.tasks import AddedTask

T = TypeVar("T")

DEFAULT_TASKS = ("labels",)
DEFAULT_PRESET = "demo"
DEFAULT_SHARE = 0.05  # of a segment's frames, for later tasks to learn from
DEFAULT_STEADY_SHARE = 0.25  # of a segment's frames, for a stabilizer to learn from
DEFAULT_STEADY_STEPS = 200
DEFAULT_STABILITY = 0.2  # at 0.4 stabilizers came to hold on to the first frame (results/stability.json)
DEFAULT_MEASURED = 256  # others a segment, to judge by


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSummary:
    """One stored video, as `ingest` reports it. `psnr` (dB) as in the `videos` view.

    An added video has no PSNR, bpp and fit time.
    """

    video_id: str
    name: str
    state: VideoState
    frames: int
    psnr: float | None
    bpp: float | None
    stored_bytes: int
    source_bytes: int
    fit_seconds: float | None
    already_stored: bool


def open(uri: str | Path, *, create: bool = False, settings: Settings | None = None) -> Archive:
    """Open the archive at `uri` (a path, `file://`, `s3://bucket/prefix`, …).

    With `create`, an empty one is made where there is none. Raises ArchiveError otherwise.
    """
    store = open_store(str(uri))
    if create and not store.exists(keys.log_key(0)):
        return Archive.create(uri, settings=settings)
    return Archive(store, settings or load_settings())


class Archive:
    """Videos stored as neural networks, and the questions that can be asked of them."""

    def __init__(self, store: ObjectStore, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self.catalog = Catalog(store, settings.cache_dir)
        self.log: Log = self.catalog.log
        self._operators: TorchOperators | None = None
        self._making = threading.Lock()
        self._kept = _kept_answers(self.catalog, settings)

    @classmethod
    def create(
        cls, uri: str | Path, *, settings: Settings | None = None, grace_seconds: int = GRACE_SECONDS
    ) -> Archive:
        """Make an empty archive. Raises ArchiveError where there is one already.

        `grace_seconds` (≥ 1) is how long `gc` leaves alone what is not named any more, for as long as the
        archive lives; an upload may take half of it.
        """
        store = open_store(str(uri))
        create_archive(store, grace_seconds=grace_seconds)
        return cls(store, settings or load_settings())

    def __repr__(self) -> str:
        return f"Archive({self.store.root!r})"

    # ------------------------------------------------------------ writing

    def ingest(
        self,
        path: str | Path,
        *,
        tasks: Sequence[str] = DEFAULT_TASKS,
        preset: str = DEFAULT_PRESET,
        tags: Mapping[str, str] | None = None,
        name: str | None = None,
        recorded_at: datetime | None = None,
        device: str = "auto",
        keep_source: KeepSource = "reference",
        source_uri: str | None = None,
        refit: bool = False,
        tone_map: bool = False,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> VideoSummary:
        """Fit a video file and store it, with routes for `tasks`.

        The same bytes again do no work (changed tags or a new name are recorded), unless they were only
        added; `refit` fits anew.
        `recorded_at` needs a time zone. `source_uri` says where the original is to be found, where that is
        not `path`. `tone_map` lets HDR be mapped to SDR, which is what is stored. Raises SourceError for a
        file that is no whole video, or HDR without that, UsageError for unknown tasks or presets,
        CommitDropped if the video is erased meanwhile.
        """
        recorded_at = recorded_at and in_utc(recorded_at)
        video_id, new = self._writer(progress).ingest(
            path,
            tasks=tasks,
            preset=preset,
            tags=tags,
            name=name,
            recorded_at=recorded_at,
            device=device,
            keep_source=keep_source,
            source_uri=source_uri,
            refit=refit,
            tone_map=tone_map,
        )
        # What people said of a video stays when it is fitted; this is said now.
        self.tag(video_id, tags=tags, name=name, recorded_at=recorded_at)
        return self._written(video_id, tasks, new=new)

    def add(
        self,
        path: str | Path,
        *,
        tasks: Sequence[str] = DEFAULT_TASKS,
        tags: Mapping[str, str] | None = None,
        name: str | None = None,
        recorded_at: datetime | None = None,
        keep_source: KeepAdded = "reference",
        source_uri: str | None = None,
        tone_map: bool = False,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> VideoSummary:
        """Register a video file without fitting it: queries read the original until `fit` has fitted it.

        Takes about as long as reading the file. Any task of the archive can be asked of it; `tasks` are
        registered if they are not yet. Otherwise as `ingest`; an original that is neither copied nor
        referenced could not answer.
        """
        recorded_at = recorded_at and in_utc(recorded_at)
        video_id, new = self._writer(progress).add(
            path,
            tasks=tasks,
            tags=tags,
            name=name,
            recorded_at=recorded_at,
            keep_source=keep_source,
            source_uri=source_uri,
            tone_map=tone_map,
        )
        if not new:
            self.tag(video_id, tags=tags, name=name, recorded_at=recorded_at)
        return self._written(video_id, (), new=new)

    def fit(
        self,
        ref: str,
        *,
        tasks: Sequence[str] = DEFAULT_TASKS,
        preset: str = DEFAULT_PRESET,
        device: str = "auto",
        keep_source: KeepSource | None = None,
        refit: bool = False,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> VideoSummary:
        """Fit a video that was added, from its original; with `refit` also one that is fitted.

        `keep_source` None leaves the original as it is kept now; "none" forgets it. Its name, tags and
        answers' columns stay. Raises SourceError where the original is gone or another file, UsageError for
        an unknown video, else as `ingest`.
        """
        video_id, new = self._writer(progress).fit(
            ref,
            tasks=tasks,
            preset=preset,
            device=device,
            keep_source=keep_source,
            refit=refit,
            cache=self._originals(),
        )
        return self._written(video_id, tasks, new=new)

    def add_task(self, name: str, **described: Any) -> AddedTask:
        """Register a task: the built-in one of that name, or as `described` by fields of `TaskRequest`.

        These are `like` (a built-in task), `provider`, `model`, `kind`, `size`, `fit`, `mean`, `std`, `clip`,
        `labels`, `options`; `weights` (a file of tensors, which the archive keeps) or `seed` (drawn at
        random) where no package brings any; `new_version` for a name that is there. Originals answer it at
        once; `train_task` makes it cheap. Raises UsageError for names and descriptions that no task can have,
        TaskError where model, weights and labels do not fit each other.
        """
        from nvpstore.upkeep.tasks import TaskRequest, add_task

        return add_task(self.catalog, TaskRequest(name=name, **described))

    def train_task(
        self,
        name: str,
        *,
        videos: str | None = None,
        share: float = DEFAULT_SHARE,
        measured: int = DEFAULT_MEASURED,
        device: str = "auto",
        again: bool = False,
        dry_run: bool = False,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> list[TrainedVideo]:
        """Give fitted videos routes for a task: those without, or with `again` all.

        `videos` is an SQL predicate over the columns of the `videos` view. The backbone is asked about a
        `share` of each segment's frames to learn from, and about at most `measured` others to judge by. Each
        video is visible at once as a whole; killed anywhere, a rerun goes on. `dry_run` writes nothing: it
        measures one segment and scales that up. Raises TaskError for an unknown task, QueryError for a wrong
        predicate; what goes wrong with one video is said in its row.
        """
        from nvpstore.ingest.training import TrainingRequest, train_task

        request = TrainingRequest(share=share, measured=measured, device=device, again=again)
        chosen = self.videos_where(videos)
        trained = train_task(
            self.catalog,
            name,
            chosen,
            request,
            reader=self._new_operators(),
            dry_run=dry_run,
            on_progress=progress,
        )
        if not dry_run:
            self._committed()
        return trained

    def stabilize(
        self,
        name: str,
        *,
        videos: str | None = None,
        share: float = DEFAULT_STEADY_SHARE,
        steps: int = DEFAULT_STEADY_STEPS,
        stability: float = DEFAULT_STABILITY,
        variant: Variant | None = None,
        device: str = "auto",
        dry_run: bool = False,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> StabilizerSummary:
        """Train what makes a task's answers steady, or ("frames") pictures; queries ask by stabilize := true.

        It learns from a `share` of the frames of at most 64 segments of the `videos` (an SQL predicate over
        the columns of the `videos` view), and takes the place of the one that the task version had. λ =
        `stability` says what steadiness is worth beside being right; from 0.5 on that may mislead. `dry_run`
        writes nothing. Raises TaskError for an unknown task, QueryError for a wrong predicate, UsageError
        for settings that no training can have.
        """
        from nvpstore.ingest.stabilizing import StabilizeRequest, stabilize

        request = StabilizeRequest(
            share=share, steps=steps, stability=stability, variant=variant, device=device
        )
        made = stabilize(
            self.catalog,
            name,
            self.videos_where(videos),
            request,
            reader=self._new_operators(),
            dry_run=dry_run,
            on_progress=progress,
        )
        if not dry_run:
            self._committed()
        return made

    def steadiness(
        self, name: str, *, videos: str | None = None, every: float | None = None
    ) -> list[SteadyAnswers]:
        """How often a task's first label changes within segments, without and with its stabilizer.

        The second row is there where the archive has one. Raises QueryError for a kind without ranks.
        """
        task, _, version = name.partition("@")
        record = self.catalog.snapshot().task(task, version or None)
        with_one = self.catalog.snapshot().stabilizer(record.name, record.version) is not None
        options = [] if every is None else [f"every := {every!r}"]
        asked: list[tuple[Which, list[str]]] = [
            ("plain", options),
            ("stabilized", [*options, "stabilize := true"]),
        ]
        return compare_answers(
            lambda sql: self.sql(sql).arrow(),
            f'"{record.name}@{record.version}"',
            asked[: 1 + with_one],
            videos=videos,
        )

    def original(self, ref: str) -> Path:
        """A file with the original's bytes on this machine: the file itself, or a copy in the cache.

        Raises SourceError where it was not kept, is gone, or is another file by now.
        """
        snapshot = self.catalog.snapshot()
        video = snapshot.video(snapshot.find_video(ref))
        return original_file(self.store, video, cache=self._originals(), as_of=snapshot.number)

    def videos_where(self, where: str | None = None) -> list[str]:
        """Ids of the videos for which an SQL predicate over the columns of the `videos` view holds; all.

        Raises QueryError for a wrong one.
        """
        return videos_where(
            self.catalog.snapshot(),
            where,
            operators_factory=self._torch_operators,
            settings=self.settings,
        )

    def tag(
        self,
        ref: str,
        *,
        tags: Mapping[str, str] | None = None,
        remove: Sequence[str] = (),
        name: str | None = None,
        recorded_at: datetime | None = None,
        hold: bool | None = None,
    ) -> VideoMeta:
        """Change what is said about a video; what is not given stays. Returns all of it.

        A video on `hold` cannot be erased. `recorded_at` needs a time zone. Raises UsageError for a tag to
        `remove` that is not there.
        """
        return change_meta(
            self.catalog, ref, tags=tags, remove=remove, name=name, recorded_at=recorded_at, hold=hold
        )

    def erase(self, ref: str) -> Erasure:
        """Erase a video: its objects, name, tags and what this machine keeps of it. Only its id remains.

        An erased video's id again deletes what killed writers left since. Raises UsageError for an unknown
        video and for one on hold.
        """
        return erase_video(self.catalog, ref)

    def gc(self, *, grace: timedelta | None = None, dry_run: bool = False) -> Garbage:
        """Delete what no log entry names any more and nobody can be writing or reading.

        `grace` may be longer than the archive's, not shorter. Raises UsageError for a shorter one.
        """
        found = collect(self.log, self.catalog.snapshot, grace=grace, dry_run=dry_run)
        if not dry_run:
            renew_checkpoints(self.catalog)
        return found

    def estimate(
        self,
        path: str | Path,
        *,
        preset: str = DEFAULT_PRESET,
        tasks: Sequence[str] = DEFAULT_TASKS,
        device: str = "auto",
    ) -> Estimate:
        """What `ingest` of this file would take on this machine, from a short trial, its tasks included.

        Raises SourceError for what is no video, UsageError for an unknown preset, TaskError for a task.
        """
        from nvpstore.codec.build import find_preset
        from nvpstore.ingest.estimate import estimate_fit
        from nvpstore.ingest.named import named_task
        from nvpstore.ingest.writer import usable_device

        found = find_preset(preset)
        loaded = [named_task(self.catalog, name) for name in dict.fromkeys(tasks)]
        return estimate_fit(probe(str(path)), found, tasks=loaded, device=usable_device(device))

    def results(self, *, video: str | None = None, task: str | None = None) -> list[StoredResult]:
        """The stored answers of queries, oldest first: all, or those of a video or task.

        `task` is NAME or NAME@VERSION. Raises UsageError for an unknown video, TaskError for an unknown task.
        """
        return stored_results(self.catalog.snapshot(), **self._results_of(video, task))

    def drop_results(self, *, video: str | None = None, task: str | None = None) -> list[StoredResult]:
        """Drop stored answers, and return what they were. Later queries compute them again."""
        return drop_answers(self.catalog, **self._results_of(video, task))

    def save_view(self, name: str, sql: str) -> SavedView:
        """Save one SELECT under a name that all queries of the archive can use like a table's.

        It replaces a view of that name. Queries that name it fail where the archive gets a task of that name
        later. Raises UsageError for a name that is malformed or taken, QueryError for a text that is not one
        read-only SELECT over the archive's tables and views, or that reads itself.
        """
        return save_view(self.catalog, name, sql, reserved=DEFAULT_TASKS)

    def drop_view(self, name: str) -> SavedView:
        """Drop a saved view, and return what it was. Raises UsageError for an unknown one."""
        return drop_view(self.catalog, name)

    def views(self) -> list[SavedView]:
        """The saved views, by name."""
        return list(self.catalog.snapshot().views())

    def _results_of(self, video: str | None, task: str | None) -> dict[str, str | None]:
        snapshot = self.catalog.snapshot()
        name, _, version = (task or "").partition("@")
        if task is not None:
            record = snapshot.task(name, version or None)
            name = record.version if version else record.name
        return {
            "video_id": snapshot.find_video(video) if video is not None else None,
            "task": name or None,
        }

    def rebuild_catalog(self) -> None:
        """Drop this machine's index and build it again from the store alone."""
        self.catalog.rebuild()

    def verify(self, *, deep: bool = False, progress: OnUpkeep | None = None) -> VerifyReport:
        """Read every byte that the log names and compare it with its digest, past all caches.

        `deep` also decodes every frame, and compares the PSNR with the stored one where the original is at
        hand. Damaged files of this machine's caches are removed and listed apart.
        """
        folder, budget = self.catalog.folder, self.settings.cache_bytes
        caches = [RangeCache(folder / name, budget_bytes=budget) for name in ("ranges", "originals")]
        return verify(
            self.store,
            deep=deep,
            indexed=self.catalog.snapshot,
            damaged_caches=drop_damaged(folder, caches),
            progress=progress,
        )

    def copy_to(
        self, target: Archive, *, where: str | None = None, progress: OnUpkeep | None = None
    ) -> CopyReport:
        """Copy videos, verified, each visible at once as a whole; killed anywhere, a rerun completes.

        `where` is an SQL predicate over the columns of the `videos` view. Raises QueryError for a wrong one.
        """
        report = copy_videos(self.catalog, target.catalog, self.videos_where(where), progress=progress)
        target._committed()
        return report

    # ------------------------------------------------------------ reading

    def sql(
        self,
        query: str,
        *,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        tables: Mapping[str, Any] | None = None,
        views: Mapping[str, str] | None = None,
        progress: OnProgress | None = None,
    ) -> Result:
        """Run one SELECT, or EXPLAIN [ANALYZE] one. Raises QueryError naming line and column.

        `tables` are the caller's own, by name: Arrow, pandas or polars. `views` are named SELECTs, under the
        same rules as the query. Both hide saved views of their names in the query and in `views`.
        """

        request = self._request(query, params=params, tables=tables, views=views, progress=progress)
        return self._read(lambda snapshot: execute(request(snapshot)))

    def stream(
        self,
        query: str,
        *,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        tables: Mapping[str, Any] | None = None,
        views: Mapping[str, str] | None = None,
        progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        seconds: float | None = None,
        children: Children | None = None,
    ) -> Stream:
        """The rows of one SELECT in batches, as they are computed: for answers larger than memory.

        Set `cancel` from any thread, and the next batch is a QueryError, also while the first one is awaited.
        After `seconds` (None: as settings say) it is a QueryTimeout. With `children`, DuckDB runs what the
        caller wrote in one of those processes, which the system ends at its limits; rows are the same.
        The rest as in `sql`.
        """
        request = self._request(query, params=params, tables=tables, views=views, progress=progress)
        limited = replace(request(self.catalog.snapshot()), cancel=cancel, seconds=seconds, children=children)
        return execute_stream(limited)

    def explain(
        self,
        query: str,
        *,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        plan_format: PlanFormat = "text",
        cancel: threading.Event | None = None,
        seconds: float | None = None,
        children: Children | None = None,
    ) -> Result:
        """The plan of one SELECT, as EXPLAIN of it answers; of an EXPLAIN ANALYZE with what it took.

        The rest as in `stream`.
        """
        request = self._request(query, params=params, tables=None, views=None, progress=None)
        asked = replace(request(self.catalog.snapshot()), explain=plan_format)
        return execute(replace(asked, cancel=cancel, seconds=seconds, children=children))

    def batch(
        self,
        query: str,
        out: str | Path,
        *,
        engine: EngineName = "local",
        workers: int = 1,
        partition_by: Sequence[str] = (),
        incremental: bool = False,
        progress: OnBatch | None = None,
    ) -> BatchReport:
        """Run one SELECT over everything and write its rows as Parquet under `out`, exactly once.

        Answers are computed by `workers` (processes, or Ray actors) and stored as all queries find them; so a
        batch that was killed goes on, and later queries compute nothing again. `partition_by` columns make
        folders. A finished batch again is no work; with `incremental` the rows of videos that came since are
        added, for which the statement needs a column `video_id`. Raises UsageError where `out` holds
        something else, where answers are not kept, or for an engine that is not installed.
        """
        from nvpstore.batches.driver import run_batch
        from nvpstore.batches.output import Output

        return run_batch(
            query,
            self._question(workers, here=engine == "local" and workers == 1),
            Output(open_store(str(out))),
            made_engine(engine, workers=workers),
            workers=workers,
            scratch=self.catalog.folder / "batches",
            partition_by=partition_by,
            incremental=incremental,
            on_progress=progress,
        )

    def estimate_batch(
        self,
        query: str,
        *,
        workers: int = 1,
        frames_a_second: float | None = None,
        price_an_hour: float | None = None,
    ) -> BatchEstimate:
        """What `batch` would take: frames, bytes, GFLOPs; time and money by what one worker does and costs.

        Computes and writes nothing.
        """
        from nvpstore.batches.driver import estimate_batch

        left = self._question(workers, here=True).left(query)
        return estimate_batch(
            left, workers=workers, frames_a_second=frames_a_second, price_an_hour=price_an_hour
        )

    def attach(self, con: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
        """Add the views `videos segments tasks routes` to a DuckDB connection of the caller's, as of now.

        They are in schema `nvp`, and also by plain name where that is free. Returns the names to use.
        """
        return attach_views(con, self.catalog.snapshot())

    def videos(self) -> list[dict[str, Any]]:
        """The rows of the `videos` view, newest last."""
        return self._rows("SELECT * FROM videos ORDER BY name, video_id")

    def show(self, ref: str) -> dict[str, Any]:
        """One video with its segments and routes. `ref`: id, its beginning, or a unique name."""
        video_id = self.catalog.snapshot().find_video(ref)
        where = f"WHERE video_id = '{video_id}'"
        (video,) = self._rows(f"SELECT * FROM videos {where}")
        segments = self._rows(f"SELECT * EXCLUDE (video_id) FROM segments {where} ORDER BY segment")
        routes = self._rows(
            f"SELECT * EXCLUDE (video_id) FROM routes {where} ORDER BY task, segment, route, gflops"
        )
        return {**video, "segments": segments, "routes": routes}

    def tasks(self, *, available: bool = False) -> list[dict[str, Any]]:
        """The registered tasks; with `available`, all that this release knows, weights or not."""
        registered = {row["name"]: row for row in self._rows("SELECT * EXCLUDE (labels) FROM tasks")}
        if not available:
            return [registered[name] for name in sorted(registered)]
        from nvpstore.tasks.registry import describe_available

        known = [
            {**task, "weights": "package" if task["version"] else None}
            for task in describe_available()
            if task["name"] not in registered
        ]
        return sorted([*registered.values(), *known], key=lambda row: str(row["name"]))

    def task(self, name: str) -> dict[str, Any]:
        """One task with its labels in class order; `NAME@VERSION` pins a version by its beginning."""
        name, _, version = name.partition("@")
        snapshot = self.catalog.snapshot()
        if version or name in {task.name for task in snapshot.tasks()}:
            record = snapshot.task(name, version or None)
            return {**asdict(record), "weights": snapshot.weights_of(record)}
        from nvpstore.tasks.registry import builtin_spec, load

        return {**asdict(load(builtin_spec(name)).record()), "weights": "package"}

    def frames(
        self,
        ref: str,
        *,
        start: float | None = None,
        end: float | None = None,
        batch_frames: int = 16,
        stabilize: bool = False,
        upscale: int = 1,
    ) -> Iterator[FrameBatch]:
        """Decoded frames with start ≤ ts < end (seconds), at source size, as `export` writes them.

        Of an added video they are the original's. With `stabilize` they are made steady; raises UsageError
        where the archive has no stabilizer of pictures. `upscale` 2 or 4: as many times larger, their detail
        synthesised; what a frame looks like does not depend on where the range begins.
        """
        snapshot = self.catalog.snapshot()
        video_id = snapshot.find_video(ref)
        yield from self._torch_operators().decode_frames(
            snapshot,
            video_id,
            start=start,
            end=end,
            batch_frames=batch_frames,
            stabilizer=_steady_pictures(snapshot) if stabilize else None,
            upscale=upscale,
        )

    def frame(self, ref: str, number: int) -> Picture:
        """One decoded frame, by its number from 0, as `frames` gives it: only its segment is fetched.

        Raises NotFound where the video has no such frame.
        """
        snapshot = self.catalog.snapshot()
        video = snapshot.video(snapshot.find_video(ref))
        record = snapshot.segment(video.video_id, snapshot.segment_of(video.video_id, number))
        shown = self._torch_operators().decode_frame(snapshot, video.video_id, record, number)
        return Picture(
            video=video,
            frame=number,
            ts=float((int(shown.pts[0]) - (video.pts_origin or 0)) * video.time_base),
            psnr=float(record.frame_psnr[number - record.start_frame]) if record.fitted else None,
            rgb_hwc=shown.rgb_thwc[0],
        )

    def export(
        self,
        ref: str,
        out: str | Path,
        *,
        start: float | None = None,
        end: float | None = None,
        lossless: bool = False,
        original: bool = False,
        stabilize: bool = False,
        upscale: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> ExportSummary:
        """Write a video for people: H.264 in mp4, `lossless` FFV1 RGB in mkv, PNGs for a folder (`…/`).

        An excerpt starts at time 0 and is silent. The file is marked as reconstructed, with the source's
        digest, the model and its PSNR; of an added video it shows the original's own pictures, and says so.
        `original` writes the source's own bytes, where they are kept; with `stabilize` pictures are made
        steady, and with `upscale` larger, as in `frames`; the file says so. `progress` is told how many
        frames are done; what it raises ends the export, of which nothing is left. Raises
        StoreError where `out` cannot be written, UsageError where no frames are asked for.
        """
        snapshot = self.catalog.snapshot()
        video = snapshot.video(snapshot.find_video(ref))
        if original:
            return export_original(self.store, video, str(out))
        frames = self.frames(video.video_id, start=start, end=end, stabilize=stabilize, upscale=upscale)
        batches = told(frames, progress)
        form = Form(
            pixel_aspect=pixel_aspect(self.store, snapshot, video),
            lossless=lossless,
            stabilized=stabilize,
            upscaled=upscale,
        )
        if start is not None or end is not None:
            return export_excerpt(video, batches, str(out), start=start, end=end, form=form)
        sound = self.original(video.video_id) if video.state == "added" else None
        return export_whole(self.store, video, batches, str(out), form=form, original=sound)

    # ------------------------------------------------------------ parts

    def _writer(self, progress: Callable[[IngestProgress], None] | None) -> Writer:
        from nvpstore.ingest.writer import Writer

        return Writer(self.catalog, progress, checkpoint_seconds=self.settings.checkpoint_seconds)

    def _request(
        self,
        sql: str,
        *,
        params: Sequence[Any] | Mapping[str, Any] | None,
        tables: Mapping[str, Any] | None,
        views: Mapping[str, str] | None,
        progress: OnProgress | None,
    ) -> Callable[[Snapshot], Request]:
        """A query of this archive, on the snapshot that the returned function is given."""

        def on(snapshot: Snapshot) -> Request:
            return Request(
                sql=sql,
                snapshot=snapshot,
                operators_factory=self._torch_operators,
                settings=self.settings,
                params=params,
                tables=tables,
                views=views,
                on_progress=progress,
                answers=self._kept.at(snapshot) if self._kept else None,
            )

        return on

    def _question(self, workers: int, *, here: bool) -> Question:
        from nvpstore.batches.driver import Question

        share = replace(
            self.settings,
            threads=max(1, self.settings.threads // workers),
            memory_bytes=max(64 << 20, self.settings.memory_bytes // workers),
        )

        def answer(sql: str) -> Callable[[WorkPart], PartDone]:
            if here:
                return partial(self.answer_part, sql)
            return partial(_answer_elsewhere, self.store.root, share, sql)

        return Question(
            left=lambda sql: work_left(self._asked_now(sql)),
            stream=self._stream_of_videos,
            videos=lambda: _attempts(self.catalog.snapshot()),
            answer=answer,
        )

    def answer_part(self, query: str, part: WorkPart) -> PartDone:
        """Compute and store what a query asks of some segments: a worker's share of a batch."""
        began = time.monotonic()
        measured = answer_part(self._asked_now(query), part.keys)
        return PartDone(
            number=part.number,
            decoded_frames=measured.frames,
            answered_frames=measured.answered_frames,
            seconds=time.monotonic() - began,
        )

    def _asked_now(self, query: str) -> Request:
        make = self._request(query, params=None, tables=None, views=None, progress=None)
        return make(self.catalog.snapshot())

    def _stream_of_videos(self, query: str) -> tuple[Iterator[pa.RecordBatch], dict[str, str]]:
        """The rows of a query, and the videos that there were then."""
        snapshot = self.catalog.snapshot()
        make = self._request(query, params=None, tables=None, views=None, progress=None)
        return execute_stream(make(snapshot)), _attempts(snapshot)

    def _written(self, video_id: str, tasks: Sequence[str], *, new: bool) -> VideoSummary:
        if not new:
            self._check_routes(self.catalog.snapshot(), video_id, tasks)
        self._committed()
        return self._summary(video_id, already_stored=not new)

    def _originals(self) -> RangeCache:
        return RangeCache(self.catalog.folder / "originals", budget_bytes=self.settings.cache_bytes)

    def _committed(self) -> None:
        # A checkpoint only spares others work: that it cannot be written now is no failure.
        with suppress(StoreError):
            self.catalog.checkpoint()

    def _check_routes(self, snapshot: Snapshot, video_id: str, tasks: Sequence[str]) -> None:
        rows = snapshot.ask(
            "SELECT DISTINCT task FROM idx.store.routes WHERE video_id = $id", {"id": video_id}
        )
        stored = {row["task"] for row in rows}
        if missing := [task for task in tasks if task.partition("@")[0] not in stored]:
            raise UsageError(
                f"{video_id} is stored without routes for {', '.join(missing)}: train them on it "
                "(nvp tasks train), or ingest it with --refit"
            )

    def _summary(self, video_id: str, *, already_stored: bool) -> VideoSummary:
        rows = self._rows(f"SELECT * FROM videos WHERE video_id = '{video_id}'")
        if not rows:
            raise CommitDropped(f"video {video_id} was erased as soon as it was stored")
        (row,) = rows
        names = VideoSummary.__slots__
        return VideoSummary(
            already_stored=already_stored, **{n: row[n] for n in names if n != "already_stored"}
        )

    def _rows(self, query: str) -> list[dict[str, Any]]:
        """Rows of a query of our own on the catalog's views."""

        def asked(snapshot: Snapshot) -> pa.Table:
            with snapshot.connect() as con:
                return con.sql(query).to_arrow_table()

        table = self._read(asked)
        return list(table.to_pylist(maps_as_pydicts="strict"))

    def _read(self, ask: Callable[[Snapshot], T]) -> T:
        """`ask` of the newest snapshot; once more if this machine's index turns out to be damaged."""
        snapshot = self.catalog.snapshot()
        try:
            with snapshot.noticing_damage():
                return ask(snapshot)
        except StoreError:
            if not snapshot.damaged:
                raise
        return ask(self.catalog.snapshot())

    def _torch_operators(self) -> TorchOperators:
        if not self.settings.sharing:
            return self._new_operators()
        with self._making:
            if self._operators is None:
                self._operators = self._new_operators()
            return self._operators

    def _new_operators(self) -> TorchOperators:
        # Here, so that planning and catalog queries never pay for torch.
        from nvpstore.query.operators import TorchOperators

        return TorchOperators(
            self.store,
            threads=self.settings.threads,
            cache_dir=self.catalog.folder,
            cache_bytes=self.settings.cache_bytes,
            ahead_bytes=Limits(memory_bytes=self.settings.memory_bytes).ahead_bytes,
            batch_bytes=Limits(memory_bytes=self.settings.memory_bytes).batch_bytes,
        )


def _steady_pictures(snapshot: Snapshot) -> StoredObject:
    found = snapshot.stabilizer(FRAMES, keys.PICTURES)
    if found is None:
        raise UsageError(
            "stabilize: the archive has no stabilizer of pictures; nvp tasks stabilize frames trains one"
        )
    return found


def _kept_answers(catalog: Catalog, settings: Settings) -> KeptAnswers | None:
    if settings.answers == "off":
        return None
    cache = RangeCache(catalog.folder / "ranges", budget_bytes=settings.cache_bytes)
    ranges = RangeReader(catalog.log.store, cache=cache)
    return KeptAnswers(
        catalog.log,
        catalog.snapshot,
        ranges,
        writes=settings.answers == "on",
        found_bytes=Limits(memory_bytes=settings.memory_bytes).found_bytes,
    )


def _attempts(snapshot: Snapshot) -> dict[str, str]:
    """All videos with the attempt that is in force."""
    rows = snapshot.ask("SELECT video_id, attempt FROM idx.store.videos", {})
    return {row["video_id"]: row["attempt"] for row in rows}


@cache
def _opened(root: str, settings: Settings) -> Archive:
    """A worker process's archive, opened once."""
    return Archive(open_store(root), settings)


def _answer_elsewhere(root: str, settings: Settings, query: str, part: WorkPart) -> PartDone:
    return _opened(root, settings).answer_part(query, part)
