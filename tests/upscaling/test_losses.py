"""The temporal loss: its gradient, and what it asks for."""

from __future__ import annotations

import torch

from nvpstore.upscaling.flow import Motion, Step
from nvpstore.upscaling.losses import hinge_for_discriminator, hinge_for_generator, temporal_loss


def still(height: int, width: int) -> Step:
    motion = Motion(flow=torch.zeros(1, 2, height, width), visible=torch.ones(1, 1, height, width))
    return Step(forward=motion, backward=motion)


def test_the_gradient_reaches_both_frames_through_the_warp() -> None:
    pictures = [torch.rand(1, 3, 8, 8, requires_grad=True) for _ in range(2)]
    sharp = [torch.zeros(1, 3, 8, 8)] * 2
    temporal_loss(pictures, sharp, [still(8, 8)]).backward()
    for picture in pictures:
        assert picture.grad is not None
        assert picture.grad.abs().sum() > 0


def test_steady_detail_costs_nothing_and_flicker_does() -> None:
    sharp = [torch.rand(1, 3, 8, 8) for _ in range(3)]
    detail = 0.1 * torch.rand(1, 3, 8, 8)
    steps = [still(8, 8)] * 2
    assert temporal_loss([x + detail for x in sharp], sharp, steps) < 1e-6
    flicker = [x + detail * (-1) ** i for i, x in enumerate(sharp)]
    assert temporal_loss(flicker, sharp, steps) > 0.01


def test_what_is_hidden_costs_nothing() -> None:
    step = still(8, 8)
    hidden = Motion(flow=step.backward.flow, visible=torch.zeros_like(step.backward.visible))
    pictures, sharp = [torch.rand(1, 3, 8, 8) for _ in range(2)], [torch.rand(1, 3, 8, 8) for _ in range(2)]
    assert temporal_loss(pictures, sharp, [Step(forward=hidden, backward=hidden)]) == 0


def test_hinges_stop_where_scores_are_sure() -> None:
    assert hinge_for_discriminator([torch.tensor([2.0])], [torch.tensor([-2.0])]) == 0
    assert hinge_for_discriminator([torch.tensor([0.0])], [torch.tensor([0.0])]) == 2
    assert hinge_for_generator([torch.tensor([3.0]), torch.tensor([1.0])]) == -2
