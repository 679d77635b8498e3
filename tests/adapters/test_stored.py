"""Adapters as stored tensors: they come back as they were, and are what docs/format.md says they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nvpstore.adapters.micro import MicroAdapter
from nvpstore.adapters.stored import MOTION, REGION, load_adapter, store_adapter
from nvpstore.codec.grids import WHOLE, Region
from nvpstore.codec.quantize import decode_tensor
from nvpstore.errors import CodecError
from nvpstore.types import StoredTensor

Array = NDArray[np.float64]
STAGES, CHANNELS = ("0", "2"), (5, 3)
LETTERBOX = Region(left=0.1, top=-0.4, right=0.8, bottom=1.2)
CUTS: Mapping[str, Sequence[tuple[int, ...]]] = {
    "a map": [(7, 4, 6)],
    "two maps": [(7, 4, 6), (4, 2, 3)],
    "pathways": [(6, 2, 4, 5), (4, 8, 4, 5)],
    "one time": [(6, 1, 4, 5)],
    "map and tokens": [(8, 3, 4), (8, 2)],
}


def drawn(cut: str, *, region: Region = WHOLE, frames: int = 1, motion: bool = True) -> MicroAdapter:
    """An adapter with nothing left as it begins."""
    torch.manual_seed(0)
    adapter = MicroAdapter(STAGES, CHANNELS, CUTS[cut], region=region, frames=frames, motion=motion)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


def taps(units: int, frames: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    pictures = units * frames
    return {"0": torch.randn(pictures, 5, 3, 4), "2": torch.randn(pictures, 3, 9, 12)}


def frames_of(cut: str) -> int:
    return 8 if cut in ("pathways", "one time") else 1


@pytest.mark.parametrize("motion", [False, True])
@pytest.mark.parametrize("region", [WHOLE, Region(left=0.2, right=0.7), LETTERBOX])
@pytest.mark.parametrize("cut", CUTS)
def test_an_adapter_comes_back_as_it_was_stored(cut: str, region: Region, motion: bool) -> None:
    adapter = drawn(cut, region=region, frames=frames_of(cut), motion=motion)
    stored = store_adapter(adapter)
    back = load_adapter(stored, STAGES, CUTS[cut], frames=frames_of(cut))
    assert (back.stages, back.shapes, back.frames) == (STAGES, tuple(CUTS[cut]), frames_of(cut))
    assert back.motion == (motion and frames_of(cut) > 1)
    np.testing.assert_allclose(
        [back.region.left, back.region.top, back.region.right, back.region.bottom],
        [region.left, region.top, region.right, region.bottom],
        atol=1e-7,
    )
    assert not any(p.requires_grad for p in back.parameters())
    x = taps(2, frames_of(cut))
    with torch.no_grad():
        for own, again in zip(adapter(x), back(x), strict=True):
            torch.testing.assert_close(again, own, atol=0.02 * float(own.abs().max()), rtol=0)
    # What was rounded once stays what it is.
    again = load_adapter(store_adapter(back), STAGES, CUTS[cut], frames=frames_of(cut))
    assert store_adapter(again) == store_adapter(back)


@pytest.mark.parametrize("motion", [False, True])
@pytest.mark.parametrize("region", [WHOLE, LETTERBOX])
@pytest.mark.parametrize("cut", CUTS)
def test_stored_tensors_mean_what_the_format_says(cut: str, region: Region, motion: bool) -> None:
    frames = frames_of(cut)
    stored = store_adapter(drawn(cut, region=region, frames=frames, motion=motion))
    assert [t.name for t in stored if t.name == REGION] == ([] if region == WHOLE else [REGION])
    assert [t.name for t in stored if t.name == MOTION] == ([MOTION] if motion and frames > 1 else [])
    x = taps(2, frames)
    with torch.no_grad():
        found = load_adapter(stored, STAGES, CUTS[cut], frames=frames)(x)
    for tensor, wanted in zip(found, by_hand(stored, CUTS[cut], x, frames), strict=True):
        np.testing.assert_allclose(tensor.numpy(), wanted, atol=1e-4)


def by_hand(
    stored: Sequence[StoredTensor],
    shapes: Sequence[tuple[int, ...]],
    taps: Mapping[str, torch.Tensor],
    frames: int,
) -> list[Array]:
    """Step by step as in docs/format.md, position by position."""
    named = {t.name: decode_tensor(t).astype(np.float64) for t in stored}
    region = named.get("region", np.array([0, 0, 1, 1]))
    found: list[Array] = []
    finest = max((shape[1] for shape in shapes if len(shape) == 4), default=0)
    for shape in shapes:
        moves = "motion" in named and len(shape) == 4 and shape[1] == finest
        i = sum(len(s) > 2 for s in shapes[: len(found)])
        if len(shape) == 2:
            found.append(tokens(named, found[-1]))
            continue
        y = np.concatenate(
            [
                sampled(taps[stage].numpy().astype(np.float64), shape[1:], region, frames, moves)
                for stage in STAGES
            ],
            axis=1,
        )
        if min(region[:2]) < -1e-6 or max(region[2:]) > 1 + 1e-6:
            y = np.concatenate(
                [y, np.broadcast_to(outside(shape[1:], region), (len(y), 1, *shape[1:]))], axis=1
            )
        weight, bias = named[f"convs.{i}.weight"][:, :, 0, 0], named[f"convs.{i}.bias"]
        found.append(
            np.moveaxis(np.tensordot(weight, y, (1, 1)), 0, 1) + bias.reshape(-1, *(1,) * len(shape[1:]))
        )
    return found


def centres(count: int, first: float, last: float) -> Array:
    return first + (np.arange(count) + 0.5) * (last - first) / count


def sampled(pictures: Array, grid: Sequence[int], region: Array, frames: int, moves: bool) -> Array:
    left, top, right, bottom = region
    height, width = pictures.shape[2:]
    rows = (centres(grid[-2], top, bottom) * height - 0.5).clip(0, height - 1)
    columns = (centres(grid[-1], left, right) * width - 0.5).clip(0, width - 1)
    flat = between(between(pictures, rows, 2), columns, 3)
    if len(grid) == 2:
        return flat
    clips = np.swapaxes(flat.reshape(-1, frames, *flat.shape[1:]), 1, 2)
    if moves:
        paces = 4 * (clips[:, :, 2:] - clips[:, :, :-2]) / 2
        ends = [4 * (clips[:, :, [a]] - clips[:, :, [b]]) for a, b in ((1, 0), (-1, -2))]
        clips = np.concatenate([clips, np.concatenate([ends[0], paces, ends[1]], axis=2)], axis=1)
    times = np.arange(grid[0]) * (frames - 1) / max(grid[0] - 1, 1)
    return between(clips, times, 2)


def between(values: Array, at: Array, axis: int) -> Array:
    """Linearly between the two nearest along an axis."""
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, values.shape[axis] - 1)
    share = (at - below).reshape(-1, *(1,) * (values.ndim - axis - 1))
    return np.asarray(values.take(below, axis) * (1 - share) + values.take(above, axis) * share)


def outside(grid: Sequence[int], region: Array) -> Array:
    left, top, right, bottom = region
    rows, columns = centres(grid[-2], top, bottom), centres(grid[-1], left, right)
    far_rows, far_columns = (np.abs(at - 0.5) > 0.5 + 1e-6 for at in (rows, columns))
    out = far_rows[:, None] | far_columns[None, :]
    return np.asarray(np.broadcast_to(out, grid).astype(np.float64))


def tokens(named: Mapping[str, Array], features: Array) -> Array:
    """The only tokens of a cut, from the map before them."""
    positions = features.reshape(*features.shape[:2], -1)
    logits = named["pools.0.query"] @ positions / np.sqrt(positions.shape[1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    pooled = positions @ np.swapaxes(weights, 1, 2)
    return np.asarray(pooled * named["pools.0.scale"] + named["pools.0.bias"])


@pytest.mark.parametrize(
    ("cut", "other"), [("a map", [(9, 4, 6)]), ("two maps", [(7, 4, 6)]), ("map and tokens", [(8, 3, 4)])]
)
def test_tensors_of_another_cut_are_refused(cut: str, other: Sequence[tuple[int, ...]]) -> None:
    with pytest.raises(CodecError, match="a stored adapter does not fit its cut"):
        load_adapter(store_adapter(drawn(cut)), STAGES, other)


def test_an_adapter_without_its_convolution_is_refused() -> None:
    stored = [t for t in store_adapter(drawn("a map")) if t.name != "convs.0.weight"]
    with pytest.raises(CodecError, match=r"a stored adapter does not fit its cut: 'convs\.0\.weight'"):
        load_adapter(stored, STAGES, CUTS["a map"])


def test_an_unknown_encoding_is_refused() -> None:
    (first, *rest) = store_adapter(drawn("a map"))
    with pytest.raises(CodecError, match="encoding 'int3'"):
        load_adapter([replace(first, encoding="int3"), *rest], STAGES, CUTS["a map"])
