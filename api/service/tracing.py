"""Traces by OpenTelemetry, where somebody collects them. FastAPI itself makes a span a request."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_log = logging.getLogger("nvpstore.service")


def start_tracing() -> Callable[[], None]:
    """Sends spans where the environment says, if it does; returns what sends the last ones."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return _nothing
    try:
        from nvpstore.api.service.spans import send_spans  # an optional extra
    except ModuleNotFoundError as cause:
        _log.warning("no traces: %s is not installed (pip install 'nvpstore[otel]')", cause.name)
        return _nothing
    return send_spans().shutdown


def _nothing() -> None:
    pass
