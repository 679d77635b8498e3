"""How it is shown what choosing stage × cut pairs by rank and by answers is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.evidence.tables import Table, percent

Found = Mapping[str, Any]

MOST_MISSING = 0.02  # fidelity that pairs which ingest takes may lack
TEN = 0.10  # share of pairs that rankings are shown at
RANKINGS = {"score": "CKA × saving", "cka": "CKA", "ridge": "ridge R²", "cost": "cost", "random": "at random"}


def routing_losses(found: Found) -> Iterator[str]:
    """Where the best pair of exhaustive search is better than those that ingest takes."""
    for row in found["rows"]:
        own = row["decided"]
        if own["missing"] > MOST_MISSING:
            yield (
                f"{row['task']} on {row['video']}: fidelity {own['fidelity']:.3f} behind the best of the "
                f"{own['pairs']} pairs that ingest takes, {row['best']:.3f} behind the best of all "
                f"{row['pairs']}, on {row['judged']} frames."
            )


def routing_tables(found: Found) -> list[Table]:
    """What exhaustive search finds, and what ingest and each ranking's first tenth; two losses by steps."""
    taken = tuple(
        (
            f"{row['task']}, {row['video']}",
            str(row["judged"]),
            str(row["pairs"]),
            f"{row['best']:.3f}",
            f"{row['decided']['fidelity']:.3f} of {row['decided']['pairs']}",
            percent(row["decided"]["time_share"]),
            f"{_first(row):.3f}",
        )
        for row in found["rows"]
    )
    head = ("task, video", "frames", "pairs", "exhaustive", "ingest", "time", "as many by rank")
    ranked = tuple(
        (
            f"{row['task']}, {row['video']}",
            *(f"{_ten(row, name)['fidelity']:.3f}" for name in RANKINGS),
        )
        for row in found["rows"]
    )
    steps = tuple(
        (
            f"{row['task']}, {row['video']}",
            name,
            *(f"{point['held_out_loss']:.3g} / {point['agreement']:.2f}" for point in points),
        )
        for row in found["rows"]
        for name, points in row["losses"].items()
    )
    counts = (f"{point['steps']} steps" for point in found["rows"][0]["losses"]["mse"])
    return [
        Table(caption="the best fidelity, and the time of exhaustive search", head=head, rows=taken),
        Table(
            caption="the best fidelity among a ranking's first 10 % of pairs",
            head=("task, video", *RANKINGS.values()),
            rows=ranked,
        ),
        Table(
            caption="loss on unseen frames / agreement, of the first pair's adapter from scratch",
            head=("task, video", "feature loss", *counts),
            rows=steps,
        ),
    ]


def _first(row: Found) -> float:
    """The best of as many pairs as ingest takes, by rank alone (`tried` is in that order)."""
    return max(pair["fidelity"] for pair in row["tried"][: row["decided"]["pairs"]])


def _ten(row: Found, name: str) -> Found:
    ranked: Found
    (ranked,) = (r for r in row["rankings"] if r["ranking"] == name and r["share"] == TEN)
    return ranked
