"""Weights that learn to be stored: rounded while they are trained, at steps of their own, within a budget.

A kernel w with one step s an output channel is used as s · round(w / s); gradients pass the rounding as if it
were not there (Bengio et al., 2013), so that steps learn too (Esser et al., "Learned step size quantization",
ICLR 2020). What an entropy coder will need is estimated from a Laplace distribution of w / s: its entropy is
log₂(2e · mean|w / s|) bits, here log₂(1 + 2e · mean|w / s|), which is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LEVELS = 127  # the largest symbol of an 8-bit tensor
LATENT_LEVELS = 32  # that a channel's latents have as their rounding begins
WEIGHT = "weight"
_HALVINGS = 24


class Rounded(nn.Module):
    """A kernel [o, …] rounded to multiples of its steps [o], which begin as those of plain 8 bit."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        peak = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-12)
        # Within half a step of the end: what is cut off there would not learn.
        self.log_step = nn.Parameter((peak / (LEVELS - 0.5)).log())
        self.dimensions = weight.ndim

    @property
    def steps(self) -> Tensor:
        """[o, 1, …]: they broadcast over the kernel."""
        return self.log_step.exp().view(-1, *(1,) * (self.dimensions - 1))

    def forward(self, weight: Tensor) -> Tensor:
        steps = self.steps
        exact = (weight / steps).clamp(-LEVELS, LEVELS)
        return (exact + (exact.round() - exact).detach()) * steps

    def bits(self, weight: Tensor) -> Tensor:
        """Estimated bits of all its symbols together."""
        spread = (weight / self.steps).abs().mean()
        return weight.numel() * torch.log2(1 + 2 * math.e * spread)


def latent_steps(latents: Tensor) -> Tensor:
    """Of latents [t, c, h, w] the steps [c] of which each channel spans LATENT_LEVELS."""
    values = latents.detach().transpose(0, 1).flatten(1)
    return ((values.amax(1) - values.amin(1)) / (LATENT_LEVELS - 1)).clamp_min(1e-12)


def rounded_latents(latents: Tensor, steps: Tensor) -> Tensor:
    """Latents [b, c, h, w] as multiples of their channels' `steps` [c]; gradients pass as they are."""
    step = steps[:, None, None]
    return latents + ((latents / step).round() * step - latents).detach()


class RoundedWeights:
    """All kernels of a network, rounded from now on; at first as coarsely as `bits` a weight need."""

    def __init__(self, net: nn.Module, bits: float) -> None:
        self.net = net
        self._modules = [
            (name, module)
            for name, module in net.named_modules()
            if isinstance(getattr(module, WEIGHT, None), Tensor) and getattr(module, WEIGHT).ndim > 1
        ]
        for _, module in self._modules:
            parametrize.register_parametrization(module, WEIGHT, Rounded(getattr(module, WEIGHT)))
        self.count = sum(weight.numel() for _, weight in self._kernels())
        self._coarsen(bits)

    def parameters(self) -> list[nn.Parameter]:
        """The steps."""
        return [rounded.log_step for rounded, _ in self._kernels()]

    def bits_a_weight(self) -> Tensor:
        """Estimated, over all kernels."""
        total = torch.stack([rounded.bits(weight) for rounded, weight in self._kernels()]).sum()
        return total / self.count

    @torch.no_grad()
    def _coarsen(self, bits: float) -> None:
        """Multiply all steps by one number, at least 1, so that the estimate is `bits`."""
        own = [rounded.log_step.clone() for rounded, _ in self._kernels()]
        low, high = 0.0, math.log(2.0 * LEVELS)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            for (rounded, _weight), start in zip(self._kernels(), own, strict=True):
                rounded.log_step.copy_(start + middle)
            low, high = (middle, high) if self.bits_a_weight() > bits else (low, middle)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Leave the rounded kernels in the network; their steps [o] by the names of its parameters."""
        steps = {}
        for (name, module), (rounded, _) in zip(self._modules, list(self._kernels()), strict=True):
            steps[f"{name}.{WEIGHT}"] = rounded.log_step.exp().detach().cpu()
            parametrize.remove_parametrizations(module, WEIGHT, leave_parametrized=True)
            if (bias := module._parameters.pop("bias", None)) is not None:
                module._parameters["bias"] = bias  # behind the kernel, where it was
        return steps

    def _kernels(self) -> Iterator[tuple[Rounded, Tensor]]:
        for _, module in self._modules:
            parametrizations: Any = module.parametrizations
            entry = parametrizations[WEIGHT]
            rounded = entry[0]
            assert isinstance(rounded, Rounded), "registered here"
            yield rounded, entry.original
