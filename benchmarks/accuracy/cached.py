"""Storing a net's features or answers instead of the video: cheap to ask again, no use to another net."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.accuracy.answers import Answer, from_outputs
from nvpstore.routing.select import worthwhile_cuts
from nvpstore.tasks.backbone import Cut
from nvpstore.tasks.registry import LoadedTask

AT_ONCE = 16
LEVEL = 9  # of zstd
DIGITS = 4  # of a stored score


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """What a cache of one task needs, and what it answers."""

    what: str
    stored_bytes: int
    answers: list[Answer]


@torch.inference_mode()
def features(task: LoadedTask, rgb: Tensor, units: Sequence[Sequence[int]], *, bits: int) -> Cached:
    """Features at the cut with the fewest values among those that routing looks at, quantised per channel
    and unit, compressed with zstd.
    """
    cut = min(worthwhile_cuts(task.backbone), key=_values)
    size, answers = 0, list[Answer]()
    for first in range(0, len(units), AT_ONCE):
        some = units[first : first + AT_ONCE]
        x = task.spec.prepare(rgb[[frame for unit in some for frame in unit]]).to(task.backbone.device)
        found, _ = task.backbone.features(x, [cut.name])
        kept = [_quantised(tensor, bits) for tensor in found[cut.name]]
        size += sum(stored for _, stored in kept)
        answers += from_outputs(task, task.backbone.tail(cut.name)(*(tensor for tensor, _ in kept)))
    return Cached(what=f"features at {cut.name}, {bits} bit", stored_bytes=size, answers=answers)


def answers_alone(source: Sequence[Answer]) -> Cached:
    """What was said of source frames, as JSON lines with zstd."""
    lines = "\n".join(json.dumps(_said(answer)) for answer in source)
    return Cached(what="answers alone", stored_bytes=len(_compressed(lines.encode())), answers=list(source))


def constant(source: Sequence[Answer]) -> list[Answer]:
    """The most frequent answer, always; of objects and sentences the first one."""
    if source[0].probabilities is None:
        return [source[0]] * len(source)
    first = [int(a.probabilities.argmax()) for a in source if a.probabilities is not None]
    most = max(set(first), key=first.count)
    return [source[first.index(most)]] * len(source)


def held(source: Sequence[Answer], *, every: int) -> list[Answer]:
    """The source's answer at units 0, `every`, 2·`every` …, repeated."""
    return [source[i - i % every] for i in range(len(source))]


def _values(cut: Cut) -> int:
    return sum(int(torch.tensor(shape).prod()) for shape in cut.shapes)


def _quantised(tensor: Tensor, bits: int) -> tuple[Tensor, int]:
    """(what comes back, bytes stored) of [u, c, …]: a scale and a zero for each channel and unit."""
    flat = tensor.flatten(2) if tensor.ndim > 2 else tensor[:, :, None]
    low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    low, step = low.half().float(), ((high - low) / (2**bits - 1)).half().float().clamp_min(1e-7)
    codes = ((flat - low) / step).round().clamp(0, 2**bits - 1).byte()
    back = (codes.float() * step + low).view_as(tensor)
    packed = codes.flatten()
    if bits == 4:
        packed = torch.cat([packed, packed.new_zeros(len(packed) % 2)])
        packed = packed[::2] * 16 + packed[1::2]
    scales = 2 * 2 * low.numel()  # half precision
    return back, len(_compressed(packed.cpu().numpy().tobytes())) + scales


def _compressed(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd", compression_level=LEVEL).compress(data, asbytes=True))


def _said(answer: Answer) -> object:
    if answer.caption is not None:
        return answer.caption
    if answer.objects is not None:
        scores, classes, boxes = answer.objects
        return [
            [int(c), round(float(s), DIGITS), [round(float(side), DIGITS) for side in box]]
            for s, c, box in zip(scores, classes, boxes, strict=True)
        ]
    assert answer.probabilities is not None, "an answer has one form"
    order = answer.probabilities.argsort()[::-1][:5]
    return [[int(i), round(float(answer.probabilities[i]), DIGITS)] for i in order]
