"""The upscaler's network: pictures in cells → what bicubic lacks.

A U-Net of diffusers' blocks over PixelUnshuffled pictures, whose features go straight into a slim decoder: no
VAE, no four-channel latent, no text, no cross-attention. A teacher also takes a noisy residual and a time; a
net that has been folded does neither (`nvpstore.upscaling.teacher`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.upscaling.build import WINDOW, Geometry
from nvpstore.upscaling.parts import (
    Downsample2D,
    ResnetBlock2D,
    TimestepEmbedding,
    Timesteps,
    Upsample2D,
    WindowAttention,
    norm_of,
)

LAST_STEP = 999  # of the thousand of SD's schedule: nothing but noise
START_SCALE = 0.1  # of each residual block's last convolution: without norms, depth must not amplify


class Level(nn.Module):
    """Residual blocks at one resolution. Attention follows each of the first of them, where there is any."""

    def __init__(self, blocks: list[ResnetBlock2D], attention: list[WindowAttention]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)

    def forward(self, x: Tensor, time: Tensor | None, *, skips: list[Tensor] | None = None) -> list[Tensor]:
        """Each block's output. `skips` go into the first blocks, the last of them first."""
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(torch.cat([x, skips.pop()], 1) if skips else x, time)
            if i < len(self.attention):
                x = self.attention[i](x)
            outputs.append(x)
        return outputs


class Upscaler(nn.Module):
    """Cells [b, 5·3·p², h, w] → residual [b, 3, h·p, w·p], both in 0 … 1 pictures' units.

    With `timed`, `forward` also takes a noisy residual in cells [b, 3·p², h, w] and a time [b] in 0 … 1.
    Sides are multiples of `geometry.deepest`.
    """

    def __init__(self, geometry: Geometry, *, timed: bool = False) -> None:
        super().__init__()
        self.geometry, self.timed = geometry, timed
        picture, widths = geometry.picture_channels, geometry.widths
        self.stem = nn.Conv2d(picture, widths[0], 3, padding=1)
        # What the neighbours add is aligned with the centre already.
        self.stem_around = nn.Conv2d((WINDOW - 1) * picture, widths[0], 1)
        if timed:
            self.stem_noise = nn.Conv2d(picture, widths[0], 3, padding=1, bias=False)
            self.time_steps = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
            self.time = TimestepEmbedding(widths[0], geometry.time_width)
        self._build_levels()
        self.decoder = Decoder(widths[0], geometry.decoder_width, geometry.patch)
        self._start()

    def _build_levels(self) -> None:
        widths = _block_widths(self.geometry)
        levels, deepest = range(len(widths.down)), len(widths.down) - 1
        self.down = nn.ModuleList(self._level(widths.down[i], i) for i in levels)
        self.shrink = nn.ModuleList(
            Downsample2D(w, use_conv=True, name="op") for w in self.geometry.widths[:-1]
        )
        self.middle = self._level(widths.middle, deepest, attended=any(self.geometry.attention))
        self.grow = nn.ModuleList(Upsample2D(w, use_conv=True) for w in self.geometry.widths[1:])
        self.up = nn.ModuleList(self._level(widths.up[i], i) for i in levels)

    def _level(self, widths: list[tuple[int, int]], level: int, *, attended: bool | None = None) -> Level:
        """`attended`: after the first block only, or not at all, whatever the level has."""
        g = self.geometry
        blocks = [_block(a, b, g, timed=self.timed) for a, b in widths]
        outputs = [b for _, b in widths]
        if attended is None:
            outputs = outputs if g.attention[level] else []
        else:
            outputs = outputs[:1] if attended else []
        return Level(blocks, [WindowAttention(b, g) for b in outputs])

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                with torch.no_grad():
                    module.conv2.weight.mul_(START_SCALE)
            if isinstance(module, WindowAttention):
                nn.init.zeros_(module.proj_out.weight)
        # Neighbours count for nothing until it is learned what they are good for.
        nn.init.zeros_(self.stem_around.weight)
        nn.init.zeros_(cast(Tensor, self.stem_around.bias))
        # An untrained upscaler is bicubic.
        nn.init.zeros_(self.decoder.last.weight)
        nn.init.zeros_(cast(Tensor, self.decoder.last.bias))

    def forward(self, cells: Tensor, noisy: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        residual: Tensor = self.decoder(self.features(cells, noisy, time))
        return residual

    def features(self, cells: Tensor, noisy: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """[b, widths[0], h, w]: what the decoder starts from."""
        skips, embedded = self.encode(cells, noisy, time)
        x = self.middle(skips[-1], embedded)[-1]
        each = self.geometry.layers + 1 if self.geometry.skip_each else 1
        for i in reversed(range(len(self.up))):
            mine = [skips.pop() for _ in range(each)][::-1]
            x = self.up[i](x, embedded, skips=mine)[-1]
            if i:
                x = self.grow[i - 1](x)
        features: Tensor = x
        return features

    def encode(
        self, cells: Tensor, noisy: Tensor | None = None, time: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """What the way down leaves for the way up, the deepest last; and the embedded time."""
        picture = self.geometry.picture_channels
        x = self.stem(cells[:, :picture]) + self.stem_around(cells[:, picture:])
        embedded = None
        if self.timed:
            assert noisy is not None, "a teacher needs a noisy residual"
            assert time is not None, "a teacher needs a time"
            x = x + self.stem_noise(noisy)
            embedded = self.embed(time).to(x.dtype)
        every, last = [x], []
        for i, level in enumerate(self.down):
            if i:
                x = self.shrink[i - 1](x)
                every.append(x)
            outputs = level(x, embedded)
            x = outputs[-1]
            every += outputs
            last.append(x)
        return (every if self.geometry.skip_each else last), embedded

    def embed(self, time: Tensor) -> Tensor:
        """Times [b] in 0 … 1 → [b, time_width]."""
        steps = self.time_steps(LAST_STEP * (1 - time))  # SD counts towards noise, flow matching away from it
        embedded: Tensor = self.time(steps.to(self.stem.weight.dtype))
        return embedded


class Decoder(nn.Module):
    """Features at the cells' resolution → RGB at the output's: the last twofold step is a PixelShuffle."""

    def __init__(self, features: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.first = nn.Conv2d(features, width * (patch // 2) ** 2, 3, padding=1)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3 * 4, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.first(features), self.patch // 2)
        x = x + self.inner(F.silu(x))
        return F.pixel_shuffle(self.last(F.silu(x)), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Widths:
    """(in, out) of each level's blocks."""

    down: list[list[tuple[int, int]]]
    middle: list[tuple[int, int]]
    up: list[list[tuple[int, int]]]


def _block_widths(g: Geometry) -> _Widths:
    before = (g.widths[0], *g.widths)
    down = [[(before[i], w)] + [(w, w)] * (g.layers - 1) for i, w in enumerate(g.widths)]
    if g.skip_each:  # as SD's U-Net does: the stem's, each block's, and each smaller picture
        skips = [g.widths[0]]
        for i, w in enumerate(g.widths):
            skips += [w] * (g.layers + (i < len(g.widths) - 1))
    else:
        skips = list(g.widths)
    up: list[list[tuple[int, int]]] = [[] for _ in g.widths]
    x = g.widths[-1]
    for i in reversed(range(len(g.widths))):
        for j in range(g.layers + g.skip_each):
            up[i].append((x + (skips.pop() if g.skip_each or j == 0 else 0), g.widths[i]))
            x = g.widths[i]
    return _Widths(down=down, middle=[(g.widths[-1],) * 2] * g.middle_layers, up=up)


def _block(inputs: int, outputs: int, geometry: Geometry, *, timed: bool) -> ResnetBlock2D:
    block = ResnetBlock2D(
        in_channels=inputs,
        out_channels=outputs,
        temb_channels=cast(int, geometry.time_width if timed else None),  # None: it takes no time
        groups=geometry.norm_groups or 1,
        eps=1e-5,
    )
    block.norm1 = cast(nn.GroupNorm, norm_of(inputs, geometry))
    block.norm2 = cast(nn.GroupNorm, norm_of(outputs, geometry))
    return block


def to_cells(pictures: Tensor, geometry: Geometry) -> Tensor:
    """Pictures [b, c, H, W] → cells [b, c·p², h, w], the picture continued at the right and at the bottom."""
    step = geometry.patch * geometry.deepest
    height, width = pictures.shape[-2:]
    pictures = F.pad(pictures, (0, -width % step, 0, -height % step), mode="replicate")
    return F.pixel_unshuffle(pictures, geometry.patch)


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
