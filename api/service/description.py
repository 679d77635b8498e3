"""The OpenAPI description, with problems under their own media type: FastAPI knows JSON alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI

from nvpstore.api.service.problems import MEDIA_TYPE

_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_MALFORMED = "422"
_OTHERS = ("HTTPValidationError", "ValidationError")  # what FastAPI would answer with


def describe_problems(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """`app.openapi`, for the application to have in its place."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = original()
            for operation in _operations(described):
                _say_problems(operation["responses"])
            for name in _OTHERS:
                described["components"]["schemas"].pop(name, None)
        found: dict[str, Any] = original()  # made once
        return found

    return openapi


def _operations(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in described["paths"].values():
        yield from (operation for operation in path.values() if "responses" in operation)


def _say_problems(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status in ("default", _MALFORMED):
            response["content"] = _PROBLEM
            if status == _MALFORMED:
                response["description"] = "what is malformed, or cannot be done"
