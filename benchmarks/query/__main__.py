"""python -m benchmarks.query [PART …] [--repeats N] [--out FILE]: what the query engine saves, and takes.

touched    how many segments `ts BETWEEN 10 AND 11` and an unpredicated `LIMIT 5` touch, counted
again      a query in a new process, its answers stored, against the process that computed them
memory     the most memory of queries under NVP_MEMORY_LIMIT=64MiB
linear     cost against the frames that a query touches
baselines  sharing and stored answers, against decoding for each query, and against cached rows alone
sharing    the results of benchmarks.sharing
planning   those of benchmarks.planning, on an index of a million segments

The last two take several minutes each, and run only when they are named; the others together take about 20
minutes on two free cores. Figures are medians with the least
and the most. Only the parts that ran are written.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import planning, sharing
from benchmarks.drawn import SEED
from benchmarks.machine import write_result
from benchmarks.query.outcome import Line
from nvpstore.api.output import TextOutput, aligned

RESULTS = Path(__file__).resolve().parents[1] / "results"
DEFAULT_PARTS = ("touched", "again", "memory", "linear", "baselines")
LONG_PARTS = ("sharing", "planning")
PLANNED_SEGMENTS = 1_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    results: dict[str, dict[str, Any]] = {}
    for part in args.parts:
        results[part] = run_part(part, args.repeats)
        # Each part is written when it is done: a later one may fail.
        write_result(args.out, {"question": "query", "seed": SEED, "repeats": args.repeats, **results})
    output = TextOutput()
    for text in table([line for part, result in results.items() for line in lines_of(part, result)]):
        output.text(text)


def run_part(part: str, repeats: int) -> dict[str, Any]:
    if part == "sharing":
        found = sharing.measure(argparse.Namespace(repeats=repeats, segments=2, frames=64, threads=2))
    elif part == "planning":
        with tempfile.TemporaryDirectory() as folder:
            found = planning.run_size(Path(folder), PLANNED_SEGMENTS, repeats)
    else:
        found = importlib.import_module(f"benchmarks.query.{part}").measure(repeats)
    # More than the machine's cores: others were waiting too.
    return {**found, "load_average": os.getloadavg()[0]}


def lines_of(part: str, result: Mapping[str, Any]) -> list[Line]:
    if part == "sharing":
        return [Line(part=part, what="", found=text) for text in sharing.summary(result).splitlines()]
    if part == "planning":
        return [
            Line(part=part, what=name, found=f"{row['seconds']:.3f} s, {row['steps']} steps")
            for name, row in result["queries"].items()
        ]
    found: list[Line] = importlib.import_module(f"benchmarks.query.{part}").lines(result)
    return found


def table(lines: Sequence[Line]) -> list[str]:
    """As text, in columns."""
    return list(aligned(("part", "what", "found", "target", ""), [line.cells() for line in lines]))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.query",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = (*DEFAULT_PARTS, *LONG_PARTS)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(every)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "query.json")
    args = parser.parse_args(arguments)
    args.parts = args.parts or list(DEFAULT_PARTS)
    if unknown := sorted(set(args.parts) - set(every)):
        parser.error(f"no part {', '.join(unknown)}: there are {', '.join(every)}")
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    return args


if __name__ == "__main__":
    main()
