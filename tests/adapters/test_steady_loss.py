"""The unified loss and its two bounds, as the paper proves them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.adapters.losses import check_stability, rmse, steady_loss
from nvpstore.errors import UsageError


def test_the_loss_is_the_papers_sum() -> None:
    outputs, targets = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    a, b = outputs.numpy(), targets.numpy()
    right = np.mean([np.sqrt(np.mean((a[t] - b[t]) ** 2)) for t in range(5)])
    steady = np.mean([np.sqrt(np.mean((a[t] - a[t - 1]) ** 2)) for t in range(1, 5)])
    assert float(steady_loss(outputs, targets, stability=0.4)) == pytest.approx(
        right + 0.4 * steady, rel=1e-6
    )


def test_one_frame_has_no_steadiness() -> None:
    outputs, targets = torch.rand(1, 3), torch.rand(1, 3)
    assert float(steady_loss(outputs, targets, stability=0.4)) == pytest.approx(float(rmse(outputs, targets)))


def by_sums(outputs: torch.Tensor, targets: torch.Tensor, stability: float) -> float:
    """The paper's form, of sums: the bounds are proved for it."""
    steady = rmse(outputs[1:], outputs[:-1]).sum()
    return float(rmse(outputs, targets).sum() + stability * steady)


@given(st.integers(0, 10_000), st.floats(0, 0.499))
def test_below_a_half_the_truth_is_best(seed: int, stability: float) -> None:
    chance = torch.Generator().manual_seed(seed)
    truth = torch.randn(6, 4, generator=chance)
    other = truth + torch.randn(6, 4, generator=chance) * torch.rand(1, generator=chance)
    assert by_sums(truth, truth, stability) <= by_sums(other, truth, stability) + 1e-4


@given(st.integers(0, 10_000))
def test_above_the_collapse_bound_repeating_beats_the_truth(seed: int) -> None:
    truth = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    repeated = truth[:1].expand(5, 4)
    assert by_sums(repeated, truth, 4.5) <= by_sums(truth, truth, 4.5) + 1e-4


def test_equal_frames_have_finite_gradients() -> None:
    outputs = torch.ones(3, 2, requires_grad=True)
    steady_loss(outputs, torch.ones(3, 2), stability=0.4).backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


def test_bounds_are_said() -> None:
    check_stability(0.4, frames=8)
    with pytest.warns(UserWarning, match=r"from 0\.5 on"):
        check_stability(0.5, frames=8)
    with pytest.raises(UsageError, match="above 7 the best answer is to repeat the first one"):
        check_stability(8, frames=8)
    with pytest.warns(UserWarning, match="steady can cost less"):
        check_stability(8, frames=8, forced=True)
    with pytest.raises(UsageError, match="at least 0"):
        check_stability(float("nan"), frames=8)
