"""How it is shown how right answers are on the labelled world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.evidence.tables import Table, number

Found = Mapping[str, Any]

COLUMNS = {"joint": "ii", "adapter only": "ii", "task unknown": "iii"}
CODECS = ("x264", "x265", "av1")


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
            f"{net['constant_score']:.3f}",
        )
        for net in found["nets"]
    )
    head = ("net", "family", "parameters", "steps × batch", "minutes", "unseen clips", "one answer always")
    return [Table(caption="", head=head, rows=rows)]


def accuracy_tables(found: Found) -> list[Table]:
    """A table a net: each artefact with its bytes, and how far from source frames it is."""
    nets = dict.fromkeys(row["net"] for row in found["summary"])
    return [_of_net(net, [row for row in found["summary"] if row["net"] == net]) for net in nets]


def accuracy_losses(found: Found) -> Iterator[str]:
    """Where answers from the store are further from source frames than the best codec's of fewer bytes."""
    for row in found["summary"]:
        if row["route"] != "adapter" or "unseen" not in row:
            continue
        others = [other for other in found["summary"] if _is_rival(other, row)]
        if not others:
            continue
        best = max(others, key=_away)
        if _away(row) < _away(best):
            yield (
                f"{row['net']}, {row['artefact']}: {100 * _away(row):+.1f} points against source frames, on "
                f"those that no training saw, {best['artefact']} {100 * _away(best):+.1f}; the adapters' "
                f"bytes ({number(row['bpp_with_task'] - row['bpp'])} bpp) come on top of ours."
            )


def _away(row: Found) -> float:
    """How much more right than source frames, on average."""
    return float(row["unseen"]["difference"]["mean"])


def _is_rival(other: Found, row: Found) -> bool:
    """Whether it is a codec's row for the same net, of at most as many bytes as ours with its task."""
    codec = other["artefact"].split()[0] in CODECS and other["net"] == row["net"] and "unseen" in other
    return codec and other["bpp"] <= row["bpp_with_task"]


def _of_net(net: str, rows: list[Found]) -> Table:
    source = next(row for row in rows if row["artefact"] == "source")["unseen"]["accuracy"]
    shown = tuple(_artefact(row) for row in rows if row["artefact"] != "source")
    head = (
        "artefact", "route", "bpp", "and task", "PSNR", "units", "accuracy", "− source", "95 %", "agreement",
    )  # fmt: skip
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
        "–" if unseen is None else str(unseen["units"]),
        "–" if unseen is None else f"{unseen['accuracy']:.3f}",
        "–" if away is None else f"{away['mean']:+.3f}",
        "–" if away is None else f"{away['low']:+.3f} … {away['high']:+.3f}",
        "–" if unseen is None else f"{unseen['agreement']:.3f}",
    )
