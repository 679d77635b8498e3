"""The footnotes of the demo's report: every figure in plain words. Texts are HTML."""

from __future__ import annotations

from benchmarks.figures import HOLD_EVERY, TIMED_RUNS
from nvpstore.tasks.heads import CONFIDENT

# In the order in which the page first names them: key → (term, what it means).
NOTES = {
    "bpp": (
        "bpp",
        "stored bits per source pixel, with everything counted: weights, latents, adapters, manifest.",
    ),
    "confident": (
        "Confident",
        f"the classifier&rsquo;s own score on the original frame is at least {CONFIDENT}. Elsewhere several "
        "labels are about as likely, and agreement mostly measures luck.",
    ),
    "unseen": (
        "Unseen",
        "odd frame numbers. Fitting looks at the classifier&rsquo;s outputs on even frames only, so these "
        "are frames whose answers nothing was trained on. (Their pixels were: those are what is stored.)",
    ),
    "agreement": (
        "Agreement",
        "the share of frames whose first answer is the one that the same classifier gives on the original "
        "frame. It says nothing about whether the classifier is right.",
    ),
    "gflops": (
        "GFLOPs",
        "billions of multiplications and additions for one frame: decode, adapter, rest of the classifier.",
    ),
    "ms": (
        "ms a frame",
        "through SQL: wall time of a query for all frames, divided by the frames; the median of "
        f"{TIMED_RUNS} runs after a first one, lowest and highest below it; each computes answers, though "
        "the archive has them by then. Parsing and planning are in it; for the source route, so is decoding "
        "the file. Neither side is tuned here: benchmarks/latency.py compares them on equal terms.",
    ),
    "psnr": (
        "PSNR",
        "10·log<sub>10</sub>(255² / mean squared error) over all RGB values of all frames at the "
        "source&rsquo;s own size, of what is stored (8-bit weights), in decibels. Higher is closer; about "
        "30 dB is a soft but faithful picture.",
    ),
    "bound": (
        "Resize alone",
        "the PSNR left, over the whole video, if frames are only shrunk to the size at which the network "
        "draws, and enlarged again. A fit at that size cannot do much better.",
    ),
    "constant": (
        "Constant",
        "always the video&rsquo;s most frequent confident answer: the best single guess.",
    ),
    "held": (
        "Last answer held",
        f"the classifier on the original frames 0, {HOLD_EVERY}, {2 * HOLD_EVERY} …, each answer repeated "
        "until the next one.",
    ),
    "bytes": (
        "Bytes read",
        "what a query over all frames fetches from an empty cache: the needed stages of the weights, the "
        "latents and the adapters; for the source route the file.",
    ),
    "cka": (
        "CKA",
        "how alike two sets of features are, from 0 to 1 (debiased linear centred kernel alignment): here "
        "those of decoder stages, and those at the place in the classifier that an adapter leads to.",
    ),
    "fidelity": (
        "Stored fidelity",
        "agreement on the segment&rsquo;s unseen frames, sure or not, as measured when it was stored: what "
        "routes are chosen by.",
    ),
}


def note(key: str) -> str:
    """A mark that leads to a footnote."""
    return f'<sup><a href="#note-{key}">{list(NOTES).index(key) + 1}</a></sup>'


def footnotes() -> str:
    items = (f'<li id="note-{key}"><b>{term}</b>: {text}</li>' for key, (term, text) in NOTES.items())
    return f'<ol class="notes">{"".join(items)}</ol>'
