"""How results about larger pictures are shown: methods beside bicubic, and what the parts are good for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from benchmarks.evidence.tables import Table, number

Found = Mapping[str, Any]

PLAIN, OURS, ALONE = "bicubic", "upscaler", "upscaler, no recurrence"
WANTED = 0.8  # of bicubic's perceptual distance


def upscale_tables(found: Found) -> list[Table]:
    """All methods over all scenes, then ours in each scene."""
    return [_methods(found), _scenes(found)]


def perceptual_losses(found: Found) -> Iterator[str]:
    """Where the perceptual distance is not what was wanted."""
    for factor, scenes in _by_scene(found).items():
        near = [rows[OURS]["perceptual"] / rows[PLAIN]["perceptual"] for rows in scenes.values()]
        worse = [share for share in near if share > WANTED]
        if worse:
            yield (
                f"×{factor}: the upscaler's perceptual distance is {fmean(near):.2f} of bicubic's, "
                f"and more than the {WANTED} that was wanted in {len(worse)} of {len(near)} scenes, at worst "
                f"{max(near):.2f}."
            )


def _by_scene(found: Found) -> dict[int, dict[str, dict[str, Found]]]:
    """Rows by factor, scene and method."""
    scenes: dict[int, dict[str, dict[str, Found]]] = {}
    for row in found["rows"]:
        scenes.setdefault(row["factor"], {}).setdefault(row["clip"], {})[row["method"]] = row
    return scenes


def _methods(found: Found) -> Table:
    rows = []
    for factor, scenes in _by_scene(found).items():
        for method in next(iter(scenes.values())):
            pairs = [(own[method], own[PLAIN]) for own in scenes.values()]
            near = [own["perceptual"] / plain["perceptual"] for own, plain in pairs]
            natural = [own["niqe"] for own, _ in pairs if own["niqe"] is not None]
            rows.append(
                (
                    f"×{factor}",
                    method,
                    f"{fmean(own['psnr'] - plain['psnr'] for own, plain in pairs):+.2f}",
                    f"{fmean(own['ssim'] for own, _ in pairs):.3f}",
                    f"{fmean(near):.3f} ({min(near):.2f} to {max(near):.2f})",
                    number(fmean(own["warp_error"] for own, _ in pairs)),
                    number(fmean(own["tof"] for own, _ in pairs)),
                    number(fmean(own["laplacian"] for own, _ in pairs)),
                    number(fmean(natural)) if natural else "–",
                )
            )
    head = ("", "method", "PSNR", "SSIM", "perceptual (scenes)", "E*warp", "tOF", "Laplacian", "NIQE")
    caption = "means over scenes; PSNR in dB above bicubic's, perceptual distance as a share of bicubic's"
    return Table(caption=caption, head=head, rows=tuple(rows))


def _scenes(found: Found) -> Table:
    rows = tuple(
        (
            f"×{factor}",
            scene,
            f"{own[PLAIN]['psnr']:.2f}",
            f"{own[OURS]['psnr'] - own[PLAIN]['psnr']:+.2f}",
            f"{own[OURS]['perceptual'] / own[PLAIN]['perceptual']:.3f}",
            f"{own[OURS]['warp_error'] / own[ALONE]['warp_error']:.2f}",
            f"{own[OURS]['laplacian'] / own[ALONE]['laplacian']:.2f}",
        )
        for factor, scenes in _by_scene(found).items()
        for scene, own in scenes.items()
    )
    head = (
        "",
        "scene, first frame",
        "bicubic, dB",
        "ours",
        "perceptual",
        "E*warp",
        "Laplacian",
    )
    caption = "ours in each scene: dB above bicubic; E*warp and Laplacian energy as shares of no recurrence"
    return Table(caption=caption, head=head, rows=rows)


def upscale_ablations_table(found: Found) -> list[Table]:
    plain = found["rows"]["bicubic"]["measured"]

    def row(name: str, made: Found) -> tuple[str, ...]:
        each = made["measured"]
        near = [a["perceptual"] / b["perceptual"] for a, b in zip(each, plain, strict=True)]
        means = {key: fmean(one[key] for one in each) for key in ("psnr", "warp_error", "laplacian")}
        return (
            name,
            f"{made['parameters'] / 1e6:.2f} M",
            f"{made['training_seconds']:.0f}",
            number(fmean(one["seconds_a_frame"] for one in each)),
            f"{means['psnr']:.2f}",
            f"{fmean(near):.3f}",
            number(means["warp_error"]),
            number(means["laplacian"]),
        )

    head = (
        "variant", "parameters", "training, s", "s a frame", "PSNR", "perceptual", "E*warp", "Laplacian",
    )  # fmt: skip
    caption = f"after {found['steps']} steps"
    return [Table(caption=caption, head=head, rows=tuple(row(*one) for one in found["rows"].items()))]
