"""Videos and parts of them as files to watch, served in ranges; and originals, where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from nvpstore.api.service.clip_store import ClipName, ClipStore
from nvpstore.api.service.frames import hiding_places, origin_headers
from nvpstore.api.service.given import GivenService, Reader, VideoRef, matches, not_modified
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.state import Service, service_of
from nvpstore.api.service.uploads import display_name
from nvpstore.archive import Archive
from nvpstore.catalog import IndexedVideo
from nvpstore.storage.keys import PICTURES

Seconds = Annotated[float | None, Query(ge=0, le=1e9, allow_inf_nan=False)]

_RANGES: dict[int | str, dict[str, Any]] = {
    206: {"description": "the ranges that were asked for"},
    304: {"description": "as the caller has it"},
    416: {"description": "no such range"},
}


def _file_of(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {200: {"description": description, "content": content}, **_RANGES}


router = APIRouter(tags=["pictures"])


async def clips_of(request: Request) -> ClipStore:
    """The server's own (a FastAPI dependency)."""
    state, service = request.app.state, await service_of(request)
    if not hasattr(state, "clips"):
        state.clips = ClipStore(
            service.settings.state_dir / "clips",
            budget_bytes=service.settings.clip_bytes,
            exists=lambda video_id: service.archive.catalog.snapshot().has_video(video_id),
        )
    clips: ClipStore = state.clips
    return clips


GivenClips = Annotated[ClipStore, Depends(clips_of)]


@router.get(
    "/videos/{ref}/clip.mp4", response_class=Response, responses=_file_of("video/mp4", "H.264 in MP4")
)
@router.head("/videos/{ref}/clip.mp4", include_in_schema=False)
async def show_clip(
    request: Request,
    service: GivenService,
    _: Reader,
    clips: GivenClips,
    ref: VideoRef,
    start: Seconds = None,
    end: Seconds = None,
    upscale: Annotated[int | None, Query(description="1, 2 or 4 times the size")] = None,
    stabilize: Annotated[
        bool, Query(description="steady pictures, where the archive has a stabilizer of `frames`")
    ] = False,
) -> Response:
    """A video, or the part from `start` to `end` (seconds, without sound), to watch.

    It is made for the first who asks, and kept for a while; where too many are in the making: 429. The file
    says that it is reconstructed, of which source, and how well; of an added video it shows the original.
    Upscaled, it says that its detail is synthesised.
    """
    _check_asked(start=start, end=end, upscale=upscale)
    video = await run_in_threadpool(_video, service, ref)
    steady = await run_in_threadpool(_stabilizer, service) if stabilize else ""
    name = ClipName(
        video_id=video.video_id,
        attempt=video.attempt,
        start=start,
        end=end,
        steady=steady,
        upscale=upscale or 1,
    )
    export = partial(_export, service.archive, name)
    with hiding_places():
        path = await clips.hold(name, export, gone=request.is_disconnected)
    try:
        stat = path.stat()
        # Made anew, its bytes may differ: then a range of the one is none of the other.
        etag = f'"{video.attempt}-{steady}x{name.upscale}-{stat.st_mtime_ns}-{stat.st_size}"'
        if matches(request, etag):
            clips.release(path)
            return not_modified(etag)
        return StoredFile(
            path,
            stat_result=stat,
            media_type="video/mp4",
            headers={"ETag": etag, **origin_headers(video, psnr=video.psnr)},
            done=partial(clips.release, path),
        )
    except BaseException:
        clips.release(path)
        raise


@router.get(
    "/videos/{ref}/original",
    response_class=Response,
    responses=_file_of("application/octet-stream", "the source's own bytes"),
)
@router.head("/videos/{ref}/original", include_in_schema=False)
async def show_original(request: Request, service: GivenService, _: Reader, ref: VideoRef) -> Response:
    """The source's own bytes, where they are kept; 404 where they are not, or are no longer at hand."""
    video = await run_in_threadpool(_video, service, ref)
    etag = f'"{video.sha256}"'
    if matches(request, etag):
        return not_modified(etag)
    path = await run_in_threadpool(_original, service, video)
    return StoredFile(
        path,
        # Whatever it is: no browser is to make anything of it.
        media_type="application/octet-stream",
        filename=display_name(video.name),
        headers={"ETag": etag, "X-Nvp-Source-Sha256": video.sha256, "X-Nvp-Reconstructed": "false"},
    )


class StoredFile(FileResponse):
    """A file in ranges, whose failures are problems like all others; `done` is called at its end."""

    def __init__(
        self,
        path: Path,
        *,
        done: Callable[[], None] = lambda: None,
        headers: Mapping[str, str],
        **options: Any,
    ) -> None:
        super().__init__(path, headers=headers, **options)
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
                raise _no_such_range(message)
            await send(message)

        try:
            await super().__call__(scope, receive, checked)
        finally:
            self._done()


def _no_such_range(message: Message) -> Refused:
    headers = {name.decode("latin-1").title(): value.decode("latin-1") for name, value in message["headers"]}
    size = headers.get("Content-Range")
    return Refused(
        HTTPStatus(message["status"]),
        f"no such range: there is {size}" if size else "Range: bytes=FIRST-LAST is needed",
        headers={"Content-Range": size} if size else {},
    )


def _check_asked(*, start: float | None, end: float | None, upscale: int | None) -> None:
    if upscale not in (None, 1, 2, 4):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"upscale={upscale}: allowed is 1, 2 or 4")
    if end is not None and (start or 0) >= end:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"start={start or 0:g}, end={end:g}: the end must come after it"
        )


def _export(archive: Archive, name: ClipName, path: Path, progress: Callable[[int], None]) -> None:
    archive.export(
        name.video_id,
        path,
        start=name.start,
        end=name.end,
        stabilize=bool(name.steady),
        upscale=name.upscale,
        progress=progress,
    )


def _stabilizer(service: Service) -> str:
    """The beginning of the digest of what makes pictures steady."""
    found = service.archive.catalog.snapshot().stabilizer("frames", PICTURES)
    if found is None:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, "stabilize=true: the archive has no stabilizer of frames"
        )
    return found.sha256[:16]


def _video(service: Service, ref: str) -> IndexedVideo:
    snapshot = service.archive.catalog.snapshot()
    return snapshot.video(snapshot.find_video(ref))


def _original(service: Service, video: IndexedVideo) -> Path:
    if video.source_uri is None:
        raise Refused(HTTPStatus.NOT_FOUND, f"the original of {video.name} was not kept")
    with hiding_places():
        return service.archive.original(video.video_id)
