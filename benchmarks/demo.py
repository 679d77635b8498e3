"""python -m benchmarks.demo [--out demo] [--preset demo]: real footage into an archive, questions, a report.

Writes OUT/{bikes,collage}.mp4, OUT/archive, OUT/figures.json and OUT/report.html. What an earlier run
finished is reused; a run that was cut off is continued by the same command.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import nvpstore
from benchmarks.figures import Check, VideoFigures, check_all, measure
from benchmarks.footage import write_bikes, write_collage
from benchmarks.machine import machine, write_result
from benchmarks.report import Answered, Reported, write_report
from nvpstore.api.output import TextOutput, aligned, cell, plain
from nvpstore.api.progress import ProgressLine, duration
from nvpstore.archive import Archive
from nvpstore.errors import NvpError, SourceError
from nvpstore.ingest.pipeline import IngestProgress
from nvpstore.video.source import digest_file, probe

WRITERS: dict[str, Callable[[Path, int], Path]] = {"bikes": write_bikes, "collage": write_collage}

FRAMES = {"bikes": 100, "collage": 150}
B_FRAMES = 16  # a copied clip ends before frames that refer to later ones; H.264 allows 16 of them

QUERIES = (
    (
        "What can be seen in each video?",
        """\
SELECT v.name, l.label, count(*) AS frames,
       round(max(l.score), 2) AS best_score, round(min(l.ts), 2) AS first_seen
FROM labels l JOIN videos v USING (video_id)
WHERE l.rank = 1 AND l.score > 0.4
GROUP BY v.name, l.label
ORDER BY v.name, first_seen""",
    ),
    (
        "Looking five times a second: what stays in view longest?",
        """\
WITH looks AS (
  SELECT v.name, l.ts, l.label,
         row_number() OVER (PARTITION BY v.name ORDER BY l.ts)
           - row_number() OVER (PARTITION BY v.name, l.label ORDER BY l.ts) AS run
  FROM labels(every := 0.2) l JOIN videos v USING (video_id)
  WHERE l.rank = 1
)
SELECT name, label, round(min(ts), 2) AS since, round(max(ts), 2) AS until, count(*) AS looks
FROM looks
GROUP BY name, label, run
ORDER BY looks DESC, name, since
LIMIT 6""",
    ),
    (
        "What does a query read, and how deep does it decode?",
        "EXPLAIN ANALYZE SELECT ts, label FROM labels WHERE rank = 1 AND ts < 1",
    ),
)


@dataclass
class Clock:
    """Wall seconds of each phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    line = ProgressLine(sys.stderr)
    try:
        checks = run_demo(args, line)
    except NvpError as problem:
        line.say(f"demo: {problem}")
        return 1
    except KeyboardInterrupt:
        line.say("demo: stopped; the same command continues it")
        return 130
    return 1 if args.strict and not all(check.passed for check in checks) else 0


def run_demo(args: argparse.Namespace, line: ProgressLine) -> list[Check]:
    """Footage → ingest → queries → figures → report, all under `args.out`."""
    out, clock = args.out, Clock()
    args.out.mkdir(parents=True, exist_ok=True)
    frames = {"bikes": args.frames_bikes, "collage": args.frames_collage}
    with clock.phase("footage"):
        files = {name: footage(out / f"{name}.mp4", write, frames[name]) for name, write in WRITERS.items()}
    archive = nvpstore.open(out / "archive", create=True)
    refuse_strangers(archive, files, preset=args.preset)
    ids = {}
    for name, file in files.items():
        with clock.phase(f"ingest {name}"):
            ids[name] = ingest(archive, file, args.preset, line)
    with clock.phase("queries"):
        answered = [answer(archive, title, sql) for title, sql in QUERIES]
    with clock.phase("figures"):
        videos = {name: measure(archive, video_id, say=line.say) for name, video_id in ids.items()}
    checks = check_all(videos)
    with clock.phase("report"):
        report = write_report(
            out / "report.html",
            archive,
            Reported(files=files, videos=videos, queries=answered, checks=checks, machine=machine()),
        )
    write_figures(out / "figures.json", args.preset, videos, checks, clock)
    show_checks(checks)
    line.say(
        f"\nreport   {report}\nfigures  {out / 'figures.json'}\nin {duration(sum(clock.seconds.values()))}"
    )
    return checks


def footage(path: Path, write: Callable[[Path, int], Path], frames: int) -> Path:
    """`path` with at most `frames` frames: as an earlier run left it, or written now."""
    try:
        if frames - B_FRAMES <= probe(str(path)).declared_frames <= frames:
            return path
    except SourceError:
        pass  # there is none yet
    # Renamed when whole: a run that was cut off leaves no half file under the name.
    part = path.with_name(f"unfinished-{path.name}")
    write(part, frames)
    return part.replace(path)


def refuse_strangers(archive: Archive, files: dict[str, Path], *, preset: str) -> None:
    """An archive of other footage or another preset would mix into every answer."""
    wanted = {digest_file(str(file))[0][:32] for file in files.values()}
    for video in archive.videos():
        if video["video_id"] not in wanted or video["preset"] != preset:
            raise SystemExit(
                f"{archive.store.root} holds {video['name']} with {video['frames']} frames, preset "
                f"{video['preset']}, of a different demo: remove the folder, or give another --out"
            )


def ingest(archive: Archive, file: Path, preset: str, line: ProgressLine) -> str:
    """Store one file; its id."""

    def progress(step: IngestProgress) -> None:
        line(replace(step, phase=f"{file.name}  {step.phase}"))

    summary = archive.ingest(
        file, tasks=["labels"], preset=preset, tags={"camera": file.stem}, progress=progress
    )
    took = "stored before" if summary.already_stored else f"fitted in {duration(summary.fit_seconds)}"
    line.say(f"{file.name}: {summary.frames} frames, {summary.psnr:.2f} dB, {summary.bpp:.3f} bpp, {took}")
    return summary.video_id


def answer(archive: Archive, title: str, sql: str) -> Answered:
    """Run a query and show it with its rows."""
    start = time.perf_counter()
    result = archive.sql(sql)
    rows = result.fetchall()
    answered = Answered(
        title=title,
        sql=sql,
        columns=tuple(result.columns),
        rows=tuple(tuple(cell(value) for value in row) for row in rows),
        seconds=time.perf_counter() - start,
        is_plan=sql.startswith("EXPLAIN"),
    )
    output = TextOutput()
    output.text(f"\n{title}\n\n{sql}\n")
    shown = [row[0] for row in rows] if answered.is_plan else aligned(answered.columns, answered.rows)
    for text in shown:
        output.text(text)
    output.text(f"({answered.seconds:.2f} s)\n")
    return answered


def write_figures(
    path: Path, preset: str, videos: dict[str, VideoFigures], checks: Sequence[Check], clock: Clock
) -> None:
    write_result(
        path,
        {
            "question": "demo",
            "preset": preset,
            "seconds": clock.seconds,
            "checks": plain(checks),
            "videos": plain(videos),
        },
    )


def show_checks(checks: Sequence[Check]) -> None:
    output = TextOutput()
    table = [[c.check, c.wanted, c.got, "ok" if c.passed else "FAILED"] for c in checks]
    for text in aligned(["check", "wanted", "got", ""], table):
        output.text(text)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--frames-bikes", type=int, default=FRAMES["bikes"])
    parser.add_argument("--frames-collage", type=int, default=FRAMES["collage"])
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a check fails")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
