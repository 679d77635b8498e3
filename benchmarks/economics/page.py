"""The tables of docs/scale.md, each between marks of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown of each marked part of docs/scale.md."""
    return {name: render(found) for name, render in _TABLES.items()}


def _frame_table(found: Mapping[str, Any]) -> str:
    frame = found["a_frame"]
    rows = [
        ("fitting, with its tasks", f"{frame['fit']:.2f} core-seconds"),
        ("PyAV and the whole backbone", f"{1000 * frame['decode_whole']:.1f} core-milliseconds"),
        ("adapter route, cold", f"{1000 * frame['adapter']:.2f} core-milliseconds"),
        ("adapter route, weights in memory", f"{1000 * frame['tail']:.2f} core-milliseconds"),
        (
            "learning a later task, spread over all frames",
            f"{1000 * frame['later_task']:.0f} core-milliseconds",
        ),
        ("stored network, with adapters", _bytes(frame["video_bytes"])),
        ("H.264 source", _bytes(frame["source_bytes"])),
        ("stored answers, five labels", _bytes(frame["answer_bytes"])),
        ("features at the cut, 8 bit, compressed", _bytes(frame["feature_bytes"])),
        ("frames a segment", f"{frame['frames_a_segment']:.0f}"),
    ]
    return _table(("one frame", "costs"), rows)


def _prices_table(found: Mapping[str, Any]) -> str:
    prices = found["prices"]
    rows = [
        ("a core for an hour", f"{prices['core_hour']:.2f} $"),
        ("a GPU for an hour", f"{prices['gpu_hour']:.2f} $"),
        ("a gigabyte for a month", f"{prices['gigabyte_month']:.3f} $"),
        ("a thousand puts; gets", f"{prices['thousand_puts']:.3f} $; {prices['thousand_gets']:.4f} $"),
        ("months that are kept", f"{prices['months']}"),
    ]
    return _table(("assumed", ""), rows)


def _sizes_table(found: Mapping[str, Any]) -> str:
    columns = found["sizes"]
    lines: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("frames; segments", lambda s: f"{_count(s['frames'])}; {_count(s['segments'])}"),
        ("networks; H.264", lambda s: f"{_bytes(s['video_bytes'])}; {_bytes(s['source_bytes'])}"),
        ("answers; features", lambda s: f"{_bytes(s['answer_bytes'])}; {_bytes(s['feature_bytes'])}"),
        ("index", lambda s: _bytes(s["index_bytes"])),
        ("puts; gets a pass", lambda s: f"{_count(s['put_requests'])}; {_count(s['get_requests_a_pass'])}"),
        ("… in money", lambda s: f"{_dollars(s['request_money'])}; {_dollars(s['pass_request_money'])}"),
        ("fit, core-hours", lambda s: f"{_count(s['fit_core_hours'])} = {_dollars(s['fit_money'])}"),
        ("fit, GPU-hours by publications", lambda s: "; ".join(_count(h) for h in s["fit_gpu_hours"])),
        ("… in money", lambda s: "; ".join(_dollars(m) for m in s["fit_gpu_money"])),
        (
            "a pass by adapters, core-hours",
            lambda s: f"{_count(s['pass_core_hours'])} = {_dollars(s['pass_money'])}",
        ),
        (
            "a pass by decoding, core-hours",
            lambda s: f"{_count(s['decoding_pass_core_hours'])} = {_dollars(s['decoding_pass_money'])}",
        ),
        (
            "a month of networks; of H.264",
            lambda s: "; ".join(_dollars(s["storage_money_a_month"][n]) for n in ("networks", "h264")),
        ),
    ]
    rows = [(name, *(show(column) for column in columns)) for name, show in lines]
    return _table(("", *(f"{_count(c['hours'])} hours" for c in columns)), rows)


def _break_even_table(found: Mapping[str, Any]) -> str:
    paid = found["break_even"]
    rows = [
        ("(a) keep H.264, decode and ask anew each time", f"{_passes(paid['decoding_each_time'])} passes"),
        (
            "(b) keep H.264 and each task's answers; tasks known when the videos are fitted",
            f"{_passes(paid['answers_at_ingest'])} tasks",
        ),
        ("(b) … tasks that come later and must learn", f"{_passes(paid['answers_of_later_tasks'])} tasks"),
        ("(c) keep the features at the cut", f"{_passes(paid['cached_features'])} passes"),
    ]
    return _table(("against", "fitting pays from"), rows)


def _sensitivity_table(found: Mapping[str, Any]) -> str:
    rows = [
        (" ".join((group, what)) if group != "as measured" else group, _passes(passes))
        for group, cases in found["sensitivity"].items()
        for what, passes in cases.items()
    ]
    return _table(("changed", "passes until (a) is paid"), rows)


def _models_table(found: Mapping[str, Any]) -> str:
    rows = [
        (
            f"`{name}`",
            f"{model['gflops_a_frame']:.1f} → {model['adapter_route_gflops_a_frame']:.1f}",
            _passes(model["passes"]),
            _passes(model["passes_if_fits_were_100_times_faster"]),
        )
        for name, model in found["models"].items()
    ]
    head = (
        "task",
        "GFLOPs a frame, whole → adapter route",
        "passes until (a) is paid",
        "… if fits took a hundredth",
    )
    return _table(head, rows)


def _planning_table(found: Mapping[str, Any]) -> str:
    points = [*found["planning"]["measured"], found["planning"]["extrapolated"]]
    rows = [
        (
            _count(p["segments"]) + (" (extrapolated)" if p is points[-1] else ""),
            f"{p['seconds']:.1f} s",
            _bytes(p["peak_bytes"]),
        )
        for p in points
    ]
    return _table(("segments", "plan of everything", "memory at its peak"), rows)


_TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "frame": _frame_table,
    "prices": _prices_table,
    "sizes": _sizes_table,
    "break-even": _break_even_table,
    "sensitivity": _sensitivity_table,
    "models": _models_table,
    "planning": _planning_table,
}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bytes(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} PB"


def _count(number: float) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            return f"{number / (1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _dollars(money: float) -> str:
    return f"{money:.2f} $" if money < 10 else f"{_count(money)} $"


def _passes(passes: float | None) -> str:
    if passes is None:
        return "no number of"
    return _count(max(passes, 0)) if passes >= 10 else f"{passes:.1f}"


def with_tables(page: str, found: Mapping[str, Any]) -> str:
    """The page with every marked part as `tables` has it. Raises KeyError for a mark that is none of them."""
    parts = tables(found)

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{parts[match[2]]}\n{match[3]}"

    return re.sub(r"(<!-- ([a-z-]+) -->)\n.*?\n?(<!-- end -->)", fill, page, flags=re.DOTALL)
