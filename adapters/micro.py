"""The micro adapter: from INR stages to a backbone's cut by bilinear resize and 1×1 convolution.

Source: the neural-centric pipeline (CVPR 2026). Resize and convolution are separate: the first does
all of the geometry, the second all of the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_taps(taps: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Stage outputs [t, cᵢ, hᵢ, wᵢ] → [t, Σcᵢ, height, width], bilinear, channels concatenated."""
    return torch.cat(
        [F.interpolate(tap, (height, width), mode="bilinear", align_corners=False) for tap in taps], dim=1
    )


class MicroAdapter(nn.Module):
    """Features of `stages` → the tensors of a cut.

    `shapes` are the cut's [c, h, w], one or two of them; each gets a 1×1 convolution of its own.
    """

    def __init__(
        self,
        stages: tuple[str, ...],
        tap_channels: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        super().__init__()
        self.stages = stages
        self.shapes = tuple(shapes)
        self.convs = nn.ModuleList(nn.Conv2d(sum(tap_channels), shape[0], 1) for shape in shapes)

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The 1×1 convolutions, one for each tensor of the cut."""
        return [conv for conv in self.convs if isinstance(conv, nn.Conv2d)]

    def forward(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Stage outputs {stage: [t, c, h, w]} → the cut's tensors, each [t, *shape]."""
        ordered = [taps[stage] for stage in self.stages]
        return tuple(
            conv(resize_taps(ordered, *shape[1:]))
            for conv, shape in zip(self.convolutions, self.shapes, strict=True)
        )

    def gflops(self) -> float:
        """GFLOPs (2 × MAC) of the convolutions for one frame; the resize is left out (it is small)."""
        return sum(
            2 * conv.weight.numel() * shape[1] * shape[2] / 1e9
            for conv, shape in zip(self.convolutions, self.shapes, strict=True)
        )

    @torch.no_grad()
    def denormalised(self, scales: Sequence[FeatureScale]) -> MicroAdapter:
        """An adapter for raw features, from one trained on normalised ones: the scale folded in."""
        raw = MicroAdapter(self.stages, (self.convolutions[0].in_channels,), self.shapes)
        for conv, out, scale in zip(self.convolutions, raw.convolutions, scales, strict=True):
            out.weight.copy_(conv.weight * scale.std[:, None, None, None])
            assert conv.bias is not None, "adapters have biases"
            assert out.bias is not None, "adapters have biases"
            out.bias.copy_(conv.bias * scale.std + scale.mean)
        return raw


class FeatureScale:
    """Mean and standard deviation of a cut's tensor, by channel, over the frames trained on."""

    def __init__(self, features: Tensor) -> None:
        self.mean = features.mean(dim=(0, 2, 3))
        # A channel that is silent on these frames must not blow up small errors.
        self.std = features.std(dim=(0, 2, 3)).clamp_min(1e-2 * float(features.std()) + 1e-6)

    def cpu(self) -> FeatureScale:
        self.mean, self.std = self.mean.cpu(), self.std.cpu()
        return self

    def normalise(self, features: Tensor) -> Tensor:
        return (features - self.mean[:, None, None]) / self.std[:, None, None]

    def restore(self, normalised: Tensor) -> Tensor:
        return normalised * self.std[:, None, None] + self.mean[:, None, None]
