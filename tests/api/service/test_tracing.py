"""Traces: a span a request where somebody collects them, without what is nobody's business."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from nvpstore.api.service.spans import span_provider
from nvpstore.api.service.tracing import start_tracing
from tests.api.service.small import router, service_behind, small_client


def test_a_request_is_a_span_named_by_its_route(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = span_provider(exporter)
    app = FastAPI(
        telemetry={"tracer_provider": provider, "metrics": False, "logs": False, "operation_spans": False}
    )
    app.state.service = service_behind(small_client(tmp_path))
    app.include_router(router, prefix="/v1")
    answer = TestClient(app).get("/v1/videos/abc", params={"key": "nvp_secret"})
    provider.force_flush()
    (span,) = exporter.get_finished_spans()
    provider.shutdown()
    assert answer.status_code == 200
    assert span.name == "GET /v1/videos/{video_id}"
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200
    assert span.resource.attributes["service.name"] == "nvpstore"
    assert "nvp_secret" not in span.to_json()


def test_without_an_endpoint_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "nvpstore.api.service.spans", raising=False)
    start_tracing()()
    assert "nvpstore.api.service.spans" not in sys.modules


def test_a_missing_package_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delitem(sys.modules, "nvpstore.api.service.spans", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    start_tracing()()
    assert "nvpstore[otel]" in caplog.text
