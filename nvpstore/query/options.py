"""The options of a task table, `labels(every := 0.5, top := 3)`, read from the tree and checked once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Literal, cast

from sqlglot import exp

from nvpstore.errors import QueryError
from nvpstore.query.clips import Clip
from nvpstore.types import RouteName

DEFAULT_TOP = 5
_MAX_DIGITS = 40  # of a number, also of its exponent's zeros
_MAX_COUNT = 10**9
_LEAST_SECONDS = Fraction(1, 10**6)
ImageFormat = Literal["png", "jpg", "webp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """What a query asks of one task table. `every` in seconds, exact; `stride` in frames.

    `top` and `min_fidelity` mean nothing to `frames`; `image_format` and `upscale` mean nothing to a task.
    `clip` is not
    asked for: it is how the table's task samples.
    """

    every: Fraction | None = None
    stride: int | None = None
    min_fidelity: float | None = None
    top: int = DEFAULT_TOP
    on_error: Literal["error", "skip"] = "error"
    route: RouteName | None = None
    image_format: ImageFormat = "png"
    stabilize: bool = False
    upscale: int = 1
    clip: Clip | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.stride is not None:
            raise ValueError("every and stride exclude each other")


def position(node: exp.Expr) -> str:
    """`line 3, column 20` of the first token under `node` that has a place in the text, or ''.

    Inside a saved view: `view "night", line 1, column 8`, in its own text.
    """
    for part in node.walk(bfs=False):
        meta = part.meta
        if "line" in meta:
            column = meta["col"] - (meta["end"] - meta["start"])
            within = f'view "{meta["view"]}", ' if "view" in meta else ""
            return f"{within}line {meta['line']}, column {column}"
    return ""


def fault(node: exp.Expr, message: str) -> QueryError:
    """A QueryError that says where in the user's text it is."""
    where = position(node)
    return QueryError(f"{where}: {message}" if where else message)


def suggestion(word: str, known: Collection[str]) -> str:
    """`; did you mean "x"?` or, where nothing is near, the names that exist."""
    near = difflib.get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; known: {', '.join(sorted(known))}"


# ---------------------------------------------------------------- one reader an option


def _plain(node: exp.Expr) -> Fraction | bool | str | None:
    """A literal's value, numbers exactly; None for whatever is not a literal."""
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if isinstance(node, exp.Neg):
        inner = _plain(node.this)
        return -inner if isinstance(inner, Fraction) else None
    if isinstance(node, exp.Cast):  # how a float parameter is bound
        inner = _plain(node.this)
        return _number(inner) if isinstance(inner, str) else inner
    if isinstance(node, exp.Literal):
        return str(node.this) if node.is_string else _number(str(node.this))
    return None


def _number(text: str) -> Fraction | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    # Fraction would write out 1e-999999999.
    if not value.is_finite() or len(text) > _MAX_DIGITS or abs(value.adjusted()) > _MAX_DIGITS:
        return None
    return Fraction(value)


def _seconds(value: Any) -> Fraction:
    if not isinstance(value, Fraction) or not _LEAST_SECONDS <= value <= _MAX_COUNT:
        raise ValueError("a number of seconds above 0, from 0.000001 to 1000000000")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 1 <= value <= _MAX_COUNT:
        raise ValueError("a whole number from 1 to 1000000000")
    return int(value)


def _share(value: Any) -> float:
    if not isinstance(value, Fraction) or not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1")
    return float(value)


def _word(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError("one of " + ", ".join(f"'{word}'" for word in allowed))
        return cast(str, value)

    return read


def _stabilize(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _upscale(value: Any) -> int:
    if value not in (2, 4):
        raise ValueError("2 or 4")
    return int(value)


Readers = Mapping[str, Callable[[Any], Any]]
_BOTH: Readers = {
    "every": _seconds,
    "stride": _count,
    "stabilize": _stabilize,
    "on_error": _word("error", "skip"),
}
TASK_OPTIONS: Readers = {
    **_BOTH,
    "min_fidelity": _share,
    "top": _count,
    "route": _word("adapter", "pixel", "source"),
}
FRAMES_OPTIONS: Readers = {
    **_BOTH,
    "upscale": _upscale,
    "format": _word("png", "jpg", "webp"),
    "route": _word("pixel", "source"),
}
_FIELDS = {"format": "image_format"}


def read_options(arguments: Sequence[exp.Expr], *, table: str) -> TableOptions:
    """Checks `name := value` arguments against the options of `table` ("frames" or a task's name).

    Raises QueryError with line and column: unknown or repeated option, wrong type or range,
    `every` together with `stride`, an argument without a name.
    """
    readers = FRAMES_OPTIONS if table == "frames" else TASK_OPTIONS
    values: dict[str, Any] = {}
    for argument in arguments:
        if not isinstance(argument, (exp.PropertyEQ, exp.Kwarg)):
            raise fault(
                argument, f"{table}(…) takes options as name := value, found {argument.sql('duckdb')}"
            )
        name = argument.this.name.lower()
        if name not in readers:
            raise fault(argument, f'unknown option "{name}" of {table}{suggestion(name, readers)}')
        if name in values:
            raise fault(argument, f"option {name} of {table} is given twice")
        values[name] = _read(argument, readers[name], name=name)
    if "every" in values and "stride" in values:
        raise fault(arguments[-1], f"every and stride of {table} exclude each other: give one of them")
    return TableOptions(**{_FIELDS.get(name, name): value for name, value in values.items()})


def _read(argument: exp.Expr, reader: Callable[[Any], Any], *, name: str) -> Any:
    given = argument.expression.sql("duckdb")
    try:
        return reader(_plain(argument.expression))
    except ValueError as allowed:
        raise fault(argument, f"{name} := {given}: allowed is {allowed}") from None
    except QueryError as unavailable:
        raise fault(argument, f"{name} := {given}: {unavailable}") from None
