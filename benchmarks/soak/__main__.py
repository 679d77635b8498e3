"""`python -m benchmarks.soak NAME [--seed N] [--scale F] [--s3]`: try for long to break one promise.

Writes benchmarks/results/soak-NAME.json; exits with 1 where a promise was broken, and says how to see it
again. `all` runs everything, each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.soak.outcome import Options, Outcome

# A module a run, named alike but for the protocol, whose own module the simulation is.
RUNS = (
    "protocol", "kill", "fits", "race", "rm", "cli", "flips", "faults", "gets", "media", "load", "hostile",
)  # fmt: skip
MODULES = {"protocol": "exhaustive"}
RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> int:
    args = parse_arguments()
    if args.name == "all":
        return max([_separately(name, args) for name in RUNS])
    options = Options(seed=args.seed, scale=args.scale, s3=args.s3)
    started = time.monotonic()
    outcome: Outcome = importlib.import_module(f"benchmarks.soak.{MODULES.get(args.name, args.name)}").run(
        options
    )
    seconds = time.monotonic() - started
    _write(args, outcome, seconds)
    verdict = f"{len(outcome.broken)} promises broken" if outcome.broken else "nothing broken"
    print(f"{args.name}: {verdict} in {seconds:.0f} s")
    for line in outcome.broken:
        print(f"  {line}\n  again: {_command(args)}", file=sys.stderr)
    return 1 if outcome.broken else 0


def _write(args: argparse.Namespace, outcome: Outcome, seconds: float) -> None:
    from benchmarks.machine import write_result  # torch: not in the process that forks, before it has forked

    result = {
        "question": outcome.question,
        "command": _command(args),
        "seed": args.seed,
        "scale": args.scale,
        "seconds": round(seconds, 1),
        "broken": list(outcome.broken),
        **outcome.figures,
    }
    write_result(args.out / f"soak-{args.name}.json", result)


def _command(args: argparse.Namespace) -> str:
    s3 = " --s3" if args.s3 else ""
    return f"python -m benchmarks.soak {args.name} --seed {args.seed} --scale {args.scale:g}{s3}"


def _separately(name: str, args: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "benchmarks.soak", name, "--seed", str(args.seed)]
    command += ["--scale", str(args.scale), "--out", str(args.out), *(["--s3"] if args.s3 else [])]
    return min(1, abs(subprocess.run(command).returncode))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=(*RUNS, "all"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts that the results are for")
    parser.add_argument("--s3", action="store_true", help="on a SeaweedFS server too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.scale > 0:
        parser.error("--scale must be more than 0")
    return args


if __name__ == "__main__":
    sys.exit(main())
