"""What all requests of one server share."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from nvpstore.api.auth.keys import KeyRing
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.service.metrics import Metrics
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The archive that is served, and what there is beside it. `loopback`: nobody else can reach it."""

    archive: Archive
    queue: JobQueue
    keys: KeyRing
    settings: ServiceSettings
    metrics: Metrics
    loopback: bool


def service_of(request: Request) -> Service:
    """The server's own (a FastAPI dependency)."""
    service = request.app.state.service
    assert isinstance(service, Service), "set by create_app"
    return service
