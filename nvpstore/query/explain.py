"""A plan as text and as JSON: only the stages and segments that are needed, in bytes, frames and GFLOPs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from nvpstore.query.cost import Part, estimate, parts
from nvpstore.query.left import Left
from nvpstore.query.measured import Measured
from nvpstore.query.parse import PlanFormat
from nvpstore.query.plan import Plan, Scan, top_of

_LABEL_WIDTH = 8


def explain_text(plan: Plan, measured: Measured | None = None, left: Left | None = None) -> str:
    """The plan as a tree; with `measured`, a last branch says what it really took.

    With `left`, each scan says how many of its frames are stored, and figures are of the others alone.
    """
    branches = [_scan_lines(plan, scan, some) for scan, some in _with_left(plan, left)]
    if not plan.relations:
        branches.append(["DuckDB alone: the query reads no task table"])
    elif not plan.scans:
        branches.append(["No frames: the conditions leave none"])
    if plan.skipped:
        branches.append([f"Skipped  {_count(len(plan.skipped), 'segment')} without a route as asked"])
    if plan.steps.num_rows:
        branches.append(_total_lines(plan if left is None else left.plan))
    if measured is not None:
        branches.append(_measured_lines(plan, measured))
    return "\n".join(_tree("Query", branches))


def plan_table(
    plan: Plan, plan_format: PlanFormat, measured: Measured | None = None, left: Left | None = None
) -> pa.Table:
    """What EXPLAIN answers: the lines of the text, or one row with the plan as JSON. Column `plan`."""
    if plan_format == "json":
        document = json.dumps(explain_dict(plan, measured, left), allow_nan=False)
        return pa.table({"plan": pa.array([document], pa.string())})
    return pa.table({"plan": explain_text(plan, measured, left).splitlines()})


def explain_dict(plan: Plan, measured: Measured | None = None, left: Left | None = None) -> dict[str, Any]:
    """The plan as JSON values: `snapshot`, `scans`, `total` and, where it ran, `measured`.

    Of a scan with a `clip`, `frames` are clips, and figures a frame are of a clip; `total` counts pictures.
    With `left`, each scan's `frames` are `answered_frames` and `frames_left` (without, these are null), and
    `parts` and `total` are of the frames left alone.
    """
    cost = estimate(plan if left is None else left.plan)
    document: dict[str, Any] = {
        "snapshot": plan.snapshot_number,
        "frames_in_archive": plan.total_frames,
        "segments_in_archive": plan.total_segments,
        "scans": [_scan_dict(scan, some) for scan, some in _with_left(plan, left)],
        "skipped": [asdict(skip) for skip in plan.skipped],
        "total": {**asdict(cost), "bytes": cost.bytes},
        "stop_after": plan.stop_after,
        "sql": plan.sql,
    }
    if measured is not None:
        document["measured"] = {**asdict(measured), "bytes": measured.bytes}
    return document


def _with_left(plan: Plan, left: Left | None) -> list[tuple[Scan, Scan | None]]:
    """Each scan with what is left of it, None where stored answers were not looked for."""
    some = (None,) * len(plan.scans) if left is None else left.scans
    return list(zip(plan.scans, some, strict=True))


# ---------------------------------------------------------------- text


def _tree(root: str, branches: list[list[str]]) -> list[str]:
    """Branches below `root`; a branch is its own line and the lines under it."""
    lines = [root]
    for number, branch in enumerate(branches):
        last = number == len(branches) - 1
        lines.append(("└─ " if last else "├─ ") + branch[0])
        lines += [("   " if last else "│  ") + line for line in branch[1:]]
    return lines


def _scan_lines(plan: Plan, scan: Scan, left: Scan | None) -> list[str]:
    of = "" if scan.options.clip is not None else f" of {plan.total_frames}"
    head = (
        f"Scan {scan.name}  {_unit(scan)}s {scan.frames}{of},"
        f" segments {scan.segments} of {plan.total_segments}{_options(scan)}"
    )
    if not scan.computes:
        return _tree(head, [["Index only: what is read needs no decoding"]])
    stored = [] if left is None else [[_stored(scan, left)]]
    return _tree(head, stored + [_part_lines(scan, part) for part in _parts(scan, left)])


def _stored(scan: Scan, left: Scan) -> str:
    return f"Stored answers  {_count(scan.frames - left.frames, _unit(scan))}, {left.frames} to compute"


def _unit(scan: Scan) -> str:
    """What is answered at once."""
    return "frame" if scan.options.clip is None else "clip"


def _parts(scan: Scan, left: Scan | None) -> list[Part]:
    """The parts of what is left to compute."""
    some = scan if left is None else left
    return parts(some) if some.computes and some.segments else []


def _options(scan: Scan) -> str:
    options, shown = scan.options, []
    if scan.ranks:
        shown.append(f"top {top_of(scan)}")
    if options.clip is not None:
        shown.append(str(options.clip))
    if options.every is not None:
        shown.append(f"every {float(options.every):g} s")
    if options.stride is not None:
        shown.append(f"stride {options.stride}")
    if scan.stabilizer is not None:
        shown.append("stabilized")
    if options.upscale > 1:
        shown.append(f"upscale {options.upscale}")
    if options.min_fidelity is not None:
        shown.append(f"min_fidelity {options.min_fidelity:g}")
    return "".join(f", {text}" for text in shown)


def _part_lines(scan: Scan, part: Part) -> list[str]:
    unit = _unit(scan)
    head = f"Route {part.route.route}  {_segments(part)}, {_count(part.frames, unit)}{_fidelity(part)}"
    lines = []
    if part.route.route == "source":
        lines.append(_line("Read", f"source files  {_size(part.source_bytes)}"))
    else:
        stages = _stages(part.stages_fetched)
        lines.append(_line("Fetch", f"{stages} + latents  {_share(part)}"))
        lines.append(_line("Decode", f"to stage {part.route.stage}  {_gflops(part.decode_gflops, unit)}"))
    if part.route.route == "adapter":
        to = f"stage {' + '.join(part.route.stages)} → cut {part.route.cut}"
        lines.append(_line("Adapt", f"{to}  {part.route.scope} scope, {_size(part.route_bytes)}"))
    if scan.task is None:
        lines.append(_line("Encode", scan.options.image_format))
    else:
        where = f"from cut {part.route.cut}" if part.route.route == "adapter" else "whole backbone"
        rest = None if part.gflops is None else max(0.0, part.gflops - part.decode_gflops)
        lines.append(_line("Tail", f"{where}  {_gflops(rest, unit)}"))
    if scan.stabilizer is not None:
        at = len(lines) if scan.task is not None else len(lines) - 1
        what = f"from each segment's first {unit} on, one after another  {_size(scan.stabilizer.size_bytes)}"
        lines.insert(at, _line("Steady", what))
    if scan.options.upscale > 1:
        what = f"{scan.options.upscale} times the size, in stretches of a scene's frames"
        lines.insert(len(lines) - 1, _line("Upscale", what))
    return _tree(head, [[line] for line in lines])


def _line(step: str, text: str) -> str:
    return f"{step:<{_LABEL_WIDTH}}{text}"


def _segments(part: Part) -> str:
    named = ", ".join(f"{video_id[:8]}/{segment}" for video_id, segment in part.named)
    more = f" and {part.segments - len(part.named)} more" if part.segments > len(part.named) else ""
    return f"segment {named}" if part.segments == 1 else f"segments {named}{more}"


def _fidelity(part: Part) -> str:
    if part.fidelity is None:
        return "" if part.route.route == "source" or not part.route.cut else ", fidelity unknown"
    low, high = part.fidelity
    return f", fidelity {low:.3f}" if low == high else f", fidelity {low:.3f} to {high:.3f}"


def _stages(stages: tuple[str, ...]) -> str:
    return f"stage {stages[0]}" if len(stages) == 1 else f"stages {stages[0]} to {stages[-1]}"


def _share(part: Part) -> str:
    size = part.prefix_bytes + part.latents_bytes
    shares = [f"{100 * size / part.full_bytes:.0f} % of the full decode's {_size(part.full_bytes)}"]
    if part.source_bytes:
        shares.append(
            f"{100 * size / part.source_bytes:.0f} % of the source file's {_size(part.source_bytes)}"
        )
    return f"{_size(size)} ({', '.join(shares)})"


def _total_lines(plan: Plan) -> list[str]:
    cost = estimate(plan)
    shared = f", {cost.shared} shared" if cost.shared else ""
    text = (
        f"Total  {_size(cost.bytes)}, {_count(cost.frames, 'frame')} decoded in"
        f" {_count(cost.segments, 'segment')}{shared}, {_number(cost.gflops)} GFLOPs"
    )
    return [text]


def _measured_lines(plan: Plan, measured: Measured) -> list[str]:
    cost = estimate(plan)
    seconds = ", ".join(f"{step} {value:.3f}" for step, value in measured.seconds.items() if value)
    head = f"Measured  {_size(measured.bytes)}, {_count(measured.frames, 'frame')} decoded"
    shares = [f"of the full decode {_percent(measured.bytes, cost.full_bytes)}"]
    shares.append(f"of the source file {_percent(measured.bytes, cost.source_bytes)}")
    lines = [
        _line("Bytes", _measured_bytes(measured)),
        _line("Reads", _traffic(measured)),
        _line("Share", ", ".join(shares)),
        _line("Frames", _measured_frames(measured)),
        _line("Seconds", seconds),
    ]
    if measured.answered_frames:
        lines.insert(0, _line("Stored", f"{_count(measured.answered_frames, 'frame')} answered"))
    return _tree(head, [[line] for line in lines])


def _measured_bytes(measured: Measured) -> str:
    named = {
        "prefix": measured.prefix_bytes,
        "latents": measured.latents_bytes,
        "route": measured.route_bytes,
        "source": measured.source_bytes,
    }
    shown = [f"{name} {size}" for name, size in named.items() if size or name != "source"]
    return f"{' + '.join(shown)} = {measured.bytes}"


def _traffic(measured: Measured) -> str:
    traffic = measured.traffic
    text = f"{_count(traffic.requests, 'request')}, {traffic.store_bytes} bytes of the store"
    return f"{text}, {traffic.cache_bytes} of the cache" if traffic.cache_bytes else text


def _measured_frames(measured: Measured) -> str:
    decoded = [
        f"{count} to stage {stage}" if stage else f"{count} from the source"
        for stage, count in sorted(measured.frames_decoded.items())
    ]
    text = ", ".join(decoded) or "none"
    return f"{text}; {measured.shared_decodes} decodes shared" if measured.shared_decodes else text


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "unknown"


def _size(size_bytes: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} B"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _gflops(value: float | None, unit: str) -> str:
    return "GFLOPs unknown" if value is None else f"{_number(value)} GFLOPs a {unit}"


# ---------------------------------------------------------------- JSON


def _scan_dict(scan: Scan, left: Scan | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "table": scan.task.name if scan.task is not None else "frames",
        "version": scan.task.version if scan.task is not None else None,
        "stabilizer": None if scan.stabilizer is None else scan.stabilizer.sha256,
        "upscale": scan.options.upscale,
        "clip": None if scan.options.clip is None else asdict(scan.options.clip),
        "frames": scan.frames,
        "answered_frames": None if left is None else scan.frames - left.frames,
        "frames_left": None if left is None else left.frames if left.computes else 0,
        "segments": scan.segments,
        "columns": list(scan.columns),
        "index_only": not scan.computes,
    }
    document["parts"] = [_part_dict(part) for part in _parts(scan, left)]
    return document


def _part_dict(part: Part) -> dict[str, Any]:
    return {
        "route": part.route.route,
        "stages": list(part.route.stages),
        "fetched_stages": list(part.stages_fetched),
        "cut": part.route.cut,
        "scope": part.route.scope,
        "segments": part.segments,
        "first_segments": [{"video_id": video_id, "segment": segment} for video_id, segment in part.named],
        "frames": part.frames,
        "prefix_bytes": part.prefix_bytes,
        "latents_bytes": part.latents_bytes,
        "route_bytes": part.route_bytes,
        "full_decode_bytes": part.full_bytes,
        "source_bytes": part.source_bytes,
        "decode_gflops_a_frame": part.decode_gflops,
        "gflops_a_frame": part.gflops,
        "fidelity": list(part.fidelity) if part.fidelity is not None else None,
    }
