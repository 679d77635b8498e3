"""The page: one HTML file without anything outside it, to be read on a screen and printed."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.evidence import plots
from benchmarks.evidence.losses import NOWHERE, losses
from benchmarks.evidence.results import FOLDER, Result
from benchmarks.evidence.sections import SECTIONS, Section
from benchmarks.evidence.tables import Table, generic, text

TITLE = "nvpstore: the evidence"
STYLES = (Path(__file__).parents[1] / "report.css", Path(__file__).with_name("print.css"))


def page(results: Mapping[str, Result], subset: Mapping[str, Result]) -> str:
    """All results: what is lost, then each section; those that nobody drew up come as they are."""
    found = {name: result.found for name, result in results.items()}
    known = {section.name for section in SECTIONS}
    soaks = {name: result for name, result in results.items() if name.startswith("soak-")}
    others = [r for name, r in results.items() if name not in known and name not in soaks]
    style = "\n".join(path.read_text(encoding="utf-8") for path in STYLES)
    body = [
        _opening(results, subset),
        _losses(found),
        *(_section(s, results[s.name], subset.get(s.name), found) for s in SECTIONS if s.name in results),
        _soaks(soaks),
        *(_other(result) for result in others),
        _absent(results),
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{style}</style></head>"
    )
    return "\n".join([head, "<body><main>", *(part for part in body if part), "</main></body></html>\n"])


def _opening(results: Mapping[str, Result], subset: Mapping[str, Result]) -> str:
    again = (
        f"{len(subset)} of them were also run in part for this page: <i>subset</i> marks those."
        if subset
        else "No part of them was run again for this page."
    )
    return (
        f'<p class="kicker">nvpstore</p><h1>The evidence</h1><p class="lead">{len(results)} committed '
        "results, each with the machine and the commit that it was measured on, the command that measures "
        f"it again, and what was not measured. {again}</p>"
    )


def _losses(found: Mapping[str, Any]) -> str:
    lines = [(line, f"{name}.json") for line, name in losses(found)] + [(line, "") for line in NOWHERE]
    items = "".join(f"<li>{escape(line)} <small>{escape(where)}</small></li>" for line, where in lines)
    return f'<section><h2>Where we lose</h2><ul class="losses">{items}</ul></section>'


def _section(section: Section, result: Result, again: Result | None, found: Mapping[str, Any]) -> str:
    plot = plots.PLOTS.get(section.name)
    drawn = plot(result.found) if plot else ""
    if section.name == "economics" and _can_plot_economics(found):
        drawn = plots.economics(found)
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2><p>{escape(section.intro)}</p>'
        f"{drawn}{''.join(table.html() for table in section.tables(result.found))}"
        f"{_pictures(result)}{_again(section, result, again)}"
        f"{_where(result, section.command, section.missing)}</section>"
    )


def _can_plot_economics(found: Mapping[str, Any]) -> bool:
    return all(name in found for name in ("batch", "demo", "latency", "models", "planning"))


def _again(section: Section, result: Result, again: Result | None) -> str:
    """The headline of the committed run beside the subset's."""
    if again is None or section.headline is None:
        return ""
    whole, part = section.headline(result.found), section.headline(again.found)
    rows = tuple((name, whole.get(name, "–"), value) for name, value in part.items())
    table = Table(caption="run again, in part", head=("", "committed", "subset"), rows=rows)
    return f'<div class="subset">{table.html()}<p class="machine">subset: {escape(again.where)}</p></div>'


def _where(result: Result, command: str, missing: str) -> str:
    said = f"<b>Not measured:</b> {escape(missing)}<br>" if missing else ""
    return (
        f'<p class="machine">{said}{escape(result.where)}<br>'
        f"<code>{escape(command)}</code> → <code>{escape(result.path)}</code></p>"
    )


def _soaks(soaks: Mapping[str, Result]) -> str:
    if not soaks:
        return ""
    rows = tuple(
        (
            result.found["question"],
            _tried(result.found),
            str(len(result.found["broken"])),
            text(result.found["seconds"]),
        )
        for result in soaks.values()
    )
    table = Table(caption="", head=("question", "tried", "broken", "seconds"), rows=rows)
    where = "".join(
        f"<li><code>{escape(r.found['command'])}</code>: {escape(r.where)}</li>" for r in soaks.values()
    )
    return (
        "<section><h2>Attempts to break it</h2><p>Soak runs of store, protocol and service; each goes on "
        f"until its plan is done, and lists what broke.</p>{table.html()}"
        f'<ul class="machine">{where}</ul></section>'
    )


def _tried(found: Mapping[str, Any]) -> str:
    skipped = {"seed", "scale", "seconds", "seconds_each", "exhaustive"}
    counts = [
        f"{name.replace('_', ' ')} {text(value)}"
        for name, value in found.items()
        if isinstance(value, int) and not isinstance(value, bool) and name not in skipped
    ]
    return ", ".join(counts) or ", ".join(found.get("scenarios", {}))


def _other(result: Result) -> str:
    question = str(result.found.get("question", "")) or result.name
    command = str(result.found.get("command", f"python -m benchmarks.{result.name.split('/')[-1]}"))
    tables = "".join(table.html() for table in generic(result.found))
    title = result.name.replace("/", ": ").replace("_", " ").replace("-", " ")
    return (
        f'<section id="{escape(result.name)}"><h2>{escape(title.capitalize())}</h2><p>{escape(question)}</p>'
        f"{tables}{_pictures(result)}{_where(result, command, '')}</section>"
    )


def _pictures(result: Result) -> str:
    """Strips and films in the folder of the result's name, each as part of the page."""
    parts = []
    for path in sorted((FOLDER / result.name).glob("*.png")):
        caption = escape(path.stem.replace("-", ", ").replace("_", " "))
        parts.append(f'<figure><figcaption>{caption}</figcaption><img alt="{caption}" src="{_data(path)}">')
        if (film := path.with_suffix(".mp4")).exists():
            parts.append(f'<video controls loop muted src="{_data(film)}"></video>')
        parts.append("</figure>")
    return "".join(parts)


def _data(path: Path) -> str:
    kind = {".png": "image/png", ".mp4": "video/mp4"}[path.suffix]
    return f"data:{kind};base64,{b64encode(path.read_bytes()).decode()}"


EXPECTED: Sequence[tuple[str, str]] = (
    ("accuracy", "accuracy of answers from the store on the labelled world, beside codecs at the same bytes"),
    ("rate_distortion", "rate and distortion beside x264, x265 and AV1"),
    ("fitting", "time to the demo's target, against the faithful schedule"),
    ("decode", "decoded frames a second by depth and batch"),
    ("stability", "stabilized tasks on corrupted video"),
    ("upscale", "upscaling against bicubic, Lanczos and a plain regression"),
    ("gpu/fit", "fits on a GPU"),
    ("gpu/latency", "latency on a GPU"),
)


def _absent(results: Mapping[str, Result]) -> str:
    lines = [(name, what) for name, what in EXPECTED if name not in results]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(what)} <small>{escape(name)}.json</small></li>" for name, what in lines)
    return f'<section><h2>Not measured at all</h2><ul class="losses">{items}</ul></section>'
