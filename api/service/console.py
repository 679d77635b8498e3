"""The console: a page at `/` that does all by the same API as everybody else. No data is in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nvpstore.errors import NotFound

PAGE = "index.html"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFile:
    """A file as it is sent. `etag` is quoted."""

    content: bytes
    media_type: str
    etag: str


def _read() -> dict[str, StaticFile]:
    """All files of the folder: what is not in it cannot be asked for."""
    found = {}
    for entry in files(__package__).joinpath("console").iterdir():
        media_type = _TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None and entry.is_file():
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[entry.name] = StaticFile(content=content, media_type=media_type, etag=etag)
    return found


FILES = _read()

# People need no key for the page: it asks for one when the API does.
router = APIRouter(include_in_schema=False)


@router.get("/")
@router.head("/")
async def page(request: Request) -> Response:
    return _answer(request, FILES[PAGE])


@router.get("/console/{name}")
@router.head("/console/{name}")
async def static_file(request: Request, name: str) -> Response:
    if name not in FILES:
        raise NotFound(f"the console has no file {name!r}")
    return _answer(request, FILES[name])


def _answer(request: Request, file: StaticFile) -> Response:
    # Asked for again each time, so that pages and scripts are always of one release.
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
