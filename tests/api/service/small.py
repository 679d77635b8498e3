"""A server over an empty archive, with a few routes of its own: what its edges do, whatever the routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel

from nvpstore.api.auth.keys import KeyRing, Scope
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.service import health
from nvpstore.api.service.metrics import Metrics
from nvpstore.api.service.middleware import Streams, add_middleware
from nvpstore.api.service.problems import add_handlers
from nvpstore.api.service.security import Caller, needs
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.api.service.state import Service
from nvpstore.errors import StoreError
from tests.conftest import open_micro

PREFIX = "/v1"
UPLOADS = (f"{PREFIX}/videos",)

router = APIRouter()


class Words(BaseModel):
    words: list[str]


@router.get("/videos/{video_id}")
async def show(video_id: str, caller: Annotated[Caller, Depends(needs("read"))]) -> dict[str, str]:
    return {"video_id": video_id, "caller": caller.key_id}


@router.get("/videos/{video_id}/original")
async def original(video_id: str, caller: Annotated[Caller, Depends(needs("read"))]) -> dict[str, str]:
    return {"video_id": video_id, "caller": caller.key_id}


@router.delete("/videos/{video_id}")
async def erase(video_id: str, caller: Annotated[Caller, Depends(needs("admin"))]) -> dict[str, str]:
    return {"video_id": video_id, "caller": caller.key_id}


@router.post("/videos")
async def upload(request: Request, caller: Annotated[Caller, Depends(needs("ingest"))]) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@router.post("/query")
async def query(words: Words, caller: Annotated[Caller, Depends(needs("query"))]) -> dict[str, int]:
    return {"words": len(words.words)}


@router.get("/bug")
async def bug() -> None:
    raise RuntimeError("the plan of the vault")


@router.get("/store")
async def store() -> None:
    raise StoreError("cannot reach s3://bucket/prefix")


@router.get("/known-store")
async def known_store(caller: Annotated[Caller, Depends(needs("read"))]) -> None:
    raise StoreError("cannot reach s3://bucket/prefix")


@router.get("/half")
async def half() -> StreamingResponse:
    async def rows() -> AsyncIterator[bytes]:
        yield b"first\n"
        raise RuntimeError("in the middle")

    return StreamingResponse(rows(), media_type="application/x-ndjson")


@router.get("/events")
async def events() -> StreamingResponse:
    async def ticks() -> AsyncIterator[bytes]:
        while True:
            yield b": tick\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(ticks(), media_type="text/event-stream")


@router.get("/slow")
async def slow(seconds: float) -> dict[str, float]:
    await asyncio.sleep(seconds)
    return {"slept": seconds}


@router.get("/header")
async def header(value: str) -> StreamingResponse:
    return StreamingResponse(iter([b"x"]), headers={"X-Said": value})


def small_service(folder: Path, *, loopback: bool = True, **settings: Any) -> Service:
    """A service whose files are all under `folder`."""
    given = ServiceSettings(state_dir=folder / "state", workers=0, **settings)
    queue = JobQueue(given.state_dir / "jobs.sqlite")
    return Service(
        archive=open_micro(folder / "archive", folder / "cache", create=True),
        queue=queue,
        keys=KeyRing(given.state_dir / "keys.sqlite"),
        settings=given,
        metrics=Metrics(queue),
        loopback=loopback,
    )


def small_app(service: Service) -> FastAPI:
    app = FastAPI(telemetry={"metrics": False, "logs": False, "operation_spans": False})
    app.state.service = service
    app.state.readiness = health.Readiness(service)
    app.state.streams = Streams()
    add_handlers(app)
    add_middleware(app, service, prefix=PREFIX, uploads=UPLOADS)
    app.include_router(router, prefix=PREFIX)
    app.include_router(health.router)
    return app


def small_client(folder: Path, **options: Any) -> TestClient:
    """A client of a small server; its `app.state.service` is the service."""
    return TestClient(small_app(small_service(folder, **options)))


def service_behind(client: TestClient) -> Service:
    service = client.app.state.service  # type: ignore[attr-defined]
    assert isinstance(service, Service)
    return service


def bearer(service: Service, *scopes: Scope, **options: Any) -> dict[str, str]:
    """The header of a new key."""
    _, secret = service.keys.add("test", scopes, **options)
    return {"Authorization": f"Bearer {secret}"}


def audited(service: Service) -> list[dict[str, Any]]:
    path = service.audit.path
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_loopback(service: Service) -> Service:
    return replace(service, loopback=False)
