"""Rows as HTML for a notebook: everything escaped, few rows, images small."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import pyarrow as pa
from PIL import Image

MAX_ROWS = 20
MAX_CHARACTERS = 200  # of one cell
THUMBNAIL_SIDE = 160  # pixels, the longer side
_FORMATS = ("PNG", "JPEG", "WEBP")


def as_html(table: pa.Table, *, warnings: Sequence[str] = ()) -> str:
    """A table of the first rows; columns named `image` as thumbnails that say whose pixels they are."""
    head = table.slice(0, MAX_ROWS)
    names = head.schema.names
    columns = [column.to_pylist() for column in head.columns]
    routes = columns[names.index("route")] if "route" in names else [None] * head.num_rows
    lines = [f"<p>{escape(warning)}</p>" for warning in warnings]
    lines.append(
        "<table><thead><tr>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "</tr></thead>"
    )
    for row, route in zip(zip(*columns, strict=True), routes, strict=True):
        cells = [_cell(name, value, route) for name, value in zip(names, row, strict=True)]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    lines.append("</table>")
    shown = f"the first {MAX_ROWS} of " if table.num_rows > MAX_ROWS else ""
    lines.append(f"<p>{shown}{table.num_rows} rows</p>")
    return "\n".join(lines)


def _cell(name: str, value: Any, route: Any) -> str:
    if isinstance(value, bytes):
        picture = _thumbnail(value) if name.lower() == "image" else None
        if picture is None:
            return f"{len(value)} bytes"
        # Whoever sees a picture must be able to tell whether it is the original.
        title = "original" if route == "source" else "reconstructed"
        return f'<img src="data:image/jpeg;base64,{picture}" title="{title}" alt="{title}">'
    text = "" if value is None else str(value)
    return escape(text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…")


def _thumbnail(encoded: bytes) -> str | None:
    """A small JPEG in base64; None where `encoded` is no image that a `frames` table could hold."""
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            small = image.convert("RGB")
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return base64.b64encode(out.getvalue()).decode()
