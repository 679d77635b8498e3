"""Losses of different kinds as one, and views of a frame: what a joint fit adds to reconstruction."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_SCALE = 100.0  # raw gradients are so small that Adam's epsilon and the clipping norm would miss them
VIEW_ZOOM = 0.8
BALANCE_EVERY = 8  # steps between two measurements of the terms' gradient norms
BALANCE_MEMORY = 0.9

Weighed = tuple[Tensor, Tensor]  # a loss, and the shallowest tapped stage that it was computed from


class Balance:
    """λ_recon·L_recon + Σ λ·s·L/√n with s = ‖∂L_recon‖ / ‖∂L‖ at the shallowest tapped stage, measured now
    and then. `weights` are those of reconstruction, task terms and feature terms. Gradients of n tasks that
    have nothing to do with one another add up to √n times one's: divided by that, many tasks take no more
    from the picture than one.
    """

    def __init__(self, weights: tuple[float, float, float]) -> None:
        self.weights = weights
        self.scales: dict[str, float] = {}

    def weigh(
        self, reconstruction: Tensor, shared: Tensor, terms: Mapping[str, Weighed], *, tasks: int, step: int
    ) -> Tensor:
        """`shared` is the stage that the reconstruction's gradient is measured at; terms bring their own.
        `tasks` are in the fit, whether or not this step has terms of all.
        """
        recon_weight, task_weight, feature_weight = self.weights
        if terms and (step % BALANCE_EVERY == 0 or not terms.keys() <= self.scales.keys()):
            self._measure((reconstruction, shared), terms)
        loss = LOSS_SCALE * recon_weight * reconstruction
        for name, (value, _) in terms.items():
            weight = (task_weight if name.startswith("task") else feature_weight) / math.sqrt(tasks)
            loss = loss + LOSS_SCALE * weight * self.scales[name] * value
        return loss

    def _measure(self, reconstruction: Weighed, terms: Mapping[str, Weighed]) -> None:
        own = _norm(reconstruction)
        for name, weighed in terms.items():
            ratio = own / max(_norm(weighed), 1e-12)
            before = self.scales.get(name, ratio)
            self.scales[name] = BALANCE_MEMORY * before + (1 - BALANCE_MEMORY) * ratio


def _norm(weighed: Weighed) -> float:
    loss, shared = weighed
    (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True)
    return float(gradient.norm())


def moved_views(frames_bchw: Tensor, chance: torch.Generator) -> Tensor:
    """A random window of each frame, at least VIEW_ZOOM of its sides, at full size."""
    drawn = torch.rand(len(frames_bchw), 3, generator=chance).to(frames_bchw.device)
    zoom = VIEW_ZOOM + (1 - VIEW_ZOOM) * drawn[:, 0]
    windows = torch.zeros(len(frames_bchw), 2, 3, device=frames_bchw.device)
    windows[:, 0, 0] = windows[:, 1, 1] = zoom
    windows[:, :, 2] = (1 - zoom[:, None]) * (2 * drawn[:, 1:] - 1)
    grid = F.affine_grid(windows, list(frames_bchw.shape), align_corners=False)
    views = F.grid_sample(frames_bchw, grid, align_corners=False, padding_mode="border")
    return views.contiguous(memory_format=torch.channels_last)
