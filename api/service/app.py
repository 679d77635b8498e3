"""The FastAPI application: who answers what, and what every request passes through."""

from __future__ import annotations

from fastapi import FastAPI

from nvpstore import __version__
from nvpstore.api.service import clips, console, frames, health, jobs, queries, tasks, videos
from nvpstore.api.service.description import describe_problems
from nvpstore.api.service.health import Readiness
from nvpstore.api.service.middleware import Streams, add_middleware
from nvpstore.api.service.problems import Problem, add_handlers
from nvpstore.api.service.state import Service

PREFIX = "/v1"
UPLOADS = (f"{PREFIX}/videos", f"{PREFIX}/tasks")  # what takes files, and bounds them itself
DESCRIPTION = """\
Videos stored as neural networks, questioned with SQL. Every error has the shape of RFC 9457
(`application/problem+json`); every answer carries `X-Request-Id`."""


def create_app(service: Service) -> FastAPI:
    """The application for one archive. Whoever runs it starts and stops the workers."""
    app = FastAPI(
        title="nvpstore",
        version=__version__,
        description=DESCRIPTION,
        responses={"default": {"model": Problem, "description": "what went wrong"}},
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        openapi_url=f"{PREFIX}/openapi.json",
        # A span a request, where tracing is on; figures and logs are our own.
        telemetry={"metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.service = service
    app.state.readiness = Readiness(service)
    app.state.streams = Streams()
    add_handlers(app)
    add_middleware(app, service, prefix=PREFIX, uploads=UPLOADS)
    for room in (videos, frames, clips, jobs, queries, tasks):
        app.include_router(room.router, prefix=PREFIX)
    app.include_router(health.router)
    app.include_router(console.router)
    app.openapi = describe_problems(app)  # type: ignore[method-assign]
    return app
