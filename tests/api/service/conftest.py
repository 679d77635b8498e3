"""A small archive, served: one fitted clip and one that is only added. Tests only read it.

Those that change something have an archive or a queue of their own: `changing`, `fresh`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nvpstore.api.service.app import create_app
from nvpstore.api.service.state import Service
from tests.api.service.served import again, service_over, serving
from tests.conftest import Micro, open_micro

ADDED_TAGS = {"camera": "yard", "draft": "yes"}


@pytest.fixture(scope="session")
def service(micro: Micro, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Over the fitted clip of `micro` (tagged camera=gate), and `clip`, added with a copy of its original."""
    folder = tmp_path_factory.mktemp("service")
    archive = micro.copy(folder)
    archive.add(clip, tags=ADDED_TAGS, name="square", keep_source="copy")
    return service_over(archive, folder / "state")


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Over an archive without videos: a module whose tests need none takes it for its `service`."""
    folder = tmp_path_factory.mktemp("empty")
    return service_over(open_micro(folder / "archive", folder / "cache", create=True), folder / "state")


@pytest.fixture(scope="session")
def fitted(micro: Micro) -> str:
    """The fitted video's id."""
    return micro.video_id


@pytest.fixture(scope="session")
def added(service: Service) -> str:
    """The added video's id."""
    return service.archive.catalog.snapshot().find_video("square")


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


@pytest.fixture(scope="session")
def server(service: Service) -> Iterator[str]:
    """The address of a real server."""
    with serving(service) as url:
        yield url


@pytest.fixture
def fresh(service: Service, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of the same archive, with jobs and keys of their own, and settings as given."""
    clients: list[TestClient] = []

    def make(**settings: Any) -> TestClient:
        own = again(service, tmp_path / f"state-{len(clients)}", **settings)
        client = TestClient(create_app(own))
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def changing(micro: Micro, tmp_path: Path) -> Iterator[TestClient]:
    """A client of a copy of the fitted clip's archive, to change."""
    own = service_over(micro.copy(tmp_path), tmp_path / "state")
    with TestClient(create_app(own)) as client:
        yield client
