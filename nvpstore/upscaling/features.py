"""What pictures look like to a classifier: features of a frozen EfficientNet-Lite, and how far two are apart.

The distance is LPIPS without learned weights (Zhang et al., "The Unreasonable Effectiveness of Deep Features
as a Perceptual Metric", CVPR 2018). Training looks through Lite0; what judges it must look through another.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.errors import UsageError
from nvpstore.tasks.backbones.efficientnet_lite import weights_path
from nvpstore.tasks.backbones.model import library

MEAN, SPREAD = 127 / 255, 128 / 255  # of the pictures that Lite was trained on
BLOCKS = {"efficientnet-lite0": (0, 2, 4, 10), "efficientnet-lite2": (0, 3, 6, 14)}  # 1/2 … 1/16


class FrozenFeatures(nn.Module):
    """RGB [b, 3, H, W] in 0 … 1 → features at 1/2, 1/4, 1/8 and 1/16 of the size. Gradient passes through."""

    def __init__(self, model: str) -> None:
        """Raises UsageError for a model that is none of BLOCKS, TaskError where its package is absent."""
        super().__init__()
        if model not in BLOCKS:
            raise UsageError(f"features of {model!r}: known are {', '.join(BLOCKS)}")
        package = library("efficientnet_lite_pytorch", package="efficientnet-lite-pytorch", model=model)
        net = package.EfficientNet.from_name(model)
        net.load_state_dict(torch.load(weights_path(model), map_location="cpu", weights_only=True))
        last = BLOCKS[model][-1]
        self.taps = BLOCKS[model]
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = nn.ModuleList(net._blocks[: last + 1])
        self.widths: tuple[int, ...] = tuple(net._blocks[tap]._block_args.output_filters for tap in self.taps)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenFeatures:
        """Always as for inference: its batch statistics are constants."""
        return super().train(False)

    def forward(self, pictures: Tensor, *, depth: int = 4) -> list[Tensor]:
        """The first `depth` of the four."""
        x = self.stem((pictures - MEAN) / SPREAD)
        found = []
        for i, block in enumerate(self.blocks[: self.taps[depth - 1] + 1]):
            x = block(x)
            if i in self.taps:
                found.append(x)
        return found


@cache
def frozen(model: str, device: str) -> FrozenFeatures:
    """One a process."""
    return FrozenFeatures(model).to(device)


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Mean over depths and places of ‖a/‖a‖ − b/‖b‖‖², channels being the vector; a scalar."""
    parts = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean()
        for a, b in zip(first, second, strict=True)
    ]
    return torch.stack(parts).mean()
