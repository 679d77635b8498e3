"""The OpenAPI description: complete, and true of what is served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from nvpstore.api.service import models

pytestmark = pytest.mark.slow  # one fit

ROUTES = {
    "post /v1/videos",
    "get /v1/videos",
    "get /v1/videos/{ref}",
    "patch /v1/videos/{ref}",
    "delete /v1/videos/{ref}",
    "post /v1/videos/{ref}/fit",
    "get /v1/videos/{ref}/frames/{frame}.{kind}",
    "get /v1/videos/{ref}/clip.mp4",
    "get /v1/videos/{ref}/original",
    "get /v1/jobs",
    "get /v1/jobs/{job_id}",
    "delete /v1/jobs/{job_id}",
    "get /v1/jobs/{job_id}/events",
    "get /v1/jobs/{job_id}/result",
    "get /v1/tasks",
    "post /v1/tasks",
    "get /v1/tasks/{name}",
    "post /v1/tasks/{name}/train",
}


@pytest.fixture(scope="module")
def description(client: TestClient) -> dict[str, Any]:
    answer = client.get("/v1/openapi.json")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def operations(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def test_every_route_is_described(description: dict[str, Any]) -> None:
    found = dict(operations(description))
    assert found.keys() >= ROUTES
    for name in ROUTES:
        operation = found[name]
        assert operation["description"], name
        assert operation["security"], name
        assert "default" in operation["responses"], name


def test_every_answer_has_a_form(description: dict[str, Any]) -> None:
    for name, operation in operations(description):
        if name not in ROUTES:
            continue
        good = [
            answer for status, answer in operation["responses"].items() if status in ("200", "201", "202")
        ]
        assert good, name
        if name != "get /v1/jobs/{job_id}/result":  # it is what was asked for
            assert all(answer["content"] for answer in good), name


def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    known = description["components"]["schemas"]

    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for inner in part.values():
                yield from references(inner)
        elif isinstance(part, list):
            for inner in part:
                yield from references(inner)

    for reference in references(description):
        assert reference.removeprefix("#/components/schemas/") in known


@pytest.mark.parametrize(
    "model",
    [found for found in vars(models).values() if isinstance(found, type) and issubclass(found, models.Asked)],
)
def test_what_is_asked_names_no_unknown_field(model: type[models.Asked]) -> None:
    schema = model.model_json_schema()
    assert schema["additionalProperties"] is False


def test_uploads_are_described_as_forms_and_as_json(description: dict[str, Any]) -> None:
    body = description["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    form = body["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["format"] == "binary"
    assert form["required"] == ["file"]
    assert body["application/json"]["schema"]["required"] == ["uri"]
    weights = description["paths"]["/v1/tasks"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]
    assert weights["properties"]["weights"]["format"] == "binary"


def test_fields_that_stay_where_they_are_not_named_have_no_default() -> None:
    schema = models.VideoChanges.model_json_schema()["properties"]
    for name in ("name", "recorded_at", "hold"):
        assert "default" not in schema[name]
    assert models.VideoChanges().said("name") is None
    assert models.VideoChanges(hold=False).said("hold") is False
