"""SD-Turbo's U-Net, narrowed: names and channels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from nvpstore.errors import CodecError, UsageError
from nvpstore.upscaling.build import Geometry
from nvpstore.upscaling.net import Upscaler
from nvpstore.upscaling.sd_turbo import start_from, their_name

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

NARROW = Geometry(
    patch=4,
    widths=(24, 48),
    layers=2,
    middle_layers=2,
    decoder_width=8,
    attention=(True, False),
    attention_window=4,
    skip_each=True,
    norm_groups=8,
    head_channels=12,
    time_width=96,
)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """In SD-Turbo's form, much smaller: 32 and 64 channels, heads of 16."""
    from diffusers import UNet2DConditionModel  # after the guard for torchvision, which our own nets set

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=8,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
    )


@pytest.fixture
def folder(unet: UNet2DConditionModel, tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    save_file(unet.state_dict(), tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    return tmp_path


def test_every_block_finds_its_counterpart(unet: UNet2DConditionModel) -> None:
    theirs = set(unet.state_dict())
    ours = list(Upscaler(NARROW, timed=True).state_dict())
    anew = {name for name in ours if their_name(name, levels=2) not in theirs}
    assert {name.split(".")[0] for name in anew if "mean" not in name and "variance" not in name} == {
        "stem",
        "stem_around",
        "stem_noise",
        "decoder",
    }


def test_the_first_three_quarters_of_each_part_are_kept(unet: UNet2DConditionModel, folder: Path) -> None:
    net = Upscaler(NARROW, timed=True)
    start_from(net, folder)
    theirs, ours = unet.state_dict(), net.state_dict()
    plain = theirs["down_blocks.1.resnets.0.conv1.weight"]
    assert torch.equal(ours["down.1.blocks.0.conv1.weight"], plain[:48, :24])
    # 64 channels that came and 32 of the skip: 48 and 24 of them.
    beside = theirs["up_blocks.1.resnets.0.conv1.weight"]
    expected = torch.cat([beside[:24, :48], beside[:24, 64:88]], 1)
    assert torch.equal(ours["up.0.blocks.0.conv1.weight"], expected)
    queries = theirs["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    expected = torch.cat([queries[:12, :24], queries[16:28, :24]])
    assert torch.equal(ours["down.0.attention.0.block.attn1.to_q.weight"], expected)


def test_a_narrowed_net_runs(folder: Path) -> None:
    net = Upscaler(NARROW, timed=True)
    start_from(net, folder)
    cells = torch.rand(1, 15 * 16, 6, 8)
    with torch.no_grad():
        found = net.features(cells, torch.rand(1, 48, 6, 8), torch.zeros(1))
    assert found.shape == (1, 24, 6, 8)
    assert found.isfinite().all()


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a local copy"):
        start_from(Upscaler(NARROW, timed=True), tmp_path / "nothing")
    save_file({"x": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CodecError, match="is this SD-Turbo"):
        start_from(Upscaler(NARROW, timed=True), folder)
