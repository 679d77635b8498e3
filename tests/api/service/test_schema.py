"""Requests made from the service's own description: no server error, and all answers as described."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    missing_required_header,
    positive_data_acceptance,
    unsupported_method,
)

from nvpstore.api.service.app import create_app
from tests.api.service.served import service_over
from tests.conftest import Micro

pytestmark = pytest.mark.slow

# What a description cannot say: that an id is of nothing, that an SQL text names no table, that on loopback
# nobody is asked for a key.
BEYOND = [ignored_auth, positive_data_acceptance, unsupported_method, missing_required_header]


EXAMPLES = 12  # an operation
MOST_KNOWN = 20


@pytest.fixture(scope="module")
def described(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The description, and the application that it is of, over an archive of its own."""
    folder = tmp_path_factory.mktemp("schema")
    app = create_app(service_over(micro.copy(folder), folder / "state"))
    return schemathesis.openapi.from_asgi("/v1/openapi.json", app)


def test_every_operation_does_what_it_says(described: Any) -> None:
    tried = []
    for found in described.get_all_operations():
        operation = found.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def requests(case: schemathesis.Case) -> None:
            case.call_and_validate(excluded_checks=BEYOND)

        requests()
        tried.append(operation.label)
    assert "POST /v1/query" in tried
    assert len(tried) >= MOST_KNOWN
