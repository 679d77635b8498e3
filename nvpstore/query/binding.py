"""Values put into a query's tree as literals: parameters and the time. Scope needs them as well as DuckDB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlglot
from sqlglot import TokenType, exp

from nvpstore.errors import QueryError
from nvpstore.query.options import fault, suggestion

Params = Sequence[Any] | Mapping[str, Any]
MAX_ITEMS = 10_000  # of a list given as a parameter
_ALLOWED = "numbers, text, bytes, dates, times, intervals, UUIDs, lists, mappings and None"
_NOW = ("now", "current_timestamp", "get_current_timestamp", "transaction_timestamp")


def numbered(sql: str) -> str:
    """`?` as `$1`, `$2`, … in the order of the text, which the tree does not keep."""
    tokens = sqlglot.tokenize(sql, read="duckdb")
    marks = [token for token in tokens if token.token_type is TokenType.PLACEHOLDER]
    if marks and any(token.token_type is TokenType.PARAMETER for token in tokens):
        line, column = marks[0].line, marks[0].col
        raise QueryError(f"line {line}, column {column}: ? beside $ parameters: use one of the two")
    parts, end = [], 0
    for number, token in enumerate(marks, start=1):
        parts += [sql[end : token.start], f"${number}"]
        end = token.end + 1
    return "".join([*parts, sql[end:]])


def bind(tree: exp.Query, params: Params | None, *, sql: str) -> exp.Query:
    """Puts `$1` and `$name` values into the tree of `sql`. Raises QueryError: missing, surplus, odd type."""
    used: set[str] = set()
    for node in list(tree.find_all(exp.Placeholder, exp.Parameter)):
        used.add(str(node.name))
        try:
            node.replace(_literal(_value(params, str(node.name), node), node))
        except QueryError as cause:
            raise QueryError(f"{_place(sql, str(node.name))}{cause}") from None
    _check_all_used(params, used)
    return tree


def _place(sql: str, name: str) -> str:
    """`line 1, column 8: ` of a parameter's first mention, which the tree does not keep; '' if unknown."""
    marks = 0
    tokens = sqlglot.tokenize(sql, read="duckdb")
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        marks += token.token_type is TokenType.PLACEHOLDER
        named = token.token_type is TokenType.PARAMETER and following is not None and following.text == name
        if named or (token.token_type is TokenType.PLACEHOLDER and str(marks) == name):
            return f"line {token.line}, column {token.col}: "
    return ""


def _value(params: Params | None, name: str, node: exp.Expr) -> Any:
    if isinstance(params, Mapping):
        if name in params:
            return params[name]
        hint = suggestion(name, [str(key) for key in params]) if params else ""
        raise fault(node, f"no value given for parameter {node.sql('duckdb')}{hint}")
    if params is not None and name.isdigit() and 1 <= int(name) <= len(params):
        return params[int(name) - 1]
    given = f": {len(params)} given" if params else ""
    raise fault(node, f"no value given for parameter {node.sql('duckdb')}{given}")


def _check_all_used(params: Params | None, used: set[str]) -> None:
    if isinstance(params, Mapping):
        surplus = sorted(str(name) for name in params if str(name) not in used)
        if surplus:
            named = ", ".join(f"${name}" for name in surplus[:5])
            raise QueryError(f"the query has no parameter {named}")
    elif params is not None:
        numbers = [int(name) for name in used if name.isdigit()]
        if len(params) > max(numbers, default=0):
            raise QueryError(f"{len(params)} values given for {max(numbers, default=0)} parameters")


def _literal(value: Any, node: exp.Expr) -> exp.Expr:
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        value = value.tolist()  # numpy's scalars and arrays
    if isinstance(value, float):  # a bare 0.1 would be a DECIMAL in DuckDB
        return _cast(repr(value), "DOUBLE")
    if isinstance(value, str) and "\0" in value:
        raise fault(node, "parameter holds a NUL character, which SQL text cannot carry")
    if value is None or isinstance(value, (bool, int, str, Decimal)):
        return exp.convert(value)
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_ITEMS:
            raise fault(
                node,
                f"parameter with {len(value)} items: at most {MAX_ITEMS} are allowed; give them as a table",
            )
        return exp.Array(expressions=[_literal(item, node) for item in value])
    if isinstance(value, Mapping):
        items = [
            exp.PropertyEQ(this=exp.to_identifier(str(key), quoted=True), expression=_literal(item, node))
            for key, item in value.items()
        ]
        return exp.Struct(expressions=items)
    text, kind = _typed_text(value)
    if not kind:
        raise fault(node, f"parameter of type {type(value).__name__}: allowed are {_ALLOWED}")
    return _cast(text, kind)


def _typed_text(value: Any) -> tuple[str, str]:
    """A value as the text and the DuckDB type that it is cast from and to; ("", "") for others."""
    if isinstance(value, datetime):
        return value.isoformat(" "), "TIMESTAMP" if value.tzinfo is None else "TIMESTAMPTZ"
    if isinstance(value, date):
        return value.isoformat(), "DATE"
    if isinstance(value, time) and value.tzinfo is None:
        return value.isoformat(), "TIME"
    if isinstance(value, timedelta):
        micros = value // timedelta(microseconds=1)
        return f"{micros} microseconds", "INTERVAL"
    if isinstance(value, UUID):
        return str(value), "UUID"
    if isinstance(value, (bytes, bytearray)):
        return "".join(f"\\x{byte:02X}" for byte in value), "BLOB"
    return "", ""


def _cast(text: str, kind: str) -> exp.Expr:
    return exp.cast(exp.Literal.string(text), kind, dialect="duckdb")


def bind_now(tree: exp.Query, instant: datetime) -> exp.Query:
    """One value of `now()` for the whole query, so that it can also narrow the scope."""
    for node in list(tree.find_all(exp.CurrentTimestamp, exp.Anonymous)):
        if isinstance(node, exp.CurrentTimestamp) or node.name.lower() in _NOW:
            node.replace(_cast(instant.isoformat(" "), "TIMESTAMPTZ"))
    return tree
