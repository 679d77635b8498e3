"""A whole service over a small archive, and a real server for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi.testclient import TestClient

from nvpstore.api.auth.keys import KeyRing
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.service.app import create_app
from nvpstore.api.service.metrics import Metrics
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.api.service.state import Service
from nvpstore.archive import Archive

STARTS_WITHIN_SECONDS = 30


def service_over(archive: Archive, folder: Path, **settings: Any) -> Service:
    """A service without workers, whose own files are in `folder`."""
    given = ServiceSettings(**{"state_dir": folder, "workers": 0, "rate": "100000/minute", **settings})
    queue = JobQueue(folder / "jobs.sqlite", most_waiting=given.waiting_jobs)
    return Service(
        archive=archive,
        queue=queue,
        keys=KeyRing(folder / "keys.sqlite"),
        settings=given,
        metrics=Metrics(queue),
        loopback=True,
    )


def again(service: Service, folder: Path, **settings: Any) -> Service:
    """The same archive behind a service of its own: other jobs, keys, files and settings."""
    given = {name: getattr(service.settings, name) for name in ("workers", "rate")}
    return service_over(service.archive, folder, **{**given, **settings})


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """A real server on a port of its own; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            create_app(service), log_level="warning", lifespan="off", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            _wait_until_started(server)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(STARTS_WITHIN_SECONDS)
            assert not thread.is_alive(), "the server ends when it is told to"


def service_behind(client: TestClient) -> Service:
    """What answers a client."""
    service = client.app.state.service  # type: ignore[attr-defined]
    assert isinstance(service, Service)
    return service


def _wait_until_started(server: uvicorn.Server) -> None:
    until = time.monotonic() + STARTS_WITHIN_SECONDS
    while not server.started:
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
