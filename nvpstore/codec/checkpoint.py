"""A fit's state on disk: tensors, numbers, text and containers of them, never code."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """A kill leaves the old file or the new one. Raises OSError where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    temporary.write_bytes(buffer.getvalue())  # torch's own writer hides a full disk in a RuntimeError
    temporary.replace(path)


def read_state(path: Path | None, *, device: str = "cpu") -> dict[str, Any] | None:
    """None where there is no such file."""
    if path is None or not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    return state
