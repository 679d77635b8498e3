"""Engines by name."""

from __future__ import annotations

from typing import Any, Literal, get_args

from nvpstore.engine.local import HereEngine, ProcessEngine
from nvpstore.errors import UsageError

EngineName = Literal["local", "ray"]


def made_engine(name: EngineName, *, workers: int) -> Any:
    """An engine of so many workers. Raises UsageError for an unknown one, and where Ray is not installed."""
    if workers < 1:
        raise UsageError(f"{workers} workers: at least 1 is needed")
    if name == "local":
        return HereEngine() if workers == 1 else ProcessEngine(workers)
    if name == "ray":
        # A second of imports, for those who use it.
        from nvpstore.engine.rays import RayEngine

        return RayEngine(workers)
    raise UsageError(f"engine {name!r}: {', '.join(get_args(EngineName))} are allowed")
