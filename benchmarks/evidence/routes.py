"""How results about routes are shown: which pairs were looked at, and what tasks in a fit cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.evidence.tables import Table, percent, size

Found = Mapping[str, Any]

RANKINGS = ("score", "cka", "ridge", "cost", "random")
SHARE = 0.10


def routing_tables(found: Found) -> list[Table]:
    """What each ranking's first tenth holds, beside exhaustive search; then the losses by steps."""
    rows = []
    for row in found["rows"]:
        tenth = {each["ranking"]: each for each in row["rankings"] if each["share"] == SHARE}
        rows.append(
            (
                row["task"],
                row["video"],
                str(row["pairs"]),
                f"{row['best']:.3f}",
                *(f"{tenth[name]['fidelity']:.3f}" for name in RANKINGS),
                percent(tenth["score"]["time_share"]),
            )
        )
    head = ("task", "video", "pairs", "best of all", *RANKINGS, "time, score")
    best = Table(caption="fidelity of the best of each ranking's first tenth", head=head, rows=tuple(rows))
    return [best, _losses(found)]


def _losses(found: Found) -> Table:
    steps = [each["steps"] for each in found["rows"][0]["losses"]["mse"]]
    rows = tuple(
        (
            row["task"],
            row["video"],
            name,
            *(f"{each['held_out_loss']:.3f}" for each in row["losses"][name][: len(steps)]),
        )
        for row in found["rows"]
        for name in ("composite", "mse")
    )
    caption = "held-out error of the first pair's adapter, begun at random, after so many steps"
    return Table(caption=caption, head=("task", "video", "loss", *map(str, steps)), rows=rows)


def joint_table(found: Found) -> list[Table]:
    rows = tuple(
        (
            row["clip"],
            "joint" if row["joint"] else "reconstruction alone, adapters later",
            f"{row['psnr']:.2f}",
            size(row["network_bytes"]),
            f"{row['fidelity']:.3f}",
        )
        for row in found["rows"]
    )
    return [Table(caption="", head=("clip", "fit", "PSNR", "network", "fidelity, unseen"), rows=rows)]
