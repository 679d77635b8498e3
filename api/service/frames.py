"""Single pictures of stored videos, for people: decoded one at a time, and marked for what they are."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nvpstore.api.service.given import GivenService, Reader, VideoRef, matches
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.state import Service
from nvpstore.catalog import IndexedVideo
from nvpstore.errors import SourceError
from nvpstore.exports import Picture, marks

AT_ONCE = 4  # each may take hundreds of megabytes; others wait without a thread
KEPT = "private, max-age=3600, immutable"  # a video's pictures stay what they are until it is fitted anew
IMAGE_DESCRIPTION = 0x010E  # Exif
MEDIA_TYPES: Mapping[str, str] = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 3},
    "jpg": {"format": "JPEG", "quality": 90},
    "webp": {"format": "WEBP", "quality": 90},
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the picture",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES.values()
        },
        "headers": {
            "X-Nvp-Reconstructed": {
                "description": "`true`: decoded from a network, not the original picture",
                "schema": {"type": "string", "enum": ["true", "false"]},
            },
            "X-Nvp-Source-Sha256": {
                "description": "of the source's bytes",
                "schema": {"type": "string"},
            },
            "X-Nvp-Psnr": {"description": "dB, of this frame", "schema": {"type": "string"}},
        },
    },
    304: {"description": "as the caller has it"},
}
_log = logging.getLogger("nvpstore.service")

router = APIRouter(tags=["pictures"])


async def decodes_of(request: Request) -> CapacityLimiter:
    """What bounds how many pictures the server decodes at once."""
    state = request.app.state
    if not hasattr(state, "decodes"):
        state.decodes = CapacityLimiter(AT_ONCE)
    limiter: CapacityLimiter = state.decodes
    return limiter


@router.get("/videos/{ref}/frames/{frame}.{kind}", response_class=Response, responses=_PICTURE)
@router.head("/videos/{ref}/frames/{frame}.{kind}", include_in_schema=False)
async def show_frame(
    request: Request,
    service: GivenService,
    _: Reader,
    decodes: Annotated[CapacityLimiter, Depends(decodes_of)],
    ref: VideoRef,
    frame: Annotated[int, Path(ge=0, lt=2**62, description="the frame's number, from 0")],
    kind: Literal["png", "jpg", "webp"],
    width: Annotated[
        int | None, Query(ge=16, le=4096, description="scale down to this width; never up")
    ] = None,
) -> Response:
    """One frame as a picture. Only its segment is fetched, and nothing is where the caller has it.

    The file and the answer's headers say whether it is reconstructed, of which source, and how well.
    """
    video = await run_in_threadpool(_video, service, ref)
    if matches(request, _etag(video, frame, width, kind)):
        return Response(
            status_code=304, headers={"ETag": _etag(video, frame, width, kind), "Cache-Control": KEPT}
        )
    work = partial(_drawn, service, video.video_id, frame, width, kind)
    picture, data = await to_thread.run_sync(work, limiter=decodes)
    return Response(
        data,
        media_type=MEDIA_TYPES[kind],
        headers={
            # Of what was decoded: it may have been fitted anew since.
            "ETag": _etag(picture.video, frame, width, kind),
            "Cache-Control": KEPT,
            "X-Nvp-Frame": str(frame),
            "X-Nvp-Ts": repr(picture.ts),
            **origin_headers(picture.video, psnr=picture.psnr),
        },
    )


def origin_headers(video: IndexedVideo, *, psnr: float | None) -> dict[str, str]:
    """What tells a program whether pictures are reconstructed, of which source, and how well (dB)."""
    headers = {
        "X-Nvp-Reconstructed": "false" if video.state == "added" else "true",
        "X-Nvp-Source-Sha256": video.sha256,
    }
    if psnr is not None and math.isfinite(psnr):
        headers["X-Nvp-Psnr"] = f"{psnr:.2f}"
    return headers


@contextmanager
def hiding_places() -> Iterator[None]:
    """What cannot be read from an original is not found: what is said of it names places of this machine."""
    try:
        yield
    except SourceError as cause:
        _log.warning("an original cannot be read: %s", cause)
        raise Refused(HTTPStatus.NOT_FOUND, "the video's original is not at hand any more") from cause


def _video(service: Service, ref: str) -> IndexedVideo:
    snapshot = service.archive.catalog.snapshot()
    return snapshot.video(snapshot.find_video(ref))


def _drawn(service: Service, ref: str, frame: int, width: int | None, kind: str) -> tuple[Picture, bytes]:
    with hiding_places():
        picture = service.archive.frame(ref, frame)
    return picture, encoded(picture, width=width, kind=kind)


def encoded(picture: Picture, *, width: int | None, kind: str) -> bytes:
    """The picture as a file of `kind`, at most `width` wide, with a note of where it comes from."""
    image = Image.fromarray(picture.rgb_hwc)
    if width is not None and width < image.width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, **_OPTIONS[kind], **_note(kind, marks(picture.video)["comment"]))
    return buffer.getvalue()


def _note(kind: str, text: str) -> dict[str, Any]:
    if kind == "png":
        info = PngInfo()
        info.add_text("comment", text)
        return {"pnginfo": info}
    if kind == "jpg":
        return {"comment": text.encode()}
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = text
    return {"exif": exif.tobytes()}


def _etag(video: IndexedVideo, frame: int, width: int | None, kind: str) -> str:
    return f'"{video.attempt}-{frame}-{width or "full"}-{kind}"'
