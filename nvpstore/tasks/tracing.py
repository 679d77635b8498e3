"""A model's graph (torch.fx) made ready to be cut: BatchNorms folded, channels first wherever it may be cut,
and what every node gives noted: `meta["shape"]` [...] of a tensor [b, ...], `meta["values"]` of what is read
off a shape, for two units and for one.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nvpstore.errors import TaskError

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_LEAVES = (nn.Conv1d, *_CONVOLUTIONS, nn.Linear, *_NORMS, nn.LayerNorm)
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
_SHAPE_METHODS = ("size", "dim", "ndimension", "numel")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
MOST_STRETCH, CLEARLY = 0.4, 0.1  # of a map's aspect against the input's: small grids are rounded
ROUNDING = 1e-3  # of the output's largest value: folding changes the last bits


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses too (same-padding convolutions): only then can their BatchNorm be folded.
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


class _Notes(fx.Interpreter):
    """Runs a graph and notes what its nodes give."""

    def run_node(self, n: fx.Node) -> Any:
        given = super().run_node(n)
        if isinstance(given, Tensor):
            n.meta["shape"] = tuple(given.shape[1:])
        elif reads_shape(n):
            n.meta.setdefault("values", []).append(given)
        return given


def traced(model: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """The graph of [b, *input_shape] → output, at this input size and any b.

    Raises TaskError where the model cannot be traced, or its graph says something else than it.
    """
    model = model.eval().requires_grad_(False)
    two = _example(2, input_shape)
    with torch.no_grad():
        expected = model(two[:1].clone())
        if not isinstance(expected, Tensor):
            raise TaskError(f"{type(model).__name__} gives {type(expected).__name__}, not one tensor")
        graph = _traced(model)
        try:
            notes = _Notes(graph)
            found = notes.run(two)
            if any("values" in node.meta for node in graph.graph.nodes):
                notes.run(two[:1])
        except Exception as cause:
            raise TaskError(f"{type(model).__name__} cannot be cut: its graph fails: {cause}") from cause
    apart = float((found[:1] - expected).abs().max())
    if not apart <= ROUNDING * float(expected.abs().max()):
        raise TaskError(f"{type(model).__name__} cannot be cut: its graph's output is {apart:.1e} off")
    _channels_first(graph, *input_shape[-2:])
    return graph


def reads_shape(node: fx.Node) -> bool:
    """Whether it reads off a tensor what the pixels do not change."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def changes_tensors(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether it works in place: what it is given is something else behind it."""
    if node.op == "call_module":
        return getattr(graph.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.op == "call_function" and (node.target in _IN_PLACE or node.kwargs.get("inplace") is True)


def without_dead_code(graph: fx.GraphModule) -> None:
    """Drop what the output does not depend on, and make the graph ready to run."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        kept = node.op in ("placeholder", "output") or node in needed
        changed = node.all_input_nodes[:1] if changes_tensors(graph, node) else []
        if kept or needed.intersection(changed):
            needed |= {node, *node.all_input_nodes}
        else:
            graph.graph.erase_node(node)
    graph.recompile()


def is_tensor(node: fx.Node) -> bool:
    return "shape" in node.meta


def _traced(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as cause:
        raise TaskError(f"{type(model).__name__} cannot be traced, so it cannot be cut: {cause}") from cause
    made = fx.GraphModule(tracer.root, graph)
    _fold_batch_norms(made)
    without_dead_code(made)
    return made


def _example(units: int, input_shape: tuple[int, ...]) -> Tensor:
    """Units that differ, without a draw from anybody's generator."""
    count = units * torch.Size(input_shape).numel()
    return torch.sin(torch.arange(count) * 0.7).reshape(units, *input_shape)


def _fold_batch_norms(made: fx.GraphModule) -> None:
    modules = dict(made.named_modules())
    calls = Counter(node.target for node in made.graph.nodes)
    for node in list(made.graph.nodes):
        if node.op != "call_module" or not isinstance(norm := modules[node.target], _NORMS):
            continue
        before = node.all_input_nodes[0]
        alone = before.op == "call_module" and len(before.users) == calls[before.target] == 1
        if not alone or norm.running_mean is None:
            continue
        if not isinstance(conv := modules[before.target], _CONVOLUTIONS):
            continue
        fused = fuse_conv_bn_eval(conv, norm)
        if not _same(fused, nn.Sequential(conv, norm)):
            continue
        made.set_submodule(str(before.target), fused)
        node.replace_all_uses_with(before)
        before.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        made.graph.erase_node(node)


def _same(fused: nn.Module, parts: nn.Sequential) -> bool:
    """Subclasses may do more than convolve and normalise (timm's standardised weights, its activations)."""
    conv: Any = parts[0]
    if type(conv) in _CONVOLUTIONS and type(parts[1]) in _NORMS:
        return True
    side = (2 * d * k for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    x = _example(1, (conv.in_channels, *side))
    with torch.no_grad():
        return torch.allclose(fused(x), parts(x), rtol=1e-3, atol=1e-4)


def _channels_first(made: fx.GraphModule, height: int, width: int) -> None:
    """Behind each tensor with channels last (Swin's): the same with channels first, and back again."""
    for node in list(made.graph.nodes):
        if not is_tensor(node) or not _has_channels_last(node.meta["shape"], height, width):
            continue
        axes = len(node.meta["shape"]) + 1
        users = list(node.users)
        with made.graph.inserting_after(node):
            first = made.graph.call_method("permute", (node, 0, axes - 1, *range(1, axes - 1)))
        with made.graph.inserting_after(first):
            back = made.graph.call_method("permute", (first, 0, *range(2, axes), 1))
        for user in users:
            user.replace_input_with(node, back)
        *grid, channels = node.meta["shape"]
        first.meta |= {**node.meta, "shape": (channels, *grid)}
        back.meta |= {**node.meta, "channels": "last"}
        node.meta["channels"] = "last"
    made.recompile()


def _has_channels_last(shape: tuple[int, ...], height: int, width: int) -> bool:
    """Whether a map or volume has the input's aspect in the axes before the last, not in the last two."""
    if len(shape) not in (3, 4):
        return False
    first, last = (_stretch(grid, height, width) for grid in (shape[-2:], shape[-3:-1]))
    return last < MOST_STRETCH and last < first - CLEARLY


def _stretch(grid: tuple[int, ...], height: int, width: int) -> float:
    """How far a grid's aspect is from the input's: 0 where they are the same."""
    return abs(math.log(grid[0] * width / (grid[1] * height)))
