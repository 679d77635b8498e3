"""How it is shown what a task in a fit costs the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evidence.tables import Table, number, size

Found = Mapping[str, Any]

MOST_DB = 0.5  # that a task in a fit may cost


def joint_losses(found: Found) -> Iterator[str]:
    """Where a task in a fit costs the picture more than was wanted."""
    alone = {row["clip"]: row for row in found["rows"] if not row["joint"]}
    for row in found["rows"]:
        cost = alone[row["clip"]]["psnr"] - row["psnr"]
        if row["joint"] and cost > MOST_DB:
            yield (
                f"{row['clip']}: fitted jointly with labels the picture has {cost:.2f} dB less than fitted "
                f"alone; {MOST_DB} was wanted."
            )


def joint_table(found: Found) -> list[Table]:
    """Fits for reconstruction alone and with a task, of the same size and steps."""
    rows = tuple(
        (
            row["clip"],
            f"joint, a third unseen from {row['fold']} on" if row["joint"] else "alone, adapters later",
            f"{row['psnr']:.2f}",
            size(row["network_bytes"]),
            f"{row['fidelity']:.3f}",
            _share([row], "unseen_confident"),
            number(row["fit_seconds"]),
        )
        for row in found["rows"]
    )
    head = ("clip", "fit", "PSNR", "network", "fidelity, unseen", "… confident", "seconds")
    folds: dict[str, list[Found]] = {}
    for row in found["rows"]:
        if row["joint"]:
            folds.setdefault(row["clip"], []).append(row)
    every = tuple(
        (clip, _share(of_clip, "unseen"), _share(of_clip, "unseen_confident"))
        for clip, of_clip in folds.items()
    )
    caption = "every frame by the joint fit that did not see it: agreement with the source's answer"
    return [
        Table(caption="", head=head, rows=rows),
        Table(caption=caption, head=("clip", "all frames", "confident frames"), rows=every),
    ]


def _share(rows: Sequence[Found], frames: str) -> str:
    """Over the unseen frames of several fits."""
    known = [row[frames] for row in rows if row.get(frames) and row[frames]["frames"]]
    count = sum(one["frames"] for one in known)
    return f"{sum(one['share'] * one['frames'] for one in known) / count:.3f} of {count}" if count else ""
