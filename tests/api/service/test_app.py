"""The whole application: which routes there are, and that none of them is open by mistake."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nvpstore import __version__
from nvpstore.api.service.app import create_app
from nvpstore.storage.keys import new_attempt
from tests.api.service.small import bearer, service_behind, small_service

OPEN = {"/healthz", "/readyz"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """Off loopback, with no worker and no video."""
    folder: Path = tmp_path_factory.mktemp("app")
    return TestClient(create_app(small_service(folder, loopback=False)))


@pytest.fixture(scope="module")
def described(client: TestClient) -> dict[str, Any]:
    description: dict[str, Any] = client.get("/v1/openapi.json").json()
    return description


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def filled(template: str) -> str:
    """A path of a route, to something that is not there."""
    return re.sub(r"\{\w+\}", "1", template.replace("{job_id}", new_attempt()))


def test_it_says_what_it_is(described: dict[str, Any]) -> None:
    assert (described["info"]["title"], described["info"]["version"]) == ("nvpstore", __version__)


def test_all_routes_but_those_of_operations_have_a_version(described: dict[str, Any]) -> None:
    without = {path for path in described["paths"] if not path.startswith("/v1/")}
    assert without == {*OPEN, "/metrics"}


def test_every_route_needs_a_key(client: TestClient, described: dict[str, Any]) -> None:
    asked = [(method, path) for method, path, _ in operations(described) if path not in OPEN]
    assert len(asked) > 15
    for method, template in asked:
        answer = client.request(method, filled(template))
        assert answer.status_code == 401, (method, template)
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_every_route_with_a_version_says_that_it_needs_one(described: dict[str, Any]) -> None:
    silent = [
        (method, path)
        for method, path, operation in operations(described)
        if path.startswith("/v1/") and operation.get("security") != [{"key": []}]
    ]
    assert silent == []


def test_a_key_without_scopes_that_count_changes_nothing(
    client: TestClient, described: dict[str, Any]
) -> None:
    headers = bearer(service_behind(client), "read")
    changing = [(m, p) for m, p, _ in operations(described) if m in ("post", "patch", "delete", "put")]
    for method, template in changing:
        answer = client.request(method, filled(template), headers=headers)
        # A key may cancel jobs of its own: others' are not there for it.
        assert answer.status_code == (404 if "/jobs/" in template else 403), (method, template)


def test_every_route_describes_its_failures_and_itself(described: dict[str, Any]) -> None:
    for method, path, operation in operations(described):
        assert "default" in operation["responses"], (method, path)
        assert operation.get("description"), (method, path)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"])
def test_pages_that_load_scripts_from_elsewhere_are_not_there(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_console_is_served_under_the_policy(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "no-cache" in answer.headers["Cache-Control"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|<style|\sstyle=|https?://", answer.text)
