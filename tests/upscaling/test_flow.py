"""Flow and warping: one convention, and what cannot be seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvpstore.upscaling.flow import Motion, checked, enlarged, followed, step_between, warp


def texture(height: int, width: int) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=chance)
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def moved(dx: float, dy: float, height: int, width: int) -> Tensor:
    return torch.tensor([float(dx), float(dy)])[None, :, None, None].expand(1, 2, height, width)


def test_a_warp_by_whole_pixels_moves_pixels() -> None:
    picture = torch.rand(1, 3, 8, 10)
    found = warp(picture, moved(2, 1, 8, 10))
    torch.testing.assert_close(found[:, :, :7, :8], picture[:, :, 1:, 2:], atol=1e-5, rtol=0)


def test_flow_says_where_things_went() -> None:
    world = texture(80, 112)
    first, second = world[0, :, :, :96], world[0, :, :, 3:99]  # things move left by 3
    step = step_between(first, second)
    inner = step.forward.flow[0, :, 10:-10, 10:-10]
    assert abs(inner[0].median() + 3) < 0.1
    assert inner[1].abs().median() < 0.1
    back = warp(second[None], step.forward.flow)[:, :, 10:-10, 10:-10]
    assert (back - first[None, :, 10:-10, 10:-10]).abs().mean() < 0.01
    assert step.forward.visible[0, 0, 10:-10, 10:-10].mean() > 0.95


def test_what_leaves_the_picture_is_not_visible() -> None:
    flow = moved(-3, 0, 8, 10)
    visible = checked(flow, -flow).forward.visible
    assert visible[..., :3].max() == 0
    assert visible[..., 3:].min() == 1


def test_a_way_that_does_not_lead_back_is_not_visible() -> None:
    there, back = moved(3, 0, 8, 10).clone(), moved(-3, 0, 8, 10).clone()
    back[..., 6] = 4.0  # something else is there
    visible = checked(there, back).forward.visible
    assert visible[..., 3].max() == 0
    assert visible[..., 1].min() == 1


def test_two_steps_add_up() -> None:
    ones = torch.ones(1, 1, 8, 10)
    one, two = Motion(flow=moved(1, 0, 8, 10), visible=ones), Motion(flow=moved(2, 1, 8, 10), visible=ones)
    torch.testing.assert_close(followed(one, two).flow, moved(3, 1, 8, 10))


def test_an_enlarged_flow_moves_enlarged_pictures_as_far() -> None:
    small = texture(32, 48)
    motion = Motion(flow=moved(2, -1, 32, 48), visible=torch.ones(1, 1, 32, 48))
    large = F.interpolate(small, scale_factor=4, mode="bicubic", align_corners=False)
    found = warp(large, enlarged(motion, 128, 192).flow)
    expected = F.interpolate(warp(small, motion.flow), scale_factor=4, mode="bicubic", align_corners=False)
    inner = (..., slice(16, -16), slice(16, -16))
    assert (found[inner] - expected[inner]).abs().max() < 1e-4
