"""The same query again, in a new process, with its answers stored; then one that asks for more.

Each side is a process of its own, its imports, the opening of the archive and (where it computes) the
loading of the backbone apart: what is compared runs from the query's text to its last row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drawn import Shape, draw_archive
from benchmarks.query.child import Orders, Report, ask_in_process
from benchmarks.query.counting import settings_in
from benchmarks.query.outcome import Line, shown, spread
from nvpstore.archive import open as open_archive

SECONDS = (1, 10, 60, 300)  # of video that a query asks about; then twice as much
FRAMES, SEGMENTS = 125, 120  # of 5 s each
SQL = "SELECT ts, label, score FROM labels WHERE ts < {} AND rank <= 3 ORDER BY ts, rank"
LEAST_RATIO = 50


def measure(repeats: int) -> dict[str, Any]:
    """One row a length; answers are dropped before each round."""
    shape = Shape(
        preset="demo",
        height=272,
        width=640,
        segments=SEGMENTS,
        frames=FRAMES,
        tasks={"labels": ("1", "blocks.11")},
        one_decoder=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "archive", Path(folder) / "cache"
        draw_archive(str(root), shape)
        return {"lengths": [measure_length(root, cache, seconds, repeats) for seconds in SECONDS]}


def measure_length(root: Path, cache: Path, seconds: int, repeats: int) -> dict[str, Any]:
    first, again, more = [], [], []
    for _ in range(repeats):
        open_archive(root, settings=settings_in(cache)).drop_results()
        first.append(_asked(root, cache, SQL.format(seconds), loaded=("labels",)))
        # Twice in this process: the second shows what is due to a process's first query.
        again.append(_asked(root, cache, SQL.format(seconds), SQL.format(seconds)))
        more.append(_asked(root, cache, SQL.format(2 * seconds), loaded=("labels",)))
    return row_of(seconds, first, again, more)


def _asked(root: Path, cache: Path, *queries: str, loaded: tuple[str, ...] = ()) -> Report:
    return ask_in_process(Orders(root=str(root), queries=queries, loaded=loaded), NVP_CACHE=str(cache))


def row_of(
    seconds: int, first: Sequence[Report], again: Sequence[Report], more: Sequence[Report]
) -> dict[str, Any]:
    """Rounds of the query, the same query, and the one that asks for twice as much."""
    return {
        "video_seconds": seconds,
        "sql": SQL.format(seconds),
        "computed_frames": counted(first),
        "rows_equal": all(
            one.digest == round_.took[0].digest
            for round_, then in zip(first, again, strict=True)
            for one in then.took
        ),
        "first_seconds": spread([report.took[0].seconds for report in first]),
        "again_seconds": spread([report.took[0].seconds for report in again]),
        "again_in_the_same_process_seconds": spread([report.took[1].seconds for report in again]),
        "again_open_seconds": spread([report.open_seconds for report in again]),
        "again_decoded_frames": counted(again),
        "again_imports_torch": any(report.torch for report in again),
        "ratio": spread([a.took[0].seconds / b.took[0].seconds for a, b in zip(first, again, strict=True)]),
        "twice_as_much": {
            "decoded_frames": counted(more),
            "answered_frames": [report.took[0].answered_frames for report in more],
            "seconds": spread([report.took[0].seconds for report in more]),
        },
    }


def counted(reports: Sequence[Report]) -> list[int | None]:
    """Frames that each round's first query decoded."""
    return [report.took[0].decoded_frames for report in reports]


def lines(result: Mapping[str, Any]) -> list[Line]:
    return [line for row in result["lengths"] for line in _lines(row)]


def _lines(row: Mapping[str, Any]) -> list[Line]:
    what = f"{row['video_seconds']} s of video"
    new, more = set(row["computed_frames"]), row["twice_as_much"]
    return [
        Line(
            part="again",
            what=f"{what}, again",
            found=f"{shown(row['ratio'], 'x')} sooner: {shown(row['first_seconds'], ' s')}, then"
            f" {shown(row['again_seconds'], ' s')}",
            target=f"{LEAST_RATIO}x",
            met=row["ratio"]["median"] >= LEAST_RATIO,
        ),
        Line(
            part="again",
            what=f"{what}, again",
            found=f"{max(row['again_decoded_frames'])} frames decoded,"
            f" torch {'' if row['again_imports_torch'] else 'not '}imported,"
            f" rows {'equal' if row['rows_equal'] else 'DIFFER'}",
            target="none, none, equal",
            met=not any(row["again_decoded_frames"]) and not row["again_imports_torch"] and row["rows_equal"],
        ),
        Line(
            part="again",
            what=f"{what}, twice as much",
            found=f"{max(more['decoded_frames'])} frames decoded, {min(more['answered_frames'])} read",
            target="only new ones",
            met=set(more["decoded_frames"]) == new == set(more["answered_frames"]),
        ),
    ]
