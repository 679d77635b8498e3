"""Where nvpstore loses, said from the figures: the first thing that a reader of the report sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.evidence.answers import accuracy_losses
from benchmarks.evidence.joint import joint_losses
from benchmarks.evidence.routing import routing_losses
from benchmarks.evidence.tables import number, percent, times
from benchmarks.evidence.upscaling import perceptual_losses

Found = Mapping[str, Any]


def losses(found: Mapping[str, Found]) -> list[tuple[str, str]]:
    """(what is lost, the result that says so), for results that are there."""
    return [
        (sentence, name) for name, tell in _TELLERS.items() if name in found for sentence in tell(found[name])
    ]


def _demo(found: Found) -> Iterator[str]:
    for name, video in found["videos"].items():
        facts, shares = video["facts"], video["agreements"]
        yield (
            f"{name}: the network takes {times(facts['stored_bytes'] / facts['source_bytes'])} the bytes of "
            f"the H.264 file that it was fitted to, and shows {facts['psnr']:.1f} dB of it."
        )
        if facts["state"] == "below_target":
            yield f"{name}: the fit ended below its preset's PSNR target."
        pixel, held = (shares[route]["unseen_confident"]["share"] for route in ("pixel", "held"))
        if pixel <= held:
            yield (
                f"{name}: the whole classifier on decoded pictures agrees on {percent(pixel)} of unseen "
                f"confident frames, no more than holding the last answer ({percent(held)}): pictures from "
                "the network are for people."
            )


def _latency(found: Found) -> Iterator[str]:
    for one in found["best"]:
        ms = one["ms_a_frame"]
        if ms["pyav"] < 2 * ms["adapter_cold"]:
            yield (
                f"{one['video']}, {one['sampling']}: a cold adapter route takes {number(ms['adapter_cold'])} "
                f"ms a frame, decoding and the whole backbone {number(ms['pyav'])}: fetching and "
                "dequantising weights for few frames eats most of the gain."
            )
    worst = min(video["answers_equal"] for video in found["videos"])
    yield f"Adapter routes give the backbone's own answer on as few as {percent(worst)} of a clip's frames."


def _economics(found: Found) -> Iterator[str]:
    paid = found["break_even"]
    yield (
        f"A fit pays against decoding each time after {number(paid['decoding_each_time'])} passes over every "
        "frame, at this CPU's speed and the assumed prices."
    )
    if paid["answers_of_later_tasks"] is None:
        yield "Tasks that come after the fit never pay: learning adapters costs more than a pass saves."
    if paid["cached_features"] is None:
        yield "Against features kept at the cut fitting never pays, where one backbone is all that is asked."


def _batch(found: Found) -> Iterator[str]:
    if "workers" not in found:
        yield "Whether two workers are 1.5 times as fast as one was not measured: it takes a free machine."
    if "workers" in found and found["workers"]["sooner"]["median"] < 1.5:
        yield (
            f"Two workers are only {found['workers']['sooner']['median']:.2f} times as fast as one on "
            f"{found['workers']['frames']} frames: starting them and the last query are one process's."
        )
    if "planning" in found:
        slowest = max(one["seconds"] for one in found["planning"]["statements"].values())
        if slowest > 10:
            load = number(found["planning"]["load_average"])
            yield f"A dry run over a million segments took {number(slowest)} s, at a load of {load}."


def _container(found: Found) -> Iterator[str]:
    worst = max(found["drawn"], key=lambda one: one["overhead"])
    yield f"A {worst['segment']} segment alone in its file carries {percent(worst['overhead'])} more bytes."


def _load(found: Found) -> Iterator[str]:
    rounds = [value for value in found.values() if isinstance(value, Mapping) and "p99_seconds" in value]
    kept = min(rounds, key=lambda one: float(one["p50_seconds"]))
    yield (
        f"With {found['clients']} clients at once on two cores, half of the answers take longer than "
        f"{number(kept['p50_seconds'])} s at best, one in a hundred longer than "
        f"{number(kept['p99_seconds'])} s."
    )


def _memory(found: Found) -> Iterator[str]:
    if found["stages"]["sooner_than_in_turn"] < 1.5:
        yield (
            "Four tasks at four stages at once are hardly sooner than in turn "
            f"({times(found['stages']['sooner_than_in_turn'])}): cheap decodes gain little from sharing."
        )


def _rate(found: Found) -> Iterator[str]:
    ours = [p for p in found["points"] if p["codec"].startswith("ours")]
    theirs = [p for p in found["points"] if p["codec"] == "x264 medium"]
    best = max(ours, key=lambda p: float(p["psnr"]))
    enough = [p for p in theirs if p["psnr"] >= best["psnr"]]
    if enough:
        less = min(enough, key=lambda p: float(p["bpp"]))
        yield (
            f"{found['shape_tchw'][0]} frames at {found['shape_tchw'][2]}×{found['shape_tchw'][3]}: the best "
            f"network of {found['epochs']} epochs has {best['psnr']:.1f} dB at {number(best['bpp'])} bits a "
            f"pixel, x264 {less['psnr']:.1f} dB at {number(less['bpp'])}."
        )


def _stability(found: Found) -> Iterator[str]:
    rows = [row for row in found["rows"] if row["task"] == "denoising" and row["corruption"] == "jpeg"]
    alone = next((row for row in rows if row["variant"] == "base"), None)
    if alone:
        spatial = [row for row in rows if row["variant"] == "spatial" and row["psnr"] >= alone["psnr"]]
        best = min(spatial, key=lambda row: float(row["instability"]), default=alone)
        if best["instability"] > 0.5 * alone["instability"]:
            yield (
                f"JPEG on a denoiser: the spatial stabilizer keeps {number(best['instability'])} of the "
                f"instability of {number(alone['instability'])}; half was wanted, the truth's own is "
                f"{number(sum(found['truth'].values()) / len(found['truth']))}."
            )
    for name in ("tails", "tails_milder"):
        if name in found:
            flips = {side: found[name][side]["flips"] for side in ("plain", "stabilized", "averaged")}
            if flips["stabilized"] > 0.5 * flips["plain"] or flips["stabilized"] > flips["averaged"]:
                yield (
                    f"Labels of videos that were corrupted (at {found[name].get('strength', 1.0):g} of the "
                    f"paper's strength) flip {flips['plain']} times, stabilized {flips['stabilized']}, by a "
                    f"tuned average of the logits {flips['averaged']}."
                )


_TELLERS: Mapping[str, Callable[[Found], Iterator[str]]] = {
    "demo": _demo,
    "economics": _economics,
    "latency": _latency,
    "sharing": _memory,
    "batch": _batch,
    "container": _container,
    "soak-load": _load,
    "accuracy": accuracy_losses,
    "joint": joint_losses,
    "routing": routing_losses,
    "rate_distortion": _rate,
    "upscale": perceptual_losses,
    "stability": _stability,
}
NOWHERE = (
    "Nothing here was measured on a GPU: benchmarks/GPU.md lists what waits.",
    "None of the papers' data sets (ImageNet, COCO, Kinetics, UVG) is at hand: their tables stand here for "
    "other footage and models, or not at all.",
)
