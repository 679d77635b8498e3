"""All clips together: accuracy in its columns, with intervals, beside bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.accuracy.statistics import paired

Row = Mapping[str, Any]


def summarised(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for each net, artefact and route."""
    # What learned nothing from the clip is compared on the units that the joint fit did not learn from.
    known = {(row["net"], row["clip"]): row["seen"] for row in rows if " joint " in row["artefact"]}
    rows = [{"seen": known.get((row["net"], row["clip"])), **row} for row in rows]
    source = {(row["net"], row["clip"]): row for row in rows if row["artefact"] == "source"}
    kinds = dict.fromkeys((row["net"], row["artefact"], row.get("route")) for row in rows)
    return [
        _summary(net, artefact, route, _of(rows, net, artefact, route), source)
        for net, artefact, route in sorted(kinds, key=str)
    ]


def _of(rows: Sequence[Row], net: str, artefact: str, route: str | None) -> list[Row]:
    return [r for r in rows if (r["net"], r["artefact"], r.get("route")) == (net, artefact, route)]


def _summary(
    net: str, artefact: str, route: str | None, rows: Sequence[Row], source: Mapping[Any, Row]
) -> dict[str, Any]:
    beside = [source[net, row["clip"]] for row in rows]
    summary: dict[str, Any] = {"net": net, "artefact": artefact, "route": route, "clips": len(rows)}
    for name in ("bpp", "bpp_with_task", "bpp_with_all", "psnr", "kl", "steadiness", "fit_seconds"):
        known = [row[name] for row in rows if row.get(name) is not None]
        summary[name] = float(np.mean(known)) if known else None
    for column, wanted in (("seen", True), ("unseen", False)):
        own = [_column(row, row["accuracy"], wanted) for row in rows]
        same = [_column(row, other["accuracy"], wanted) for row, other in zip(rows, beside, strict=True)]
        if not sum(map(len, own)):
            continue
        agreed = [value for row in rows for value in _column(row, row["agreement"], wanted)]
        summary[column] = {
            "units": sum(map(len, own)),
            "accuracy": float(np.mean([value for clip in own for value in clip])),
            "source_accuracy": float(np.mean([value for clip in same for value in clip])),
            "difference": asdict(paired(own, same)),
            "agreement": float(np.mean(agreed)),
        }
    return summary


def _column(row: Row, values: Sequence[float], wanted: bool) -> list[float]:
    """Values of units that training saw, or did not; none was seen where there was none."""
    seen = row.get("seen") or [False] * len(values)
    return [value for value, was in zip(values, seen, strict=True) if was == wanted]


def table(summary: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """For people."""
    columns = ("net", "artefact", "route", "bpp", "psnr", "unseen", "− source", "95 %", "agreement", "seen")
    return columns, [_line(row) for row in summary]


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    unseen, seen = row.get("unseen"), row.get("seen")
    away = unseen["difference"] if unseen else None
    return (
        row["net"],
        row["artefact"],
        row["route"] or "",
        "" if row["bpp"] is None else f"{row['bpp']:.4f}",
        "" if row["psnr"] is None else f"{row['psnr']:.2f}",
        "" if unseen is None else f"{unseen['accuracy']:.3f}",
        "" if away is None else f"{away['mean']:+.3f}",
        "" if away is None else f"{away['low']:+.3f} … {away['high']:+.3f}",
        "" if unseen is None else f"{unseen['agreement']:.3f}",
        "" if seen is None else f"{seen['accuracy']:.3f}",
    )
