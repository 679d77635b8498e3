"""Log lines: one JSON object each, whatever is in them, and no secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from nvpstore.api.service.logs import log_as_json

SECRET = "nvp_0a1b2c3d_" + "f" * 64


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    log_as_json(stream)
    yield stream
    root.handlers, root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_object_with_its_fields(stream: io.StringIO) -> None:
    logging.getLogger("nvpstore.x").info("request", extra={"fields": {"route": "/v1", "ms": 1.5}})
    (line,) = lines(stream)
    assert (line["level"], line["logger"], line["message"]) == ("info", "nvpstore.x", "request")
    assert (line["route"], line["ms"]) == ("/v1", 1.5)
    assert line["at"].endswith("+00:00")


def test_no_text_ends_a_line(stream: io.StringIO) -> None:
    logging.getLogger("nvpstore.x").warning('a"}\n{"message": "%s"}\r', "forged")
    assert [line["message"] for line in lines(stream)] == ['a"}\n{"message": "forged"}\r']


def test_tracebacks_are_inside(stream: io.StringIO) -> None:
    try:
        raise RuntimeError("over\ntwo lines")
    except RuntimeError:
        logging.getLogger("nvpstore.x").exception("failed")
    (line,) = lines(stream)
    assert "RuntimeError: over\ntwo lines" in line["error"]


def test_secrets_of_keys_are_cut_out_wherever_they_stand(stream: io.StringIO) -> None:
    log = logging.getLogger("nvpstore.x")
    log.error("key %s", SECRET, extra={"fields": {"header": f"Bearer {SECRET}"}})
    try:
        raise RuntimeError(SECRET)
    except RuntimeError:
        log.exception("failed")
    assert "ffff" not in stream.getvalue()
    assert lines(stream)[0]["message"] == "key nvp_0a1b2c3d_…"


def test_what_json_has_no_form_for_is_text(stream: io.StringIO) -> None:
    logging.getLogger("nvpstore.x").info("x", extra={"fields": {"what": {1, 2}.__class__}})
    assert lines(stream)[0]["what"] == "<class 'set'>"


def test_other_libraries_requests_are_not_logged(stream: io.StringIO) -> None:
    logging.getLogger("httpx2").info("GET https://bucket/x?X-Amz-Signature=…")
    logging.getLogger("botocore.hooks").info("…")
    logging.getLogger("botocore.hooks").warning("throttled")
    assert [line["message"] for line in lines(stream)] == ["throttled"]
