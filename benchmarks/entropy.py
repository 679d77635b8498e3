"""python -m benchmarks.entropy FOLDER [--out FILE]: what an entropy coder would save, on fitted tensors.

Reads the weights files that `benchmarks.rate_distortion --folder FOLDER` left there. Of each kernel's symbols
(int8): bytes as stored (zstd inside Parquet, the whole file, footer and scales), zstd on the symbols alone,
their own order-0 entropy, and what `constriction`'s range coder makes of them with a quantised Laplace
distribution an output channel (its width, a float16, counted) and with the tensor's own histogram (counted as
16 bits a symbol value that occurs). A coder is worth an addition to the format only where whole files shrink
by more than every reader's trouble with it. Needs `pip install constriction`, which nothing else does.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import constriction
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.machine import ROOT, write_result
from nvpstore.api.output import TextOutput, aligned

LEVELS = 127
WIDTH_BYTES = 2  # of a Laplace distribution
COUNT_BYTES = 2  # of a symbol value that occurs
ZSTD_LEVEL = 19


def main(arguments: Sequence[str] | None = None) -> None:
    args = _arguments(arguments)
    rows = [measured(path) for path in sorted(args.folder.glob("*.weights.parquet"))]
    if not rows:
        raise SystemExit(f"{args.folder}: no *.weights.parquet; run benchmarks.rate_distortion first")
    write_result(args.out, {"question": "what an entropy coder would save", "files": rows})
    output = TextOutput()
    for text in aligned(_HEADS, [_shown(row) for row in rows]):
        output.text(text)


def measured(path: Path) -> dict[str, Any]:
    """Bytes of one weights file by coder; each with the file's other bytes added."""
    table = pq.read_table(path).to_pylist()
    kernels = [_symbols(row) for row in table if row["encoding"] == "int8-channel"]
    coded = {name: sum(code(kernel) for kernel in kernels) for name, code in CODERS.items()}
    stored = path.stat().st_size
    rest = stored - coded["zstd"]  # scales, biases, names and the footer stay as they are
    return {
        "file": path.name.removesuffix(".weights.parquet"),
        "symbols": sum(kernel.size for kernel in kernels),
        "bytes_stored": stored,
        "bytes_symbols": coded,
        "bytes_file": {name: rest + size for name, size in coded.items()},
        "saved": {name: 1 - (rest + size) / stored for name, size in coded.items()},
    }


def _symbols(row: Mapping[str, Any]) -> NDArray[np.int32]:
    """[output channels, values]"""
    q = np.frombuffer(row["payload"], np.int8).astype(np.int32)
    return q.reshape(row["shape"][0], -1)


def _zstd(kernel: NDArray[np.int32]) -> float:
    return len(pa.Codec("zstd", ZSTD_LEVEL).compress(kernel.astype(np.int8).tobytes(), asbytes=True))


def _entropy(kernel: NDArray[np.int32]) -> float:
    counts = np.unique(kernel, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(counts * np.log2(share)).sum() / 8)


def _laplace(kernel: NDArray[np.int32]) -> float:
    encoder = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.QuantizedLaplace(-LEVELS, LEVELS)
    widths = np.maximum(np.abs(kernel).mean(axis=1), 0.05).astype(np.float16).astype(np.float64)
    each = np.repeat(widths, kernel.shape[1])
    encoder.encode(kernel.ravel(), family, np.zeros_like(each), each)
    return encoder.get_compressed().nbytes + WIDTH_BYTES * len(widths)


def _histogram(kernel: NDArray[np.int32]) -> float:
    values, counts = np.unique(kernel, return_counts=True)
    encoder = constriction.stream.queue.RangeEncoder()
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
    encoder.encode(np.searchsorted(values, kernel.ravel()).astype(np.int32), model)
    return encoder.get_compressed().nbytes + COUNT_BYTES * len(values)


CODERS = {
    "zstd": _zstd,
    "order-0 entropy": _entropy,
    "range, Laplace": _laplace,
    "range, histogram": _histogram,
}

_HEADS = ("file", "symbols", "stored", *(f"with {name}" for name in CODERS), "saved at most")


def _shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    real = [share for name, share in row["saved"].items() if name.startswith("range")]
    return (
        row["file"],
        str(row["symbols"]),
        str(row["bytes_stored"]),
        *(f"{row['bytes_file'][name]:.0f}" for name in CODERS),
        f"{100 * max(real):.1f} %",
    )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.entropy", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/entropy.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
