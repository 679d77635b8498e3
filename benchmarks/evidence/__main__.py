"""python -m benchmarks.evidence [--subset]: benchmarks/results/report.html, from every committed result.

With --subset parts of the cheap ones are run first on this machine (about half an hour on two cores, after
`make demo`); the page shows them beside the committed full runs, marked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.evidence.page import page
from benchmarks.evidence.results import FOLDER, read_results, read_subset
from benchmarks.evidence.subset import run_subset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--subset", action="store_true", help="run the seeded subset first")
    parser.add_argument("--out", type=Path, default=FOLDER / "report.html")
    args = parser.parse_args()
    failed = run_subset(FOLDER) if args.subset else []
    args.out.write_text(page(read_results(), read_subset()), encoding="utf-8")
    sys.stdout.write(f"{args.out}\n")
    if failed:
        sys.exit(f"not run to their end: {', '.join(failed)}; the page has the committed results alone")


if __name__ == "__main__":
    main()
