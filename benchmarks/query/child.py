"""A process that asks an archive some queries: orders as JSON on stdin, what each took as JSON on stdout.

Imports no torch by itself: whether queries do is one of the questions.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nvpstore
from nvpstore.archive import Archive

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """`loaded`: built-in tasks whose backbones are loaded before the first query; `streamed`: rows are
    taken batch by batch and dropped, not kept to the last."""

    root: str
    queries: tuple[str, ...]
    loaded: tuple[str, ...] = ()
    streamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """One query. `seconds` from its text to its last row; memory in bytes, before it and at its peak.

    `digest` tells whether two queries gave the same rows; it and the counts are None of streamed ones.
    """

    seconds: float
    rows: int
    digest: str | None
    decoded_frames: int | None
    answered_frames: int | None
    fetched_segments: int | None
    resident_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`open_seconds` until the index is up to date; `torch`: whether it was imported in the end."""

    open_seconds: float
    torch: bool
    took: tuple[Took, ...]


def ask_in_process(orders: Orders, **variables: str) -> Report:
    """`orders` carried out by a new process, of whose NVP_… variables only `variables` are set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NVP_")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.query.child"],
        input=json.dumps(asdict(orders)),
        cwd=ROOT,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"a process that asked {orders.queries} ended with {done.returncode}")
    return read_report(json.loads(done.stdout))


def read_report(document: Mapping[str, object]) -> Report:
    """A Report out of its JSON."""
    took = document["took"]
    assert isinstance(took, list), "written by main"
    return Report(**{**document, "took": tuple(Took(**one) for one in took)})  # type: ignore[arg-type]


def main() -> None:
    document = json.loads(sys.stdin.read())
    orders = Orders(
        **{**document, "queries": tuple(document["queries"]), "loaded": tuple(document["loaded"])}
    )
    began = time.perf_counter()
    archive = nvpstore.open(orders.root)
    archive.catalog.snapshot()
    opened = time.perf_counter() - began
    load_tasks(orders.loaded)
    took = tuple(ask(archive, sql, streamed=orders.streamed) for sql in orders.queries)
    report = Report(open_seconds=opened, torch="torch" in sys.modules, took=took)
    sys.stdout.write(json.dumps(asdict(report)))


def load_tasks(names: Sequence[str]) -> None:
    """Backbones as queries find them loaded, and what queries that decode import."""
    if names:
        import nvpstore.query.operators  # noqa: F401
        from nvpstore.tasks.registry import builtin_spec, load

        for name in names:
            load(builtin_spec(name))


def ask(archive: Archive, sql: str, *, streamed: bool) -> Took:
    resident = start_of_peak()
    began = time.perf_counter()
    if streamed:
        count = sum(batch.num_rows for batch in archive.stream(sql))
        seconds = time.perf_counter() - began
        return Took(
            seconds=seconds,
            rows=count,
            digest=None,
            decoded_frames=None,
            answered_frames=None,
            fetched_segments=None,
            resident_bytes=resident,
            peak_bytes=memory_bytes("VmHWM"),
        )
    result = archive.sql(sql)
    rows = result.fetchall()
    seconds, peak = time.perf_counter() - began, memory_bytes("VmHWM")
    measured = result.measured
    assert measured is not None, "the query ran"
    return Took(
        seconds=seconds,
        rows=len(rows),
        digest=hashlib.sha256(repr(rows).encode()).hexdigest(),
        decoded_frames=measured.frames,
        answered_frames=measured.answered_frames,
        fetched_segments=measured.fetches,
        resident_bytes=resident,
        peak_bytes=peak,
    )


def start_of_peak() -> int:
    """Resident memory now, from which on the peak counts anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_bytes("VmRSS")


def memory_bytes(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
