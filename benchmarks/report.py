"""The demo's report: one HTML file without anything outside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.charts import label_tracks, psnr_curve, short
from benchmarks.figures import Check, VideoFigures
from benchmarks.notes import footnotes, note
from benchmarks.pictures import Pair, film, is_wide, moments, picture_pairs
from benchmarks.tables import agreement_table, cost_table, default_name, is_number, routes_table, share, table
from nvpstore.api.progress import size
from nvpstore.archive import Archive
from nvpstore.tasks.heads import CONFIDENT

STYLE = Path(__file__).with_name("report.css")
TITLE = "Two videos kept as neural networks, questioned with SQL"
TITLES = {
    "bikes": ("A street, three shots", "A real clip: cars and cyclists, cut twice."),
    "collage": (
        "A camera over twelve photographs",
        "Real photographs under one moving camera: texture everywhere, a new subject every half second.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A query with its rows as text. `is_plan`: the rows are lines of a plan."""

    title: str
    sql: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    seconds: float
    is_plan: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """All that the report shows. `files` are the originals."""

    files: Mapping[str, Path]
    videos: Mapping[str, VideoFigures]
    queries: Sequence[Answered]
    checks: Sequence[Check]
    machine: Mapping[str, Any]


def write_report(path: Path, archive: Archive, reported: Reported) -> Path:
    """Write the page to `path`; the pictures are decoded for it now."""
    body = [
        _opening(),
        *(_section(name, v, archive, reported.files[name]) for name, v in reported.videos.items()),
        _queries(reported.queries),
        _closing(reported),
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
    )
    html = "\n".join([head, "<body><main>", *body, "</main></body></html>\n"])
    path.write_text(html, encoding="utf-8")
    return path


# ---------------------------------------------------------------- sections


def _opening() -> str:
    return (
        f'<p class="kicker">nvpstore, a demonstration</p><h1>{TITLE}</h1><p class="lead">Each video below '
        "was fitted to a small network, and the network&rsquo;s weights are now the stored video. Asked what "
        "can be seen, the archive decodes only the first stages, hands their features through a tiny adapter "
        "into the middle of an unchanged image classifier, and never makes a picture.</p>"
    )


def _section(name: str, video: VideoFigures, archive: Archive, file: Path) -> str:
    facts = video.facts
    title, subtitle = TITLES[name]
    shape = "wide" if is_wide(facts["width"], facts["height"]) else "square"
    chosen = moments(video.answers["source"].scores)
    pairs = picture_pairs(archive, facts["video_id"], file, chosen)
    cuts = "; dotted lines are ends of segments" if len(video.segment_starts) > 1 else ""
    parts = [
        f'<p class="kicker">{escape(facts["name"])}</p><h2>{title}</h2><p>{subtitle}</p>',
        _facts(video),
        _pull(video),
        f"<h3>What went in, what comes out</h3><p>{_order(shape)} The decoded picture was never stored: "
        "the network draws it anew.</p>",
        f'<figure class="film {shape}"><video controls loop muted playsinline preload="auto" '
        f'src="{film(archive, facts["video_id"], file)}"></video></figure>',
        _strip(pairs, video, shape),
        f"<h3>How close, frame by frame</h3><p>PSNR{note('psnr')} of each decoded frame. The dashed line "
        f"is what resizing alone{note('bound')} would leave{cuts}.</p>",
        _curve(video),
        f"<h3>What each route sees</h3><p>{_comparison(video)}</p>",
        _tracks(video),
        agreement_table(video),
        "<h3>What an answer costs</h3><p>A query for all frames, by each route.</p>",
        cost_table(video),
        "<h3>How it gets there</h3><p>The default routes, chosen by stored cost and fidelity.</p>",
        routes_table(video),
        "<h3>What it takes to keep</h3>",
        f"<p>{_storage(facts)}</p>",
    ]
    return f"<section>{''.join(parts)}</section>"


def _queries(queries: Sequence[Answered]) -> str:
    shown = "".join(
        f"<h3>{escape(query.title)}</h3><pre>{escape(query.sql)}</pre>{_rows(query)}"
        f'<p class="facts after">{query.seconds:.2f} s</p>'
        for query in queries
    )
    intro = "These ran on the archive for this page, over both videos at once."
    return f"<section><h2>Asked in SQL</h2><p>{intro}</p>{shown}</section>"


def _rows(query: Answered) -> str:
    if query.is_plan:
        return f'<pre class="plan">{escape(chr(10).join(row[0] for row in query.rows))}</pre>'
    numbers = [all(is_number(row[i]) for row in query.rows) for i in range(len(query.columns))]
    body = [[escape(short(text)) for text in row] for row in query.rows]
    return table(list(zip(query.columns, numbers, strict=True)), body, kind="compact")


def _closing(reported: Reported) -> str:
    verdicts = {True: '<span class="ok">yes</span>', False: '<span class="failed">FAILED</span>'}
    rows = [[escape(c.check), escape(c.wanted), escape(c.got), verdicts[c.passed]] for c in reported.checks]
    head = [("", False), ("wanted", False), ("got", False), ("held", False)]
    m = reported.machine
    commit = f"commit {m['commit'][:10]}{' with changes' if m['modified'] else ''}" if m["commit"] else None
    where = [m["cpu"], f"{m['cores']} cores", m["gpu"] or "no GPU", f"torch {m['torch']}", m["measured_at"]]
    return (
        f"<section><h2>What had to hold</h2>{table(head, rows)}</section>"
        f"<section><h2>In plain words</h2>{footnotes()}"
        f'<p class="machine">Measured on {escape(", ".join(w for w in [*where, commit] if w))}. All figures '
        "are in figures.json beside this file. Decoded pictures on this page are reconstructions by a neural "
        "network, not the original recordings.</p></section>"
    )


# ---------------------------------------------------------------- a video's parts


def _facts(video: VideoFigures) -> str:
    f, segments = video.facts, len(video.segment_starts)
    parts = [
        f"{f['frames']} frames",
        f"{f['width']} × {f['height']}",
        f"{f['fps']:g} frames a second",
        f"{f['duration']:.1f} s",
        f"{segments} segment{'s' if segments > 1 else ''}",
        f"{f['psnr']:.2f} dB, worst twentieth below {f['psnr_p5']:.2f} dB",
        f"{f['bpp']:.3f} bpp{note('bpp')}",
        f"fitted in {f['fit_seconds']:.0f} s",
    ]
    whole = (f"<span>{part}</span>" for part in parts)
    return f'<p class="facts">{" · ".join(whole)}</p>'


def _pull(video: VideoFigures) -> str:
    headline = video.agreements["default"].unseen_confident
    ours, source = video.costs["default"], video.costs["source"]
    entries = [
        (
            share(headline),
            f"of {headline.frames} confident{note('confident')} and unseen{note('unseen')} frames get the "
            f"answer that the original frame gets{note('agreement')}",
        ),
        (
            f"{source.gflops / ours.gflops:.1f}<small>times</small>",
            f"fewer operations{note('gflops')} a frame than the whole classifier on the original frame",
        ),
        (
            f"{source.ms / ours.ms:.1f}<small>times</small>",
            f"faster through SQL{note('ms')} than from the original file: {ours.ms:.1f} ms a frame against "
            f"{source.ms:.1f} ms",
        ),
    ]
    shown = "".join(f"<div><b>{big}</b><span>{text}</span></div>" for big, text in entries)
    return f'<div class="pull">{shown}</div>'


def _order(shape: str) -> str:
    return "Original above, decoded below." if shape == "wide" else "Original left, decoded right."


def _strip(pairs: Iterable[Pair], video: VideoFigures, shape: str) -> str:
    figures = [
        f'<figure><div class="pair"><img alt="original, frame {pair.frame}" src="{pair.original}">'
        f'<img alt="decoded, frame {pair.frame}" src="{pair.decoded}"></div>'
        f"<figcaption>{_said(video, pair.frame)}<br>original | decoded from the network: reconstructed, "
        f"{video.frame_psnr[pair.frame]:.1f} dB</figcaption></figure>"
        for pair in pairs
    ]
    return f'<div class="strip {shape}">{"".join(figures)}</div>'


def _said(video: VideoFigures, frame: int) -> str:
    """When, and what the routes say of this frame."""
    source, ours = (escape(short(video.answers[name].labels[frame])) for name in ("source", "default"))
    same = f"both say <b>{source}</b>"
    said = same if source == ours else f"original <b>{source}</b>, network <b>{ours}</b>"
    doubt = "" if video.answers["source"].scores[frame] >= CONFIDENT else " (unsure)"
    return f"{video.answers['source'].ts[frame]:.2f} s, {said}{doubt}"


def _curve(video: VideoFigures) -> str:
    facts = video.facts
    return psnr_curve(
        video.frame_psnr,
        fps=facts["fps"],
        mean=facts["psnr"],
        bound=facts["resize_bound_psnr"],
        segment_starts=video.segment_starts,
    )


def _comparison(video: VideoFigures) -> str:
    ours, pixel, constant, held = (
        video.agreements[name].unseen_confident for name in ("default", "pixel", "constant", "held")
    )
    if video.constant_answer is None or not ours.frames:
        return (
            "The classifier is confident on no frame that fitting did not see: there is nothing to compare."
        )
    ratio = video.error_ratio
    errors = "" if not ratio else f": {ratio:.2f} times the errors of the better of these two"
    return (
        f"The classifier gives {video.labels_confident} labels on {video.confident_frames} confident frames, "
        f"{video.labels} on all {video.facts['frames']}. On the {ours.frames} confident ones that fitting "
        f"did not see, the {default_name(video)} route agrees with it on {share(ours)}. Always "
        f"“{escape(short(video.constant_answer))}”{note('constant')} would agree on {share(constant)}, the "
        f"last answer held{note('held')} on {share(held)}{errors}. The whole classifier on decoded "
        f"pictures, the pixel route, agrees on {share(pixel)}."
    )


def _tracks(video: VideoFigures) -> str:
    answers = video.answers
    tracks = {
        "source": answers["source"],
        default_name(video): answers["default"],
        "pixel": answers["pixel"],
    }
    key = (
        '<p class="key"><span><i class="sure"></i>source is confident</span>'
        '<span><i class="faint"></i>source is unsure</span>'
        "<span><i></i>a label that the source never gives</span>"
        '<span><i class="red"></i>not the source&rsquo;s answer</span></p>'
    )
    return label_tracks(tracks, source="source", fps=video.facts["fps"]) + key


def _storage(facts: Mapping[str, Any]) -> str:
    stored, source = facts["stored_bytes"], facts["source_bytes"]
    kept, original = size(stored), size(source)
    sizes = f"The archive keeps {kept} for this video, adapters included; the source file has {original}."
    if stored <= source:
        return f"{sizes} That is {100 * stored / source:.0f}&nbsp;% of it, for the softer picture above."
    return (
        f"{sizes} That is {stored / source:.1f} times as much: at this length and size the network saves no "
        "space, and the source file holds the better picture. What it buys is the answer without the picture."
    )
