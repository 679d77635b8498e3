"""How alike two sets of features are, and the best linear map between them, from the same moments.

Samples are frame × position on the cut's grid. Linear CKA (Kornblith et al., ICML 2019) with the
unbiased HSIC estimator of Song et al. (JMLR 2012, eq. 5), which stays near 0 for unrelated features
however many channels there are; computed in feature space, O(n·p·q), no n × n Gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # × the mean feature variance


def unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased HSIC of linear kernels for x [n, p] and y [n, q], n ≥ 4.

    With K = XXᵀ, L = YYᵀ and K̃, L̃ their zero-diagonal versions:
    [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1] / (n(n−3)).
    """
    n = x.shape[0]
    if n < 4:
        raise ValueError(f"{n} samples: unbiased HSIC needs at least 4")
    x_norms, y_norms = x.square().sum(1), y.square().sum(1)
    trace = (x.T @ y).square().sum() - (x_norms * y_norms).sum()
    x_rows = x @ x.sum(0) - x_norms  # K̃1
    y_rows = y @ y.sum(0) - y_norms  # L̃1
    sums = x_rows.sum() * y_rows.sum() / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (x_rows * y_rows).sum()
    return (trace + sums - cross) / (n * (n - 3))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Debiased linear CKA of x [n, p] and y [n, q], clipped to 0 … 1.

    HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L))
    """
    x, y = (_centred(v) for v in (x, y))
    own = unbiased_hsic(x, x) * unbiased_hsic(y, y)
    if float(own) <= 0:
        return 0.0
    return float((unbiased_hsic(x, y) / own.sqrt()).clamp(0, 1))


def _centred(v: Tensor) -> Tensor:
    v = v.double()
    v = v - v.mean(0)
    return v / v.square().mean().sqrt().clamp_min(1e-12)  # CKA does not see scale; sums stay small


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeFit:
    """y ≈ x·weight + bias; `weight` [p, q], `bias` [q]; `r2` on held-out samples, over all channels."""

    weight: Tensor
    bias: Tensor
    r2: float


def ridge(x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> RidgeFit:
    """The best 1×1 convolution from x [n, p] to y [n, q]; strength chosen on the held-out samples."""
    x, y, held_x, held_y = (v.double() for v in (x, y, held_x, held_y))
    x_mean, y_mean = x.mean(0), y.mean(0)
    gram, cross = (x - x_mean).T @ (x - x_mean), (x - x_mean).T @ (y - y_mean)
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) * gram.diagonal().mean().clamp_min(1e-12)
    spread = (held_y - held_y.mean(0)).square().sum().clamp_min(1e-12)
    fits = []
    for strength in RIDGE_STRENGTHS:
        weight = torch.linalg.solve(gram + strength * unit, cross)
        bias = y_mean - x_mean @ weight
        r2 = 1 - float((held_y - held_x @ weight - bias).square().sum() / spread)
        fits.append(RidgeFit(weight=weight.float(), bias=bias.float(), r2=r2))
    return max(fits, key=lambda fit: fit.r2)


def sample_grid(features: Tensor, positions: Tensor) -> Tensor:
    """[u, c, *grid] → [u·k, c]: the features at `positions` [k] of the flattened grid."""
    # UxCx… -> UxCxk -> UxkxC -> (U·k)xC
    return features.flatten(2)[:, :, positions].transpose(1, 2).flatten(0, 1)


def choose_positions(places: int, count: int, seed: int) -> Tensor:
    """At most `count` distinct positions of a flattened grid of `places`, the same for the same seed."""
    order = torch.randperm(places, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values
