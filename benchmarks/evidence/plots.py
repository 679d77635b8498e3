"""Plots as inline SVG, for paper: thin lines, names at the marks, no colour that carries meaning alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.economics.model import Prices, calibrated

Found = Mapping[str, Any]

INK, SOFT, RULE, OURS = "#1c1b19", "#66625c", "#dedad3", "#b3401f"
OTHERS = ("#3d5a80", "#7a8450", "#8d6a9f", "#a39b8b")
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "svg.hashsalt": "nvpstore",
}
SIDES = {
    "adapter": "adapter, warm",
    "adapter_cold": "adapter, cold",
    "proxy": "proxy + whole",
    "pyav": "PyAV + whole",
}


def latency(found: Found) -> str:
    """Milliseconds a frame of each side, a group for each clip and sampling."""
    groups = found["best"]
    figure, axes = _axes(6.6, 0.55 * len(groups) * len(SIDES) / 2 + 0.6)
    labels, places = [], []
    for number, one in enumerate(groups):
        for i, (side, name) in enumerate(SIDES.items()):
            at = -(number * (len(SIDES) + 1) + i)
            ms = one["ms_a_frame"][side]
            axes.barh(at, ms, height=0.72, color=OURS if side.startswith("adapter") else OTHERS[0])
            axes.text(ms * 1.05, at, f"{ms:.2g}", va="center", fontsize=7.5)
            labels.append(name)
            places.append(at)
        what = "all frames" if one["sampling"] == "all" else one["sampling"]
        middle = -(number * (len(SIDES) + 1) + 1.5)
        axes.text(32, middle, f"{one['video'].removesuffix('.mp4')}\n{what}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(0.01, 30)
    axes.set_yticks(places, labels, fontsize=7.5)
    axes.set_xlabel("milliseconds a frame, logarithmic: shorter is better")
    return _svg(figure, "milliseconds a frame of each side")


def models(found: Found) -> str:
    """Operations of each backbone, whole behind a decode and from a cut."""
    shown = [m for m in found["models"] if "saved" in m["codecs"]["demo"]]
    figure, axes = _axes(6.6, 0.28 * len(shown) + 0.7)
    for at, model in enumerate(reversed(shown)):
        codec = model["codecs"]["demo"]
        whole, ours = codec["full_decode_and_backbone_gflops"], codec["partial_and_tail_gflops"]
        axes.plot([ours, whole], [at, at], color=RULE, linewidth=2, zorder=1)
        axes.scatter([whole], [at], color=OTHERS[0], marker="s", s=22, zorder=2)
        axes.scatter([ours], [at], color=OURS, s=26, zorder=2)
        axes.text(whole * 1.15, at, f"−{100 * codec['saved']:.0f} %", va="center", fontsize=7.5, color=SOFT)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [m["task"] for m in reversed(shown)], fontsize=8)
    axes.set_xlabel("GFLOPs a picture or clip: ● from a cut  ■ decode and whole")
    return _svg(figure, "operations from a cut and whole")


def query(found: Found) -> str:
    """Seconds of a query's computation against the frames it touches, with the line."""
    sizes, line = found["linear"]["sizes"], found["linear"]["line"]
    frames = np.array([s["frames"] for s in sizes])
    return _line(
        frames,
        np.array([s["seconds"]["median"] for s in sizes]),
        fixed=line["fixed_seconds"],
        slope=line["seconds_a_frame"],
    )


def batch(found: Found) -> str:
    """A batch's seconds against its frames, with the line."""
    if "linear" not in found:
        return ""
    line = found["linear"]
    return _line(
        np.array(line["frames"]),
        np.array(line["seconds"]),
        fixed=line["fixed_seconds"],
        slope=line["seconds_a_frame"],
    )


def rate(found: Found) -> str:
    """PSNR against bits a pixel, a line a codec; ours in both ways of rounding."""
    figure, axes = _axes(6.6, 3.6)
    for i, name in enumerate(dict.fromkeys(point["codec"] for point in found["points"])):
        curve = sorted((p["bpp"], p["psnr"]) for p in found["points"] if p["codec"] == name)
        ours = name.startswith("ours")
        axes.plot(
            *zip(*curve, strict=True),
            "--" if ours and name != "ours 8 bit" else "-",
            color=OURS if ours else OTHERS[i % len(OTHERS)],
            linewidth=1.3 if ours else 0.8,
            marker="os^v<>Dp"[i % 8],
            markersize=3.5,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xlabel("bits a pixel, logarithmic, all bytes counted")
    axes.set_ylabel("PSNR of all frames, dB")
    axes.grid(True)
    figure.legend(loc="outside right center", frameon=False, fontsize=7.5)
    return _svg(figure, "PSNR against bits a pixel")


def _line(frames: Any, seconds: Any, *, fixed: float, slope: float) -> str:
    figure, axes = _axes(4.6, 2.6)
    across = np.linspace(0, frames.max() * 1.03, 50)
    axes.plot(across, fixed + slope * across, color=RULE, linewidth=1.5)
    axes.scatter(frames, seconds, color=OURS, s=22, zorder=2)
    axes.set_xlabel("frames")
    axes.set_ylabel("seconds")
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.grid(True)
    return _svg(figure, "seconds against frames")


def planning(found: Found) -> str:
    """Seconds of a plan against an index's segments, a line a query."""
    figure, axes = _axes(5.8, 3.1)
    names = list(found["sizes"][0]["queries"])
    for i, name in enumerate(names):
        points = [
            (s["segments"], s["queries"][name]["seconds"]) for s in found["sizes"] if name in s["queries"]
        ]
        segments, seconds = zip(*points, strict=True)
        colour = (OURS, *OTHERS)[i % 5]
        axes.plot(
            segments, seconds, color=colour, marker="os^Dvxd"[i % 7], markersize=4, linewidth=1, label=name
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("segments of the index")
    axes.set_ylabel("seconds of planning")
    axes.grid(True)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _svg(figure, "seconds of planning against segments")


def economics(measured: Found) -> str:
    """Dollars a million frames against passes, for each way to answer."""
    frame, prices = calibrated(measured), Prices()
    passes = np.logspace(0, 4, 80)
    # A pass's requests as the core-seconds that they would buy.
    gets = 2 / frame.frames_a_segment * prices.thousand_gets / 1000 / prices.core_hour * 3600

    def dollars(core_seconds: Any, size_bytes: float) -> Any:
        stored = size_bytes / 1e9 * prices.gigabyte_month * prices.months
        return 1e6 * (np.asarray(core_seconds) / 3600 * prices.core_hour + stored)

    ways = {
        "networks, adapters": (frame.fit + passes * (frame.adapter + gets), frame.video_bytes, OURS, "-"),
        "H.264, decoded each time": (passes * frame.decode_whole, frame.source_bytes, OTHERS[0], "--"),
        "features kept": (
            frame.decode_whole + passes * frame.tail,
            frame.feature_bytes,
            OTHERS[1],
            "-.",
        ),
        "answers kept, same task": (
            frame.decode_whole + 0 * passes,
            frame.source_bytes + frame.answer_bytes,
            OTHERS[2],
            ":",
        ),
    }
    figure, axes = _axes(5.8, 3.1)
    for name, (work, size_bytes, colour, style) in ways.items():
        axes.plot(passes, dollars(work, size_bytes), color=colour, linestyle=style, linewidth=1.4, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("passes over every frame")
    axes.set_ylabel(f"$ a million frames, {prices.months} months")
    axes.grid(True)
    axes.legend(fontsize=7.5, frameon=False)
    return _svg(figure, "dollars against passes")


def demo(found: Found) -> str:
    """Agreement on unseen confident frames beside the dumb predictors."""
    names = {"default": "adapter", "held": "last held", "constant": "constant", "pixel": "pixel"}
    figure, axes = _axes(5.2, 1.9)
    for number, (clip, video) in enumerate(found["videos"].items()):
        for i, name in enumerate(names):
            share = 100 * (video["agreements"][name]["unseen_confident"]["share"] or 0)
            at = number * (len(names) + 1) + i
            axes.bar(at, share, width=0.8, color=OURS if name == "default" else OTHERS[3])
            axes.text(at, share + 2, f"{share:.0f}", ha="center", fontsize=7.5)
            axes.text(at, -4, names[name], ha="center", va="top", fontsize=6.8, color=SOFT)
        axes.text(number * (len(names) + 1) + 1.5, 116, clip, ha="center", fontsize=9)
    axes.set_ylim(0, 112)
    axes.set_xticks([])
    axes.set_ylabel("agreement, %")
    return _svg(figure, "agreement beside constant and held answers")


PLOTS: Mapping[str, Callable[[Found], str]] = {
    "batch": batch,
    "demo": demo,
    "latency": latency,
    "models": models,
    "planning": planning,
    "query": query,
    "rate_distortion": rate,
}


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with plt.rc_context(STYLE):
        return plt.subplots(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page, with a name for those who do not see it."""
    text = io.StringIO()
    with plt.rc_context(STYLE):
        # No date: equal figures are equal bytes.
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    return f'<figure class="plot">{svg}</figure>'
