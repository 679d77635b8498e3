"""How results about answers are shown: accuracy on the labelled world, and rankings of routes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.evidence.tables import Table, number, percent

Found = Mapping[str, Any]

COLUMNS = {"joint": "ii", "adapter only": "ii", "task unknown": "iii"}
TEN = 0.10  # share of pairs that ingest tries


def nets_table(found: Found) -> list[Table]:
    """The nets that the labelled world is asked by."""
    rows = tuple(
        (
            net["net"],
            net["model"],
            f"{net['parameters'] / 1e6:.2f} M",
            f"{net['steps']} × {net['batch']}",
            number(net["seconds"] / 60),
            f"{net['test_score']:.3f}",
        )
        for net in found["nets"]
    )
    head = ("net", "family", "parameters", "steps × batch", "minutes", "on source frames, unseen clips")
    return [Table(caption="", head=head, rows=rows)]


def accuracy_tables(found: Found) -> list[Table]:
    """A table a net: each artefact with its bytes, and how far from source frames it is."""
    nets = dict.fromkeys(row["net"] for row in found["summary"])
    return [_of_net(net, [row for row in found["summary"] if row["net"] == net]) for net in nets]


def accuracy_losses(found: Found) -> Iterator[str]:
    """Where answers from the store are further from source frames than x264's at the same bytes."""
    nets = dict.fromkeys(row["net"] for row in found["summary"])
    for net in nets:
        rows = [row for row in found["summary"] if row["net"] == net and "unseen" in row]
        ours = [row for row in rows if row["route"] == "adapter" and " joint " in row["artefact"]]
        theirs = [row for row in rows if row["artefact"].startswith("x264") and "half" not in row["artefact"]]
        for own, other in zip(ours, theirs, strict=False):
            lost, theirs_lost = (-row["unseen"]["difference"]["mean"] for row in (own, other))
            if lost > theirs_lost:
                yield (
                    f"{net}: on frames that its terms did not see {own['artefact']} is {100 * lost:.1f} "
                    f"points less right than source frames ({own['unseen']['source_accuracy']:.3f}), "
                    f"{other['artefact']} {100 * theirs_lost:.1f}."
                )


def _of_net(net: str, rows: list[Found]) -> Table:
    source = next(row for row in rows if row["artefact"] == "source")["unseen"]["accuracy"]
    shown = tuple(_artefact(row) for row in rows if row["artefact"] != "source")
    head = ("artefact", "route", "bpp", "and task", "PSNR", "accuracy", "− source", "95 %", "agreement", "KL")
    return Table(caption=f"{net}: {source:.3f} on source frames", head=head, rows=shown)


def _artefact(row: Found) -> tuple[str, ...]:
    unseen = row.get("unseen")
    away = unseen["difference"] if unseen else None
    column = next((column for name, column in COLUMNS.items() if name in row["artefact"]), "")
    return (
        row["artefact"] + (f" ({column})" if column else ""),
        row["route"] or "",
        number(row["bpp"]),
        number(row["bpp_with_task"]),
        "–" if row["psnr"] is None else f"{row['psnr']:.2f}",
        "–" if unseen is None else f"{unseen['accuracy']:.3f}",
        "–" if away is None else f"{away['mean']:+.3f}",
        "–" if away is None else f"{away['low']:+.3f} … {away['high']:+.3f}",
        "–" if unseen is None else f"{unseen['agreement']:.3f}",
        number(row["kl"]),
    )


# ---------------------------------------------------------------- routes


def routing_tables(found: Found) -> list[Table]:
    """What each ranking finds among its first tenth, and the two feature losses by steps."""
    rankings = tuple(
        (
            f"{row['task']}, {row['video']}",
            str(row["pairs"]),
            f"{row['best']:.3f}",
            *(f"{_ten(row, name)['fidelity']:.3f}" for name in ("score", "cka", "ridge", "cost", "random")),
            percent(_ten(row, "score")["time_share"]),
        )
        for row in found["rows"]
    )
    head = (
        "task, video", "pairs", "exhaustive", "CKA × saving", "CKA", "ridge", "cost", "at random", "time",
    )  # fmt: skip
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
        Table(caption="fidelity of the best among the first 10 % of pairs", head=head, rows=rankings),
        Table(
            caption="held-out loss / agreement of the first pair's adapter, from scratch",
            head=("task, video", "feature loss", *counts),
            rows=steps,
        ),
    ]


def _ten(row: Found, name: str) -> Found:
    ranked: Found
    (ranked,) = (r for r in row["rankings"] if r["ranking"] == name and r["share"] == TEN)
    return ranked
