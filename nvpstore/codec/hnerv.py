"""The INR: encoder, decoder stages, head. Modules receive built numbers and know no presets.

HNeRV (Chen et al., CVPR 2023): a ConvNeXt encoder gives each frame a small latent; the decoder is a
1×1 stem and blocks of convolution → PixelShuffle → GELU, then a 3×3 head. NeRV (NeurIPS 2021): the
latent is the frame's time alone, and the stem an MLP over its positional encoding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.codec.build import NERV_HIDDEN, POSITIONAL_BASE, POSITIONAL_LEVELS, Architecture
from nvpstore.types import RGB_STAGE

NEARLY_DARK = 0.1  # mean of a channel that a head does not begin with at grey, and as far from white
DARKEST = 0.5 / 255  # that it then begins with

Net = TypeVar("Net", bound=nn.Module)


def on_device(module: Net, device: str) -> Net:
    """The module on `device` with NHWC weights: convolutions run two to three times faster on CPUs."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of [b, c, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # BxCxHxW -> BxHxWxC -> BxCxHxW
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return y.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7 → LayerNorm → 1×1 (×4) → GELU → 1×1, with layer scale (Liu et al., CVPR 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = LayerNorm2d(channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.project = nn.Conv2d(4 * channels, channels, 1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(F.gelu(self.expand(self.norm(self.depthwise(x)))))
        return x + self.scale * y


class Encoder(nn.Module):
    """Frames [b, 3, H, W] in 0 … 1 → latents [b, d, H/Πs, W/Πs]. Used while fitting, never stored."""

    def __init__(self, strides: Sequence[int], width: int, latent_channels: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for i, stride in enumerate(strides):
            out = latent_channels if i == len(strides) - 1 else width
            norm = [LayerNorm2d(channels)] if i else []
            stages += [*norm, nn.Conv2d(channels, out, stride, stride), ConvNeXtBlock(out)]
            channels = out
        self.stages = nn.Sequential(*stages)

    def forward(self, frames_bchw: Tensor) -> Tensor:
        out: Tensor = self.stages(frames_bchw)
        return out


class Stem(nn.Module):
    """HNeRV's stage 0: latents [b, d, h, w] → [b, c₀, h, w]."""

    def __init__(self, latent_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(latent_channels, channels, 1)

    def forward(self, latents: Tensor) -> Tensor:
        return F.gelu(self.conv(latents))


class PositionalStem(nn.Module):
    """NeRV's stage 0: times [b, 1] in 0 … 1 → positional encoding → MLP → [b, c₀, h, w]."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.shape = (channels, height, width)
        self.hidden = nn.Linear(2 * POSITIONAL_LEVELS, NERV_HIDDEN)
        self.out = nn.Linear(NERV_HIDDEN, channels * height * width)

    def forward(self, times: Tensor) -> Tensor:
        levels = torch.arange(POSITIONAL_LEVELS, device=times.device, dtype=torch.float64)
        angles = times * (POSITIONAL_BASE**levels * math.pi).float()  # [b, levels]
        encoded = torch.cat([angles.sin(), angles.cos()], dim=1)
        return F.gelu(self.out(F.gelu(self.hidden(encoded)))).reshape(-1, *self.shape)


class UpBlock(nn.Module):
    """Convolution → PixelShuffle → GELU: [b, c, h, w] → [b, c', h·s, w·s]."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels * stride**2, kernel, padding=kernel // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(F.pixel_shuffle(self.conv(x), self.stride))


class Head(nn.Module):
    """The `rgb` stage: [b, c, H, W] → [b, 3, H, W] in 0 … 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x)) * 0.5 + 0.5


class Decoder(nn.Module):
    """Stages 0 … `last`, each runnable without those after it."""

    def __init__(self, arch: Architecture, *, last: str = RGB_STAGE) -> None:
        super().__init__()
        self.names = arch.stage_names[: arch.stage_names.index(last) + 1]
        w = arch.widths
        stem = (
            PositionalStem(w[0], *arch.latent_hw)
            if arch.codec == "nerv"
            else Stem(arch.latent_channels, w[0])
        )
        blocks = [
            UpBlock(w[i], w[i + 1], k, s)
            for i, (k, s) in enumerate(zip(arch.kernels, arch.strides, strict=True))
        ]
        self.stages = nn.ModuleList([stem, *blocks, Head(w[-1])][: len(self.names)])

    @torch.no_grad()
    def begin_at(self, mean: Tensor) -> None:
        """Let the head begin with the mean [3], in 0 … 1, of channels that are nearly dark or nearly full.

        From mid-grey, Adam overshoots on its way there: tanh ends at exactly ±1, where no gradient is left,
        and the fit stays black or white. All else is learned faster from grey.
        """
        head = self.stages[-1]
        assert isinstance(head, Head), "a whole decoder"
        assert head.conv.bias is not None
        begun = torch.atanh(2 * mean.clamp(DARKEST, 1 - DARKEST) - 1)
        far = (mean < NEARLY_DARK) | (mean > 1 - NEARLY_DARK)
        head.conv.bias.copy_(torch.where(far, begun, head.conv.bias))

    def taps(self, latents: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """Decode latents [b, …] as deep as the deepest of `stages`; outputs of exactly these stages."""
        wanted = set(stages)
        last = max(self.names.index(name) for name in wanted)
        out: dict[str, Tensor] = {}
        x = latents
        for name, stage in zip(self.names[: last + 1], self.stages, strict=False):
            x = stage(x)
            if name in wanted:
                out[name] = x
        return out

    def forward(self, latents: Tensor) -> Tensor:
        """Latents → padded frames [b, 3, H, W] in 0 … 1."""
        return self.taps(latents, (RGB_STAGE,))[RGB_STAGE]


def nerv_times(frames: int, device: torch.device) -> Tensor:
    """Latents of a NeRV segment: the times [t, 1] of its frames, (i + 0.5)/t."""
    index = torch.arange(frames, device=device, dtype=torch.float32)
    return ((index + 0.5) / frames)[:, None]
