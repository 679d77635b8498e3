"""python -m benchmarks.batch [--archive demo/archive] [--parts planning workers linear loader kept]

planning  1,000,000 simulated segments: plan, dry run and division among 64 workers, in a process of its own
workers   the same batch by one and by two processes of one thread each
linear    a batch's time against its frames, one process, one thread
loader    an epoch of a DataLoader over features, against PyAV and the backbone's stem on the same frames
kept      bytes a frame of what may be kept: weights, answers, features

A part that is in the JSON is not run again: name it with --parts to measure it anew. `workers` and `linear`
answer from originals (the whole backbone on each frame of real clips), `loader` and `kept` from the fitted
videos of the demo's archive, of which a copy is used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.batch import loader, planned, spread
from benchmarks.machine import write_result

RESULT = Path(__file__).parents[1] / "results/batch.json"
PARTS: Mapping[str, Callable[[Path, Path], dict[str, Any]]] = {
    "planning": lambda _archive, folder: planned.measure_all(folder),
    "workers": lambda _archive, folder: spread.workers(folder),
    "linear": lambda _archive, folder: spread.linear(folder),
    "loader": loader.epochs,
    "kept": loader.kept,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--archive", type=Path, default=Path("demo/archive"))
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS))
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    # Its own settings: a caller's cache or archive would be measured too.
    for variable in [name for name in os.environ if name.startswith("NVP_")]:
        del os.environ[variable]
    result = _known(args.out)
    for part in args.parts or [name for name in PARTS if name not in result]:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder, "demo")
            if part in ("loader", "kept"):
                shutil.copytree(args.archive, archive)
            sys.stderr.write(f"{part}\n")
            result[part] = PARTS[part](archive, Path(folder)) | {"load_average": os.getloadavg()[0]}
        write_result(args.out, {"question": "batch", "seed": 0, **result})


def _known(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: said[name] for name in PARTS if name in said}


if __name__ == "__main__":
    main()
