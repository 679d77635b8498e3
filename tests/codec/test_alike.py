"""Which frames show the same."""

from __future__ import annotations

import torch
from torch import Tensor

from nvpstore.codec.alike import alike_runs

RMS = 2 / 255


def scene(frames: int) -> Tensor:
    """float16 [t, 3, 64, 80]: texture at rest."""
    return torch.rand(3, 64, 80).expand(frames, 3, 64, 80).clone().half()


def test_a_scene_at_rest_is_one_run_and_a_cut_ends_it() -> None:
    assert alike_runs(scene(5), RMS).tolist() == [5]
    assert alike_runs(torch.cat([scene(2), scene(3)]), RMS).tolist() == [2, 3]
    assert alike_runs(scene(1), RMS).tolist() == [1]


def test_noise_below_what_is_seen_changes_nothing() -> None:
    clip = scene(6).float()
    quiet = (clip + 0.25 * RMS * torch.randn(clip.shape)).half()
    loud = (clip + 2 * RMS * torch.randn(clip.shape)).half()
    assert alike_runs(quiet, RMS).tolist() == [6]
    assert alike_runs(loud, RMS).tolist() == [1] * 6


def test_something_small_that_moves_is_something_new() -> None:
    clip = scene(4)
    clip[2:, :, 60:63, 77:80] += 0.2  # nine pixels of five thousand
    assert alike_runs(clip, RMS).tolist() == [2, 2]


def test_slow_changes_add_up() -> None:
    clip = scene(9) / 2 + torch.arange(9)[:, None, None, None] * 0.4 * RMS
    assert alike_runs(clip.half(), RMS).tolist() == [3, 3, 3]
