"""Frames of a scene in order, each upscaled from its window: InstaVSR's figure 3.

The window holds five pictures, aligned with its centre by optical flow. As soon as a frame is upscaled, it
takes its soft picture's place: what comes later sees it through the same PixelUnshuffle. What a neighbour
adds is given as its difference from the centre, nothing where it cannot be seen: a frame without neighbours,
at a scene's start, looks like a still one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nvpstore.upscaling.build import REACH, STRETCH, WARM_UP
from nvpstore.upscaling.flow import Motion, Step, enlarged, followed, step_between, warp
from nvpstore.upscaling.net import Upscaler, to_cells

OFFSETS = (-2, -1, 1, 2)
LARGEST_GAIN = 1.1  # of a channel's contrast, in either direction, by colour matching

Residual = Callable[[Tensor], Tensor]  # cells → residual [b, 3, H, W]: the net, whole or in tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A frame of the buffer: as it came [b, 3, h, w], and what the window sees of it [b, 3, H, W]."""

    low: Tensor
    picture: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that upscaling the next frames of a scene needs; a value, so that it can be kept.

    `steps[i]` lies between `frames[i]` and `frames[i + 1]`. Of the frames, `done` are upscaled.
    """

    frames: tuple[Held, ...] = ()
    steps: tuple[Step, ...] = ()
    done: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Frames [`keep_from`, `keep_to`) of a video, from a fresh state over [`read_from`, `read_to`)."""

    read_from: int
    read_to: int
    keep_from: int
    keep_to: int


def stretches(first: int, end: int, *, scene_start: int, scene_end: int) -> Iterator[Stretch]:
    """What gives frames [first, end) of a scene.

    A stretch begins at every STRETCH-th frame of its scene, with WARM_UP frames before it: each picture is a
    function of its scene and its place alone, whoever asks for it, and costs a bounded number of frames.
    """
    for at in range(scene_start + (first - scene_start) // STRETCH * STRETCH, end, STRETCH):
        keep_to = min(at + STRETCH, end)
        yield Stretch(
            read_from=max(scene_start, at - WARM_UP),
            read_to=min(scene_end, keep_to + REACH),
            keep_from=max(at, first),
            keep_to=keep_to,
        )


def softened(low: Tensor, factor: int) -> Tensor:
    """Bicubic, [b, 3, h, w] → [b, 3, h·factor, w·factor]: what the net adds to."""
    return F.interpolate(low, scale_factor=factor, mode="bicubic", align_corners=False)


# ---------------------------------------------------------------- one frame after the other


def fed(
    residual: Residual, net: Upscaler, state: State, low: Tensor, factor: int
) -> tuple[State, list[Tensor]]:
    """The state after one more frame [1, 3, h, w], and what could be upscaled by now ([1, 3, H, W] each)."""
    steps = state.steps
    if state.frames:
        steps = (*steps, step_between(state.frames[-1].low[0], low[0]))
    held = Held(low=low, picture=softened(low, factor))
    state = replace(state, frames=(*state.frames, held), steps=steps)
    if len(state.frames) - state.done <= REACH:
        return state, []
    state, picture = _advanced(residual, net, state)
    return state, [picture]


def finished(residual: Residual, net: Upscaler, state: State) -> list[Tensor]:
    """The last frames of a scene, for which no more come."""
    pictures = []
    while state.done < len(state.frames):
        state, picture = _advanced(residual, net, state)
        pictures.append(picture)
    return pictures


def _advanced(residual: Residual, net: Upscaler, state: State) -> tuple[State, Tensor]:
    at = state.done
    picture = _upscaled(residual, net, state.frames, state.steps, at)
    frames = list(state.frames)
    frames[at] = replace(frames[at], picture=picture)
    past = max(0, at + 1 - REACH)  # no window reaches what comes before
    return State(frames=tuple(frames[past:]), steps=state.steps[past:], done=at + 1 - past), picture


# ---------------------------------------------------------------- whole clips, for training


def upscale_clip(net: Upscaler, lows: Sequence[Tensor], steps: Sequence[Step], factor: int) -> list[Tensor]:
    """First-order pictures of a clip's frames [b, 3, h, w], with gradient through the whole recurrence."""
    frames = [Held(low=low, picture=softened(low, factor)) for low in lows]
    return _pass(net, frames, steps)


def upscale_again(
    net: Upscaler, lows: Sequence[Tensor], pictures: Sequence[Tensor], steps: Sequence[Step]
) -> list[Tensor]:
    """Second-order pictures: the clip once more, the buffer full of what the first pass made of it."""
    return _pass(net, [Held(low=a, picture=b) for a, b in zip(lows, pictures, strict=True)], steps)


def _pass(net: Upscaler, frames: list[Held], steps: Sequence[Step]) -> list[Tensor]:
    for at in range(len(frames)):
        frames[at] = replace(frames[at], picture=_upscaled(net, net, frames, steps, at))
    return [held.picture for held in frames]


# ---------------------------------------------------------------- one frame


def _upscaled(
    residual: Residual, net: Upscaler, frames: Sequence[Held], steps: Sequence[Step], at: int
) -> Tensor:
    """The frame at `at` [b, 3, H, W], its colours those of the frame as it came."""
    held = frames[at]
    height, width = held.picture.shape[-2:]
    soft = softened(held.low, height // held.low.shape[-2])
    cells = to_cells(window(soft, frames, steps, at), net.geometry)
    added = residual(cells)[..., :height, :width]
    return coloured_like(soft + added, held.low)


def window(soft: Tensor, frames: Sequence[Held], steps: Sequence[Step], at: int) -> Tensor:
    """The centre, around 0, and what the aligned neighbours differ from it: [b, 15, H, W]."""
    height, width = soft.shape[-2:]
    slots = [soft - 0.5]
    for offset in OFFSETS:
        if not 0 <= at + offset < len(frames):
            slots.append(torch.zeros_like(soft))
            continue
        motion = enlarged(motion_to(steps, at, offset), height, width)
        difference = warp(frames[at + offset].picture, motion.flow) - soft
        slots.append(difference * motion.visible)
    return torch.cat(slots, 1)


def motion_to(steps: Sequence[Step], at: int, offset: int) -> Motion:
    """From frame `at` to the one `offset` (−2 … 2, not 0) from it."""
    if offset > 0:
        ways = [steps[at + i].forward for i in range(offset)]
    else:
        ways = [steps[at - 1 - i].backward for i in range(-offset)]
    return ways[0] if len(ways) == 1 else followed(ways[0], ways[1])


def coloured_like(picture: Tensor, low: Tensor) -> Tensor:
    """Each channel's mean and contrast as in the frame that came, compared at its size, over the whole frame.

    At full size detail is contrast too, and matching it would take detail away. Never for a tile by itself:
    tiles would differ in colour.
    """
    shown = F.interpolate(picture, low.shape[-2:], mode="bicubic", antialias=True)
    axes = (-2, -1)
    gain = (low.std(axes, keepdim=True) + 1e-3) / (shown.std(axes, keepdim=True) + 1e-3)
    gain = gain.clamp(1 / LARGEST_GAIN, LARGEST_GAIN)
    return picture * gain + low.mean(axes, keepdim=True) - shown.mean(axes, keepdim=True) * gain
