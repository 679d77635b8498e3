"""Pictures brought to a backbone's input, and the region of them that it shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nvpstore.codec.grids import WHOLE, Region
from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.tasks.registry import builtin_spec
from nvpstore.tasks.spec import Clip

GREY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def ramp(height: int, width: int) -> torch.Tensor:
    """[1, 3, h, w] whose red is the share of the way across, green that of the way down, in 0 … 100."""
    across = (torch.arange(width) + 0.5) / width * 100
    down = (torch.arange(height) + 0.5) / height * 100
    red, green = torch.broadcast_tensors(across[None, :], down[:, None])
    return torch.stack([red, green, red * 0])[None]


def test_a_stretched_frame_is_normalised() -> None:
    spec = builtin_spec("labels").preprocessing
    x = spec.apply(torch.full((2, 3, 50, 90), 127, dtype=torch.uint8))
    assert x.shape == (2, 3, 224, 224)
    assert float(x.abs().max()) < 1e-5
    assert spec.region(50, 90) == WHOLE


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (97, 331)])
@pytest.mark.parametrize("share", [1.0, 0.8])
def test_a_crop_shows_its_region(height: int, width: int, share: float) -> None:
    pre = Preprocessing(height=64, width=64, fit="crop", crop_share=share, **GREY)
    x = pre.apply(ramp(height, width))
    assert x.shape == (1, 3, 64, 64)
    region = pre.region(height, width)
    assert min(region.left, region.top) >= -1e-9
    shown = 100 * torch.tensor([region.left, region.right, region.top, region.bottom])
    edges = torch.stack([x[0, 0, 32, 0], x[0, 0, 32, -1], x[0, 1, 0, 32], x[0, 1, -1, 32]])
    half = torch.tensor([1, -1, 0, 0]) * (shown[1] - shown[0]) / 128
    half += torch.tensor([0, 0, 1, -1]) * (shown[3] - shown[2]) / 128
    torch.testing.assert_close(edges, shown + half, atol=1.0, rtol=0)


def test_a_letterbox_keeps_the_aspect_and_has_bars_of_the_mean() -> None:
    pre = Preprocessing(height=60, width=60, fit="letterbox", mean=(9.0,) * 3, std=(2.0,) * 3)
    x = pre.apply(torch.full((1, 3, 50, 100), 21.0))
    assert pre.region(50, 100) == Region(top=-0.5, bottom=1.5)
    assert (x[:, :, :15] == 0).all()
    assert (x[:, :, 45:] == 0).all()
    assert (x[:, :, 15:45] == 6).all()


def test_what_is_cropped_follows_the_videos_aspect_where_pictures_were_stretched() -> None:
    pre = Preprocessing(height=32, width=32, fit="crop", **GREY)
    wide = pre.apply(ramp(64, 128))
    coded = pre.apply(ramp(64, 64), size=(64, 128))
    torch.testing.assert_close(coded, wide, atol=1.5, rtol=0)


def test_clips_are_units_of_several_pictures() -> None:
    spec = replace(builtin_spec("labels"), clip=Clip(frames=4, stride=2))
    x = spec.prepare(torch.arange(8).float()[:, None, None, None].expand(8, 3, 10, 10))
    assert x.shape == (2, *spec.input_shape) == (2, 3, 4, 224, 224)
    assert (x[1, 0, :, 0, 0] * 128 + 127).round().tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fit": "squash"}, "stretch, crop and letterbox"),
        ({"crop_share": 0.0}, "crop share 0.0"),
        ({"interpolation": "nearest"}, "bilinear and bicubic"),
        ({"std": (1.0, 0.0, 1.0)}, "all above 0"),
        ({"height": 0}, "at least 1"),
    ],
)
def test_impossible_preprocessing_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Preprocessing(**{"height": 8, "width": 8, **GREY, **wrong})  # type: ignore[arg-type]
