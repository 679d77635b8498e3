"""Whether the server lives, whether it can work, and what it counts."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from nvpstore.api.service.offloop import off_loop
from nvpstore.api.service.security import admitted, from_this_machine
from nvpstore.api.service.state import Service, service_of
from nvpstore.errors import NvpError

router = APIRouter(tags=["operations"])

FREE_BYTES = 256 << 20  # less than this, and uploads and jobs cannot be kept
KEPT_SECONDS = 2.0  # what was found: anybody may ask, and the store must not feel it
PATIENCE_SECONDS = 5.0
OK = "ok"
_ALL_OF_TIME = 1e12  # seconds


class Alive(BaseModel):
    """The process lives."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Whether the server can do its work; `parts` says `ok` or what is wrong with each."""

    ready: bool
    parts: dict[str, str] = Field(
        examples=[{"archive": "ok", "queue": "ok", "keys": "ok", "workers": "ok", "disk": "ok"}]
    )


class Readiness:
    """Looks at each part, at most once in a while and never twice at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._checks: dict[str, Callable[[], str]] = {
            "archive": self._archive,
            "queue": self._queue,
            "keys": self._keys,
            "workers": self._workers,
            "disk": self._disk,
        }
        self._under_way: dict[str, asyncio.Future[str]] = {}
        self._found: tuple[float, dict[str, str]] | None = None

    async def parts(self) -> dict[str, str]:
        """What is wrong with each part, or `ok`. Takes `PATIENCE_SECONDS` at most."""
        if self._found is not None and time.monotonic() - self._found[0] < KEPT_SECONDS:
            return self._found[1]
        asked = {name: self._asked(name) for name in self._checks}
        await asyncio.wait(asked.values(), timeout=PATIENCE_SECONDS)
        found = {}
        for name, answer in asked.items():
            found[name] = answer.result() if answer.done() else f"no answer in {PATIENCE_SECONDS:g} s"
            if answer.done():
                self._under_way.pop(name, None)
        self._found = (time.monotonic(), found)
        return found

    def _asked(self, name: str) -> asyncio.Future[str]:
        """The check that is under way, or else a new one: a store that hangs must not collect threads."""
        known = self._under_way.get(name)
        if known is None:
            known = self._under_way[name] = asyncio.ensure_future(off_loop(lambda: self._said(name)))
        return known

    def _said(self, name: str) -> str:
        # Anybody may read this: the kind of error, and none of its words.
        try:
            return self._checks[name]()
        except (NvpError, OSError) as error:
            return f"failed: {type(error).__name__}"

    def _archive(self) -> str:
        self._service.archive.log.read(0)
        return OK

    def _queue(self) -> str:
        # Takes the right to write, and changes nothing.
        self._service.queue.forget(older_than_seconds=_ALL_OF_TIME)
        return OK

    def _keys(self) -> str:
        self._service.keys.untouched()
        return OK

    def _workers(self) -> str:
        alive, wanted = self._service.alive, self._service.settings.workers
        if alive is None or not wanted or alive():
            return OK
        return f"none of {wanted} lives"

    def _disk(self) -> str:
        free = shutil.disk_usage(self._service.settings.state_dir).free
        return OK if free >= FREE_BYTES else f"{free >> 20} MiB free, {FREE_BYTES >> 20} MiB are needed"


@router.get("/healthz")
async def healthz() -> Alive:
    """The process lives and answers. No key is needed."""
    return Alive()


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready, "description": "not ready"}})
async def readyz(request: Request) -> Response:
    """Whether the archive can be read, jobs be kept, and workers live. No key is needed."""
    readiness = request.app.state.readiness
    assert isinstance(readiness, Readiness), "set by create_app"
    parts = await readiness.parts()
    ready = all(said == OK for said in parts.values())
    status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse(Ready(ready=ready, parts=parts).model_dump(), status)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "the text format of Prometheus"}},
)
async def metrics(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Figures for Prometheus. A key of scope `read` is needed, unless the server listens on loopback."""
    if not from_this_machine(request, service):
        await admitted(request, service, "read")
    return Response(await off_loop(service.metrics.text), media_type=CONTENT_TYPE_LATEST)
