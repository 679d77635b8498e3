"""Every failure in one shape, with the status that says what kind it is."""

from __future__ import annotations

import inspect
from http import HTTPStatus
from pathlib import Path

import pytest
from fastapi import APIRouter, Body
from fastapi.testclient import TestClient

from nvpstore import errors
from nvpstore.api.jobs.queue import QueueFull
from nvpstore.api.service.problems import MOST_ERRORS, Refused, status_of
from nvpstore.errors import NvpError
from tests.api.service.small import small_app, small_service

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, NvpError)]


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    app = small_app(small_service(tmp_path))
    router = APIRouter()

    @router.get("/raise/{name}")
    async def raises(name: str) -> None:
        raise getattr(errors, name)("what was asked,\n  what was found")

    @router.get("/full")
    async def full() -> None:
        raise QueueFull("1000 jobs wait", retry_after_seconds=29.6)

    @router.get("/refused")
    async def refused() -> None:
        raise Refused(HTTPStatus.CONFLICT, "no: \ud800", headers={"X-Why": "so"})

    @router.post("/numbers")
    async def numbers(numbers: list[int] = Body()) -> int:  # noqa: B008
        return sum(numbers)

    app.include_router(router)
    return TestClient(app)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_of_ours_is_a_problem_that_names_its_kind(
    client: TestClient, kind: type[NvpError]
) -> None:
    answer = client.get(f"/raise/{kind.__name__}")
    problem = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.status_code == problem["status"] == status_of(kind("")).value
    assert problem["title"] == HTTPStatus(problem["status"]).phrase
    assert problem["error"] == kind.__name__
    if problem["status"] < 500:
        assert problem["detail"] == "what was asked, what was found"


@pytest.mark.parametrize(("name", "status"), [
    ("NotFound", 404), ("UsageError", 400), ("QueryError", 422), ("RouteError", 422), ("SourceError", 422),
    ("TaskError", 422), ("CommitDropped", 409), ("IntegrityError", 500), ("StoreError", 503),
])  # fmt: skip
def test_what_the_caller_can_change_is_a_4xx(client: TestClient, name: str, status: int) -> None:
    assert client.get(f"/raise/{name}").status_code == status


def test_a_full_queue_says_when_to_come_back(client: TestClient) -> None:
    answer = client.get("/full")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "30")


def test_a_refusal_has_its_headers_and_text_that_can_be_sent(client: TestClient) -> None:
    answer = client.get("/refused")
    assert (answer.status_code, answer.headers["X-Why"]) == (409, "so")
    assert answer.json()["detail"] == "no: ?"


@pytest.mark.parametrize("path", ["/nowhere", "/v1/videos/a/b/c"])
def test_an_unknown_route_is_one_too(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")


def test_a_wrong_method_says_which_are_allowed(client: TestClient) -> None:
    answer = client.put("/full")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


def test_malformed_fields_are_named(client: TestClient) -> None:
    answer = client.post("/numbers", json=[1, "two", 3])
    assert answer.status_code == 422
    assert [error["at"] for error in answer.json()["errors"]] == [["body", "1"]]
    assert "body.1" in answer.json()["detail"]


def test_of_very_many_malformed_fields_some_are_named(client: TestClient) -> None:
    answer = client.post("/numbers", json=["x"] * 10_000)
    assert len(answer.json()["errors"]) == MOST_ERRORS
    assert len(answer.content) < 10_000


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'["\\ud800"]', b"[" * 100_000, b"NaN", b"1e999"])
def test_bodies_that_are_no_json_of_ours_are_problems(client: TestClient, body: bytes) -> None:
    answer = client.post("/numbers", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["status"] == answer.status_code
