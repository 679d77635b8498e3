"""Inline SVG for the demo's report. Colours come from the page's style sheet, so that both schemes work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.figures import Answers
from nvpstore.tasks.heads import CONFIDENT

WIDTH = 960  # user units of every chart
GUTTER = 76  # left of the drawing, for names and scales
END = WIDTH - 8
GOLDEN_ANGLE = 137.508  # degrees; neighbours in a list get hues far apart
LETTER = 5.9  # mean advance of a letter at the bars' font size

LINE = 12.5  # from one line of a bar's text to the next
TRACK_HEIGHT = 34
TRACK_PITCH = 56


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Frames [start, stop) with one answer, all sure or all unsure, all as the source says or none."""

    start: int
    stop: int
    label: str
    is_sure: bool
    agrees: bool


def short(label: str) -> str:
    """The first of a class's names."""
    return label.split(",")[0]


# ---------------------------------------------------------------- PSNR over time


def psnr_curve(
    frame_psnr: Sequence[float], *, fps: float, mean: float, bound: float, segment_starts: Sequence[int]
) -> str:
    """Per-frame PSNR (dB) with the whole video's value and the bound that the resize alone sets."""
    top, bottom, height = 14, 226, 262
    shown = [value for value in frame_psnr if math.isfinite(value)]
    low = math.floor(min(*shown, mean) - 0.5)
    high = math.ceil(max(*shown, bound) + 0.5)
    step = next(step for step in (1, 2, 5, 10, 20) if (high - low) / step <= 6)

    def y(value: float) -> float:
        return bottom - (min(value, high) - low) / (high - low) * (bottom - top)

    x = _frame_scale(len(frame_psnr))
    grid = "".join(
        f'<line class="grid" x1="{GUTTER}" x2="{END}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{GUTTER - 10}" y="{y(v) + 4:.1f}" text-anchor="end">{v}</text>'
        for v in range(math.ceil(low / step) * step, high + 1, step)
    )
    cuts = "".join(
        f'<line class="cut" x1="{x(start):.1f}" x2="{x(start):.1f}" y1="{top}" y2="{bottom}"/>'
        for start in segment_starts[1:]
    )
    points = " ".join(f"{x(i + 0.5):.1f},{y(value):.1f}" for i, value in enumerate(frame_psnr))
    body = (
        f'{grid}{cuts}<polyline class="curve" points="{points}"/>'
        f"{_level(y(bound), f'resize alone: {bound:.1f} dB', 'bound')}"
        f"{_level(y(mean), f'all frames: {mean:.1f} dB', 'mean')}"
        f"{_seconds_axis(len(frame_psnr), fps, bottom)}"
    )
    name = f"PSNR of each frame, {min(shown):.1f} to {max(shown):.1f} dB"
    return _svg(height, name, body)


def _level(y: float, text: str, kind: str) -> str:
    return (
        f'<line class="{kind}" x1="{GUTTER}" x2="{END}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="note halo" x="{END - 4}" y="{y - 6:.1f}" text-anchor="end">{escape(text)}</text>'
    )


# ---------------------------------------------------------------- labels over time


def label_tracks(tracks: Mapping[str, Answers], *, source: str, fps: float) -> str:
    """One track a predictor: its answers as bars. `source` names the track that is the reference."""
    reference = tracks[source]
    frames = len(reference.labels)
    hues = {label: i * GOLDEN_ANGLE % 360 for i, label in enumerate(dict.fromkeys(reference.labels))}
    x = _frame_scale(frames)
    parts = []
    for row, (name, answers) in enumerate(tracks.items()):
        top = 8 + row * TRACK_PITCH
        parts.append(
            f'<text class="track" x="{GUTTER - 10}" y="{top + TRACK_HEIGHT / 2 + 4}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        for bar in bars(answers, reference):
            parts.append(_bar(bar, x(bar.start), x(bar.stop), top, hues.get(bar.label), fps))
    bottom = 8 + len(tracks) * TRACK_PITCH - 8
    parts.append(_seconds_axis(frames, fps, bottom))
    return _svg(bottom + 36, f"Labels over time by {', '.join(tracks)}", "".join(parts))


def bars(answers: Answers, reference: Answers) -> Iterator[Bar]:
    """Runs of frames that look the same."""
    faces = [
        (label, score >= CONFIDENT, label == wanted)
        for label, score, wanted in zip(answers.labels, reference.scores, reference.labels, strict=True)
    ]
    start = 0
    for frame in range(1, len(faces) + 1):
        if frame == len(faces) or faces[frame] != faces[start]:
            label, is_sure, agrees = faces[start]
            yield Bar(start=start, stop=frame, label=label, is_sure=is_sure, agrees=agrees)
            start = frame


def _bar(bar: Bar, left: float, right: float, top: float, hue: float | None, fps: float) -> str:
    """A bar with its label where it fits. Labels that the source never gives have no hue."""
    look = "other" if hue is None else "known"
    style = "" if hue is None else f' style="--hue:{hue:.0f}"'
    faded = "" if bar.is_sure else " unsure"
    width = max(0.5, right - left - 0.75)
    doubts = ("" if bar.is_sure else ", source unsure") + ("" if bar.agrees else ", not as the source says")
    parts = [
        f"<title>{escape(short(bar.label))}, {bar.start / fps:.2f} to {bar.stop / fps:.2f} s{doubts}</title>",
        f'<rect class="bar {look}{faded}"{style} x="{left:.2f}" y="{top}" width="{width:.2f}"'
        f' height="{TRACK_HEIGHT}" rx="2"/>',
    ]
    lines = fitted(short(bar.label), int((width - 6) / LETTER))
    for i, line in enumerate(lines):
        y = top + TRACK_HEIGHT / 2 + 4 + (i - (len(lines) - 1) / 2) * LINE
        parts.append(f'<text class="label{faded}" x="{left + 4:.1f}" y="{y:.1f}">{escape(line)}</text>')
    if not bar.agrees:
        parts.append(
            f'<rect class="wrong{faded}" x="{left:.2f}" y="{top + TRACK_HEIGHT + 3}" width="{width:.2f}"'
            f' height="4"/>'
        )
    return f"<g>{''.join(parts)}</g>"


def fitted(text: str, letters: int) -> tuple[str, ...]:
    """`text` on at most two lines of `letters`, shortened where it must be; nothing where it says nothing."""
    if len(text) <= letters:
        return (text,)
    first, _, second = text.partition(" ")
    if second and max(len(first), len(second)) <= letters:
        return first, second
    return (text[: letters - 1].rstrip() + "…",) if letters >= 4 else ()


# ---------------------------------------------------------------- shared


def _frame_scale(frames: int) -> Callable[[float], float]:
    """Frame number → x."""
    each = (END - GUTTER) / frames
    return lambda frame: GUTTER + frame * each


def _seconds_axis(frames: int, fps: float, y: float) -> str:
    seconds = frames / fps
    step = next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60) if seconds / s <= 10), 300)
    x = _frame_scale(frames)
    places = [(k * step, f"{x(k * step * fps):.1f}") for k in range(int(seconds / step - 0.2) + 1)]
    marks = "".join(
        f'<line class="grid" x1="{at}" x2="{at}" y1="{y}" y2="{y + 5}"/>'
        f'<text class="tick" x="{at}" y="{y + 21}" text-anchor="middle">{second:g} s</text>'
        for second, at in places
    )
    return f'<line class="axis" x1="{GUTTER}" x2="{END}" y1="{y}" y2="{y}"/>{marks}'


def _svg(height: float, name: str, body: str) -> str:
    return (
        f'<div class="chart"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(name)}">'
        f"{body}</svg></div>"
    )
