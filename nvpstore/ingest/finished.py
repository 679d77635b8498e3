"""Finished segments on this machine's disk: a kill costs no more than what is at work just then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvpstore.codec.build import Architecture
from nvpstore.codec.checkpoint import read_state, write_state
from nvpstore.ingest.segment import FinishedSegment
from nvpstore.types import RouteRecord, SegmentSpan, StoredLatents, StoredStage, StoredTensor

LAYOUT = 1  # of the file; another release's is computed anew
_PLAIN = ("pts", "squared_error", "resize_squared_error", "values_per_frame", "fit_seconds")
_BYTES = "bytes"  # the one key of what stands for bytes


def keep_finished(path: Path, segment: FinishedSegment) -> None:
    """Raises OSError where it cannot be written."""
    state = {
        "layout": LAYOUT,
        "span": asdict(segment.span),
        "arch": segment.arch.to_json(),
        "weights": [asdict(stage) for stage in segment.weights],
        "latents": asdict(segment.latents),
        "routes": [[asdict(route) for route in own] for own in segment.routes],
        **{name: getattr(segment, name) for name in _PLAIN},
    }
    write_state(path, _packed(state))


def kept_finished(path: Path) -> FinishedSegment | None:
    """What `keep_finished` wrote; None where there is nothing that this release can use."""
    packed = read_state(path)
    if packed is None or packed["layout"] != LAYOUT:
        return None
    state = _unpacked(packed)
    return FinishedSegment(
        span=SegmentSpan(**state["span"]),
        arch=Architecture.from_json(state["arch"]),
        weights=tuple(_stage(fields) for fields in state["weights"]),
        latents=StoredLatents(**state["latents"]),
        routes=tuple(tuple(_route(fields) for fields in own) for own in state["routes"]),
        **{name: state[name] for name in _PLAIN},
    )


def _stage(fields: Mapping[str, Any]) -> StoredStage:
    tensors = tuple(StoredTensor(**tensor) for tensor in fields["tensors"])
    return StoredStage(segment=fields["segment"], stage=fields["stage"], tensors=tensors)


def _route(fields: Mapping[str, Any]) -> RouteRecord:
    adapter = tuple(StoredTensor(**tensor) for tensor in fields["adapter"])
    return RouteRecord(**{**fields, "adapter": adapter})


def _packed(value: Any) -> Any:
    """As tensors, numbers, text and containers of them: all that a loader without code takes."""
    if isinstance(value, bytes):
        return {_BYTES: torch.from_numpy(np.frombuffer(value, np.uint8).copy())}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _packed(part) for name, part in value.items()}
    return type(value)(map(_packed, value)) if isinstance(value, list | tuple) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, Mapping):
        if value.keys() == {_BYTES}:
            return value[_BYTES].numpy().tobytes()
        return {name: _unpacked(part) for name, part in value.items()}
    return type(value)(map(_unpacked, value)) if isinstance(value, list | tuple) else value
