"""Who tells generated clips from real ones: in the space of the upscaler's own features, and of pixels.

Each looks at single frames (*detail*) and at two neighbours, the earlier one moved onto the later
(*consistency*): as AdcVSR has it. The pixel discriminator is a projected GAN (Sauer et al., "Projected GANs
Converge Faster", NeurIPS 2021): frozen EfficientNet-Lite0 features, mixed by fixed random projections.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from nvpstore.upscaling.build import OTHERS
from nvpstore.upscaling.features import FrozenFeatures
from nvpstore.upscaling.net import Upscaler, to_cells

PROJECTED = 32  # channels after a fixed random projection
HIDDEN = 48
SHIFT = 0.125  # of a side: how far pictures are moved by augmentation
CUTOUT = 0.3
COLOUR = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One map of scores [b, 1, h, w] a head."""

    detail: tuple[Tensor, ...]
    consistency: tuple[Tensor, ...]


class PixelSpace(nn.Module):
    """Lite0's features at 1/4 and 1/8, each through a fixed random 1×1 convolution."""

    def __init__(self, features: FrozenFeatures, *, seed: int = 0) -> None:
        super().__init__()
        self.features = features
        chance = torch.Generator().manual_seed(seed)
        widths = features.widths[1:3]
        mixes = [nn.Conv2d(width, PROJECTED, 1, bias=False) for width in widths]
        for mix, width in zip(mixes, widths, strict=True):
            weight = torch.randn(mix.weight.shape, generator=chance) / width**0.5
            mix.weight = nn.Parameter(weight, requires_grad=False)
        self.mixes = nn.ModuleList(mixes)
        self.widths: tuple[int, ...] = (PROJECTED,) * len(mixes)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        found = self.features(pictures, depth=3)[1:]
        return [mix(x) for mix, x in zip(self.mixes, found, strict=True)]


class FeatureSpace(nn.Module):
    """What the way down of a frozen upscaler leaves of a picture at its last two levels."""

    def __init__(self, net: Upscaler) -> None:
        super().__init__()
        self.net = net.requires_grad_(False).eval()
        side = net.geometry.patch * net.geometry.deepest
        with torch.no_grad():
            probe = self(torch.zeros(1, 3, side, side, device=next(net.parameters()).device))
        self.widths: tuple[int, ...] = tuple(x.shape[1] for x in probe)

    def train(self, mode: bool = True) -> FeatureSpace:
        """Frozen."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        alone = F.pad(pictures - 0.5, (0, 0, 0, 0, 0, 3 * OTHERS))  # no neighbours
        skips, _ = self.net.encode(to_cells(alone, self.net.geometry))
        return skips[-2:]


class Discriminator(nn.Module):
    """A detail and a consistency head for each depth of a space."""

    def __init__(self, space: FeatureSpace | PixelSpace) -> None:
        super().__init__()
        self.space, widths = space, space.widths
        self.detail = nn.ModuleList(_head(width) for width in widths)
        self.consistency = nn.ModuleList(_head(2 * width) for width in widths)

    def forward(self, frames: Tensor, before: Tensor) -> Scores:
        """`before` are the frames' earlier neighbours as these see them, both [b, 3, H, W]."""
        now, then = self.space(frames), self.space(before)
        pairs = [torch.cat([a, b - a], 1) for a, b in zip(now, then, strict=True)]
        return Scores(
            detail=tuple(head(x) for head, x in zip(self.detail, now, strict=True)),
            consistency=tuple(head(x) for head, x in zip(self.consistency, pairs, strict=True)),
        )

    def trained(self) -> list[nn.Parameter]:
        """The heads' parameters: the space is frozen."""
        return [*self.detail.parameters(), *self.consistency.parameters()]


def _head(width: int) -> nn.Module:
    return nn.Sequential(
        spectral_norm(nn.Conv2d(width, HIDDEN, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(HIDDEN, 1, 1)),
    )


# ---------------------------------------------------------------- pairs of frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Frames and their earlier neighbours as they see them, [b, 3, H, W] each."""

    frames: Tensor
    before: Tensor


def mismatched(pairs: Pairs, chance: torch.Generator) -> Pairs:
    """Real frames with what is not their past: another clip's, the frame itself, or a moved one.

    Shown as fakes to consistency heads alone, so that these look at the relation and not at sharpness.
    """
    kind = int(torch.randint(3, (), generator=chance))
    if kind == 0 and len(pairs.frames) > 1:
        return Pairs(frames=pairs.frames, before=pairs.before.roll(1, 0))
    if kind == 1:
        return Pairs(frames=pairs.frames, before=pairs.frames.flip(3))
    shift = 1 + int(torch.randint(3, (), generator=chance))
    return Pairs(frames=pairs.frames, before=pairs.before.roll(shift, 3))


def augmented(pairs: Pairs, chance: torch.Generator) -> Pairs:
    """Colour, translation and cutout, equal for a frame and its past (Zhao et al., "Differentiable
    Augmentation for Data-Efficient GAN Training", NeurIPS 2020)."""
    both = torch.cat([pairs.frames, pairs.before], 1)
    b, _, height, width = both.shape
    brightness = COLOUR * (torch.rand(b, 1, 1, 1, generator=chance) - 0.5)
    contrast = 1 + 2 * COLOUR * (torch.rand(b, 1, 1, 1, generator=chance) - 0.5)
    both = (both - 0.5) * contrast.to(both) + 0.5 + brightness.to(both)
    reach = int(SHIFT * min(height, width))
    dy, dx = (int(x) for x in torch.randint(-reach, reach + 1, (2,), generator=chance))
    both = F.pad(both, (reach,) * 4)[:, :, reach + dy :, reach + dx :][:, :, :height, :width]
    y, x = (
        int(v * (1 - CUTOUT) * s)
        for v, s in zip(torch.rand(2, generator=chance), (height, width), strict=True)
    )
    keep = both.new_ones(1, 1, height, width)
    keep[:, :, y : y + int(CUTOUT * height), x : x + int(CUTOUT * width)] = 0
    frames, before = (both * keep).split(3, 1)
    return Pairs(frames=frames, before=before)
