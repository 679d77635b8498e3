"""CKA and ridge against plain numpy written from the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nvpstore.routing.cka import choose_positions, linear_cka, ridge, sample_grid, unbiased_hsic


def hsic_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, eq. 5, with n × n kernels."""
    n = len(x)
    k, left = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(left, 0)
    one = np.ones(n)
    value = np.trace(k @ left)
    value += (one @ k @ one) * (one @ left @ one) / ((n - 1) * (n - 2))
    value -= 2 / (n - 2) * (one @ k @ left @ one)
    return float(value / (n * (n - 3)))


@pytest.mark.parametrize(("n", "p", "q"), [(4, 1, 1), (30, 5, 7), (64, 100, 3)])
def test_unbiased_hsic_equals_the_kernel_form(n: int, p: int, q: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    got = float(unbiased_hsic(torch.from_numpy(x), torch.from_numpy(y)))
    assert got == pytest.approx(hsic_by_definition(x, y), rel=1e-9, abs=1e-9)


def test_cka_is_one_for_a_rotation_and_a_scale() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(200, 8)))
    rotation = torch.linalg.qr(torch.from_numpy(rng.normal(size=(8, 8))))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-9)


def test_cka_of_unrelated_features_stays_near_zero_with_many_channels() -> None:
    rng = np.random.default_rng(1)
    x, y = (torch.from_numpy(rng.normal(size=(200, 300))) for _ in range(2))
    assert linear_cka(x, y) < 0.05
    biased = float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))
    assert biased > 0.5  # what the plain formula would have said


def test_ridge_finds_a_linear_map_and_reports_held_out_r2() -> None:
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(400, 6))).float()
    weight = torch.from_numpy(rng.normal(size=(6, 3))).float()
    y = x @ weight + 2
    fit = ridge(x[:300], y[:300], x[300:], y[300:])
    assert fit.r2 > 0.999
    torch.testing.assert_close(fit.weight, weight, atol=0.02, rtol=0)
    noise = torch.from_numpy(rng.normal(size=(400, 3))).float()
    assert ridge(x[:300], noise[:300], x[300:], noise[300:]).r2 < 0.05


def test_samples_are_the_features_at_the_chosen_positions() -> None:
    features = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
    positions = choose_positions(4 * 5, 6, seed=3)
    assert len(set(positions.tolist())) == 6
    samples = sample_grid(features, positions)
    row, column = divmod(int(positions[2]), 5)
    torch.testing.assert_close(samples[6 + 2], features[1, :, row, column])
