"""One video's segments finished by many workers, ahead of the ingest that then only puts them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from nvpstore.catalog import Catalog
from nvpstore.config import Settings
from nvpstore.engine.contract import Engine
from nvpstore.ingest.named import registered_tasks
from nvpstore.ingest.pipeline import Ingest, IngestProgress, IngestRequest
from nvpstore.ingest.writer import one_at_a_time, usable_device
from nvpstore.storage.objects import open_store
from nvpstore.types import SourceScan

OnSegment = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentJob:
    """What a worker has to know to finish a segment of `source`; can be pickled.

    Its file must be found where the worker runs. `tasks` are names, or NAME@VERSION.
    """

    root: str
    settings: Settings
    request: IngestRequest
    tasks: tuple[str, ...]
    source: SourceScan


def finish_ahead(
    catalog: Catalog, job: SegmentJob, engine: Engine, *, on_segment: OnSegment | None = None
) -> int:
    """Finish the segments that are not yet, by workers of `engine`; returns how many that were.

    Their files come back to this machine, where the video's ingest finds them. Raises what a segment does.
    """
    ingest = _ingest(catalog, job)
    numbers = [span.segment for span in job.source.segments]
    missing = [number for number in numbers if not ingest.finished_file(job.source, number).exists()]
    # Who fits it alone meanwhile would do the same work.
    with one_at_a_time(catalog.folder / "fits" / f"{job.source.video_id}.ahead.lock"):
        for done, (number, data) in enumerate(engine.run(partial(_finish, job), missing), 1):
            _write(ingest.finished_file(job.source, number), data)
            if on_segment is not None:
                on_segment(done, len(missing))
    return len(missing)


def segment_job(
    catalog: Catalog, settings: Settings, request: IngestRequest, tasks: tuple[str, ...]
) -> SegmentJob:
    """The job for a file, scanned here once. Raises SourceError for a file that is no whole video."""
    usable = replace(request, device=usable_device(request.device))
    registered_tasks(catalog, tasks)  # once, not by all workers at the same time
    source = Ingest(
        usable, (), log=catalog.log, work_dir=catalog.folder / "fits", on_progress=_ignored
    ).scanned()
    return SegmentJob(
        root=catalog.log.store.root, settings=settings, request=usable, tasks=tasks, source=source
    )


# ---------------------------------------------------------------- in a worker


def _finish(job: SegmentJob, number: int) -> tuple[int, bytes]:
    torch.set_num_threads(job.settings.threads)
    path = _ingest(_catalog(job.root, job.settings), job).finish(job.source, number)
    return number, path.read_bytes()


@cache
def _catalog(root: str, settings: Settings) -> Catalog:
    return Catalog(open_store(root), settings.cache_dir)


def _ingest(catalog: Catalog, job: SegmentJob) -> Ingest:
    return Ingest(
        job.request,
        registered_tasks(catalog, job.tasks),
        log=catalog.log,
        work_dir=catalog.folder / "fits",
        on_progress=_ignored,
    )


def _write(path: Path, data: bytes) -> None:
    """Put a finished segment's file where it is not; a worker of this machine wrote it itself."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def _ignored(_: IngestProgress) -> None:
    pass
