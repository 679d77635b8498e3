"""Which block of a model a node of its graph belongs to, and what the block is called."""

from __future__ import annotations

from torch import fx, nn

from nvpstore.tasks.tracing import is_tensor

_POINTWISE = (nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout, nn.Identity)
_SEQUENCES = (nn.Sequential, nn.ModuleDict)


class Blocks:
    """The blocks of a model, found by how its modules are nested. A name is a path in the model, or in the
    one module that it wraps.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.modules = dict(model.named_modules(remove_duplicate=False))
        children = [name for name, _ in model.named_children()]
        self.wrapper = f"{children[0]}." if len(children) == 1 else ""

    def name_of(self, node: fx.Node) -> str:
        return self._block(self._path(node)).removeprefix(self.wrapper).lstrip("_")

    def _path(self, node: fx.Node) -> str:
        """Of the module that a node is, or stands in; of the one before it for a function among modules."""
        if node.op == "call_module":
            return str(node.target)
        inside = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
        if inside:
            return str(inside[-1])
        before = [n for n in node.all_input_nodes if n.op not in ("placeholder", "get_attr") and is_tensor(n)]
        return self._path(max(before, key=self.order.__getitem__)) if before else node.name

    def _block(self, path: str) -> str:
        """Up to the last number in a path that stands for a block of its own; where all numbers are layers of
        plain sequences, up to the innermost sequence, or the layer.
        """
        paths = [path[:end] for end in (*(i for i, c in enumerate(path) if c == "."), len(path))]
        made = [p for p in paths if p.rpartition(".")[2].isdigit() and self._has_parts(p)]
        own: list[str] = []
        for p in made:
            if not isinstance(self.modules[p], nn.Sequential) and (not own or self._has_twins(p)):
                own.append(p)
        if own or made:
            return (own or made)[-1]
        return self._layer(self._named(paths))

    def _has_parts(self, path: str) -> bool:
        return any(self.modules[path].children())

    def _has_twins(self, path: str) -> bool:
        """A stage holds blocks of one kind, a block parts of several (a squeeze among convolutions)."""
        module, above = self.modules[path], self.modules[path.rpartition(".")[0]]
        return sum(type(other) is type(module) for other in above.children()) > 1

    def _named(self, paths: list[str]) -> str:
        """The first module on the way that is not a sequence of blocks."""
        for path in paths[:-1]:
            module = self.modules[path]
            holds_blocks = type(module) is nn.Sequential or any(any(m.children()) for m in module.children())
            if f"{path}." != self.wrapper and not (isinstance(module, _SEQUENCES) and holds_blocks):
                return path
        return paths[-1]

    def _layer(self, path: str) -> str:
        """What works point by point in a plain sequence belongs to the layer before it."""
        before, dot, number = path.rpartition(".")
        if not number.isdigit():
            return path
        at = int(number)
        while at and _is_pointwise(self.modules[f"{before}{dot}{at}"]):
            at -= 1
        return f"{before}{dot}{at}"


def _is_pointwise(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" or isinstance(module, _POINTWISE)
