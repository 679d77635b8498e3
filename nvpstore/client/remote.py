"""An archive behind a server, with the methods of a local one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

from nvpstore.client.downloads import export
from nvpstore.client.jobs import OnProgress, RemoteJob, get_job, job_of, result_of
from nvpstore.client.pictures import frames
from nvpstore.client.results import RemoteResult
from nvpstore.client.streams import Params, RemoteStream
from nvpstore.client.tasks import Described, add_task
from nvpstore.client.transport import Transport
from nvpstore.client.uploads import upload
from nvpstore.client.values import (
    AddedTask,
    Erasure,
    ExportSummary,
    StabilizerSummary,
    TrainedVideo,
    VideoSummary,
    meta_of,
    of,
    with_times,
)
from nvpstore.errors import UsageError
from nvpstore.types import FrameBatch, VideoMeta

KeepSource = Literal["reference", "copy", "none"]

DEFAULT_TASKS = ("labels",)
DEFAULT_PRESET = "demo"
SERVERS_CHOICE = "auto"
_PAGE = 1_000


class RemoteArchive:
    """What a server offers of its archive. Errors are those of a local archive, with the server's words.

    Besides, AccessDenied where the key may not do what is asked, ServiceError where the server cannot be
    reached. Can be shared by threads; `close` gives its connections back.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self.url = url
        self._transport = Transport(url, key=key)

    def __repr__(self) -> str:
        return f"RemoteArchive({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

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
        device: str = SERVERS_CHOICE,
        keep_source: KeepSource | None = None,
        refit: bool = False,
        progress: OnProgress | None = None,
    ) -> VideoSummary:
        """Send a video file to be fitted and stored, and wait until it is.

        A `path` with a scheme, such as `s3://bucket/clip.mp4`, is fetched by the server, where its operator
        allows that. `keep_source` None leaves it to the server: "none" for what is sent, "reference" for what
        it fetches. `progress` first tells the bytes sent (phase "upload"), then how far the fit is. Stopping
        to wait does not stop the server. Otherwise as `Archive.ingest`; raises JobCancelled too.
        """
        _check_device(device)
        fields = _fields(tasks=tasks, tags=tags, name=name, recorded_at=recorded_at, keep_source=keep_source)
        fields.update(mode="ingest", preset=preset, refit=True if refit else None)
        return self._stored(path, fields, progress)

    def add(
        self,
        path: str | Path,
        *,
        tasks: Sequence[str] = DEFAULT_TASKS,
        tags: Mapping[str, str] | None = None,
        name: str | None = None,
        recorded_at: datetime | None = None,
        keep_source: KeepSource | None = None,
        progress: OnProgress | None = None,
    ) -> VideoSummary:
        """Send a video file to be registered without fitting it, and wait until it is; else as `ingest`."""
        fields = _fields(tasks=tasks, tags=tags, name=name, recorded_at=recorded_at, keep_source=keep_source)
        return self._stored(path, {**fields, "mode": "add"}, progress)

    def fit(
        self,
        ref: str,
        *,
        tasks: Sequence[str] = DEFAULT_TASKS,
        preset: str = DEFAULT_PRESET,
        device: str = SERVERS_CHOICE,
        keep_source: KeepSource | None = None,
        refit: bool = False,
        progress: OnProgress | None = None,
    ) -> VideoSummary:
        """Fit a video that was added, and wait until it is; as `Archive.fit`."""
        _check_device(device)
        asked = {"tasks": list(tasks), "preset": preset, "keep_source": keep_source, "refit": refit}
        job = job_of(self._transport.json("POST", f"videos/{_part(ref)}/fit", body=asked))
        return of(VideoSummary, result_of(self._transport, job, progress))

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
        """Change what is said about a video; what is not given stays. Returns all of it."""
        changed: dict[str, str | None] = {**(tags or {}), **dict.fromkeys(remove)}
        said = {
            "tags": changed or None,
            "name": name,
            "recorded_at": None if recorded_at is None else recorded_at.isoformat(),
            "hold": hold,
        }
        body = {field: value for field, value in said.items() if value is not None}
        return meta_of(self._transport.json("PATCH", f"videos/{_part(ref)}", body=body))

    def erase(self, ref: str) -> Erasure:
        """Erase a video: its objects, name and tags. Only its id remains."""
        return of(Erasure, self._transport.json("DELETE", f"videos/{_part(ref)}"))

    def add_task(self, name: str, **described: Any) -> AddedTask:
        """Register a task, as `Archive.add_task`; `weights` (a file of safetensors) are sent."""
        return add_task(self._transport, Described(name=name, **described))

    def train_task(
        self,
        name: str,
        *,
        videos: str | None = None,
        share: float = 0.05,
        measured: int = 256,
        device: str = SERVERS_CHOICE,
        again: bool = False,
        dry_run: bool = False,
        progress: OnProgress | None = None,
    ) -> list[TrainedVideo]:
        """Give fitted videos routes for a task, and wait until they have them; as `Archive.train_task`.

        Raises UsageError for `dry_run`: a server tells no estimates.
        """
        _check_device(device)
        if dry_run:
            raise UsageError(f"a dry run of {name!r}: {self.url} tells no estimates")
        asked = {"videos": videos, "share": share, "measured": measured, "again": again}
        job = job_of(self._transport.json("POST", f"tasks/{_part(name)}/train", body=asked))
        return [of(TrainedVideo, row) for row in result_of(self._transport, job, progress)["videos"]]

    def stabilize(
        self,
        name: str,
        *,
        videos: str | None = None,
        share: float = 0.25,
        steps: int = 200,
        stability: float = 0.2,
        variant: str | None = None,
        device: str = SERVERS_CHOICE,
        dry_run: bool = False,
        progress: OnProgress | None = None,
    ) -> StabilizerSummary:
        """Train what makes answers, or pictures, steady, and wait for it; as `Archive.stabilize`.

        Raises UsageError for `dry_run`: a server tells no estimates.
        """
        _check_device(device)
        if dry_run:
            raise UsageError(f"a dry run of {name!r}: {self.url} tells no estimates")
        asked = {
            "videos": videos, "share": share, "steps": steps, "stability": stability, "variant": variant,
        }  # fmt: skip
        job = job_of(self._transport.json("POST", f"tasks/{_part(name)}/stabilize", body=asked))
        return of(StabilizerSummary, result_of(self._transport, job, progress))

    def steadiness(self, name: str, *, videos: str | None = None, every: float | None = None) -> list[Any]:
        """Raises UsageError: two queries tell as much."""
        raise UsageError(f"steadiness of {name!r}: {self.url} is asked by SQL, with and without stabilize")

    # ------------------------------------------------------------ reading

    def videos(self) -> list[dict[str, Any]]:
        """The rows of the `videos` view, by name."""
        rows = self._pages("videos", "videos")
        return [with_times(row) for row in rows]

    def show(self, ref: str) -> dict[str, Any]:
        """One video with its segments and routes. `ref`: id, its beginning, or a unique name."""
        return with_times(self._transport.json("GET", f"videos/{_part(ref)}"))

    def tasks(self, *, available: bool = False) -> list[dict[str, Any]]:
        """The registered tasks; with `available`, all that the server's release knows."""
        asked = {"available": "true"} if available else {}
        rows: list[dict[str, Any]] = self._transport.json("GET", "tasks", params=asked)["tasks"]
        return rows

    def task(self, name: str) -> dict[str, Any]:
        """One task with its labels in class order; `NAME@VERSION` pins a version by its beginning."""
        found: dict[str, Any] = self._transport.json("GET", f"tasks/{_part(name)}")
        return found

    def sql(
        self, query: str, *, params: Params | None = None, tables: Mapping[str, Any] | None = None
    ) -> RemoteResult:
        """One SELECT, or EXPLAIN [ANALYZE] one; the server is asked when rows are first wanted.

        Raises UsageError for `tables`: a server joins none of the caller's.
        """
        _refuse_tables(tables)
        return RemoteResult(self._transport, query, params=params)

    def stream(
        self, query: str, *, params: Params | None = None, tables: Mapping[str, Any] | None = None
    ) -> RemoteStream:
        """The rows of one SELECT in batches, as the server computes them. Close it, and the server stops."""
        _refuse_tables(tables)
        return RemoteStream(self._transport, query, params=params)

    def videos_where(self, where: str | None = None) -> list[str]:
        """Ids of the videos for which an SQL predicate over the columns of the `videos` view holds; all."""
        # On a line of its own, so that a comment in it ends before our parenthesis.
        condition = "" if where is None else f" WHERE (\n{where}\n)"
        return [row[0] for row in self.sql(f"SELECT video_id FROM videos{condition} ORDER BY name, video_id")]

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
        """Decoded frames with start ≤ ts < end (seconds), at source size or 2 or 4 times as large; they
        travel as PNG."""
        return frames(
            self._transport,
            self.show(ref),
            start=start,
            end=end,
            batch_frames=batch_frames,
            stabilize=stabilize,
            upscale=upscale,
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
    ) -> ExportSummary:
        """Write a video for people: H.264 in mp4, PNGs for a folder (`…/`), or the `original`'s own bytes.

        Marked as `Archive.export` does. Raises UsageError for `lossless`, which servers do not make.
        """
        if lossless:
            raise UsageError(f"{out}: {self.url} makes no lossless video; name a folder to get PNGs")
        return export(
            self._transport,
            self.show(ref),
            str(out),
            start=start,
            end=end,
            original=original,
            stabilize=stabilize,
            upscale=upscale,
        )

    # ------------------------------------------------------------ jobs

    def jobs(self, *, state: str | None = None, kind: str | None = None, limit: int = 100) -> list[RemoteJob]:
        """The newest jobs first: one's own, or with scope admin all."""
        asked = {"state": state, "kind": kind}
        given = {name: value for name, value in asked.items() if value is not None}
        return [job_of(row) for row in self._pages("jobs", "jobs", most=limit, **given)]

    def job(self, job_id: str) -> RemoteJob:
        """Raises NotFound for an unknown one."""
        return get_job(self._transport, job_id)

    def cancel(self, job_id: str) -> RemoteJob:
        """A waiting job is cancelled at once, a running one when its worker next looks."""
        return job_of(self._transport.json("DELETE", f"jobs/{_part(job_id)}", retry=True))

    # ------------------------------------------------------------ parts

    def _stored(
        self, path: str | Path, fields: Mapping[str, Any], progress: OnProgress | None
    ) -> VideoSummary:
        if "://" in str(path):
            body = {name: value for name, value in fields.items() if value is not None}
            job = job_of(self._transport.json("POST", "videos", body={**body, "uri": str(path)}))
        else:
            job = upload(self._transport, Path(path), fields, progress)
        return of(VideoSummary, result_of(self._transport, job, progress))

    def _pages(
        self, path: str, field: str, *, most: int | None = None, **asked: Any
    ) -> Iterator[dict[str, Any]]:
        """The rows of a list, page by page; at most `most`."""
        cursor, left = None, most
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            params = {**asked, "limit": size, **({} if cursor is None else {"cursor": cursor})}
            page = self._transport.json("GET", path, params=params)
            yield from page[field]
            cursor = page.get("next")
            if cursor is None:
                return
            left = None if left is None else left - len(page[field])


def _fields(
    *,
    tasks: Sequence[str],
    tags: Mapping[str, str] | None,
    name: str | None,
    recorded_at: datetime | None,
    keep_source: str | None,
) -> dict[str, Any]:
    if recorded_at is not None and recorded_at.tzinfo is None:
        raise UsageError(f"recorded_at {recorded_at.isoformat()}: a time zone is needed")
    return {
        "tasks": list(tasks),
        "tags": dict(tags) if tags else None,
        "name": name,
        "recorded_at": None if recorded_at is None else recorded_at.isoformat(),
        "keep_source": keep_source,
    }


def _part(ref: str) -> str:
    """A name as one part of a path: names may hold anything."""
    if not ref:
        raise UsageError("the name is empty: a video's id, its beginning or its name is needed")
    return quote(ref, safe="@")


def _check_device(device: str) -> None:
    if device != SERVERS_CHOICE:
        raise UsageError(f"device {device!r}: a server's operator says where it works; leave it out")


def _refuse_tables(tables: Mapping[str, Any] | None) -> None:
    if tables:
        raise UsageError(
            f"tables {', '.join(tables)}: a server joins none of the caller's; join its rows here"
        )
