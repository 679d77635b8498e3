"""A query stays within its memory, whatever passes through it; rows that do not fit lie on disk meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from nvpstore.errors import CodecError, StoreError
from nvpstore.query.spill import Rows
from tests.query.archive_fixture import CountingOperators, FakeHandle, FixtureSnapshot, ask

BUDGET = 64 << 20
CHILD = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import pyarrow as pa
from nvpstore.query.request import Request
from nvpstore.query.run import execute
from tests.query.archive_fixture import SETTINGS, CLIPS, CountingOperators, FixtureSnapshot, ask

BUDGET, FRAME, IMAGE = 64 << 20, 7 << 20, 1 << 16

class Heavy(CountingOperators):
    '''Features of seven MiB a frame, images of 64 KiB.'''

    passed = 0

    def frame_bytes(self, handle, taps):
        return FRAME

    def size_bytes(self, value):
        if isinstance(value, dict):
            return sum(part.nbytes for part in value.values())
        return getattr(value, 'nbytes', 1000)

    def decode(self, handle, frames, taps):
        self.decoded.update((handle.video_id, int(frame)) for frame in frames)
        Heavy.passed += len(frames) * FRAME
        features = np.ones((len(frames), FRAME // 8))
        features[:, 0] = frames
        return {taps[-1]: features}

    def rows(self, scan, outputs, batch):
        assert outputs[:, 0].astype(int).tolist() == batch.frames.tolist()
        images = [bytes([frame % 251]) * IMAGE for frame in batch.frames.tolist()]
        return pa.table({'frame': batch.frames, 'image': pa.array(images, pa.binary())})

def status(name):
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

snapshot = FixtureSnapshot(Path(sys.argv[1]))
settings = replace(SETTINGS, memory_bytes=BUDGET)
ask(snapshot, 'SELECT * FROM labels WHERE segment = 0')
before = status('VmRSS')
heavy = Heavy()
sql = 'SELECT count(*), sum(octet_length(image))::BIGINT, count(DISTINCT md5(image)) FROM frames'
result = execute(Request(sql=sql, snapshot=snapshot, operators_factory=lambda: heavy, settings=settings))
print(json.dumps({'rows': result.fetchall(), 'passed': Heavy.passed, 'peak': status('VmHWM') - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc: memory cannot be read")
def test_memory_is_bounded_with_twenty_times_as_much_in_features(snapshot: FixtureSnapshot) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(snapshot.path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == [[190, 190 << 16, 100]]
    assert found["passed"] >= 20 * BUDGET
    assert found["peak"] <= 1.25 * BUDGET


class TestRows:
    SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])

    def table(self, start: int, rows: int = 100) -> pa.Table:
        numbers = range(start, start + rows)
        return pa.table({"n": numbers, "text": [str(n) for n in numbers]}, schema=self.SCHEMA)

    def read(self, rows: Rows, index: int = 0) -> list[Any]:
        con = duckdb.connect()
        con.register("r", rows.relation(index, self.SCHEMA))
        return con.sql("SELECT * FROM r").fetchall()

    @pytest.mark.parametrize("limit", [1, 3000, 10**9])
    def test_they_are_the_same_in_memory_and_on_disk(self, limit: int) -> None:
        with Rows(limit=lambda: limit) as rows:
            for start in range(0, 1000, 100):
                rows.add(start // 500, self.table(start))
                if start == 300:
                    assert len(self.read(rows)) == 400
            for index in (0, 1):
                expected = [(n, str(n)) for n in range(500 * index, 500 * index + 500)]
                assert self.read(rows, index) == expected
            assert self.read(rows, 2) == []
            assert rows.added == 1000

    def test_nothing_is_left_on_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with Rows(limit=lambda: 10) as rows:
            rows.add(0, self.table(0))
            assert list(tmp_path.rglob("*.parquet"))
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_a_clear_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
        with (
            pytest.raises(StoreError, match="rows beyond 10 bytes cannot go to disk"),
            Rows(limit=lambda: 10) as rows,
        ):
            rows.add(0, self.table(0))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM labels",
        "SELECT * FROM frames",
        "SELECT * FROM frames(on_error := 'skip')",
        "SELECT box.x1, label FROM objects WHERE score > 0.1",
        "SELECT l.label, e.embedding FROM labels l JOIN embed e USING (video_id, frame)",
    ],
)
def test_a_query_whose_rows_go_to_disk_answers_as_ever(
    snapshot: FixtureSnapshot, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sorted(map(repr, ask(snapshot, sql).fetchall()))
    monkeypatch.setattr("nvpstore.query.limits.Limits.rows_bytes", 1000)
    assert sorted(map(repr, ask(snapshot, sql).fetchall())) == expected


class BreaksLater(CountingOperators):
    """The second batch of a segment fails."""

    def decode(self, handle: FakeHandle, frames: Any, taps: tuple[str, ...]) -> dict[str, Any]:
        if len(self.batches) % 2:
            self.batches.append(0)
            raise CodecError("broken")
        return super().decode(handle, frames, taps)


def test_rows_that_go_to_disk_early_are_not_those_of_a_skipped_segment(
    snapshot: FixtureSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvpstore.query.limits.Limits.rows_bytes", 1000)
    sql = "SELECT video_id, segment FROM frames(on_error := 'skip') WHERE octet_length(image) > 0"
    found = ask(snapshot, sql, BreaksLater(), batch_frames=4)
    skipped = {(one.video_id, one.segment) for one in found.skipped}
    assert skipped
    assert not skipped & set(found.fetchall())
    with pytest.raises(CodecError, match="broken"):
        ask(snapshot, sql.replace("'skip'", "'error'"), BreaksLater(), batch_frames=4)
