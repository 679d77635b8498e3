"""Whether two answers are the same: keys, labels and counts exactly, floats within 1e-4."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

TOLERANCE = 1e-4
Rows = Sequence[tuple[Any, ...]]


def assert_same(found: Rows, expected: Rows, *, ordered: bool) -> None:
    """Equal rows, in the same order where `ordered`."""
    assert len(found) == len(expected), f"{len(found)} rows, expected {len(expected)}"
    pairs = zip(found, expected, strict=True)
    if not ordered:
        pairs = zip(sorted(found, key=_key), sorted(expected, key=_key), strict=True)
    for mine, theirs in pairs:
        assert _close(mine, theirs), f"{mine} is not {theirs}"


def assert_some(found: Rows, full: Rows, *, count: int | None) -> None:
    """`count` rows (None: any number) of the full answer, none of them more often than there."""
    assert count is None or len(found) == count, f"{len(found)} rows, expected {count}"
    surplus = Counter(map(_key, found)) - Counter(map(_key, full))
    assert not surplus, f"rows that the full answer lacks: {list(surplus)[:3]}"


def _key(row: tuple[Any, ...]) -> str:
    return repr(_rounded(row))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _close(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float):
        both_nan = math.isnan(mine) and math.isnan(theirs)
        return both_nan or math.isclose(mine, theirs, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(mine) == len(theirs) and all(map(_close, mine, theirs))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(_close(mine[key], theirs[key]) for key in mine)
    return type(mine) is type(theirs) and bool(mine == theirs)
