"""How videos come into an archive: what callers ask for, as requests; each fit begun once on a machine, and
committed once by anyone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock

from nvpstore.catalog import Catalog
from nvpstore.codec.build import find_preset
from nvpstore.codec.fit import CHECKPOINT_SECONDS
from nvpstore.errors import CommitDropped, StoreError, UsageError
from nvpstore.ingest.adding import AddRequest, AnsweredBySource, KeepAdded, prepare_added
from nvpstore.ingest.named import registered_tasks
from nvpstore.ingest.pipeline import Ingest, IngestProgress, IngestRequest, KeepSource, OnProgress
from nvpstore.storage.commit import Base, commit_video
from nvpstore.storage.originals import held_original
from nvpstore.storage.range_cache import RangeCache
from nvpstore.tasks.registry import LoadedTask
from nvpstore.video.source import digest_file, probe


class Writer:
    """Each method returns the video's id, and whether there was something to do."""

    def __init__(
        self,
        catalog: Catalog,
        on_progress: OnProgress | None = None,
        *,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.catalog = catalog
        self.checkpoint_seconds = checkpoint_seconds
        self.on_progress = on_progress or _ignored

    def ingest(
        self,
        path: str | Path,
        *,
        tasks: Sequence[str],
        preset: str,
        tags: Mapping[str, str] | None,
        name: str | None,
        recorded_at: datetime | None,
        device: str,
        keep_source: KeepSource,
        source_uri: str | None,
        refit: bool,
        tone_map: bool,
    ) -> tuple[str, bool]:
        """Fit and commit a file, unless it is fitted already and not to be fitted anew."""
        find_preset(preset)
        file = Path(path)
        probe(str(file))
        video_id = digest_file(str(file))[0][:32]
        loaded = registered_tasks(self.catalog, tasks)
        request = IngestRequest(
            path=file,
            name=name or file.name,
            preset=preset,
            tags=tags or {},
            recorded_at=recorded_at,
            device=usable_device(device),
            keep_source=keep_source,
            source_uri=source_uri,
            refit=refit,
            tone_map=tone_map,
        )
        return video_id, self._fit(request, loaded, video_id)

    def add(
        self,
        path: str | Path,
        *,
        tasks: Sequence[str],
        tags: Mapping[str, str] | None,
        name: str | None,
        recorded_at: datetime | None,
        keep_source: KeepAdded,
        source_uri: str | None,
        tone_map: bool,
    ) -> tuple[str, bool]:
        """Register a file, unless it is there already."""
        if keep_source not in ("reference", "copy"):
            raise UsageError(f"keep_source {keep_source!r}: an added video needs reference or copy")
        file = Path(path)
        answered = [
            AnsweredBySource(task=task.record(), gflops=task.backbone.whole_gflops())
            for task in registered_tasks(self.catalog, tasks)
        ]
        request = AddRequest(
            path=file,
            name=name or file.name,
            tags=tags or {},
            recorded_at=recorded_at,
            keep_source=keep_source,
            source_uri=source_uri,
            tone_map=tone_map,
        )
        begun = self.catalog.snapshot()
        prepared = prepare_added(request, answered, on_frames=self._found)
        video_id = prepared.video.video_id
        if begun.has_video(video_id):
            return video_id, False
        try:
            commit_video(self.catalog.log, prepared, self._base(video_id, begun=begun.number), replaces=False)
        except CommitDropped:
            if not self.catalog.snapshot().has_video(video_id):
                raise
            return video_id, False
        return video_id, True

    def fit(
        self,
        ref: str,
        *,
        tasks: Sequence[str],
        preset: str,
        device: str,
        keep_source: KeepSource | None,
        refit: bool,
        cache: RangeCache,
    ) -> tuple[str, bool]:
        """Fit what is stored from its original, unless it is fitted already and not to be fitted anew.

        An original that is far away is fetched into `cache`.
        """
        find_preset(preset)
        usable = usable_device(device)
        snapshot = self.catalog.snapshot()
        video = snapshot.video(snapshot.find_video(ref))
        if video.state != "added" and not refit:
            return video.video_id, False
        kept = video.source_uri is not None and "://" not in video.source_uri
        store = self.catalog.log.store
        with held_original(store, video, cache=cache, as_of=snapshot.number) as path:
            request = IngestRequest(
                path=path,
                name=video.name,
                preset=preset,
                device=usable,
                keep_source=keep_source or ("copy" if kept else "reference"),
                source_uri=None if kept else video.source_uri,
                refit=refit,
                tone_map=True,  # asked when it was stored first
            )
            return video.video_id, self._fit(request, registered_tasks(self.catalog, tasks), video.video_id)

    # ------------------------------------------------------------ parts

    def _fit(self, request: IngestRequest, tasks: Sequence[LoadedTask], video_id: str) -> bool:
        work_dir = self.catalog.folder / "fits"
        with one_at_a_time(work_dir / f"{video_id}.lock"):
            begun = self.catalog.snapshot()
            if begun.base(video_id).fitted and not request.refit:
                return False
            fit = Ingest(
                request,
                tasks,
                log=self.catalog.log,
                work_dir=work_dir,
                on_progress=self.on_progress,
                checkpoint_seconds=self.checkpoint_seconds,
            )
            try:
                fit.run(video_id, lambda: self._base(video_id, begun=begun.number))
            except CommitDropped:
                # Another machine may have stored the same bytes first: then that is what is asked for.
                if request.refit or not self.catalog.snapshot().base(video_id).fitted:
                    raise
                return False
            return True

    def _base(self, video_id: str, *, begun: int) -> Base:
        """The state to commit a video on, which was begun on log entry `begun`."""
        snapshot = self.catalog.snapshot()
        if video_id in snapshot.erased(after=begun):
            raise CommitDropped(f"video {video_id} was erased meanwhile: nothing was committed")
        return snapshot.base(video_id)

    def _found(self, frames: int) -> None:
        self.on_progress(IngestProgress(phase="scan", done=frames, total=0))


def usable_device(asked: str) -> str:
    """ "cpu" or "cuda"; "auto" is the faster one. Raises UsageError where it is not there."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in ("cpu", "cuda"):
        raise UsageError(f"device {asked!r}: auto, cpu and cuda are allowed")
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("device 'cuda': no CUDA device is usable here")
    return asked


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Two fits of the same bytes on one machine: the second waits and finds them stored."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except OSError as cause:
        raise StoreError(f"cannot work in {lock.parent}: {cause.strerror}") from cause


def _ignored(_: IngestProgress) -> None:
    pass
