"""What the demo says about a stored video, computed from SQL answers alone.

Everything is of rank 1. A frame is *confident* where the source route's score is at least CONFIDENT, and
*unseen* where no task term and no adapter was trained on it.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nvpstore.archive import Archive
from nvpstore.ingest.units import is_measured
from nvpstore.tasks.heads import CONFIDENT

HOLD_EVERY = 25  # frames that "last answer held" repeats an answer for
TIMED_RUNS = 3

# How each route is asked for; "default" is what a query gets that asks for none.
ROUTES = {"default": "labels", "pixel": "labels(route := 'pixel')", "source": "labels(route := 'source')"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One answer a frame, in frame order. `route` is what the rows say."""

    ts: tuple[float, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    route: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one full-video query takes. `bytes` as fetched cold, with the adapter; `gflops` of one frame.

    `ms` a frame: wall time of the whole query, medians of TIMED_RUNS after a first one, lowest and
    highest beside it.
    """

    sql: str
    bytes: int
    share_of_full_decode: float
    share_of_source: float
    gflops: float
    ms: float
    ms_lowest: float
    ms_highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteInUse:
    """The route by which a query's answers for some segments come. `cka` and `fidelity` a segment."""

    route: str
    stages: tuple[str, ...]
    cut: str
    scope: str
    segments: tuple[int, ...]
    frames: int
    cka: tuple[float | None, ...]
    fidelity: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Share of frames with the source's answer, and of how many; None where there is no such frame."""

    share: float | None
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreements:
    """One predictor against the source. The first is the headline."""

    unseen_confident: Agreement
    unseen: Agreement
    confident: Agreement
    all_frames: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFigures:
    """All figures of one video. `facts` is its row of `videos`; `error_ratio` the default route's share of
    the better baseline's errors on unseen confident frames, None where that baseline makes none."""

    facts: dict[str, Any]
    answers: dict[str, Answers]
    costs: dict[str, Cost]
    routes_in_use: tuple[RouteInUse, ...]
    agreements: dict[str, Agreements]
    constant_answer: str | None
    error_ratio: float | None
    labels: int
    labels_confident: int
    confident_frames: int
    frame_psnr: tuple[float, ...]
    segment_starts: tuple[int, ...]

    @property
    def better_baseline(self) -> float | None:
        shares = [self.agreements[name].unseen_confident.share for name in ("constant", "held")]
        return max((s for s in shares if s is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something the demo has to show. `got` in words."""

    check: str
    wanted: str
    got: str
    passed: bool


# ---------------------------------------------------------------- measuring


def measure(archive: Archive, video_id: str, *, say: Callable[[str], None]) -> VideoFigures:
    """Ask the archive for everything about one video, by every route."""
    (facts,) = (video for video in archive.videos() if video["video_id"] == video_id)
    answers, costs = {}, {}
    in_use: tuple[RouteInUse, ...] = ()
    for name, table in ROUTES.items():
        say(f"{facts['name']}: all frames by the {name} route")
        answers[name], costs[name], plan = ask(archive, video_id, table)
        if name == "default":
            in_use = routes_in_use(archive, video_id, plan)
    segments = archive.catalog.snapshot().segments(video_id)
    return VideoFigures(
        facts=facts,
        answers=answers,
        costs=costs,
        routes_in_use=in_use,
        frame_psnr=tuple(float(value) for segment in segments for value in segment.frame_psnr),
        segment_starts=tuple(segment.start_frame for segment in segments),
        **compare(answers),
    )


def ask(archive: Archive, video_id: str, table: str) -> tuple[Answers, Cost, dict[str, Any]]:
    """The answers for all frames, what they cost, and the plan as JSON values."""
    sql = f"SELECT ts, label, score, route FROM {table} WHERE rank = 1 AND video_id = ? ORDER BY frame"
    result = archive.sql(sql, params=[video_id])
    rows, plan = result.fetchall(), result.explain_dict()
    seconds, computing = [], without_answers(archive)
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        computing.sql(sql, params=[video_id]).fetchall()
        seconds.append(time.perf_counter() - start)
    total = plan["total"]
    each = 1000 / len(rows)
    cost = Cost(
        sql=sql,
        bytes=total["bytes"],
        share_of_full_decode=total["bytes"] / total["full_bytes"],
        share_of_source=total["bytes"] / total["source_bytes"],
        gflops=total["gflops"] / len(rows),
        ms=statistics.median(seconds) * each,
        ms_lowest=min(seconds) * each,
        ms_highest=max(seconds) * each,
    )
    ts, labels, scores, route = zip(*rows, strict=True)
    return Answers(ts=ts, labels=labels, scores=scores, route=route), cost, plan


def without_answers(archive: Archive) -> Archive:
    """The archive, whose queries compute what they are asked, each time."""
    return Archive(archive.store, replace(archive.settings, answers="off"))


def routes_in_use(archive: Archive, video_id: str, plan: dict[str, Any]) -> tuple[RouteInUse, ...]:
    """The routes that a plan chose, with what the `routes` view says of them."""
    known = {
        (segment, route, cut, tuple(stages)): (cka, fidelity)
        for segment, route, cut, stages, cka, fidelity in archive.sql(
            "SELECT segment, route, cut, stages, cka, fidelity FROM routes WHERE video_id = ?",
            params=[video_id],
        ).fetchall()
    }
    found = []
    for part in plan["scans"][0]["parts"]:
        # A plan names the first six; the demo's videos have fewer.
        segments = tuple(place["segment"] for place in part["first_segments"])
        stages = tuple(part["stages"])
        rows = [known[segment, part["route"], part["cut"], stages] for segment in segments]
        found.append(
            RouteInUse(
                route=part["route"],
                stages=stages,
                cut=part["cut"],
                scope=part["scope"],
                segments=segments,
                frames=part["frames"],
                cka=tuple(cka for cka, _ in rows),
                fidelity=tuple(fidelity for _, fidelity in rows),
            )
        )
    return tuple(found)


# ---------------------------------------------------------------- comparing


def compare(answers: dict[str, Answers]) -> dict[str, Any]:
    """The fields of VideoFigures that follow from the answers."""
    source = answers["source"].labels
    confident = [score >= CONFIDENT for score in answers["source"].scores]
    sure = [label for label, is_sure in zip(source, confident, strict=True) if is_sure]
    constant = Counter(sure).most_common(1)[0][0] if sure else None
    predictions = {
        "default": answers["default"].labels,
        "pixel": answers["pixel"].labels,
        "constant": [constant] * len(source),
        "held": [source[frame - frame % HOLD_EVERY] for frame in range(len(source))],
    }
    agreements = {name: agree(found, source, confident) for name, found in predictions.items()}
    return {
        "agreements": agreements,
        "constant_answer": constant,
        "error_ratio": error_ratio(agreements),
        "labels": len(set(source)),
        "labels_confident": len(set(sure)),
        "confident_frames": len(sure),
    }


def agree(found: Sequence[str | None], source: Sequence[str], confident: Sequence[bool]) -> Agreements:
    """`found` against the source's answers, on the four sets of frames."""
    frames = range(len(source))
    unseen = is_measured(torch.arange(len(source))).nonzero().flatten().tolist()

    def over(chosen: Sequence[int]) -> Agreement:
        same = sum(found[frame] == source[frame] for frame in chosen)
        return Agreement(share=same / len(chosen) if chosen else None, frames=len(chosen))

    return Agreements(
        unseen_confident=over([frame for frame in unseen if confident[frame]]),
        unseen=over(unseen),
        confident=over([frame for frame in frames if confident[frame]]),
        all_frames=over(frames),
    )


def error_ratio(agreements: dict[str, Agreements]) -> float | None:
    """(1 − agreement) / (1 − the better baseline's), on unseen confident frames."""
    shares = [agreements[name].unseen_confident.share for name in ("default", "constant", "held")]
    if None in shares:
        return None
    ours, constant, held = (share for share in shares if share is not None)
    left = 1 - max(constant, held)
    return (1 - ours) / left if left > 0 else None


# ---------------------------------------------------------------- checks


def check_all(videos: dict[str, VideoFigures]) -> list[Check]:
    """What the demo has to show, for `bikes` and `collage`."""
    collage = videos["collage"]
    checks = [
        _at_least("bikes: PSNR", videos["bikes"].facts["psnr"], 28.5, " dB"),
        _at_least("collage: PSNR", collage.facts["psnr"], 22.0, " dB"),
        _at_least("collage: labels", collage.labels_confident, 10, " on confident frames"),
        _at_least("collage: confident frames", collage.confident_frames, 60, ""),
    ]
    for name, video in videos.items():
        checks += _route_checks(name, video)
    return checks


def _route_checks(name: str, video: VideoFigures) -> list[Check]:
    routes = Counter(video.answers["default"].route)
    agreement = video.agreements["default"].unseen_confident.share
    ratio = video.error_ratio
    return [
        Check(
            check=f"{name}: route of a query that names none",
            wanted="adapter on every frame",
            got=", ".join(f"{route} on {frames}" for route, frames in routes.items()),
            passed=set(routes) == {"adapter"},
        ),
        _at_least(f"{name}: agreement, unseen confident frames", agreement, 0.90, ""),
        Check(
            check=f"{name}: errors against the better baseline's",
            wanted="at most 0.50",
            # A baseline without errors can only be equalled, by no errors.
            got="none to compare" if ratio is None else f"{ratio:.2f}",
            passed=ratio <= 0.5 if ratio is not None else agreement == 1,
        ),
    ]


def _at_least(check: str, got: float | None, wanted: float, unit: str) -> Check:
    form = "d" if isinstance(wanted, int) else ".2f"
    shown = "no frames" if got is None else f"{got:{form}}{unit}"
    return Check(
        check=check, wanted=f"at least {wanted:{form}}", got=shown, passed=got is not None and got >= wanted
    )
