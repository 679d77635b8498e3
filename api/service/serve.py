"""Running the service: one socket, one process that answers, and the workers that it keeps."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nvpstore.api.auth.keys import KeyRing
from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.jobs.supervisor import Supervisor
from nvpstore.api.service.app import create_app
from nvpstore.api.service.background import QueryRunner
from nvpstore.api.service.logs import log_as_json
from nvpstore.api.service.metrics import Metrics
from nvpstore.api.service.protocol import HEADER_BYTES, PatientProtocol
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.api.service.state import Service
from nvpstore.api.service.tracing import start_tracing
from nvpstore.archive import Archive
from nvpstore.errors import StoreError, UsageError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
MOST_CONNECTIONS = 1_000
KEEP_ALIVE_SECONDS = 15
_log = logging.getLogger("nvpstore.service")


def build_service(archive: Archive, settings: ServiceSettings, loopback: bool) -> Service:
    """What the application is made of, with its files in a folder of the archive's own."""
    own = settings.of_archive(archive.log.archive_id)
    try:
        own.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as cause:
        raise StoreError(f"cannot keep state in {own.state_dir}: {cause.strerror}") from cause
    queue = JobQueue(own.state_dir / "jobs.sqlite", most_waiting=own.waiting_jobs)
    return Service(
        archive=archive,
        queue=queue,
        keys=KeyRing(own.state_dir / "keys.sqlite"),
        settings=own,
        metrics=Metrics(queue),
        loopback=loopback,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def run(
    service: Service,
    host: str,
    port: int,
    *,
    device: str = "auto",
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends it at once.

    `port` 0 takes a free one; `started` is told the URL once connections are accepted. Raises UsageError
    where the address cannot be had, and off loopback without any key.
    """
    log_as_json()
    _check_keys(service, host)
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(host, port))
        stack.callback(start_tracing())
        work = stack.enter_context(ExitStack())
        service = _at_work(service, work, device=device)
        url = _url(host, listener.getsockname()[1])
        server = Server(create_app(service), stopping=work.close, started=lambda: started(url))
        server.run(sockets=[listener])


def _at_work(service: Service, work: ExitStack, *, device: str) -> Service:
    """The same with its workers, which `work` stops."""
    settings = service.settings
    supervisor = Supervisor(service.archive.store.root, service.queue.path, settings, device=device)
    supervisor.start()
    work.callback(supervisor.stop, settings.grace_seconds)
    service.metrics.watch_workers(supervisor.alive)
    # On loopback only under names that no other site can have given it.
    hosts = (*LOOPBACK_NAMES, *settings.hosts) if service.loopback else settings.hosts
    served = replace(service, settings=replace(settings, hosts=hosts), alive=supervisor.alive)
    runner = QueryRunner(served)
    runner.start()
    work.callback(runner.stop)
    return served


class Server(uvicorn.Server):
    """Stops gracefully: no new connections, then requests end, while workers give their jobs back.

    `stopping` is called once, on a thread, as soon as the first signal came.
    """

    def __init__(self, app: FastAPI, *, stopping: Callable[[], None], started: Callable[[], None]) -> None:
        super().__init__(_config(app))
        self._app, self._stopping, self._say_started = app, stopping, started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._say_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        workers = asyncio.create_task(asyncio.to_thread(self._stopping))
        self._app.state.streams.end()
        await super().shutdown(sockets=sockets)
        await workers

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # Everything that counts is on the disk already; workers end with their parent.
            sys.stderr.flush()
            os._exit(128 + sig)
        self.should_exit = True  # not noted for later: to stop when told to is no failure


def _check_keys(service: Service, host: str) -> None:
    if not service.loopback and service.keys.empty():
        raise UsageError(
            f"refused to listen on {host} without any key, since others can reach it: make one first, with "
            "`nvp keys add NAME --scope admin`"
        )
    if service.loopback and service.keys.untouched():
        _log.warning(
            "there are no keys: whoever is on this machine may do everything (`nvp keys add` changes that)"
        )


def _listener(host: str, port: int) -> socket.socket:
    name = host.strip("[]")
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    try:
        return socket.create_server((name, port), family=family, backlog=2048)
    except (OSError, OverflowError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise UsageError(f"cannot listen on {host} port {port}: {reason}") from cause


def _config(app: FastAPI) -> uvicorn.Config:
    service: Service = app.state.service
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        h11_max_incomplete_event_size=HEADER_BYTES,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # one line of ours a request
        proxy_headers=False,  # anybody can send X-Forwarded-For
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=service.settings.grace_seconds,
    )


def _url(host: str, port: int) -> str:
    name = host.strip("[]")
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
