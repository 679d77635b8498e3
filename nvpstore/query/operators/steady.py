"""Answers and pictures made steady within a query: a stored stabilizer, frame after frame.

A step is one frame: batches before it change nothing but the last bits of its features. Memory begins at a
segment's first sampled frame. Segments of a scene are networks of their own, fitted and answered by routes of
their own, in any order and on any machine; a memory that ran through them would make each depend on all
before it. So at a boundary that is no scene cut the first frame passes as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nvpstore.adapters.micro import MicroAdapter
from nvpstore.adapters.stabilized import Stabilized, Steady
from nvpstore.adapters.stabilizer import State
from nvpstore.adapters.steady_tail import SteadyTail
from nvpstore.adapters.stored_steady import SteadyRecord, decode_stabilizer, state_bytes
from nvpstore.errors import CodecError
from nvpstore.query.contract import Steadied
from nvpstore.query.operators.pixels import DecodedPixels, Pixels, SourcePixels
from nvpstore.storage.ranges import Traffic
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import RGB_STAGE

RUN = 16  # frames on the way to those that are asked for, at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSteadier:
    """A stabilizer on the device that queries run on; `task` is None for pictures."""

    record: SteadyRecord
    steady: Steady
    task: LoadedTask | None
    size_bytes: int
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is remembered after a frame, and its time in seconds."""

    state: State
    ts: float


class Answering(Protocol):
    """The route by which a task's features came: its cut, and its adapter where it has one."""

    @property
    def cut(self) -> str: ...
    @property
    def adapter(self) -> MicroAdapter | None: ...


def load_steadier(data: bytes, *, task: LoadedTask | None, device: str, traffic: Traffic) -> LoadedSteadier:
    """A stored stabilizer with the network that it belongs to. Raises CodecError where it is another's."""
    record, stabilizer = decode_stabilizer(data)
    version = "" if task is None else task.spec.version
    if (record.kind == "tail") != (task is not None) or (task is not None and record.version != version):
        raise CodecError(f"a stabilizer of {record.name}@{record.version[:8]} stands for another one")
    stabilizer.to(device)
    if task is None:
        steady: Steady = Stabilized(nn.Identity(), stabilizer)
    else:
        cut = task.backbone.cut(record.cut)
        steady = SteadyTail(task.backbone.tail(cut.name), stabilizer, cut)
    return LoadedSteadier(
        record=record, steady=steady, task=task, size_bytes=state_bytes(stabilizer), traffic=traffic
    )


def steady_answers(
    loaded: LoadedSteadier,
    route: Answering,
    features: Sequence[Tensor] | Pixels,
    ts: NDArray[np.float64],
    before: Memory | None,
) -> Steadied:
    """A task's outputs [t, …], from the cut's tensors or from pixels."""
    task, steady = loaded.task, loaded.steady
    assert task is not None, "answers are a task's"
    assert isinstance(steady, SteadyTail), "a task's stabilizer is of its tail"
    if isinstance(features, Sequence):
        late = task.backbone.between(route.cut, loaded.record.cut)(*features)
    else:
        rgb = features.for_backbone().to(task.backbone.device)
        found, _ = task.backbone.features(task.spec.prepare(rgb, size=features.size), [loaded.record.cut])
        late = found[loaded.record.cut]
    outputs, memory = _run(loaded, steady.packed(late), ts, before)
    return _steadied(outputs, outputs, memory)


def steady_pictures(
    loaded: LoadedSteadier, pixels: Pixels, ts: NDArray[np.float64], before: Memory | None, device: str
) -> Steadied:
    """Pictures for people, at source size."""
    x = pixels.for_people().to(device).float() / 255
    outputs, memory = _run(loaded, x, ts, before)
    rgb = (outputs.clamp(0, 1) * 255).round().to(torch.uint8)
    return _steadied(SourcePixels(rgb=rgb), rgb, memory)


class SteadyFrames:
    """Frames of one segment, asked for in ascending runs, each made steady by all frames before it.

    `pixels` gives `{"rgb": Pixels}` of frames [t]; `ts` [t] are the times of all frames from `start_frame`.
    """

    def __init__(
        self,
        loaded: LoadedSteadier,
        pixels: Callable[[NDArray[np.int64]], Mapping[str, object]],
        *,
        ts: NDArray[np.float64],
        start_frame: int,
        device: str,
    ) -> None:
        self._loaded, self._pixels, self._ts, self._device = loaded, pixels, ts, device
        self._start = self._next = start_frame
        self._memory: Memory | None = None

    @torch.inference_mode()
    def __call__(self, frames: NDArray[np.int64]) -> Mapping[str, object]:
        for passed in np.split(before := np.arange(self._next, frames[0]), range(RUN, len(before), RUN)):
            if len(passed):
                self._through(passed)
        return {RGB_STAGE: self._through(frames)}

    def _through(self, frames: NDArray[np.int64]) -> object:
        pixels = self._pixels(frames)[RGB_STAGE]
        assert isinstance(pixels, DecodedPixels | SourcePixels), "the rgb stage gives pixels"
        ts = self._ts[frames - self._start]
        steadied = steady_pictures(self._loaded, pixels, ts, self._memory, self._device)
        self._memory, self._next = steadied.memory, int(frames[-1]) + 1
        return steadied.outputs


def _run(
    loaded: LoadedSteadier, frames: Tensor, ts: NDArray[np.float64], before: Memory | None
) -> tuple[Tensor, Memory]:
    """Each of `frames` [t, …] after the other."""
    state, last = (State(), None) if before is None else (before.state, before.ts)
    outputs = []
    for frame, now in zip(frames[:, None], ts.tolist(), strict=True):
        gap = 1.0 if last is None else loaded.record.gap(now - last)
        output, state = loaded.steady.step(frame, state, gap=gap)
        outputs.append(output)
        last = now
    assert last is not None, "a batch has frames"
    return torch.cat(outputs), Memory(state=state, ts=last)


def _steadied(outputs: Tensor | Pixels, tensor: Tensor, memory: Memory) -> Steadied:
    state = memory.state
    held = [*state.raw.values(), *state.stable.values()]
    held += [] if state.picture is None else [state.picture]
    size = tensor.nbytes + sum(x.nbytes for x in held)
    return Steadied(outputs=outputs, memory=memory, size_bytes=size)
