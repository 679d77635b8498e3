"""Small image networks for benchmarks.stability, trained by it: a residual denoiser, and an enhancer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LAYERS = 24, 6
GRID, BINS = 8, 6  # of the enhancer's bilateral grid


class Denoiser(nn.Module):
    """x [b, 3, h, w] − the noise that convolutions find in it (as DnCNN, 2017)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *[WIDTH] * (LAYERS - 1), 3]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        nn.init.zeros_(self.convs[-1].weight)
        nn.init.zeros_(self.convs[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        z = x
        for conv in self.convs[:-1]:
            z = F.relu(conv(z))
        out: Tensor = x - self.convs[-1](z)
        return out


class Enhancer(nn.Module):
    """A colour matrix for each place and lightness, looked up in a bilateral grid (as HDRNet, 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, 2, 1)
        self.second = nn.Conv2d(16, 32, 3, 2, 1)
        self.third = nn.Conv2d(32, 32, 3, 1, 1)
        self.grid = nn.Conv2d(32, 12 * BINS, 1)
        self.guide = nn.Conv2d(3, 1, 1)
        nn.init.normal_(self.grid.weight, std=1e-3)
        nn.init.constant_(self.guide.weight, 1 / 3)
        nn.init.zeros_(self.guide.bias)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.first(x))
        z = F.relu(self.second(z))
        z = F.relu(self.third(z))
        # Bx(12·d)xHxW -> Bx12xdxGxG
        grid = F.adaptive_avg_pool2d(self.grid(z), GRID).unflatten(1, (12, BINS))
        rows = torch.linspace(-1, 1, x.shape[2], device=x.device)
        columns = torch.linspace(-1, 1, x.shape[3], device=x.device)
        y, across = torch.meshgrid(rows, columns, indexing="ij")
        light = self.guide(x)[:, 0].clamp(0, 1) * 2 - 1
        places = torch.stack([across.expand_as(light), y.expand_as(light), light], dim=-1)
        looked = F.grid_sample(grid, places[:, None], align_corners=True, padding_mode="border")[:, :, 0]
        matrix = looked.unflatten(1, (3, 4))
        # out_c = Σ_k m_ck x_k + m_c4, beside the picture itself
        return x + (matrix[:, :, :3] * x[:, None]).sum(2) + matrix[:, :, 3]


def darkened(x: Tensor) -> Tensor:
    """What the enhancer sees: dim, flat and a little blue."""
    tint = torch.tensor([0.9, 0.95, 1.1], device=x.device).view(3, 1, 1)
    return (0.5 * x.clamp_min(0) ** 1.6 * tint + 0.03).clamp(0, 1)


def train_base(
    net: nn.Module, pairs: Iterator[tuple[Tensor, Tensor]], *, steps: int, rate: float = 2e-3
) -> None:
    """Teach `net` with pairs (seen, wanted) [b, 3, h, w] by their mean absolute difference."""
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(steps):
        seen, wanted = next(pairs)
        loss = F.l1_loss(net(seen), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    net.eval().requires_grad_(False)


NETS: dict[str, Callable[[], nn.Module]] = {"denoising": Denoiser, "enhancement": Enhancer}
# Every convolution and the output, as the paper places them.
PLACES = {
    "denoising": tuple(f"convs.{i}" for i in range(LAYERS)),
    "enhancement": ("first", "second", "third", "grid", "guide"),
}
