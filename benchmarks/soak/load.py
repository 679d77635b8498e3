"""`python -m benchmarks.soak load`: 64 query clients on one server for a minute, three times.

Half of the clients ask one of a few queries again and again, half ask with predicates of their own each time.
Every answer is compared with the rows that a plain table gives. Once as a server is by itself (answers are
kept and read, what runs at the same moment is shared), once every query needs decoding and shares it
(NVP_ANSWERS=off), once every query decodes for itself (NVP_SHARING=off too). No server error, no wrong row
and no answer cut short may happen; requests that are refused for coming too often (429) are counted apart,
and the server's memory may not grow between the first third and the end.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import nvpstore
from benchmarks.drawn import Shape, draw_archive
from benchmarks.soak.outcome import Options, Outcome
from nvpstore.config import load_settings

CLIENTS, SECONDS = 64, 60.0
SEGMENTS, FRAMES = 8, 50
REPEATED = (
    "SELECT label, count(*) AS n FROM labels WHERE rank = 1 GROUP BY label ORDER BY label",
    "SELECT frame, label, rank FROM labels WHERE ts < 4 AND rank <= 2 ORDER BY frame, rank",
    "SELECT count(*) AS n FROM labels WHERE rank = 1 AND ts BETWEEN 3 AND 9",
)
MODES: dict[str, dict[str, str]] = {
    "answers_kept": {"NVP_ANSWERS": "on"},
    "decodes_shared": {"NVP_ANSWERS": "off"},
    "decodes_alone": {"NVP_ANSWERS": "off", "NVP_SHARING": "off"},
}
GROWN_SHARE = 0.25  # of the memory after a third of the time
STARTS_WITHIN_SECONDS = 120.0
MOST_BROKEN = 20

Rows = list[dict[str, Any]]


@dataclass(slots=True)
class Tally:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: int, seconds: float, wrong: str | None) -> None:
        with self.lock:
            self.statuses[status] += 1
            if status == 200:
                self.seconds.append(seconds)
            if wrong is not None:
                self.broken.append(wrong)


def run(options: Options) -> Outcome:
    seconds = max(3.0, SECONDS * options.scale)
    clients = options.count(CLIENTS) if options.scale < 1 else CLIENTS
    figures: dict[str, Any] = {"clients": clients, "seconds_each": seconds}
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-load-") as folder:
        root = draw(Path(folder))
        truth = table_of(root, Path(folder))
        for mode in MODES:
            found, wrong = loaded(root, Path(folder) / mode, truth, mode, clients, seconds, options.seed)
            figures[mode] = found
            broken += wrong
    return Outcome(
        question="does a server under many clients ever fail, answer wrongly, or grow?",
        figures=figures,
        broken=tuple(broken[:MOST_BROKEN]),
    )


def draw(folder: Path) -> str:
    """An archive whose networks are drawn: answers mean nothing, and are the same each time."""
    root = str(folder / "archive")
    shape = Shape(
        preset="micro",
        height=64,
        width=96,
        segments=SEGMENTS,
        frames=FRAMES,
        tasks={"labels": ("1", "blocks.14")},
        one_decoder=True,
    )
    draw_archive(root, shape)
    return root


def table_of(root: str, folder: Path) -> Rows:
    """All rows of the task, from the library alone."""
    settings = load_settings({"NVP_CACHE": str(folder / "cache"), "NVP_ANSWERS": "off"})
    rows = nvpstore.open(root, settings=settings).sql("SELECT frame, ts, rank, label FROM labels").arrow()
    return list(rows.to_pylist())


def loaded(
    root: str, folder: Path, truth: Rows, mode: str, clients: int, seconds: float, seed: int
) -> tuple[dict[str, Any], list[str]]:
    tally = Tally()
    with served(root, folder, MODES[mode]) as (url, pid):
        ask(url, REPEATED[0])  # what is loaded once is loaded
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=client, args=(url, i, until, truth, tally, seed)) for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        memory = watched(pid, until)
        for thread in threads:
            thread.join()
    broken = [*tally.broken]
    broken += [f"{mode}: {n} × status {s}" for s, n in tally.statuses.items() if s not in (200, 429)]
    early, late = memory[len(memory) // 3], max(memory[-3:])
    if late > early * (1 + GROWN_SHARE):
        broken.append(f"{mode}: the server grew from {early} to {late} bytes")
    return figures_of(tally, seconds, early, late), broken


def figures_of(tally: Tally, seconds: float, early: int, late: int) -> dict[str, Any]:
    p50, p95, p99 = (float(np.percentile(tally.seconds, p)) for p in (50, 95, 99))
    return {
        "answered": tally.statuses[200],
        "too_often": tally.statuses[429],
        "others": sum(n for status, n in tally.statuses.items() if status not in (200, 429)),
        "a_second": tally.statuses[200] / seconds,
        "p50_seconds": p50,
        "p95_seconds": p95,
        "p99_seconds": p99,
        "resident_bytes_after_a_third": early,
        "resident_bytes_at_the_end": late,
    }


# ---------------------------------------------------------------- clients


def client(url: str, number: int, until: float, truth: Rows, tally: Tally, seed: int) -> None:
    chance = random.Random(f"{seed} {number}")
    while time.monotonic() < until:
        sql, expected = asked(chance, truth, repeated=number % 2 == 0)
        began = time.monotonic()
        status, rows = ask(url, sql)
        wrong = None
        if status == 200 and rows != expected:
            wrong = f"wrong rows: {sql}: {str(rows)[:200]}, expected {str(expected)[:200]}"
        tally.add(status, time.monotonic() - began, wrong)
        if status == 429:
            time.sleep(0.2)


def asked(chance: random.Random, truth: Rows, *, repeated: bool) -> tuple[str, Rows]:
    """A query and its rows."""
    if repeated:
        number = chance.randrange(len(REPEATED))
        return REPEATED[number], _repeated(number, truth)
    start = chance.uniform(0, 12)
    stop, rank = start + chance.uniform(0.1, 3), chance.randint(1, 3)
    sql = (
        f"SELECT frame, label FROM labels WHERE ts >= {start:.4f} AND ts < {stop:.4f} AND rank = {rank}"
        " ORDER BY frame"
    )
    low, high = float(f"{start:.4f}"), float(f"{stop:.4f}")
    found = [row for row in truth if low <= row["ts"] < high and row["rank"] == rank]
    return sql, [{"frame": r["frame"], "label": r["label"]} for r in sorted(found, key=lambda r: r["frame"])]


def _repeated(number: int, truth: Rows) -> Rows:
    first = [row for row in truth if row["rank"] == 1]
    if number == 0:
        counts = Counter(row["label"] for row in first)
        return [{"label": label, "n": counts[label]} for label in sorted(counts)]
    if number == 1:
        some = sorted(
            (row for row in truth if row["ts"] < 4 and row["rank"] <= 2),
            key=lambda r: (r["frame"], r["rank"]),
        )
        return [{"frame": r["frame"], "label": r["label"], "rank": r["rank"]} for r in some]
    return [{"n": sum(3 <= row["ts"] <= 9 for row in first)}]


def ask(url: str, sql: str) -> tuple[int, Rows]:
    """(status, rows)."""
    body = json.dumps({"sql": sql}).encode()
    request = urllib.request.Request(
        f"{url}/v1/query", body, {"Content-Type": "application/json", "Accept": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            rows: Rows = json.load(answer)["rows"]
            return answer.status, rows
    except urllib.error.HTTPError as error:
        error.read()
        return error.code, []


# ---------------------------------------------------------------- the server


@contextmanager
def served(root: str, folder: Path, extra: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """A server of its own process: (its address, its process)."""
    environment = {
        **os.environ,
        "NVP_STATE": str(folder / "state"),
        "NVP_CACHE": str(folder / "cache"),
        "NVP_RATE_LIMIT": "1000000/minute",
        "NVP_QUERIES_AT_ONCE": str(CLIENTS),
        **extra,
    }
    command = [sys.executable, "-m", "nvpstore.api.cli", "--archive", root, "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workers", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield address_of(process), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def address_of(process: subprocess.Popen[str]) -> str:
    """Where a server that was started with its output piped says that it serves."""
    assert process.stdout is not None, "it is a pipe"
    until = time.monotonic() + STARTS_WITHIN_SECONDS
    for line in process.stdout:
        if line.startswith("serving "):
            return line.rpartition(" at ")[2].strip()
        if time.monotonic() > until:
            break
    raise SystemExit("the server did not start")


def watched(pid: int, until: float) -> Sequence[int]:
    """The server's resident memory, a few times a second."""
    found = [resident_bytes(pid)]
    while time.monotonic() < until:
        time.sleep(0.25)
        found.append(resident_bytes(pid))
    return found


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
