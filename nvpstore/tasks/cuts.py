"""Cutting a backbone: its smallest frontiers, and the tail that runs from one of them.

A cut is a set of one or two tensors through which everything that depends on the pixels passes, so
that whatever comes before it can be replaced. Cuts are found on the model's traced graph (torch.fx);
what does not depend on pixels (the batch size read off the input) is folded into the tail.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nvpstore.errors import TaskError
from nvpstore.tasks.backbone import Backbone, Cut, Features

MAX_CUT_TENSORS = 2
_LEAVES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses too (same-padding convolutions): only then can their BatchNorm be folded.
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)


class CutBackbone(Backbone):
    """A frozen backbone cut on its traced graph.

    `graph` maps [b, *input_shape] to the model's output; BatchNorms are folded into the convolutions before
    them.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], *, device: str = "cpu") -> None:
        super().__init__(input_shape, device=device)
        self.graph = _trace(model)
        example = torch.zeros(1, *input_shape)
        with torch.no_grad():
            ShapeProp(self.graph).propagate(example)
        self.cuts = tuple(_find_cuts(self.graph.graph))
        if not self.cuts:
            raise TaskError(
                f"{type(model).__name__}: no place where at most {MAX_CUT_TENSORS} feature maps carry "
                "everything; it can be used by pixel and source routes only"
            )
        self.graph.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._heads: dict[tuple[str, ...], fx.GraphModule] = {}
        self.parameters = sum(p.numel() for p in self.graph.parameters())

    def _whole(self, x: Tensor) -> Tensor:
        output: Tensor = self.graph(x)
        return output

    def _features(self, x: Tensor, cuts: tuple[str, ...]) -> tuple[list[Features], Tensor]:
        places = [self.cut(name).nodes for name in cuts]
        if cuts not in self._heads:
            self._heads[cuts] = _with_outputs(self.graph, [node for nodes in places for node in nodes])
        *tensors, output = self._heads[cuts](x)
        found = iter(tensors)
        return [tuple(next(found) for _ in nodes) for nodes in places], output

    def _make_tail(self, cut: Cut) -> nn.Module:
        return _tail(self.graph, cut.nodes)


def _trace(model: nn.Module) -> fx.GraphModule:
    model = model.eval().requires_grad_(False)
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as cause:
        raise TaskError(f"{type(model).__name__} cannot be traced, so it cannot be cut: {cause}") from cause
    traced = fx.GraphModule(tracer.root, graph)
    _fold_batch_norms(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _fold_batch_norms(traced: fx.GraphModule) -> None:
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) > 1:
            continue
        if not isinstance(conv := modules[before.target], nn.Conv2d):
            continue
        traced.set_submodule(before.target, fuse_conv_bn_eval(conv, modules[node.target]))
        node.replace_all_uses_with(before)
        before.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        traced.graph.erase_node(node)


def _is_batch_size(node: fx.Node) -> bool:
    """`x.size(0)` or `x.shape[0]`: depends on the input, but not on pixels."""
    if node.op == "call_method" and node.target == "size":
        return True
    return node.op == "call_function" and node.target in (getattr, operator.getitem) and not _is_tensor(node)


def _is_tensor(node: fx.Node) -> bool:
    return "tensor_meta" in node.meta and hasattr(node.meta["tensor_meta"], "shape")


def _find_cuts(graph: fx.Graph) -> Iterator[Cut]:
    """The smallest frontier after each block, those of one tensor first."""
    frontiers = list(_frontiers(graph))
    size = min((len(f) for f in frontiers), default=0)
    best: dict[str, tuple[fx.Node, ...]] = {}
    for nodes in frontiers:
        if len(nodes) != size:
            continue
        name = _block_name(nodes[-1])
        if name not in best or _elements(nodes) <= _elements(best[name]):
            best[name] = nodes
    for name, nodes in best.items():
        yield Cut(
            name=name,
            nodes=tuple(n.name for n in nodes),
            shapes=tuple(tuple(n.meta["tensor_meta"].shape[1:]) for n in nodes),
        )


def _frontiers(graph: fx.Graph) -> Iterator[tuple[fx.Node, ...]]:
    """After each node: the feature maps computed so far that are still to be read."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    last_use = {n: max((order[u] for u in n.users if not _is_batch_size(u)), default=-1) for n in order}
    pixels = {n for n in order if n.op == "placeholder"}
    parameters_seen = False
    live: set[fx.Node] = set()
    for node, i in order.items():
        if node.op == "output":
            return
        if pixels & set(node.all_input_nodes) and _is_tensor(node):
            pixels.add(node)
            parameters_seen = parameters_seen or node.op == "call_module"
        live = {n for n in live | {node} if n in pixels and last_use[n] > i}
        nodes = tuple(sorted(live, key=order.__getitem__))
        maps = all(n.op != "placeholder" and _is_map(n) for n in nodes)
        small_enough = 0 < len(nodes) <= MAX_CUT_TENSORS
        if small_enough and maps and parameters_seen and node in live:
            yield nodes


def _is_map(node: fx.Node) -> bool:
    """[b, c, h, w] with positions left to tell apart."""
    shape = node.meta["tensor_meta"].shape
    return len(shape) == 4 and shape[-1] > 1


def _elements(nodes: tuple[fx.Node, ...]) -> int:
    return sum(n.meta["tensor_meta"].shape.numel() for n in nodes)


def _block_name(node: fx.Node) -> str:
    """The path of the block a node belongs to: up to the last number in it, else its first part."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    path = node.target if node.op == "call_module" else (paths[-1] if paths else node.name)
    parts = str(path).split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]).lstrip("_") if numbers else parts[0].lstrip("_")


def _with_outputs(traced: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    by_name: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op == "output":
            graph.output((*(by_name[n] for n in names), env[node.args[0]]))
            continue
        env[node] = by_name[node.name] = graph.node_copy(node, env.__getitem__)
    return fx.GraphModule(traced, graph)


def _tail(traced: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.name in names:
            env[node] = graph.placeholder(node.name)
    first = next(iter(env.values()))
    for node in traced.graph.nodes:
        if node in env or not all(a in env or _is_batch_size(node) for a in node.all_input_nodes):
            continue
        if node.op == "placeholder":
            continue
        if node.op == "output":
            graph.output(env[node.args[0]])
        elif _is_batch_size(node) and any(a not in env for a in node.all_input_nodes):
            env[node] = graph.call_method("size", (first, *node.args[1:]))
        else:
            env[node] = graph.node_copy(node, env.__getitem__)
    tail = fx.GraphModule(traced, graph)
    tail.graph.eliminate_dead_code()
    tail.recompile()
    return tail
