"""What judges upscaled pictures beside measures of our own: NIQE and LPIPS, as their packages have them."""

from __future__ import annotations

import importlib
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nvpstore.tasks.backbones.torchvision_ops import make_torchvision_importable

LUMA = (0.299, 0.587, 0.114)
NIQE_PATCH = 96  # pixels
NIQE_LEAST_SIDE = 2 * NIQE_PATCH + 2


def niqe(clip: Tensor) -> float | None:
    """NIQE of a clip [t, 3, H, W] in 0 … 1, less is more natural; None where its frames are too small for it.

    Mittal et al., "Making a Completely Blind Image Quality Analyzer", IEEE SPL 2013: scikit-video's features
    and model. One Gaussian of all frames' patches together: a small frame has fewer patches than features.
    """
    if min(clip.shape[2:]) < NIQE_LEAST_SIDE:
        return None
    luma_thw = 255 * (clip * torch.tensor(LUMA)[:, None, None]).sum(1).numpy()
    module = _niqe_module()
    patches = np.concatenate([module.get_patches_test_features(luma, NIQE_PATCH) for luma in luma_thw])
    folder = Path(str(module.__file__)).parent / "data"
    natural = scipy.io.loadmat(str(folder / "niqe_image_params.mat"))
    away = patches.mean(0) - natural["pop_mu"].ravel()
    spread = np.linalg.pinv((np.cov(patches.T) + natural["pop_cov"]) / 2)
    return float(np.sqrt(away @ spread @ away))


@cache
def _niqe_module() -> ModuleType:
    """scikit-video's, which asks for a resize that SciPy has given up and for a name that NumPy has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scipy.misc

        importlib.import_module("skvideo.measure")  # whose attribute `niqe` is the function, not the module
        scipy.misc.imresize = _imresize
        if not hasattr(np, "int"):
            np.int = int  # type: ignore[attr-defined]
    return sys.modules["skvideo.measure.niqe"]


def _imresize(picture: NDArray[np.float32], size: float, *, interp: str, mode: str) -> NDArray[np.float32]:
    """What `scipy.misc.imresize` was for floats: Pillow's."""
    height, width = picture.shape
    kind = {"bicubic": Image.Resampling.BICUBIC}[interp]
    small = Image.fromarray(picture.astype(np.float32), mode=mode)
    return np.array(small.resize((int(width * size), int(height * size)), kind))


class Lpips:
    """LPIPS (Zhang et al., CVPR 2018), its heads from the package `lpips`, its trunk from a local file: the
    state dict of torchvision's `alexnet`, which no package brings."""

    def __init__(self, trunk: Path) -> None:
        make_torchvision_importable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lpips

            self._net: Any = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        tensors = torch.load(trunk, map_location="cpu", weights_only=True)
        own = self._net.net.state_dict()
        found = {name: f"features.{name.partition('.')[2]}" for name in own}
        absent = sorted(set(found.values()) - set(tensors))
        if absent:
            raise ValueError(f"{trunk}: not an AlexNet of torchvision's, it has no {', '.join(absent)}")
        self._net.net.load_state_dict({name: tensors[other] for name, other in found.items()})

    @torch.inference_mode()
    def __call__(self, made: Tensor, sharp: Tensor) -> float:
        """The mean over frames [t, 3, H, W] in 0 … 1."""
        each = [self._net(a[None], b[None], normalize=True) for a, b in zip(made, sharp, strict=True)]
        return float(torch.stack(each).mean())
