"""What all requests of one server share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request

from nvpstore.api.auth.audit import AuditLog
from nvpstore.api.auth.keys import KeyRing
from nvpstore.api.auth.rates import Rates
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.service.metrics import Metrics
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The archive that is served, and what there is beside it. `loopback`: nobody else can reach it.

    `alive` says how many of the workers live, where there are any.
    """

    archive: Archive
    queue: JobQueue
    keys: KeyRing
    settings: ServiceSettings
    metrics: Metrics
    loopback: bool
    alive: Callable[[], int] | None = None
    rates: Rates = field(init=False)
    audit: AuditLog = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", Rates(self.settings.rate))
        object.__setattr__(self, "audit", AuditLog(self.settings.state_dir / "audit.jsonl"))


async def service_of(request: Request) -> Service:
    """The server's own (a FastAPI dependency; asynchronous, so that it waits for no thread)."""
    service = request.app.state.service
    assert isinstance(service, Service), "set by create_app"
    return service
