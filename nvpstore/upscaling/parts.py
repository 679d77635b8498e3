"""Blocks that the networks are made of: diffusers', and two that have to work in tiles.

diffusers is asked for its blocks only. It imports torchvision where that is installed, whose registry build
does not load beside a CPU torch, so that the guard comes first.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable
from nvpstore.upscaling.build import Geometry

make_torchvision_importable()

from diffusers.models.attention import BasicTransformerBlock  # noqa: E402
from diffusers.models.downsampling import Downsample2D  # noqa: E402
from diffusers.models.embeddings import TimestepEmbedding, Timesteps  # noqa: E402
from diffusers.models.resnet import ResnetBlock2D  # noqa: E402
from diffusers.models.upsampling import Upsample2D  # noqa: E402

__all__ = [
    "Downsample2D",
    "FixedNorm",
    "ResnetBlock2D",
    "TimestepEmbedding",
    "Timesteps",
    "Upsample2D",
    "WindowAttention",
    "norm_of",
]


class FixedNorm(nn.Module):
    """Group normalisation whose statistics are constants: what one tile shows cannot change another.

    While `measuring`, it normalises by what it sees, and remembers the running mean of that.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, groups: int, channels: int, *, eps: float = 1e-5, memory: float = 0.9) -> None:
        super().__init__()
        self.groups, self.eps, self.memory = groups, eps, memory
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(groups))
        self.register_buffer("variance", torch.ones(groups))
        self.measuring = False

    def forward(self, x: Tensor) -> Tensor:
        if self.measuring:
            self._measure(x)
        each = len(self.weight) // self.groups
        scale = self.weight * (self.variance + self.eps).rsqrt().repeat_interleave(each)
        shift = self.bias - self.mean.repeat_interleave(each) * scale
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        grouped = x.float().unflatten(1, (self.groups, -1)).transpose(0, 1).flatten(1)
        self.mean.lerp_(grouped.mean(1), 1 - self.memory)
        self.variance.lerp_(grouped.var(1, unbiased=False), 1 - self.memory)


def norm_of(channels: int, geometry: Geometry) -> nn.Module:
    """What normalises `channels` features in this geometry: nothing, where it has no norms."""
    groups = geometry.norm_groups
    return nn.Identity() if groups is None else FixedNorm(groups, channels)


class WindowAttention(nn.Module):
    """A transformer block of self-attention within windows of cells, which tiles align to."""

    def __init__(self, channels: int, geometry: Geometry) -> None:
        super().__init__()
        self.window = geometry.attention_window
        self.norm = norm_of(channels, geometry)
        self.proj_in, self.proj_out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        heads = channels // geometry.head_channels
        # cross_attention_dim None: there is no text to attend to.
        self.block = BasicTransformerBlock(channels, heads, geometry.head_channels, cross_attention_dim=None)

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] → the same shape. Windows at the right and at the bottom see the picture continued."""
        b, c, h, w = x.shape
        side = self.window
        padded = F.pad(self.norm(x), (0, -w % side, 0, -h % side), mode="replicate")
        rows, columns = padded.shape[2] // side, padded.shape[3] // side
        # b c (rows side) (columns side) -> (b rows columns) (side side) c
        tokens = padded.reshape(b, c, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
        tokens = self.proj_in(tokens.reshape(-1, side * side, c))
        attended = self.proj_out(cast(Tensor, self.block(tokens)))
        back = attended.reshape(b, rows, columns, side, side, c).permute(0, 5, 1, 3, 2, 4)
        added: Tensor = back.reshape(b, c, rows * side, columns * side)[:, :, :h, :w]
        return x + added
