"""How it is shown what a task in a fit costs the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
            "joint" if row["joint"] else "reconstruction alone, adapters later",
            f"{row['psnr']:.2f}",
            size(row["network_bytes"]),
            f"{row['fidelity']:.3f}",
            number(row["fit_seconds"]),
        )
        for row in found["rows"]
    )
    head = ("clip", "fit", "PSNR", "network", "fidelity, unseen", "seconds")
    return [Table(caption="", head=head, rows=rows)]
