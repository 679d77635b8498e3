"""Engines by name."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

from nvpstore.engine.contract import BACKGROUND
from nvpstore.engine.local import HereEngine, ProcessEngine
from nvpstore.errors import UsageError

EngineName = Literal["local", "processes", "ray"]


def made_engine(name: EngineName, *, workers: int) -> Any:
    """An engine of so many workers: `local` is this process for one, else processes.

    Raises UsageError for an unknown one, and where Ray is not installed.
    """
    _check(name, workers)
    if name == "local" and workers == 1:
        return HereEngine()
    if name == "ray":
        # A second of imports, for those who use it.
        from nvpstore.engine.rays import RayEngine

        return RayEngine(workers)
    return ProcessEngine(workers)


def fitting_engine(name: EngineName, *, workers: int, device: str, gpus_a_worker: float | None) -> Any:
    """An engine for fits, which take hours: its workers let others go first, and share the GPUs.

    `gpus_a_worker` is for Ray alone. Raises UsageError as `made_engine`.
    """
    _check(name, workers)
    if name == "local" and workers == 1:
        return HereEngine()
    if name == "ray":
        from nvpstore.engine.rays import RayEngine

        share = 0.0 if device == "cpu" else gpus_a_worker
        return RayEngine(workers, gpus_a_worker=share, nice=BACKGROUND)
    if gpus_a_worker is not None:
        raise UsageError("a worker's share of a GPU is for engine 'ray': processes take GPUs in turn")
    return ProcessEngine(workers, gpus=() if device == "cpu" else visible_gpus(), nice=BACKGROUND)


def visible_gpus() -> tuple[str, ...]:
    """The GPUs of this machine that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    # Here, so that planning never pays for torch.
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(named[:count] if named else map(str, range(count)))


def _check(name: str, workers: int) -> None:
    if workers < 1:
        raise UsageError(f"{workers} workers: at least 1 is needed")
    if name not in get_args(EngineName):
        raise UsageError(f"engine {name!r}: {', '.join(get_args(EngineName))} are allowed")
