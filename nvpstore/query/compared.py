"""How steady a task's answers are, without and with its stabilizer: two queries, counted alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import pyarrow as pa

from nvpstore.steadiness import Run, steadiness

Which = Literal["plain", "stabilized"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SteadyAnswers:
    """First labels over `frames` and `seconds` within segments: how often they change, and the share of
    frames on which they are the plain ones."""

    answers: Which
    frames: int
    seconds: float
    flips: int
    flips_per_second: float
    agreement: float


def compare_answers(
    ask: Callable[[str], pa.Table],
    table: str,
    asked: Sequence[tuple[Which, Sequence[str]]],
    *,
    videos: str | None,
) -> list[SteadyAnswers]:
    """A row for each of `asked` (what it is, and its options); the first one's are the plain answers.

    Raises QueryError for tables without ranks and labels, and for a wrong predicate `videos`.
    """
    found = [ask(_sql(table, options, videos)) for _, options in asked]
    plain = _labels(found[0])
    rows = []
    for (which, _), answers in zip(asked, found, strict=True):
        labels = _labels(answers)
        figures = steadiness(
            [Run(ts=ts, labels=said, truth=plain[key][1]) for key, (ts, said) in labels.items()]
        )
        rows.append(
            SteadyAnswers(
                answers=which,
                frames=figures.frames,
                seconds=figures.seconds,
                flips=figures.flips,
                flips_per_second=figures.flips_per_second,
                agreement=figures.agreement or 0.0,
            )
        )
    return rows


def _sql(table: str, options: Sequence[str], videos: str | None) -> str:
    # On lines of its own, so that a comment in it ends before our parenthesis.
    among = "" if videos is None else f" AND video_id IN (SELECT video_id FROM videos WHERE (\n{videos}\n))"
    return (
        f"SELECT video_id, segment, ts, label FROM {table}({', '.join(options)}) WHERE rank = 1{among} "
        "ORDER BY video_id, segment, ts"
    )


def _labels(table: pa.Table) -> dict[tuple[str, int], tuple[list[float], list[str]]]:
    """By segment the times and labels of its frames."""
    rows = table.to_pylist()
    return {
        key: ([row["ts"] for row in some], [row["label"] for row in some])
        for key, group in groupby(rows, key=lambda row: (row["video_id"], row["segment"]))
        if (some := list(group))
    }
