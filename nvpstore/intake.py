"""Many videos into an archive by many workers: here, in processes, or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from nvpstore.archive import DEFAULT_PRESET, DEFAULT_TASKS, Archive, VideoSummary
from nvpstore.batches.intake import IntakeItem, IntakeReport, OnIntake, run_intake
from nvpstore.config import Settings
from nvpstore.engine.choice import EngineName, fitting_engine
from nvpstore.engine.contract import Engine
from nvpstore.engine.local import HereEngine
from nvpstore.errors import UsageError
from nvpstore.storage.objects import open_store
from nvpstore.upkeep.folders import LocalVideo, RemoteVideo, VideoFile, at_hand, expand
from nvpstore.video.source import digest_file

if TYPE_CHECKING:
    from nvpstore.ingest.pipeline import KeepSource


By = Literal["videos", "segments"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where the work runs. `gpus_a_worker` is for Ray alone; None: what the cluster has, divided.

    A worker has whole videos `by` videos; by segments they all work on one video after another, for long
    ones.
    """

    engine: EngineName = "local"
    workers: int = 1
    gpus_a_worker: float | None = None
    by: By = "videos"

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise UsageError(f"by {self.by!r}: {' and '.join(get_args(By))} are allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """How each video is fitted, as in `Archive.ingest`; `keep_source` None: its default there."""

    tasks: Sequence[str] = DEFAULT_TASKS
    preset: str = DEFAULT_PRESET
    device: str = "auto"
    keep_source: KeepSource | None = None
    refit: bool = False
    tone_map: bool = False
    tags: tuple[tuple[str, str], ...] = ()
    recorded_at: datetime | None = None


def ingest_all(
    archive: Archive,
    files: Iterable[str],
    *,
    fitting: Fitting | None = None,
    spread: Spread | None = None,
    skip_known: bool = False,
    progress: OnIntake | None = None,
) -> IntakeReport:
    """Fit and store the videos that `files` name (files, folders, globs, prefixes), each on its own.

    Files named in full come first: somebody may wait for them. What is stored already is no work, so that a
    rerun goes on; with `skip_known` a remote file is not even fetched where a fitted video has its URI and
    size. What goes wrong with one video is said in the report. Local files must be there, under the same
    name, where a worker runs. Raises UsageError for names of nothing and for what no video can be fitted by.
    """
    asked, where = fitting or Fitting(), spread or Spread()
    named = list(files)
    in_full = {*named, *(str(Path(name)) for name in named)}
    videos = sorted(expand(named), key=lambda video: str(video) not in in_full)
    known = _known(archive) if skip_known else frozenset()
    wanted = [video for video in videos if _address(video) not in known]
    items = [_item(number, video) for number, video in enumerate(wanted)]
    engine, store = _divided(archive, asked, where, _ingest)
    return run_intake(engine, store, items, skipped=len(videos) - len(wanted), on_progress=progress)


def fit_all(
    archive: Archive,
    refs: Sequence[str],
    *,
    fitting: Fitting | None = None,
    spread: Spread | None = None,
    progress: OnIntake | None = None,
) -> IntakeReport:
    """Fit videos that were added, from their originals, each on its own; the rest as `ingest_all`."""
    asked, where = fitting or Fitting(), spread or Spread()
    items = [IntakeItem(number=number, named=ref, video_id=ref) for number, ref in enumerate(refs)]
    engine, store = _divided(archive, asked, where, _fit)
    return run_intake(engine, store, items, on_progress=progress)


# ---------------------------------------------------------------- in a worker


Ahead = Callable[[Path], None]  # what is done with a file before it is ingested
Store = Callable[[Archive, Fitting, IntakeItem, Ahead], VideoSummary]


def _ingest(archive: Archive, fitting: Fitting, item: IntakeItem, ahead: Ahead) -> VideoSummary:
    video = _video(item)
    with at_hand(video, archive.catalog.folder / "incoming") as path:
        ahead(path)
        return archive.ingest(
            path,
            tasks=fitting.tasks,
            preset=fitting.preset,
            tags=dict(fitting.tags),
            name=video.name,
            recorded_at=fitting.recorded_at,
            device=fitting.device,
            keep_source=fitting.keep_source or "reference",
            source_uri=video.uri if isinstance(video, RemoteVideo) else None,
            refit=fitting.refit,
            tone_map=fitting.tone_map,
        )


def _fit(archive: Archive, fitting: Fitting, item: IntakeItem, ahead: Ahead) -> VideoSummary:
    assert item.video_id is not None, "made by fit_all"
    ahead(archive.original(item.video_id))
    return archive.fit(
        item.video_id,
        tasks=fitting.tasks,
        preset=fitting.preset,
        device=fitting.device,
        keep_source=fitting.keep_source,
        refit=fitting.refit,
    )


def _elsewhere(
    store: Store, root: str, settings: Settings, fitting: Fitting, item: IntakeItem
) -> VideoSummary:
    return store(_opened(root, settings), fitting, item, _nothing)


def _nothing(_: Path) -> None:
    pass


@cache
def _opened(root: str, settings: Settings) -> Archive:
    """A worker's archive, opened once, with its share of the threads."""
    # Here, so that listing what there is to do never pays for torch.
    import torch

    torch.set_num_threads(settings.threads)
    return Archive(open_store(root), settings)


# ---------------------------------------------------------------- what is handed to workers


def _divided(
    archive: Archive, fitting: Fitting, spread: Spread, store: Store
) -> tuple[Engine, Callable[[IntakeItem], VideoSummary]]:
    """Which engine has the videos, and what is done with each."""
    engine = fitting_engine(
        spread.engine, workers=spread.workers, device=fitting.device, gpus_a_worker=spread.gpus_a_worker
    )
    share = _share(archive, spread)
    if spread.by == "videos":
        return engine, partial(_elsewhere, store, archive.store.root, share, fitting)
    ahead = partial(_segments_first, archive, engine, share, fitting)
    return HereEngine(), lambda item: store(archive, fitting, item, ahead)


def _segments_first(archive: Archive, engine: Engine, share: Settings, fitting: Fitting, path: Path) -> None:
    """All segments of a file by all workers, unless it is fitted already."""
    # Here, so that listing what there is to do never pays for torch.
    from nvpstore.ingest.ahead import finish_ahead, segment_job
    from nvpstore.ingest.pipeline import IngestRequest

    video_id = digest_file(str(path))[0][:32]
    if archive.catalog.snapshot().base(video_id).fitted and not fitting.refit:
        return
    request = IngestRequest(
        path=path,
        name=path.name,
        preset=fitting.preset,
        device=fitting.device,
        tone_map=fitting.tone_map,
    )
    job = segment_job(archive.catalog, share, request, tuple(fitting.tasks))
    finish_ahead(archive.catalog, job, engine)


def _share(archive: Archive, spread: Spread) -> Settings:
    settings = archive.settings
    return replace(settings, threads=max(1, settings.threads // spread.workers))


def _item(number: int, video: VideoFile) -> IntakeItem:
    if isinstance(video, LocalVideo):
        return IntakeItem(number=number, named=str(video), file=str(video.path.resolve()))
    return IntakeItem(number=number, named=str(video), root=video.store.root, key=video.key)


def _video(item: IntakeItem) -> VideoFile:
    if item.file is not None:
        return LocalVideo(path=Path(item.file))
    assert item.root is not None, "an object has a store"
    assert item.key is not None, "an object has a key"
    return RemoteVideo(store=open_store(item.root), key=item.key)


def _known(archive: Archive) -> frozenset[tuple[str, int]]:
    """URIs and sizes of the originals of all fitted videos."""
    rows = archive.catalog.snapshot().ask(
        "SELECT source_uri, source_bytes FROM idx.store.videos"
        " WHERE state <> 'added' AND source_uri IS NOT NULL",
        {},
    )
    return frozenset(_pairs(rows))


def _pairs(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    for row in rows:
        yield row["source_uri"], row["source_bytes"]


def _address(video: VideoFile) -> tuple[str, int] | None:
    """None for files of this machine, which are digested in no time."""
    return (video.uri, video.store.size(video.key)) if isinstance(video, RemoteVideo) else None
