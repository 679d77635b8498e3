"""The network: cells, time folded away, pruning, files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvpstore.errors import CodecError, UsageError
from nvpstore.upscaling.build import WINDOW, Geometry, preset
from nvpstore.upscaling.flow import step_between
from nvpstore.upscaling.net import Upscaler, count_parameters, to_cells
from nvpstore.upscaling.pruning import prune
from nvpstore.upscaling.recurrence import softened, upscale_clip
from nvpstore.upscaling.teacher import fold_time, one_step, velocity
from nvpstore.upscaling.weights import load, save, shipped

MICRO = preset("micro").geometry
ATTENDING = Geometry(
    patch=4,
    widths=(16, 32),
    layers=1,
    middle_layers=1,
    decoder_width=8,
    attention=(True, False),
    attention_window=4,
    skip_each=True,
    norm_groups=4,
    head_channels=8,
    time_width=16,
)


def trained_like(net: Upscaler, *, seed: int = 0) -> Upscaler:
    """As if it had learned something: no weight is zero."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=chance))
    return net.eval()


def cells_of(geometry: Geometry, *, side: int = 8, seed: int = 1) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.rand(2, WINDOW * geometry.picture_channels, side, side, generator=chance) - 0.5


@pytest.mark.parametrize("geometry", [MICRO, ATTENDING])
def test_folding_time_into_biases_changes_nothing(geometry: Geometry) -> None:
    torch.manual_seed(0)
    timed = trained_like(Upscaler(geometry, timed=True))
    cells = cells_of(geometry)
    with torch.no_grad():
        before = one_step(timed, cells)
        folded = fold_time(timed).eval()
        after = velocity(folded, cells, *(None, None))
    assert not any("time" in name or "noise" in name for name in folded.state_dict())
    assert before.abs().max() > 0.1, "a net that does nothing would prove nothing"
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_an_untrained_net_is_bicubic() -> None:
    lows = list(torch.rand(3, 1, 3, 9, 11))
    net = Upscaler(MICRO)
    steps = [step_between(a[0], b[0]) for a, b in pairwise(lows)]
    with torch.no_grad():
        made = net(to_cells(torch.rand(1, 15, 18, 22), MICRO))
        pictures = upscale_clip(net, lows, steps, 2)
    assert made.abs().max() == 0
    # Colour matching may still move it a little.
    assert (pictures[1] - softened(lows[1], 2)).abs().max() < 0.15


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 31), (1, 1), (5, 64)])
def test_cells_hold_every_pixel_of_any_size(height: int, width: int) -> None:
    pictures = torch.rand(1, 3, height, width)
    cells = to_cells(pictures, MICRO)
    assert cells.shape[2] % MICRO.deepest == cells.shape[3] % MICRO.deepest == 0
    back = F.pixel_shuffle(cells, MICRO.patch)
    assert torch.equal(back[:, :, :height, :width], pictures)


def test_the_first_channels_of_cells_are_the_centre() -> None:
    pictures = torch.zeros(1, 15, 16, 16)
    pictures[:, :3] = 1
    cells = to_cells(pictures, MICRO)
    assert cells[:, : MICRO.picture_channels].min() == 1
    assert cells[:, MICRO.picture_channels :].max() == 0


def test_a_pruned_net_is_smaller_and_reads_back_the_same(tmp_path: Path) -> None:
    geometry = MICRO.scaled(4)  # 32 and 64 channels
    torch.manual_seed(0)
    whole = trained_like(Upscaler(geometry))
    before = count_parameters(whole)
    pruned = prune(whole, 0.25)
    assert 0.4 * before < count_parameters(pruned) < 0.75 * before
    save(pruned.half().float(), tmp_path / "net.safetensors", name="pruned")
    found = load(tmp_path / "net.safetensors")
    cells = cells_of(geometry)
    with torch.no_grad():
        assert torch.equal(found.net(cells), pruned(cells))
    assert found.name == "pruned"
    assert len(found.digest) == 64


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_pruning_ratio_is_a_share(ratio: float) -> None:
    with pytest.raises(UsageError, match="a share from 0"):
        prune(Upscaler(MICRO), ratio)


def test_a_file_that_is_no_upscaler_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CodecError, match="cannot be read"):
        load(tmp_path / "x.safetensors")


def test_the_shipped_net_is_small() -> None:
    weights = shipped()
    assert count_parameters(weights.net) <= 5_000_000
    assert not weights.net.timed


def test_full_is_three_quarters_as_wide_as_sd_turbo() -> None:
    geometry = preset("full").geometry
    assert geometry.widths == tuple(width * 3 // 4 for width in (320, 640, 1280, 1280))
    with torch.device("meta"):
        net = Upscaler(geometry)
    names = [name for name, _ in net.named_modules()]
    assert not any("attn2" in name or "time_embedding" in name for name in names)
    assert len(net.up[0].blocks) == geometry.layers + 1
