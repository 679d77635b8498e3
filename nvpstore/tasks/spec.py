"""What a task is: a value whose canonical JSON decides its version."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nvpstore.types import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Whole frames stretched to `height` × `width` (bilinear, antialiased), then (x − mean) / std.

    `mean` and `std` are per channel, in units of 8-bit RGB (0 … 255).
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def input_chw(self) -> tuple[int, int, int]:
        return 3, self.height, self.width

    def apply(self, rgb_tchw: Tensor) -> Tensor:
        """RGB [t, 3, h, w], uint8 or float in 0 … 255 → backbone input [t, 3, height, width]."""
        x = rgb_tchw.float()
        x = F.interpolate(x, (self.height, self.width), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A named question to a frozen backbone.

    `provider` builds the model called `model` (tasks.backbones); `weights_sha256` is the digest of its
    weights file; `labels` are in class order.
    """

    name: str
    kind: TaskKind
    provider: str
    model: str
    weights_sha256: str
    preprocessing: Preprocessing
    labels: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> TaskSpec:
        fields = json.loads(text)
        pre = fields.pop("preprocessing")
        shape = Preprocessing(
            height=pre["height"], width=pre["width"], mean=tuple(pre["mean"]), std=tuple(pre["std"])
        )
        return TaskSpec(**{**fields, "labels": tuple(fields["labels"]), "preprocessing": shape})

    @property
    def version(self) -> str:
        """SHA-256 (hex) of all of it, weights included."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
