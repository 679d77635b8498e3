"""How it is shown what a task in a fit costs the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.evidence.tables import Table, size

Found = Mapping[str, Any]


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
