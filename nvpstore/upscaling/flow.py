"""Where things went between two frames, and pictures moved along: OpenCV's DIS flow and one convention.

A flow [b, 2, h, w] in pixels (x, y) says where a pixel of the *first* picture is in the second. Positions are
pixel centres at whole numbers throughout (`align_corners=True`): mixed conventions shift a picture by half a
pixel each time that it is warped.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.errors import UsageError

LEAST_SIDE = 64  # smaller pictures are enlarged for DIS, whose patches have 8 pixels
TOLERANCE = 0.01  # of |forward|² + |backward|², and
SLACK = 0.5  # square pixels besides: how far the way there and back may miss (Sundaram et al., ECCV 2010)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_LOCAL = threading.local()  # an algorithm object holds buffers: one a thread


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """From a frame to another one: `flow` [b, 2, h, w], `visible` [b, 1, h, w] 0 where that is not seen."""

    flow: Tensor
    visible: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Between two neighbouring frames."""

    forward: Motion
    backward: Motion


def step_between(first_chw: Tensor, second_chw: Tensor) -> Step:
    """Of two RGB pictures [3, h, w] in 0 … 1; flows on their device, of batch 1. No gradient passes."""
    a, b = grey(first_chw), grey(second_chw)
    device = first_chw.device
    forward, backward = (torch.from_numpy(f)[None].to(device) for f in (dis(a, b), dis(b, a)))
    return checked(forward, backward)


def checked(forward: Tensor, backward: Tensor) -> Step:
    """Both ways with what is visible in the other frame, by whether the way there and back comes home."""
    return Step(
        forward=Motion(flow=forward, visible=_comes_home(forward, backward)),
        backward=Motion(flow=backward, visible=_comes_home(backward, forward)),
    )


def grey(rgb_chw: Tensor) -> NDArray[np.uint8]:
    """uint8 [h, w] of an RGB picture in 0 … 1."""
    rgb = rgb_chw.detach().float().cpu().numpy()
    luma: NDArray[np.uint8] = (np.tensordot(_LUMA, rgb, 1) * 255).round().clip(0, 255).astype(np.uint8)
    return luma


def dis(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Dense inverse search (Kroeger et al., ECCV 2016), float32 [2, h, w]."""
    cv2 = _opencv()
    height, width = first.shape
    times = max(1, -(-LEAST_SIDE // min(height, width)))
    if times > 1:
        size = (width * times, height * times)
        first, second = (cv2.resize(x, size, interpolation=cv2.INTER_CUBIC) for x in (first, second))
    flow = _algorithm().calc(first, second, None)
    if times > 1:
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / times
    return np.ascontiguousarray(flow.transpose(2, 0, 1), np.float32)


def _algorithm() -> Any:
    if not hasattr(_LOCAL, "dis"):
        cv2 = _opencv()
        _LOCAL.dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        _LOCAL.dis.setFinestScale(0)  # subpixel motion is what several frames are good for
    return _LOCAL.dis


def _opencv() -> Any:
    """The module. Its own annotations know neither DIS nor what a flow may begin with."""
    try:
        return importlib.import_module("cv2")
    except ImportError as cause:
        raise UsageError("upscaling needs OpenCV: pip install 'nvpstore[upscale]'") from cause


# ---------------------------------------------------------------- moving pictures


def warp(pictures: Tensor, flow: Tensor) -> Tensor:
    """Pictures [b, c, h, w] of the second frame as the first one sees them; beyond the edges its own."""
    height, width = flow.shape[-2:]
    ys = torch.arange(height, device=flow.device, dtype=flow.dtype)
    xs = torch.arange(width, device=flow.device, dtype=flow.dtype)
    x = (xs + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    y = (ys[:, None] + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack([x, y], -1).to(pictures.dtype)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=True)


def followed(first: Motion, second: Motion) -> Motion:
    """From a frame to the one after the next: `second` begins where `first` ends."""
    there = warp(torch.cat([second.flow, second.visible], 1), first.flow)
    visible = first.visible * (there[:, 2:] > 0.5).to(first.visible.dtype)
    return Motion(flow=first.flow + there[:, :2], visible=visible)


def enlarged(motion: Motion, height: int, width: int) -> Motion:
    """The same between pictures of `height` × `width`."""
    h, w = motion.flow.shape[-2:]
    if (h, w) == (height, width):
        return motion
    scale = motion.flow.new_tensor([width / w, height / h])[:, None, None]
    flow = F.interpolate(motion.flow, (height, width), mode="bilinear", align_corners=False)
    return Motion(flow=flow * scale, visible=F.interpolate(motion.visible, (height, width), mode="nearest"))


def _comes_home(there: Tensor, back: Tensor) -> Tensor:
    """[b, 1, h, w]: 1 where |there + back| is small, and the way leads to a place inside the picture."""
    returned = warp(back, there)
    missed = (there + returned).square().sum(1, keepdim=True)
    allowed = TOLERANCE * (there.square() + returned.square()).sum(1, keepdim=True) + SLACK
    height, width = there.shape[-2:]
    x = torch.arange(width, device=there.device) + there[:, :1]
    y = torch.arange(height, device=there.device)[:, None] + there[:, 1:]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return ((missed <= allowed) & inside).to(there.dtype)
