"""The model: what one frame was measured to cost, times frames, times prices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
INPUTS = ("batch", "demo", "latency", "models", "planning")
HOURS = (100, 10_000, 1_000_000)
FPS = 25
CLIP = "bikes.mp4"  # real footage; the collage was made to be asked about


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars, as big clouds list them; stated, not measured. `gpu_hour`: one large accelerator."""

    core_hour: float = 0.04
    gpu_hour: float = 2.50
    gigabyte_month: float = 0.023
    thousand_puts: float = 0.005
    thousand_gets: float = 0.0004
    months: int = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What one frame costs, of 640×272 footage on the measuring CPU: core-seconds and bytes.

    `decode_whole` is PyAV and the whole backbone, `adapter` a cold adapter route, `tail` the same with its
    weights in memory, which no cached feature can beat by more than its decode.
    """

    fit: float
    decode_whole: float
    adapter: float
    tail: float
    later_task: float
    video_bytes: float
    source_bytes: float
    answer_bytes: float
    feature_bytes: float
    frames_a_segment: float
    index_bytes_a_segment: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What nobody measured here. GPU seconds of fitting a second of video: published ones (30 and 12 minutes
    of one GPU for 10 s of 1080p, and a minute, which the same publication's successors report)."""

    gpu_seconds_a_second: tuple[float, ...] = (180.0, 72.0, 6.0)


def calibrated(measured: Mapping[str, Any]) -> Frame:
    """A frame's costs, from the committed results."""
    demo, threads = measured["demo"], measured["latency"]["machine"]["torch_threads"]
    facts = demo["videos"]["bikes"]["facts"]
    (best,) = [b for b in measured["latency"]["best"] if (b["video"], b["sampling"]) == (CLIP, "all")]
    kept = measured["batch"]["kept"]
    size = measured["planning"]["sizes"][0]
    milliseconds = best["ms_a_frame"]
    return Frame(
        fit=demo["seconds"]["ingest bikes"] * demo["machine"]["torch_threads"] / facts["frames"],
        decode_whole=milliseconds["pyav"] / 1000 * threads,
        adapter=milliseconds["adapter_cold"] / 1000 * threads,
        tail=milliseconds["adapter"] / 1000 * threads,
        later_task=kept["later_task"]["core_seconds"] / kept["later_task"]["frames"],
        video_bytes=facts["stored_bytes"] / facts["frames"],
        source_bytes=facts["source_bytes"] / facts["frames"],
        answer_bytes=kept["answer_bytes_a_frame"],
        feature_bytes=kept["feature_bytes_a_frame"]["int8_zlib"],
        frames_a_segment=facts["frames"] / len(demo["videos"]["bikes"]["segment_starts"]),
        index_bytes_a_segment=size["index_bytes"] / size["segments"],
    )


# ---------------------------------------------------------------- what it all costs


def sizes(frame: Frame, prices: Prices, assumed: Assumed) -> list[dict[str, Any]]:
    """The archive at each of HOURS."""
    return [_size(hours, frame, prices, assumed) for hours in HOURS]


def _size(hours: int, frame: Frame, prices: Prices, assumed: Assumed) -> dict[str, Any]:
    frames = hours * 3600 * FPS
    segments = frames / frame.frames_a_segment
    videos = hours * 6  # of ten minutes
    puts = 6 * videos + 2 * segments / 64
    gets = 2 * segments + videos
    return {
        "hours": hours,
        "frames": frames,
        "segments": segments,
        "video_bytes": frames * frame.video_bytes,
        "source_bytes": frames * frame.source_bytes,
        "answer_bytes": frames * frame.answer_bytes,
        "feature_bytes": frames * frame.feature_bytes,
        "index_bytes": segments * frame.index_bytes_a_segment,
        "put_requests": puts,
        "get_requests_a_pass": gets,
        "request_money": puts / 1000 * prices.thousand_puts,
        "pass_request_money": gets / 1000 * prices.thousand_gets,
        "fit_core_hours": frames * frame.fit / 3600,
        "fit_money": frames * _money(frame.fit, prices),
        "fit_gpu_hours": [hours * each for each in assumed.gpu_seconds_a_second],
        "fit_gpu_money": [hours * each * prices.gpu_hour for each in assumed.gpu_seconds_a_second],
        "pass_core_hours": frames * frame.adapter / 3600,
        "pass_money": frames * _money(frame.adapter, prices),
        "decoding_pass_core_hours": frames * frame.decode_whole / 3600,
        "decoding_pass_money": frames * _money(frame.decode_whole, prices),
        "storage_money_a_month": {
            "networks": _stored(frames * frame.video_bytes, prices),
            "h264": _stored(frames * frame.source_bytes, prices),
            "answers": _stored(frames * frame.answer_bytes, prices),
            "features": _stored(frames * frame.feature_bytes, prices),
        },
    }


def _money(core_seconds: float, prices: Prices) -> float:
    return core_seconds / 3600 * prices.core_hour


def _stored(size_bytes: float, prices: Prices) -> float:
    return size_bytes / 1e9 * prices.gigabyte_month


# ---------------------------------------------------------------- when it pays


def break_even(frame: Frame, prices: Prices) -> dict[str, float | None]:
    """How many passes over all frames pay for the fit, against each way to do without; None: no number does.

    A pass answers one question on every frame, by a task that the videos were fitted with. Storage counts
    over `months`; each side keeps what it needs and nothing else. Our pass pays for its requests, two a
    segment; originals and features are read in few large ones.
    """
    fit = _money(frame.fit, prices)
    networks, h264, answers, features = (
        _stored(size, prices) * prices.months
        for size in (frame.video_bytes, frame.source_bytes, frame.answer_bytes, frame.feature_bytes)
    )
    ours = _money(frame.adapter, prices) + 2 / frame.frames_a_segment * prices.thousand_gets / 1000
    decoding = _money(frame.decode_whole, prices)
    tail, later = _money(frame.tail, prices), _money(frame.later_task, prices)
    return {
        # (a) H.264 kept, decoded and asked anew each time: passes.
        "decoding_each_time": _pays(fit + networks - h264, decoding - ours),
        # (b) Each task's answers computed once and kept by both: distinct tasks, all known at the fit.
        "answers_at_ingest": _pays(fit + networks - h264, decoding - ours),
        # … tasks that come later, each of which has to learn its adapters.
        "answers_of_later_tasks": _pays(fit + networks - h264, decoding - ours - later),
        # (c) One pass leaves the features at the cut: passes of tasks that begin there.
        "cached_features": _pays(fit + networks - decoding - features, tail - ours),
        "answers_kept_money_a_frame": answers,
    }


def _pays(invested: float, saved_each: float) -> float | None:
    if invested <= 0:
        return 0.0
    return invested / saved_each if saved_each > 0 else None


def sensitivity(frame: Frame, prices: Prices) -> dict[str, dict[str, float | None]]:
    """Break-even passes against decoding each time, one thing changed at a time."""

    def passes(changed: Frame, paid: Prices = prices) -> float | None:
        return break_even(changed, paid)["decoding_each_time"]

    return {
        "as measured": {"passes": passes(frame)},
        "fit by": {
            f"{n} times faster": passes(replace(frame, fit=frame.fit / n)) for n in (3, 10, 100, 1000)
        },
        "backbone by": {
            f"{n} times dearer": passes(
                replace(
                    frame,
                    decode_whole=frame.decode_whole * n,
                    adapter=frame.adapter + (n - 1) * frame.tail,
                )
            )
            for n in (3, 10, 50)
        },
        "footage": {
            f"source {n} times the bytes": passes(replace(frame, source_bytes=frame.source_bytes * n))
            for n in (5, 20)
        },
        "prices": {
            f"compute {text}": passes(frame, replace(prices, core_hour=prices.core_hour * factor))
            for text, factor in (("at a third", 1 / 3), ("three times as dear", 3.0))
        },
        "months of storage": {f"{n}": passes(frame, replace(prices, months=n)) for n in (1, 120)},
    }


def by_model(measured: Mapping[str, Any], frame: Frame, prices: Prices) -> dict[str, Any]:
    """The same for full-size backbones: this CPU's seconds a GFLOP of the small one, their own GFLOPs.

    GFLOPs of clips are divided by their frames: clips that follow one another.
    """
    small, *others = (
        (model["task"], *_gflops_a_frame(model))
        for model in sorted(measured["models"]["models"], key=lambda model: model["task"] != "labels")
        if "tail_gflops" in model["codecs"]["demo"]
    )
    each = frame.decode_whole / small[1]
    found = {}
    for name, whole, ours in (small, *others):
        more = replace(
            frame,
            decode_whole=frame.decode_whole + each * (whole - small[1]),
            adapter=frame.adapter + each * (ours - small[2]),
        )
        faster = replace(more, fit=more.fit / 100)
        found[name] = {
            "gflops_a_frame": whole,
            "adapter_route_gflops_a_frame": ours,
            "passes": break_even(more, prices)["decoding_each_time"],
            "passes_if_fits_were_100_times_faster": break_even(faster, prices)["decoding_each_time"],
        }
    return found


def _gflops_a_frame(model: Mapping[str, Any]) -> tuple[float, float]:
    """(whole backbone, adapter route with its decode), of one frame of what it takes."""
    frames = model["input"][1] if len(model["input"]) == 4 else 1
    return model["backbone_gflops"] / frames, model["codecs"]["demo"]["partial_and_tail_gflops"] / frames


def economics(measured: Mapping[str, Any]) -> dict[str, Any]:
    """All of it: a pure function of the committed results."""
    prices, assumed, frame = Prices(), Assumed(), calibrated(measured)
    return {
        "question": "economics",
        "inputs": {name: measured[name]["machine"]["commit"] for name in INPUTS},
        "prices": asdict(prices),
        "assumed": asdict(assumed),
        "a_frame": asdict(frame),
        "sizes": sizes(frame, prices, assumed),
        "break_even": break_even(frame, prices),
        "sensitivity": sensitivity(frame, prices),
        "models": by_model(measured, frame, prices),
        "planning": _planning(measured),
    }


def _planning(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Plans of everything, by segments; and of 72 million, by the slope between the two largest sizes."""
    name = "everything"
    points = [
        (
            s["segments"],
            s["queries"][name]["seconds"],
            s["queries"][name]["resident_bytes"]["peak_of_planning"],
        )
        for s in measured["planning"]["sizes"]
        if name in s["queries"]
    ]
    (n1, s1, b1), (n2, s2, b2) = points[-2:]
    wanted = 72_000_000
    share = (wanted - n2) / (n2 - n1)
    return {
        "measured": [{"segments": n, "seconds": s, "peak_bytes": b} for n, s, b in points],
        "extrapolated": {
            "segments": wanted,
            "seconds": s2 + share * (s2 - s1),
            "peak_bytes": b2 + share * (b2 - b1),
        },
    }


def read_inputs() -> dict[str, Any]:
    return {name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in INPUTS}
