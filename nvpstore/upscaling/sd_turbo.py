"""A teacher's start from SD-Turbo's U-Net: the first three quarters of its channels.

SD-Turbo is Stability AI's, under its community licence (https://stability.ai/license): whoever has a copy of
it answers for what is made of it. Nothing is downloaded. What has no counterpart there (how pictures come in
and go out, and everything that reads text) starts anew, so that such a net means nothing until it is trained.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nvpstore.errors import CodecError, UsageError
from nvpstore.upscaling.build import Geometry
from nvpstore.upscaling.net import Upscaler

FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
LEAST_SHARE = 0.5  # of a net's tensors that must be found, or it is not that model

_LEVEL = re.compile(r"(down|up)\.(\d+)\.(blocks|attention)\.(\d+)\.(.*)")
_MIDDLE = re.compile(r"middle\.(blocks|attention)\.(\d+)\.(.*)")
_BETWEEN = re.compile(r"(shrink|grow)\.(\d+)\.(.*)")
_PLURAL = {"blocks": "resnets", "attention": "attentions"}

Parts = list[int]  # lengths along one axis, of tensors that lie beside each other


def start_from(net: Upscaler, folder: Path) -> None:
    """Copy into `net` (timed) what the U-Net of a local SD-Turbo folder has for it.

    Raises UsageError where the folder is none, CodecError where its tensors are not that U-Net's.
    """
    theirs = _tensors(folder)
    found = 0
    with torch.no_grad():
        for name, mine in net.state_dict().items():
            source = theirs.get(their_name(name, levels=len(net.geometry.widths)))
            if source is not None:
                mine.copy_(_narrowed(name, source.float(), mine, net.geometry))
                found += 1
    if found < LEAST_SHARE * len(net.state_dict()):
        raise CodecError(
            f"{folder}: {found} tensors of {len(net.state_dict())} found; is this SD-Turbo's U-Net?"
        )


def their_name(name: str, *, levels: int) -> str:
    """diffusers' name of one of our tensors; of others something that is no name there."""
    name = name.replace(".block.", ".transformer_blocks.0.")
    if match := _LEVEL.fullmatch(name):
        way, level, kind, place, rest = match.groups()
        number = int(level) if way == "down" else levels - 1 - int(level)
        return f"{way}_blocks.{number}.{_PLURAL[kind]}.{place}.{rest}"
    if match := _MIDDLE.fullmatch(name):
        kind, place, rest = match.groups()
        return f"mid_block.{_PLURAL[kind]}.{place}.{rest}"
    if match := _BETWEEN.fullmatch(name):
        way, level, rest = match.groups()
        if way == "shrink":
            return f"down_blocks.{level}.downsamplers.0.{rest}"
        return f"up_blocks.{levels - 2 - int(level)}.upsamplers.0.{rest}"
    return name.replace("time.", "time_embedding.", 1)


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = next((folder / "unet" / name for name in FILES if (folder / "unet" / name).exists()), None)
    if path is None:
        raise UsageError(f"{folder}: no unet/{FILES[0]}; a local copy of stabilityai/sd-turbo is needed")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as cause:
        raise CodecError(f"{path}: cannot be read: {cause}") from cause


def _narrowed(name: str, source: Tensor, mine: Tensor, geometry: Geometry) -> Tensor:
    """The first channels of each part of `source`, as many as `mine` has."""
    if source.ndim != mine.ndim:
        raise CodecError(f"{name}: {tuple(source.shape)} there, {tuple(mine.shape)} here")
    for axis, (there, here) in enumerate(zip(source.shape, mine.shape, strict=True)):
        if there < here:
            raise CodecError(f"{name}: {tuple(source.shape)} there, {tuple(mine.shape)} here")
        if there > here:
            parts = _parts(name, axis, here, geometry)
            source = source.index_select(axis, _kept(parts, there, here))
    return source


def _parts(name: str, axis: int, length: int, geometry: Geometry) -> Parts:
    """What lies beside each other along an axis: an input and its skip, heads, a value and its gate."""
    if match := re.fullmatch(r"up\.(\d+)\.blocks\.(\d+)\.(norm1|conv1|conv_shortcut)\.(weight|bias)", name):
        level, place = int(match[1]), int(match[2])
        of_input = axis == (0 if match[3] == "norm1" else 1)
        if of_input:
            came = geometry.widths[level if place else min(level + 1, len(geometry.widths) - 1)]
            return [came, length - came]
    if (".attn1.to_out." in name and axis == 1) or (re.search(r"\.attn1\.to_[qkv]\.", name) and axis == 0):
        return [geometry.head_channels] * (length // geometry.head_channels)
    if ".ff.net.0.proj." in name and axis == 0:
        return [length // 2] * 2
    return [length]


def _kept(parts: Parts, there: int, here: int) -> Tensor:
    """Positions along an axis of `there` that leave `here`, the same share of each part."""
    kept, start = [], 0
    for part in parts:
        kept.append(start + torch.arange(part))
        start += part * there // here
    return torch.cat(kept)
