"""One job, done: what was asked becomes one call of the archive."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvpstore.api.jobs import sources, spool, web
from nvpstore.api.jobs.job import Job
from nvpstore.api.jobs.probing import ProbeLimits, most_frames, probe_apart
from nvpstore.api.jobs.requests import FitJob, IngestJob, StabilizeJob, TrainJob, instant
from nvpstore.api.progress import FIRST_LOOK, ProgressLike
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.errors import NvpError, SourceError, UsageError

if TYPE_CHECKING:
    from nvpstore.archive import Archive
    from nvpstore.ingest.adding import KeepAdded

Report = Callable[[ProgressLike], None]
Say = Callable[[str], None]


class Stopped(Exception):
    """Somebody wants the work to stop. No NvpError: those are what goes wrong with one video of many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """`done` of `total` bytes (0: not known) of a video that is far away."""

    phase: str = "fetch"
    done: int
    total: int
    psnr: float | None = None
    eta_seconds: float | None = None


def run_job(
    archive: Archive,
    job: Job,
    *,
    report: Report,
    should_stop: Callable[[], bool],
    limits: ServiceSettings,
    say: Say | None = None,
    device: str = "auto",
    probe_limits: ProbeLimits | None = None,
    resolve: web.Resolve = web.addresses_of,
) -> dict[str, Any]:
    """Do what `job` asks; returns its result.

    `report` gets the progress, `say` a line now and then. Both may be called often, and so is `should_stop`:
    once it holds, the work stops there by raising Stopped, and a later attempt goes on from its checkpoints.
    Otherwise raises what the archive does.
    """
    run = _Run(
        archive=archive,
        report=report,
        should_stop=should_stop,
        limits=limits,
        say=say or _unsaid,
        device=device,
        probe_limits=probe_limits,
        resolve=resolve,
    )
    run.check()
    if job.kind in ("ingest", "add"):
        return run.ingest(IngestJob.from_json(job.request), fit=job.kind == "ingest")
    if job.kind == "fit":
        return run.fit(FitJob.from_json(job.request))
    if job.kind == "train":
        return run.train(TrainJob.from_json(job.request))
    if job.kind == "stabilize":
        return run.stabilize(StabilizeJob.from_json(job.request))
    raise UsageError(
        f"job {job.id} is of kind {job.kind!r}: workers do ingest, add, fit, train and stabilize"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The parts of `run_job`, with what it was given."""

    archive: Archive
    report: Report
    should_stop: Callable[[], bool]
    limits: ServiceSettings
    say: Say
    device: str
    probe_limits: ProbeLimits | None
    resolve: web.Resolve

    def check(self) -> None:
        """Raises Stopped where that is wanted."""
        if self.should_stop():
            raise Stopped

    def ingest(self, request: IngestJob, *, fit: bool) -> dict[str, Any]:
        with self._at_hand(request) as found, _called(found.path, request):
            self._probe(found.path)
            store = self._fitted if fit else self._added
            return store(found, request)

    def fit(self, request: FitJob) -> dict[str, Any]:
        summary = self.archive.fit(
            request.video,
            tasks=request.tasks,
            preset=request.preset,
            device=self.device,
            keep_source=request.keep_source,
            refit=request.refit,
            progress=self._heard,
        )
        return _as_json(summary)

    def train(self, request: TrainJob) -> dict[str, Any]:
        trained = self.archive.train_task(
            request.task,
            videos=request.videos,
            share=request.share,
            measured=request.measured,
            device=self.device,
            again=request.again,
            progress=self._heard,
        )
        return {"videos": [_as_json(video) for video in trained]}

    def stabilize(self, request: StabilizeJob) -> dict[str, Any]:
        made = self.archive.stabilize(
            request.task,
            videos=request.videos,
            share=request.share,
            steps=request.steps,
            stability=request.stability,
            variant=request.variant,
            device=self.device,
            progress=self._heard,
        )
        return _as_json(made)

    # ------------------------------------------------------------ parts

    def _fitted(self, found: sources.AtHand, request: IngestJob) -> dict[str, Any]:
        summary = self.archive.ingest(
            found.path,
            preset=request.preset,
            device=self.device,
            keep_source=request.keep_source,
            refit=request.refit,
            **self._said(found, request),
        )
        return _as_json(summary)

    def _added(self, found: sources.AtHand, request: IngestJob) -> dict[str, Any]:
        # Its original answers until it is fitted, so that it has to stay.
        keep: KeepAdded = "reference" if request.keep_source == "reference" else "copy"
        summary = self.archive.add(found.path, keep_source=keep, **self._said(found, request))
        return _as_json(summary)

    def _said(self, found: sources.AtHand, request: IngestJob) -> dict[str, Any]:
        return {
            "tasks": request.tasks,
            "tags": dict(request.tags),
            "name": request.name or request.original_name,
            "recorded_at": _instant_or_none(request.recorded_at),
            "source_uri": found.uri,
            "progress": self._heard,
        }

    @contextlib.contextmanager
    def _at_hand(self, request: IngestJob) -> Iterator[sources.AtHand]:
        limits = self.limits
        if request.file is not None:
            yield sources.AtHand(path=spool.uploaded(limits.spool_dir, request.file), uri=None)
            return
        uri = request.uri or ""
        if sources.permitted(uri, limits.roots).scheme in sources.WEB and request.keep_source == "reference":
            raise UsageError(f"{uri}: a video from the web is kept by 'copy' or not at all ('none')")
        self.say(f"reading {uri}")
        with sources.at_hand(
            uri,
            limits.roots,
            spool_dir=limits.spool_dir,
            most_bytes=limits.upload_bytes,
            resolve=self.resolve,
            progress=lambda done, total: self._heard(Fetched(done=done, total=total)),
        ) as found:
            yield found

    def _probe(self, path: Path) -> None:
        size_bytes, most = path.stat().st_size if path.is_file() else 0, self.limits.upload_bytes
        if size_bytes > most:
            raise SourceError(f"{path}: has {size_bytes} bytes; at most {most} are allowed")
        probed = probe_apart(path, self.limits, limits=self.probe_limits)
        self.say(
            f"{probed.container} with {probed.codec}, {probed.width}x{probed.height}, {probed.seconds:.1f} s"
        )
        self.check()

    def _heard(self, progress: ProgressLike) -> None:
        self.check()
        # A container may claim less than it holds.
        most = most_frames(self.limits)
        if progress.phase == FIRST_LOOK and progress.done > most:
            raise SourceError(f"the video has more than the {most} frames that are allowed")
        self.report(progress)


@contextlib.contextmanager
def _called(path: Path, request: IngestJob) -> Iterator[None]:
    """Errors call the video what its owner calls it: nobody knows the name of a temporary file."""
    shown = request.uri or request.original_name
    try:
        yield
    except NvpError as error:
        error.args = (str(error).replace(str(path), shown),)
        raise


def _as_json(summary: Any) -> dict[str, Any]:
    """A flat value's fields; figures that are no numbers are null."""
    return {name: _finite(value) for name, value in asdict(summary).items()}


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def progress_json(progress: ProgressLike) -> Mapping[str, Any]:
    """`phase, done, total, psnr, eta_seconds`, the last two null where they are not known."""
    return {
        "phase": progress.phase,
        "done": progress.done,
        "total": progress.total,
        "psnr": _finite(progress.psnr),
        "eta_seconds": _finite(progress.eta_seconds),
    }


def _instant_or_none(text: str | None) -> datetime | None:
    return None if text is None else instant(text)


def _unsaid(text: str) -> None:
    pass
