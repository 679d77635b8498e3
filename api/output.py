"""What commands show. Commands hand over values; only this module writes to stdout.

Two forms of the same values: `TextOutput` for people, `JsonOutput` for programs, which writes
exactly one document.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any, TextIO
from uuid import UUID

import numpy as np


class Output(ABC):
    """Where a command's values go."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    @abstractmethod
    def rows(self, values: Iterable[object], *, columns: Sequence[str]) -> None:
        """A list of values. People see only `columns`; programs see every field."""

    @abstractmethod
    def record(self, value: object) -> None:
        """One value with all its fields."""

    @abstractmethod
    def done(self, value: object, *, text: str) -> None:
        """What a command did: `text` for people, `value` for programs."""

    @abstractmethod
    def text(self, text: str) -> None:
        """Words that are the result itself, such as a query plan."""

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")


class TextOutput(Output):
    def rows(self, values: Iterable[object], *, columns: Sequence[str]) -> None:
        table = [[cell(fields_of(value).get(name)) for name in columns] for value in values]
        for line in aligned(columns, table):
            self._write(line)

    def record(self, value: object) -> None:
        for line in _indented(fields_of(value), depth=0):
            self._write(line)

    def done(self, value: object, *, text: str) -> None:
        self._write(text)

    def text(self, text: str) -> None:
        self._write(text)


class JsonOutput(Output):
    def rows(self, values: Iterable[object], *, columns: Sequence[str]) -> None:
        self._document([plain(value) for value in values])

    def record(self, value: object) -> None:
        self._document(plain(value))

    def done(self, value: object, *, text: str) -> None:
        self._document(plain(value))

    def text(self, text: str) -> None:
        self._document({"text": text})

    def _document(self, value: object) -> None:
        self._write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


# ---------------------------------------------------------------- values


def fields_of(value: object) -> dict[str, Any]:
    """The named fields of a dataclass or mapping, in order. Fields that start with `_` are private."""
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
        return {name: getattr(value, name) for name in names}
    raise TypeError(f"{type(value).__name__} has no named fields")


def plain(value: object) -> Any:
    """The value as JSON has it: floats read back exactly, bytes as base64, NaN and infinities as null."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if isinstance(value, Decimal | Fraction):
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode("ascii")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
        return {name: plain(item) for name, item in fields_of(value).items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, UUID | PurePath) else _unknown(value)


def _unknown(value: object) -> Any:
    raise TypeError(f"no JSON form for a {type(value).__name__}")


def cell(value: object) -> str:
    """One table cell for people: short floats, the size of blobs instead of their bytes, one line."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating | Decimal | Fraction):
        return f"{float(value):.6g}"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {cell(v)}" for k, v in value.items()) + "}"
    if dataclasses.is_dataclass(value):
        return cell(fields_of(value))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ", ".join(cell(item) for item in value) + "]"
    return str(value).replace("\n", " ")


def aligned(columns: Sequence[str], table: Sequence[Sequence[str]]) -> Iterable[str]:
    """Lines of a table: a heading, a rule, the rows."""
    widths = [max([len(name), *(len(row[i]) for row in table)]) for i, name in enumerate(columns)]
    yield _line(columns, widths)
    yield _line(["-" * width for width in widths], widths)
    for row in table:
        yield _line(row, widths)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)).rstrip()


def _indented(fields: Mapping[str, object], *, depth: int) -> Iterable[str]:
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        pad = "  " * depth + name.ljust(width)
        if _is_list_of_records(value):
            yield f"{pad}:".rstrip()
            yield from _nested_table(value, depth=depth + 1)
        else:
            yield f"{pad}  {cell(value)}".rstrip()


def _is_list_of_records(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(item, Mapping) or dataclasses.is_dataclass(item) for item in value)
    )


def _nested_table(values: Any, *, depth: int) -> Iterable[str]:
    columns = list(fields_of(values[0]))
    table = [[cell(fields_of(value).get(name)) for name in columns] for value in values]
    for line in aligned(columns, table):
        yield "  " * depth + line
