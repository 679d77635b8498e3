"""The tables of the demo's report, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from benchmarks.figures import Agreement, VideoFigures
from benchmarks.notes import note
from nvpstore.api.progress import size


def agreement_table(video: VideoFigures) -> str:
    names = {
        "default": f"{default_name(video)} route",
        "pixel": "pixel route",
        "held": f"last answer held{note('held')}",
        "constant": f"constant{note('constant')}",
    }
    sets = {
        "unseen_confident": "unseen, confident",
        "unseen": "all unseen",
        "confident": "all confident",
        "all_frames": "all frames",
    }
    ours = video.agreements["default"]
    head = [(f"agreement{note('agreement')} with the source", False)]
    head += [(f"{text}<br>({getattr(ours, name).frames})", True) for name, text in sets.items()]
    rows = [
        [text, *(share(getattr(video.agreements[name], chosen)) for chosen in sets)]
        for name, text in names.items()
    ]
    return table(head, rows, best=0)


def routes_table(video: VideoFigures) -> str:
    """The routes that answer a query that names none, a row a segment."""
    head = [
        ("segment", False),
        ("from decoder stages", False),
        ("into the classifier at", False),
        (f"CKA{note('cka')}", True),
        (f"stored fidelity{note('fidelity')}", True),
    ]
    rows = {
        segment: [
            f"{segment}",
            " + ".join(used.stages) or "–",
            escape(used.cut) or f"its beginning ({used.route} route)",
            "–" if cka is None else f"{cka:.2f}",
            "–" if fidelity is None else f"{fidelity:.3f}",
        ]
        for used in video.routes_in_use
        for segment, cka, fidelity in zip(used.segments, used.cka, used.fidelity, strict=True)
    }
    return table(head, [rows[segment] for segment in sorted(rows)], kind="compact")


def cost_table(video: VideoFigures) -> str:
    head = [
        ("route", False),
        (f"bytes read{note('bytes')}", True),
        ("of a full decode", True),
        ("of the source file", True),
        (f"GFLOPs{note('gflops')} a frame", True),
        (f"ms{note('ms')} a frame", True),
        (f"agreement{note('agreement')}", True),
    ]
    names = {"default": f"{default_name(video)} (default)", "pixel": "pixel", "source": "source"}
    rows = [[text, *_costs(video, name)] for name, text in names.items()]
    return table(head, rows, best=0)


def _costs(video: VideoFigures, name: str) -> list[str]:
    cost = video.costs[name]
    return [
        size(cost.bytes),
        f"{100 * cost.share_of_full_decode:.0f}&nbsp;%",
        f"{100 * cost.share_of_source:.0f}&nbsp;%",
        f"{cost.gflops:.3f}",
        f"{cost.ms:.2f}<small>{cost.ms_lowest:.2f} to {cost.ms_highest:.2f}</small>",
        "reference" if name == "source" else share(video.agreements[name].unseen_confident),
    ]


def default_name(video: VideoFigures) -> str:
    """`adapter` where all default answers come by adapters."""
    return "adapter" if set(video.answers["default"].route) == {"adapter"} else "default"


def table(
    head: Sequence[tuple[str, bool]],
    rows: Iterable[Sequence[str]],
    *,
    best: int | None = None,
    kind: str = "",
) -> str:
    """`head`: (HTML, whether the column holds numbers); `rows` HTML; row `best` is set off."""
    classes = [' class="n"' if numbers else "" for _, numbers in head]
    heading = "".join(f"<th{c}>{text}</th>" for c, (text, _) in zip(classes, head, strict=True))
    body = ""
    for i, row in enumerate(rows):
        cells = "".join(f"<td{c}>{text}</td>" for c, text in zip(classes, row, strict=True))
        body += f'<tr class="best">{cells}</tr>' if i == best else f"<tr>{cells}</tr>"
    whole = f'<table class="{kind}"><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="table">{whole}</div>'


def share(agreement: Agreement) -> str:
    return "–" if agreement.share is None else f"{100 * agreement.share:.1f}&nbsp;%"


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
