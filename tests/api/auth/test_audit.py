"""The audit log: each line whole, in order, from any number of processes, in files that end."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path
from typing import Any

import pytest

from nvpstore.api.auth.audit import AuditLog, Deed
from nvpstore.errors import StoreError


def deed(number: int = 0, **fields: Any) -> Deed:
    given = {
        "action": "DELETE /v1/videos/{video_id}",
        "target": {"video_id": f"{number:032x}"},
        "status": 200,
        "key": "0a1b2c3d",
        "name": "ops",
        "address": "10.0.0.1",
        "request": "r1",
    }
    return Deed(**{**given, **fields})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def write_many(path: Path, writer: int) -> None:
    log = AuditLog(path, file_bytes=4_000, kept_files=100)
    for number in range(25):
        log.write(deed(number, name=f"writer {writer}"))


def test_a_line_says_who_did_what_to_what(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", clock=lambda: 1_800_000_000.0)
    log.write(deed(7))
    assert lines(log.path) == [
        {
            "at": "2027-01-15T08:00:00.000+00:00",
            "action": "DELETE /v1/videos/{video_id}",
            "target": {"video_id": f"{7:032x}"},
            "status": 200,
            "key": "0a1b2c3d",
            "name": "ops",
            "address": "10.0.0.1",
            "request": "r1",
        }
    ]
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_no_text_can_forge_a_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    hostile = 'x"}\n{"action": "forged"\u2028\ud800'
    log.write(deed(name=hostile, target={"name": hostile}))
    (line,) = lines(log.path)
    assert (line["name"], line["target"]) == (hostile, {"name": hostile})


def test_full_files_are_numbered_and_the_oldest_goes(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", file_bytes=600, kept_files=2)
    for number in range(12):
        log.write(deed(number))
    names = sorted(path.name for path in tmp_path.glob("audit.jsonl*") if path.suffix != ".lock")
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [line for name in reversed(names) for line in lines(tmp_path / name)]
    numbers = [int(line["target"]["video_id"], 16) for line in kept]
    assert numbers == list(range(numbers[0], 12))
    assert all((tmp_path / name).stat().st_size <= 600 for name in names)


def test_a_line_that_a_crash_left_unfinished_swallows_none(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write(deed(1))
    with log.path.open("ab") as file:
        file.write(b'{"at": "2026')
    log.write(deed(2))
    first, torn, last = log.path.read_text().splitlines()
    assert torn == '{"at": "2026'
    assert [json.loads(line)["target"]["video_id"][-1] for line in (first, last)] == ["1", "2"]


def test_processes_write_whole_lines_and_lose_none_while_files_change(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_many, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = [
        (line["name"], line["target"]["video_id"])
        for file in tmp_path.glob("audit.jsonl*")
        if file.suffix != ".lock"
        for line in lines(file)
    ]
    assert sorted(found) == sorted((f"writer {w}", f"{n:032x}") for w in range(3) for n in range(25))


def test_a_disk_that_refuses_is_said(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.path.mkdir()
    with pytest.raises(StoreError, match=r"audit\.jsonl"):
        log.write(deed())
