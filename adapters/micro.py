"""The micro adapter: from INR stages to a backbone's cut by bilinear resize and 1×1 convolution.

Source: the neural-centric pipeline (CVPR 2026). Resize and convolution are separate: the first does
all of the geometry, the second all of the channels. Where a backbone carries tokens without a place beside
its maps (a ViT's class token), one learned query a token attends over the adapted map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nvpstore.codec.grids import WHOLE, Region, moving, on_grid, outside


class Attention(nn.Module):
    """Tokens pooled from a map [u, c, *grid]: softmax(q·x/√c) over positions, then a scale and bias."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(tokens, channels))
        # At the start the tokens' means, whatever the map says.
        self.scale = nn.Parameter(torch.zeros(channels, tokens))
        self.bias = nn.Parameter(torch.zeros(channels, tokens))

    def forward(self, features: Tensor) -> Tensor:
        """[u, c, *grid] → [u, c, tokens]."""
        positions = features.flatten(2)
        weights = (self.query @ positions / positions.shape[1] ** 0.5).softmax(-1)  # [u, tokens, n]
        tokens: Tensor = positions @ weights.transpose(1, 2) * self.scale + self.bias
        return tokens


class MicroAdapter(nn.Module):
    """Features of `stages` → the tensors of a cut.

    `shapes` are those of the cut for one unit: maps [c, h, w] or volumes [c, t, h, w], each with a 1×1
    convolution of its own, and after one of these perhaps tokens [c, n], which attend over it. A unit is
    `frames` pictures, of which the cut covers `region` (of the coded picture); where that reaches outside,
    the convolutions are told which positions do. With `motion` those of the volumes that are finest in time
    also see how features change from picture to picture: a 1×1 convolution of one picture's features cannot
    say what a temporal one would.
    """

    def __init__(
        self,
        stages: tuple[str, ...],
        tap_channels: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
        *,
        region: Region = WHOLE,
        frames: int = 1,
        motion: bool = False,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.shapes = tuple(shapes)
        self.region, self.frames = region, frames
        self.tap_channels = sum(tap_channels)
        self.moving = tuple(motion and fine for fine in moving(self.grids))
        maps = [shape for shape in shapes if len(shape) > 2]
        self.convs = nn.ModuleList(
            nn.Conv2d(self.tap_channels * (1 + moves) + region.reaches_outside, c, 1)
            for (c, *_), moves in zip(maps, self.moving, strict=True)
        )
        self.pools = nn.ModuleList(Attention(c, *n) for c, *n in shapes if len(n) == 1)

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The grid of each convolution."""
        return tuple(shape[1:] for shape in self.shapes if len(shape) > 2)

    @property
    def motion(self) -> bool:
        """Some convolution sees it."""
        return any(self.moving)

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """The 1×1 convolutions, one for each map or volume of the cut."""
        return [conv for conv in self.convs if isinstance(conv, nn.Conv2d)]

    @property
    def attentions(self) -> list[Attention]:
        return [pool for pool in self.pools if isinstance(pool, Attention)]

    def inputs(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Stage outputs {stage: [u·t, c, h, w]} → each convolution's input [u, Σc, *grid]."""
        return tuple(
            placed(
                [taps[stage] for stage in self.stages],
                grid,
                region=self.region,
                frames=self.frames,
                motion=moves,
            )
            for grid, moves in zip(self.grids, self.moving, strict=True)
        )

    def from_inputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What `inputs` gave → the cut's tensors, each [u, *shape]."""
        adapted: list[Tensor] = []
        convs = iter(zip(self.convolutions, inputs, strict=True))
        pools = iter(self.attentions)
        for shape in self.shapes:
            if len(shape) == 2:
                adapted.append(next(pools)(adapted[-1]))
                continue
            conv, x = next(convs)
            # UxCxTxHxW -> UxCx(T·H)xW: to a 1×1 convolution all positions are alike.
            adapted.append(conv(x.flatten(2, -2)).unflatten(2, shape[1:-1]))
        return tuple(adapted)

    def forward(self, taps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Stage outputs {stage: [u·t, c, h, w]} → the cut's tensors, each [u, *shape]."""
        return self.from_inputs(self.inputs(taps))

    @torch.no_grad()
    def denormalised(self, scales: Sequence[FeatureScale]) -> MicroAdapter:
        """An adapter for raw features, from one trained on normalised ones: the scale folded in.

        `scales` are those of the cut's tensors.
        """
        raw = self._like()
        for conv, out, scale in zip(self.convolutions, raw.convolutions, self._of_maps(scales), strict=True):
            out.weight.copy_(conv.weight * scale.std[:, None, None, None])
            assert conv.bias is not None, "adapters have biases"
            assert out.bias is not None, "adapters have biases"
            out.bias.copy_(conv.bias * scale.std + scale.mean)
        for own, new, (below, scale) in zip(
            self.attentions, raw.attentions, self._of_tokens(scales), strict=True
        ):
            new.query.copy_(own.query / below.std)
            new.scale.copy_(own.scale * (scale.std / below.std)[:, None])
            new.bias.copy_(
                scale.mean[:, None] + scale.std[:, None] * own.bias - new.scale * below.mean[:, None]
            )
        return raw

    @torch.no_grad()
    def normalised(self, scales: Sequence[FeatureScale]) -> MicroAdapter:
        """The inverse of `denormalised`."""
        student = self._like()
        for conv, out, scale in zip(
            self.convolutions, student.convolutions, self._of_maps(scales), strict=True
        ):
            out.weight.copy_(conv.weight / scale.std[:, None, None, None])
            assert conv.bias is not None, "adapters have biases"
            assert out.bias is not None, "adapters have biases"
            out.bias.copy_((conv.bias - scale.mean) / scale.std)
        for own, new, (below, scale) in zip(
            self.attentions, student.attentions, self._of_tokens(scales), strict=True
        ):
            new.query.copy_(own.query * below.std)
            new.scale.copy_(own.scale * (below.std / scale.std)[:, None])
            bias = own.bias + own.scale * below.mean[:, None] - scale.mean[:, None]
            new.bias.copy_(bias / scale.std[:, None])
        return student

    def _like(self) -> MicroAdapter:
        same = MicroAdapter(
            self.stages,
            (self.tap_channels,),
            self.shapes,
            region=self.region,
            frames=self.frames,
            motion=self.motion,
        )
        return same.to(self.convolutions[0].weight.device)

    def _of_maps(self, scales: Sequence[FeatureScale]) -> list[FeatureScale]:
        return [scale for scale, shape in zip(scales, self.shapes, strict=True) if len(shape) > 2]

    def _of_tokens(self, scales: Sequence[FeatureScale]) -> list[tuple[FeatureScale, FeatureScale]]:
        """For each tokens tensor: the scale of the map that it attends over, and its own."""
        return [(scales[i - 1], scales[i]) for i, shape in enumerate(self.shapes) if len(shape) == 2]


def placed(
    taps: Sequence[Tensor],
    grid: tuple[int, ...],
    *,
    region: Region = WHOLE,
    frames: int = 1,
    motion: bool = False,
) -> Tensor:
    """Stage outputs [u·t, cᵢ, hᵢ, wᵢ] → [u, Σcᵢ (+ 1), *grid]: laid onto the grid, channels concatenated,
    with `motion` each stage's followed by how they change.

    The last channel says which positions lie outside of the picture, where the region reaches there.
    """
    parts = [on_grid(tap, grid, region=region, frames=frames, motion=motion) for tap in taps]
    if region.reaches_outside:
        marks = outside(grid, region).to(parts[0])
        parts.append(marks.expand(len(parts[0]), *marks.shape))
    return torch.cat(parts, dim=1)


class FeatureScale:
    """Mean and standard deviation of a cut's tensor [u, c, …], by channel, over the units trained on."""

    def __init__(self, features: Tensor) -> None:
        over = (0, *range(2, features.ndim))
        self.mean = features.mean(dim=over)
        # A channel that is silent here must not blow up small errors; one token alone has no spread.
        self.std = features.std(dim=over, correction=0).clamp_min(1e-2 * float(features.std()) + 1e-6)

    def cpu(self) -> FeatureScale:
        self.mean, self.std = self.mean.cpu(), self.std.cpu()
        return self

    def normalise(self, features: Tensor) -> Tensor:
        return (features - _by_channel(self.mean, features)) / _by_channel(self.std, features)

    def restore(self, normalised: Tensor) -> Tensor:
        return normalised * _by_channel(self.std, normalised) + _by_channel(self.mean, normalised)


def _by_channel(values: Tensor, features: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (features.ndim - 2))
