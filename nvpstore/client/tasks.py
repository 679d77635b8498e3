"""Registering a task at a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nvpstore.client.transport import QUERY_SECONDS, Transport
from nvpstore.client.values import AddedTask, of
from nvpstore.errors import TaskError
from nvpstore.types import TaskKind

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A task as `Archive.add_task` is told of it. `weights` are a local file, which is sent."""

    name: str
    like: str | None = None
    provider: str | None = None
    model: str | None = None
    kind: TaskKind | None = None
    size: tuple[int, int] | None = None
    fit: str | None = None
    mean: Colour | None = None
    std: Colour | None = None
    clip: tuple[int, int] | None = None
    labels: Sequence[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | Path | None = None
    seed: int | None = None
    new_version: bool = False

    def to_json(self) -> dict[str, Any]:
        """All that is said, but for the weights."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "weights"}
        return {name: value for name, value in said.items() if value is not None}


def add_task(transport: Transport, described: Described) -> AddedTask:
    """Raises TaskError where the file of weights cannot be read, else what `Archive.add_task` does."""
    if described.weights is None:
        answer = transport.json("POST", "tasks", body=described.to_json(), read_seconds=QUERY_SECONDS)
        return of(AddedTask, answer)
    path = Path(described.weights)
    try:
        weights = path.open("rb")
    except OSError as cause:
        raise TaskError(f"weights {path}: {cause.strerror}") from cause
    with weights:
        answer = transport.json(
            "POST",
            "tasks",
            fields={"task": json.dumps(described.to_json())},
            files={"weights": (path.name, weights)},
            read_seconds=QUERY_SECONDS,
        )
    return of(AddedTask, answer)
