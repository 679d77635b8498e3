"""`python -m benchmarks.soak cli`: 20 `nvp sql` while one process ingests and another has held the archive.

All share one cache, so one local index. The process that holds the archive opened it before and asks again
and again; another stores, fits anew and tags; the commands run four at a time. Each must answer, without a
word of a lock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.soak import clips
from benchmarks.soak.children import Child, ChildFailed, Flag, ready
from benchmarks.soak.outcome import Options, Outcome
from benchmarks.soak.race import ask

COMMANDS, AT_ONCE = 20, 4
GRACE_SECONDS = 600
# Every fifth asks a backbone; the others end before torch would be imported.
_QUESTIONS = (
    "SELECT count(*) AS n FROM videos",
    "SELECT sum(frames) AS n FROM segments",
    "SELECT count(*) AS n FROM routes",
    "SELECT count(*) AS n FROM videos v JOIN segments s USING (video_id)",
    "SELECT count(*) AS n FROM labels(route := 'adapter', top := 1) WHERE frame = 0",
)


def run(options: Options) -> Outcome:
    ready()
    commands, broken = options.count(COMMANDS), list[str]()
    stop, begun = Flag(), Flag()
    with tempfile.TemporaryDirectory(prefix="soak-cli-") as folder:
        root, cache = str(Path(folder, "archive")), Path(folder, "cache")
        first, *others = clips.write_clips(Path(folder, "clips"), 4)
        Child(lambda: _begin(root, cache, first)).result()
        holding = Child(lambda: _hold(root, cache, stop, begun))
        while not begun.is_set() and holding.is_running():
            time.sleep(0.01)
        ingesting = Child(lambda: _ingest(root, cache, others, stop))
        started = time.monotonic()
        answers = list(_ask_by_command(root, cache, commands, broken))
        seconds = time.monotonic() - started
        stop.set()
        figures = {
            "commands": commands,
            "answered": len(answers),
            "queries_of_the_holding_process": _result(holding, broken),
            "commits_meanwhile": _result(ingesting, broken),
            "seconds_of_all_commands": round(seconds, 1),
        }
    return Outcome(
        question="do command lines, an ingest and a long-lived process disturb each other's index?",
        figures=figures,
        broken=tuple(broken),
    )


def _ask_by_command(root: str, cache: Path, commands: int, broken: list[str]) -> Iterator[int]:
    for first in range(0, commands, AT_ONCE):
        numbers = range(first, min(commands, first + AT_ONCE))
        running = [(number, _command(root, cache, number)) for number in numbers]
        for number, process in running:
            out, err = process.communicate(timeout=300)
            if process.returncode or "lock" in err.lower():
                broken.append(f"command {number} ended with {process.returncode}: {err.strip()[-300:]}")
            else:
                (row,) = json.loads(out)
                yield int(row["n"])
                if row["n"] < 1:
                    broken.append(f"command {number} sees nothing: {out.strip()}")


def _command(root: str, cache: Path, number: int) -> subprocess.Popen[str]:
    question = _QUESTIONS[number % len(_QUESTIONS)]
    return subprocess.Popen(
        [sys.executable, "-m", "nvpstore.api.cli", "--archive", root, "sql", question, "--format", "json"],
        env={**os.environ, "NVP_CACHE": str(cache), "NVP_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _begin(root: str, cache: Path, clip: Path) -> None:
    archive = clips.create(root, cache, grace_seconds=GRACE_SECONDS)
    archive.ingest(clip, preset="micro", device="cpu")


def _hold(root: str, cache: Path, stop: Flag, begun: Flag) -> int:
    archive, queries = clips.opened(root, cache), 0
    while not stop.is_set():
        for video_id, (frames, rows) in ask(archive).items():
            if sorted({row[0] for row in rows}) != list(range(frames)):
                raise AssertionError(f"a query answers for some frames of video {video_id} only")
        queries += 1
        begun.set()
    return queries


def _ingest(root: str, cache: Path, others: list[Path], stop: Flag) -> int:
    archive, commits = clips.opened(root, cache), 0
    while not stop.is_set():
        clip = others[commits % len(others)]
        archive.ingest(clip, preset="micro", device="cpu", refit=commits >= len(others))
        archive.tag(clips.video_id_of(clip), tags={"n": str(commits)})
        commits += 1
    return 2 * commits


def _result(child: Child[int], broken: list[str]) -> Any:
    try:
        return child.result()
    except ChildFailed as error:
        broken.append(str(error))
        return None
