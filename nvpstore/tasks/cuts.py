"""Cutting a backbone: its smallest frontiers, and the tail that runs from one of them.

A cut is a set of one or two tensors through which everything that depends on the pixels passes, so
that whatever comes before it can be replaced. Cuts are found on the model's traced graph. What is read off
shapes before a cut does not depend on pixels: it is a constant of the tail, but for the number of units.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbone import Backbone, Cut, Features
from nvpstore.tasks.blocks import Blocks
from nvpstore.tasks.tracing import changes_tensors, is_tensor, reads_shape, traced, without_dead_code

MAX_CUT_TENSORS = 2


class CutBackbone(Backbone):
    """A frozen backbone cut on its traced graph.

    `graph` maps [b, *input_shape] to the model's output; BatchNorms are folded into the convolutions before
    them.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], *, device: str = "cpu") -> None:
        super().__init__(input_shape, device=device)
        self.graph = traced(model, input_shape)
        self.cuts = tuple(_find_cuts(self.graph.graph, Blocks(model, self.graph.graph)))
        if not self.cuts:
            raise TaskError(
                f"{type(model).__name__}: no place where at most {MAX_CUT_TENSORS} feature maps carry "
                "everything; it can be used by pixel and source routes only"
            )
        self.graph.to(device)
        for module in self.graph.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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

    def _run_counted(self, x: Tensor, spent: Callable[[], int]) -> dict[str, int]:
        run = _Counted(self.graph, spent)
        run.run(x)
        # A tail is all that runs behind its cut's last tensor.
        return {cut.name: run.spent_at[cut.nodes[-1]] for cut in self.cuts}

    def _make_tail(self, cut: Cut) -> nn.Module:
        return _tail(self.graph, cut.nodes)

    def _make_between(self, cut: Cut, later: Cut) -> nn.Module:
        return _up_to(_tail(self.graph, cut.nodes), later.nodes)


class _Counted(fx.Interpreter):
    """Notes what was spent when each node had run."""

    def __init__(self, graph: fx.GraphModule, spent: Callable[[], int]) -> None:
        super().__init__(graph)
        self.spent, self.spent_at = spent, dict[str, int]()

    def run_node(self, n: fx.Node) -> Any:
        given = super().run_node(n)
        self.spent_at[n.name] = self.spent()
        return given


def _find_cuts(graph: fx.Graph, blocks: Blocks) -> Iterator[Cut]:
    """The smallest frontier after each block, in order of execution. Of one tensor where a block has such;
    of two where a skip connection runs past the whole block.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    best: dict[str, tuple[fx.Node, ...]] = {}
    for nodes in _frontiers(order):
        name = blocks.name_of(nodes[-1])
        if name not in best or _size(nodes) <= _size(best[name]):
            best[name] = nodes
    for name, nodes in sorted(best.items(), key=lambda named: order[named[1][-1]]):
        yield Cut(
            name=name,
            nodes=tuple(n.name for n in nodes),
            shapes=tuple(n.meta["shape"] for n in nodes),
        )


def _frontiers(order: Mapping[fx.Node, int]) -> Iterator[tuple[fx.Node, ...]]:
    """After each node: the feature maps computed so far that are still to be read."""
    last_use = {n: max((order[u] for u in n.users if not reads_shape(u)), default=-1) for n in order}
    pixels = {n for n in order if n.op == "placeholder"}
    parameters_seen = False
    live: set[fx.Node] = set()
    for node, i in order.items():
        if node.op == "output" or any(user.op == "output" for user in node.users):
            return  # nothing is left to run
        if pixels & set(node.all_input_nodes) and not reads_shape(node):
            pixels.add(node)
            parameters_seen = parameters_seen or node.op == "call_module"
        live = {n for n in live | {node} if n in pixels and last_use[n] > i}
        nodes = tuple(sorted(live, key=order.__getitem__))
        small_enough = 0 < len(nodes) <= MAX_CUT_TENSORS
        if small_enough and all(map(_is_map, nodes)) and parameters_seen and node in live:
            yield nodes


def _is_map(node: fx.Node) -> bool:
    """[b, c, h, w] or [b, c, t, h, w] with positions left to tell apart."""
    if node.op == "placeholder" or not is_tensor(node) or node.meta.get("channels") == "last":
        return False
    shape = node.meta["shape"]
    return len(shape) in (3, 4) and shape[-1] > 1


def _size(nodes: tuple[fx.Node, ...]) -> tuple[int, int]:
    return len(nodes), sum(math.prod(n.meta["shape"]) for n in nodes)


def _with_outputs(whole: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """Gives the nodes of these names, as they are before anything else works on them, and the output."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    found: dict[str, fx.Node] = {}
    spoils = _spoils(whole)
    for node in whole.graph.nodes:
        if node.op == "output":
            graph.output((*(found[n] for n in names), env[node.args[0]]))
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.name in names:
            found[node.name] = graph.call_method("clone", (env[node],)) if spoils else env[node]
    return fx.GraphModule(whole, graph)


def _tail(whole: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    for node in whole.graph.nodes:
        if node.name in names:
            env[node] = graph.placeholder(node.name)
    first = next(iter(env.values()))
    if _spoils(whole):  # what a tail is given stays as it is
        env = {node: graph.call_method("clone", (given,)) for node, given in env.items()}
    for node in whole.graph.nodes:
        if node in env or node.op == "placeholder":
            continue
        known = all(a in env for a in node.all_input_nodes)
        if node.op == "output":
            graph.output(env[node.args[0]])
        elif known:
            env[node] = graph.node_copy(node, env.__getitem__)
        elif reads_shape(node):
            env[node] = _read_before(node, first, graph)
    tail = fx.GraphModule(whole, graph)
    without_dead_code(tail)
    return tail


def _up_to(tail: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """Gives the nodes of these names, which keep their names in a tail, and runs nothing after them."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    found: dict[str, fx.Node] = {}
    for node in tail.graph.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.name in names:
            found[node.name] = env[node]
        if len(found) == len(names):
            break
    graph.output(tuple(found[name] for name in names))
    part = fx.GraphModule(tail, graph)
    without_dead_code(part)
    return part


def _spoils(graph: fx.GraphModule) -> bool:
    return any(changes_tensors(graph, node) for node in graph.graph.nodes)


def _read_before(node: fx.Node, first: fx.Node, graph: fx.Graph) -> Any:
    """What `node` read off a tensor before the cut, in a tail whose first tensor is `first`."""
    if node.op == "call_function" and node.args[1] in ("dtype", "device"):
        return graph.call_function(getattr, (first, node.args[1]))
    two, one = node.meta["values"]
    units = None if two == one else graph.call_method("size", (first, 0))
    return _of_units(two, one, units, graph)


def _of_units(two: Any, one: Any, units: fx.Node | None, graph: fx.Graph) -> Any:
    """A value that was `two` for two units and `one` for one, for as many as there are."""
    if isinstance(two, tuple):
        return tuple(_of_units(a, b, units, graph) for a, b in zip(two, one, strict=True))
    if two == one:
        return one
    assert two == 2 * one, "sizes are constant or grow with the number of units"
    return units if one == 1 else graph.call_function(operator.mul, (units, one))
