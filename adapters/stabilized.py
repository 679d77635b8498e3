"""A network with a stabilizer at the outputs of its modules: the network itself is not touched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvpstore.adapters.stabilizer import Place, Shape, Stabilizer, State, Step
from nvpstore.errors import TaskError

OUTPUT = ""  # the place behind everything
INPUT = "<"  # the place before everything


class Steady(ABC):
    """A network and a stabilizer, one frame of each of b videos at a time."""

    net: nn.Module
    stabilizer: Stabilizer

    @abstractmethod
    def step(self, x: Tensor, state: State, *, gap: float = 1.0) -> tuple[Tensor, State]:
        """One frame [b, …] of each of b videos: (output, state after it)."""

    def clip(
        self, frames: Tensor, state: State | None = None, *, gaps: Sequence[float] | None = None
    ) -> tuple[Tensor, State]:
        """Frames [t, b, …] one after another: (outputs [t, b, …], state after the last)."""
        state = state or State()
        outputs = []
        for t, x in enumerate(frames):
            output, state = self.step(x, state, gap=1.0 if gaps is None else gaps[t])
            outputs.append(output)
        return torch.stack(outputs), state

    def trained_on(self, frames: Tensor, *, gaps: Sequence[float] | None = None) -> Tensor:
        """As `clip` without a state, for back-propagation through all of it: each frame's activations are
        computed again on the way back, so that memory grows with the state alone.
        """
        state, outputs = State(), []
        for t, x in enumerate(frames):
            gap = 1.0 if gaps is None else gaps[t]
            output, state = checkpoint(self.step, x, state, gap=gap, use_reentrant=False)
            outputs.append(output)
        return torch.stack(outputs)


class Stabilized(Steady):
    """`net` [b, …] → [b, …], frame by frame, with memory at `places` of its modules, its input and output.

    Hooks are there while a frame runs, and gone afterwards: outside of `step` and `clip` the network is what
    it was, bit for bit. Not for several threads at once.
    """

    def __init__(self, net: nn.Module, stabilizer: Stabilizer) -> None:
        self.net, self.stabilizer = net, stabilizer
        known = dict(net.named_modules())
        self.modules = {
            place.name: known[place.name]
            for place in stabilizer.places
            if place.name not in (INPUT, OUTPUT)
            if _is_known(place.name, known)
        }
        self._step: Step | None = None

    def step(
        self, x: Tensor, state: State, *, gap: float = 1.0, picture: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One frame of each of b videos: (output, state after it). g looks at `picture`, else at x."""
        step = self.stabilizer.begin(x if picture is None else picture, state, gap=gap)
        with self._watching(step):
            output = self.net(self._fused(step, INPUT, x))
        output = self._fused(step, OUTPUT, output)
        return output, step.done()

    def _fused(self, step: Step, name: str, x: Tensor) -> Tensor:
        return step.fuse(name, x) if name in self.stabilizer.names else x

    @contextmanager
    def _watching(self, step: Step) -> Iterator[None]:
        def hook(name: str) -> Callable[[nn.Module, Any, Any], Any]:
            return lambda _module, _inputs, output: step.fuse(name, output)

        handles = [module.register_forward_hook(hook(name)) for name, module in self.modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def places_of(net: nn.Module, names: Sequence[str], example: Tensor) -> tuple[Place, ...]:
    """Places behind modules `names` (INPUT and OUTPUT among them), with the channels that a run shows.

    Raises TaskError for a module that is not there, does not run, or gives no tensor.
    """
    known = dict(net.named_modules())
    found: dict[str, Any] = {INPUT: example}
    handles = [
        known[name].register_forward_hook(lambda _m, _i, out, name=name: found.__setitem__(name, out))
        for name in names
        if name not in (INPUT, OUTPUT) and _is_known(name, known)
    ]
    try:
        with torch.no_grad():
            found[OUTPUT] = net(example)
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if not isinstance(found.get(name), Tensor):
            raise TaskError(
                f"module {name!r}: it gives no tensor in a run, so nothing can be stabilised there"
            )
    return tuple(Place(name=name, channels=int(found[name].shape[1])) for name in names)


def stabilized(net: nn.Module, names: Sequence[str], shape: Shape, example: Tensor) -> Stabilized:
    """A network, frozen, with a new stabilizer at `names`."""
    net.eval().requires_grad_(False)
    places = places_of(net, names, example)
    return Stabilized(net, Stabilizer(shape, places, picture_channels=int(example.shape[1])))


def _is_known(name: str, known: dict[str, nn.Module]) -> bool:
    if name not in known:
        near = [other for other in known if other.startswith(name.partition(".")[0])][:5]
        raise TaskError(
            f"module {name!r}: the network has none; near it are {', '.join(near) or 'no others'}"
        )
    return True
