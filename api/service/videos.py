"""Videos: brought in, listed, described, fitted, erased."""

from __future__ import annotations

from datetime import UTC
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from nvpstore import __version__
from nvpstore.api.jobs.requests import FitJob
from nvpstore.api.output import plain
from nvpstore.api.service.clips import GivenClips
from nvpstore.api.service.given import (
    Admin,
    GivenService,
    IdempotencyKey,
    Ingester,
    Reader,
    VideoRef,
    accepted,
    matches,
    not_modified,
)
from nvpstore.api.service.intake import take_upload, take_uri
from nvpstore.api.service.listing import LONGEST_CURSOR, Wanted, page_of_videos
from nvpstore.api.service.models import (
    MOST_TAGS,
    Erased,
    FitAsked,
    JobAnswer,
    Meta,
    VideoByUri,
    VideoChanges,
    VideoDetails,
    VideosPage,
    VideoUpload,
)
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.uploads import media_type
from nvpstore.catalog import IndexedVideo, Snapshot
from nvpstore.codec.build import find_preset
from nvpstore.exports import pixel_aspect
from nvpstore.types import VideoState

MOST_VIDEOS = 1000  # a page
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "as the caller has it"}}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": VideoUpload.model_json_schema()},
        "application/json": {"schema": VideoByUri.model_json_schema()},
    },
}

router = APIRouter(tags=["videos"])


@router.post("/videos", status_code=202, openapi_extra={"requestBody": _BODY})
async def post_video(
    request: Request,
    response: Response,
    service: GivenService,
    caller: Ingester,
    idempotency_key: IdempotencyKey = None,
) -> JobAnswer:
    """Bring in a video: a form with its bytes, or JSON saying where it is. Answers with the job.

    Of an upload, `video_id` is known at once. The bytes are not buffered: they may be as many as the
    operator allows. The same bytes again are no work, unless `refit` asks for it.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        job = await take_upload(request, service, caller, idempotency_key)
    elif kind == "application/json":
        job = await take_uri(request, service, caller, idempotency_key)
    else:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"a body of {kind or 'no said type'}: multipart/form-data and application/json are allowed",
        )
    return accepted(request, response, job)


@router.get("/videos", response_model=VideosPage, responses=UNCHANGED)
def list_videos(
    request: Request,
    response: Response,
    service: GivenService,
    _: Reader,
    name: Annotated[str | None, Query(max_length=255, description="a part of the name, in any case")] = None,
    state: Annotated[VideoState | None, Query()] = None,
    tag: Annotated[
        list[str] | None,
        Query(
            max_length=MOST_TAGS,
            description="KEY:VALUE; repeatable, and then all of them",
            examples=[["camera:gate"]],
        ),
    ] = None,
    cursor: Annotated[
        str | None, Query(max_length=LONGEST_CURSOR, description="`next` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_VIDEOS)] = 100,
) -> VideosPage | Response:
    """Videos by name, a page at a time. With the ETag, polling costs nothing while nothing changes."""
    snapshot = service.archive.catalog.snapshot()
    etag = _etag(snapshot)
    if matches(request, etag):
        return not_modified(etag)
    response.headers["ETag"] = etag
    wanted = Wanted(name=name, state=state, tags=dict(_tag(text) for text in tag or ()))
    return page_of_videos(snapshot, wanted, cursor=cursor, limit=limit)


@router.get("/videos/{ref}", response_model=VideoDetails, responses=UNCHANGED)
def show_video(
    request: Request, response: Response, service: GivenService, _: Reader, ref: VideoRef
) -> dict[str, Any] | Response:
    """One video with its segments and routes."""
    snapshot = service.archive.catalog.snapshot()
    video = snapshot.video(snapshot.find_video(ref))
    etag = _etag(snapshot)
    if matches(request, etag):
        return not_modified(etag)
    response.headers["ETag"] = etag
    aspect = str(pixel_aspect(service.archive.store, snapshot, video))
    return {**plain(service.archive.show(video.video_id)), **_more(video), "pixel_aspect": aspect}


@router.patch("/videos/{ref}")
def change_video(service: GivenService, caller: Ingester, ref: VideoRef, changes: VideoChanges) -> Meta:
    """Change what is said about a video; what is not named stays. `hold` needs the scope admin."""
    if changes.said("hold") is not None and not caller.may("admin"):
        raise Refused(HTTPStatus.FORBIDDEN, "hold: scope 'admin' is needed")
    archive, tags = service.archive, changes.tags
    snapshot = archive.catalog.snapshot()
    before = snapshot.meta(snapshot.find_video(ref))
    kept = {key for key in before.tags if tags.get(key, "") is not None}
    if len(kept | {key for key, value in tags.items() if value is not None}) > MOST_TAGS:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"a video may have at most {MOST_TAGS} tags")
    meta = archive.tag(
        before.video_id,
        tags={key: value for key, value in tags.items() if value is not None},
        # One that is not there is removed already.
        remove=[key for key, value in tags.items() if value is None and key in before.tags],
        name=changes.said("name"),
        recorded_at=changes.said("recorded_at"),
        hold=changes.said("hold"),
    )
    return Meta(
        video_id=meta.video_id,
        name=meta.name,
        tags=dict(meta.tags),
        recorded_at=meta.recorded_at and meta.recorded_at.astimezone(UTC),
        hold=meta.hold,
    )


@router.delete("/videos/{ref}")
def erase_video(service: GivenService, _: Admin, clips: GivenClips, ref: VideoRef) -> Erased:
    """Erase a video for good: its objects, name, tags, answers and clips; only the id remains. 409 on hold.

    An erased video's id again deletes what killed writers left of it since.
    """
    erasure = service.archive.erase(ref)
    clips.forget(erasure.video_id)
    return Erased(video_id=erasure.video_id, number=erasure.number, objects=erasure.objects)


@router.post("/videos/{ref}/fit", status_code=202)
def fit_video(
    request: Request,
    response: Response,
    service: GivenService,
    caller: Ingester,
    ref: VideoRef,
    asked: FitAsked,
    idempotency_key: IdempotencyKey = None,
) -> JobAnswer:
    """Fit a video that was added, from its original; with `refit` also one that is fitted."""
    find_preset(asked.preset)
    job = FitJob(
        video=service.archive.catalog.snapshot().find_video(ref),
        tasks=tuple(asked.tasks),
        preset=asked.preset,
        keep_source=asked.keep_source,
        refit=asked.refit,
    )
    queued, _ = service.queue.submit(
        "fit", job.to_json(), owner=caller.key_id, idempotency_key=idempotency_key
    )
    return accepted(request, response, queued)


def _more(video: IndexedVideo) -> dict[str, Any]:
    """What of a video is in no view."""
    kept = "reference" if "://" in (video.source_uri or "") else "copy"
    return {
        "sha256": video.sha256,
        "attempt": video.attempt,
        "time_base": str(video.time_base),
        "pts_origin": video.pts_origin or 0,
        "hold": video.hold,
        "original": kept if video.source_uri else None,
    }


def _etag(snapshot: Snapshot) -> str:
    """Of all that is said of videos: it changes with every entry of the log, and with our release."""
    return f'W/"{snapshot.digest[:16]}-{snapshot.number}-{__version__}"'


def _tag(text: str) -> tuple[str, str]:
    key, colon, value = text.partition(":")
    if not colon:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"tag {text!r}: KEY:VALUE is needed")
    return key, value
