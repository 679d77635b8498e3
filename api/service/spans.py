"""The OpenTelemetry part of `tracing`; imported only where the extra `otel` is installed."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

QUERY = "url.query"


class WithoutQueries(SpanProcessor):
    """Takes what stood after `?` out of spans: people put there what is nobody else's business."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.attributes and QUERY in span.attributes:
            span.set_attribute(QUERY, "REDACTED")


def span_provider(exporter: SpanExporter | None = None) -> TracerProvider:
    """Sends spans to `exporter` (default: as OTEL_EXPORTER_OTLP_… say) from threads of its own."""
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over this name.
    provider = TracerProvider(resource=Resource.create({"service.name": "nvpstore"}))
    provider.add_span_processor(WithoutQueries())
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    return provider


def send_spans() -> TracerProvider:
    """The provider that the whole process uses from now on."""
    provider = span_provider()
    trace.set_tracer_provider(provider)
    return provider
