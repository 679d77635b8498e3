"""python -m benchmarks.economics [--write-doc]: what 10², 10⁴ and 10⁶ hours cost, and when fitting pays.

A model, not a measurement: it takes what the committed JSON says one frame costs (demo, latency, batch,
models, planning), the prices in benchmarks/economics/model.py, and multiplies. Writes
benchmarks/results/economics.json; with --write-doc also the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.economics.model import RESULTS, ROOT, economics, read_inputs
from benchmarks.economics.page import with_tables

DOC = ROOT / "docs/scale.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write-doc", action="store_true", help="fill the tables of docs/scale.md")
    args = parser.parse_args()
    found = economics(read_inputs())
    (RESULTS / "economics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if args.write_doc:
        DOC.write_text(with_tables(DOC.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
