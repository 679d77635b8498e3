"""`embed_text('task', 'text')` in a query: a text in the space of a task's embeddings.

DuckDB has no such function. Each call becomes a literal FLOAT[] in the tree: NULL when the query is parsed,
what the task's model gives for the text before the query is planned (`texts`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlglot import exp

from nvpstore.query.names import FRAMES, task_named
from nvpstore.query.options import fault, position, suggestion

EMBED_TEXT = "embed_text"
MAX_CALLS = 64
MAX_CHARACTERS = 2000  # of one text; models of today read its first 77 words or so
_KIND = "FLOAT[]"
_NUMBER = "embed_text"  # under which a literal's node keeps which call it stands for
_SHOWN = 80  # characters of a call in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCall:
    """One call in a query's text. `version` is the prefix after `@`, or ''."""

    task: str
    version: str
    text: str
    where: str

    @property
    def shown(self) -> str:
        return f"{self.task}@{self.version}" if self.version else self.task


def take_text_calls(tree: exp.Query, tasks: Collection[str]) -> tuple[TextCall, ...]:
    """Replaces all calls in `tree`, in place. `tasks` are the registered names.

    Raises QueryError, with line and column: arguments other than two literal texts, an unknown task, too long
    a text, too many calls.
    """
    nodes = [node for node in tree.find_all(exp.Anonymous) if _name(node) == EMBED_TEXT]
    if len(nodes) > MAX_CALLS:
        raise fault(nodes[MAX_CALLS], f"{len(nodes)} calls of {EMBED_TEXT}: at most {MAX_CALLS} are allowed")
    calls = []
    for number, node in enumerate(nodes):
        calls.append(_read(node, tasks))
        literal = exp.cast(exp.null(), _KIND, dialect="duckdb")
        literal.meta.update(node.meta)
        literal.meta[_NUMBER] = number
        node.replace(literal)
    return tuple(calls)


def put_vectors(tree: exp.Query, vectors: Sequence[Iterable[Any]]) -> exp.Query:
    """A copy of `tree` in which the n-th call's literal is `vectors[n]`."""
    copy = tree.copy()
    for node in list(copy.find_all(exp.Cast)):
        if _NUMBER in node.meta:
            # Text that is cast: a node a number would be thousands of nodes.
            numbers = ", ".join(str(value) for value in vectors[node.meta[_NUMBER]])
            node.this.replace(exp.Literal.string(f"[{numbers}]"))
    return copy


def _name(node: exp.Anonymous) -> str:
    return str(node.name).lower()


def _read(node: exp.Anonymous, tasks: Collection[str]) -> TextCall:
    values = node.expressions
    plain = all(isinstance(value, exp.Literal) and value.is_string for value in values)
    if len(values) != 2 or not plain or not _stands_alone(node):
        found = node.sql("duckdb")
        shown = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}…"
        raise fault(
            node,
            f"{EMBED_TEXT} takes the name of a task and a text, both literals, as in"
            f" {EMBED_TEXT}('clip_rn50', 'a red car'); found {shown}",
        )
    name, text = (str(value.this) for value in values)
    meant = task_named(name, tasks)
    if meant is None or meant[0] == FRAMES:
        raise fault(node, f'{EMBED_TEXT}: unknown task "{name}"{suggestion(name.split("@")[0], tasks)}')
    if len(text) > MAX_CHARACTERS:
        raise fault(
            node, f"{EMBED_TEXT}: text of {len(text)} characters: at most {MAX_CHARACTERS} are allowed"
        )
    return TextCall(task=meant[0], version=meant[1], text=text, where=position(node))


def _stands_alone(node: exp.Anonymous) -> bool:
    """No schema before the call, and nothing after it that only aggregates and windows have."""
    parent = node.parent
    if isinstance(parent, exp.Dot):
        return node.arg_key == "this"
    return not isinstance(
        parent, (exp.Window, exp.Filter, exp.WithinGroup, exp.IgnoreNulls, exp.RespectNulls)
    )
