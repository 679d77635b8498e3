"""What a task is: a value whose canonical JSON decides its version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from nvpstore.errors import TaskError
from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.types import TaskKind

PREPARED_AT_ONCE = 4  # pictures of clips


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """How a model of actions samples: `frames` pictures, every `stride`-th frame of the video."""

    frames: int
    stride: int

    def __post_init__(self) -> None:
        if self.frames < 2 or self.stride < 1:
            raise ValueError(
                f"clip of {self.frames} frames, stride {self.stride}: at least 2 and 1 are needed"
            )

    @property
    def span(self) -> int:
        """Frames of the video from one clip to the next."""
        return self.frames * self.stride


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A named question to a frozen backbone.

    `provider` builds the model called `model` (tasks.backbones) by `options`, which are its own;
    `weights_sha256` is the digest of its weights, empty where they are drawn at random by `options["seed"]`
    (for figures of cost alone); `labels` are in class order. `clip` is there for models that answer for
    several frames at once.
    """

    name: str
    kind: TaskKind
    provider: str
    model: str
    weights_sha256: str
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    clip: Clip | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One unit of the backbone's input: [3, H, W], or [3, T, H, W] for clips."""
        size = (self.preprocessing.height, self.preprocessing.width)
        return (3, *size) if self.clip is None else (3, self.clip.frames, *size)

    @property
    def frames(self) -> int:
        """Pictures that make one unit."""
        return 1 if self.clip is None else self.clip.frames

    @property
    def random(self) -> bool:
        """The weights mean nothing: answers are for figures of cost only."""
        return not self.weights_sha256

    def prepare(self, rgb_tchw: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """RGB [u·t, 3, h, w] of u units, uint8 or float in 0 … 255 → backbone input [u, *input_shape].

        `size` is the video's (height, width) where the pictures have been stretched to another.
        """
        if self.clip is None:
            return self.preprocessing.apply(rgb_tchw, size=size)
        # A clip's pictures as floats at source size would be gigabytes.
        parts = [self.preprocessing.apply(part, size=size) for part in rgb_tchw.split(PREPARED_AT_ONCE)]
        # (U·T)x3xHxW -> UxTx3xHxW -> Ux3xTxHxW
        clips: Tensor = torch.cat(parts).unflatten(0, (-1, self.clip.frames)).transpose(1, 2)
        return clips

    def to_json(self) -> str:
        return json.dumps(_lean(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> TaskSpec:
        """Raises TaskError for the spec of a newer release."""
        try:
            said = json.loads(text)
            said["preprocessing"] = Preprocessing(**_tuples(said["preprocessing"]))
            if "clip" in said:
                said["clip"] = Clip(**said["clip"])
            return TaskSpec(**_tuples(said))
        except (TypeError, ValueError, KeyError) as cause:
            raise TaskError(f"a task's spec that this release of nvpstore cannot read: {cause}") from cause

    @property
    def version(self) -> str:
        """SHA-256 (hex) of all of it, weights included."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _lean(value: Any) -> dict[str, Any]:
    """Fields as a dict, without those added later that have their defaults: versions stay what they were."""
    whole = asdict(value)
    for f in fields(value):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if default is not MISSING and getattr(value, f.name) == default:
            del whole[f.name]
    if isinstance(value, TaskSpec):
        whole["preprocessing"] = _lean(value.preprocessing)
    return whole


def _tuples(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}
