"""Tables of the report: those that are drawn up by hand, and one for any JSON that has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

MOST_ROWS = 40
MOST_COLUMNS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`rows` of text under `head`; both are shown as they are, not as HTML."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def html(self) -> str:
        numbers = [
            all(_is_number(row[i]) for row in self.rows) and bool(self.rows) for i in range(len(self.head))
        ]
        classes = [' class="n"' if number else "" for number in numbers]
        head = "".join(f"<th{c}>{escape(t)}</th>" for c, t in zip(classes, self.head, strict=True))
        body = "".join(
            "<tr>" + "".join(f"<td{c}>{escape(t)}</td>" for c, t in zip(classes, row, strict=True)) + "</tr>"
            for row in self.rows
        )
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure class="table">{caption}<table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></figure>"
        )


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that count; thousands apart."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} PB"


def times(factor: float) -> str:
    return f"{factor:.1f}×" if factor < 100 else f"{factor:.0f}×"


# ---------------------------------------------------------------- any JSON


def generic(found: Mapping[str, Any]) -> list[Table]:
    """Scalars as one table, each list of records as another: nothing of a result stays unseen."""
    shown = {name: value for name, value in found.items() if name not in ("machine", "question", "command")}
    scalars = [(name, text(value)) for name, value in _scalars(shown)]
    tables = [Table(caption="", head=("figure", "value"), rows=tuple(scalars[:MOST_ROWS]))] if scalars else []
    return [*tables, *_records(shown)]


def text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return number(value, 4)
    return "–" if value is None else str(value)


def _scalars(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        shown = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{shown}, ")
        elif isinstance(value, list):
            if value and len(value) <= 8 and all(isinstance(v, str | int | float) for v in value):
                yield shown, ", ".join(text(v) for v in value)
        else:
            yield shown, value


def _records(found: Mapping[str, Any], prefix: str = "") -> Iterator[Table]:
    for name, value in found.items():
        shown = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _records(value, f"{shown}, ")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            yield _listed(shown, value)


def _listed(caption: str, records: Sequence[Mapping[str, Any]]) -> Table:
    flat = [dict(_scalars(record)) for record in records]
    names = list(dict.fromkeys(name for record in flat for name in record))[:MOST_COLUMNS]
    rows = tuple(tuple(text(record.get(name)) for name in names) for record in flat[:MOST_ROWS])
    left = len(flat) - len(rows)
    return Table(
        caption=caption + (f" (the first {MOST_ROWS}; {left} more in the JSON)" if left else ""),
        head=tuple(names),
        rows=rows,
    )


def _is_number(shown: str) -> bool:
    first = shown.split(" ")[0].rstrip("×%").replace("\u202f", "")
    try:
        float(first)
    except ValueError:
        return shown == "–"
    return True
