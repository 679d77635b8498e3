"""Plans as text: each `plans/<name>.sql` has its plan beside it as `plans/<name>.txt`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.query.archive_fixture import FixtureSnapshot, ask

PLANS = sorted((Path(__file__).parent / "plans").glob("*.sql"))
UPDATE = os.environ.get("NVP_UPDATE_PLANS") == "1"


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_plan_is_the_stored_one(snapshot: FixtureSnapshot, path: Path) -> None:
    found = "\n".join(row[0] for row in ask(snapshot, path.read_text()).fetchall())
    found = re.sub(r"(Seconds ).*", r"\1…", found) + "\n"
    golden = path.with_suffix(".txt")
    if UPDATE:
        golden.write_text(found)
    assert found == golden.read_text()


def test_there_are_plans() -> None:
    assert len(PLANS) >= 8


def test_explain_as_json_has_the_same_figures(snapshot: FixtureSnapshot) -> None:
    sql = "SELECT label FROM labels WHERE video_id = repeat('a', 32) AND ts < 1"
    result = ask(snapshot, sql)
    document = json.loads(json.dumps(result.explain_dict()))
    (scan,) = document["scans"]
    (part,) = scan["parts"]
    assert (scan["frames"], part["fetched_stages"], part["stages"]) == (25, ["0", "1", "2"], ["2"])
    assert document["total"]["bytes"] == document["measured"]["bytes"] == 7800
    assert "Measured" in result.explain()


def test_measured_bytes_are_the_estimated_ones(snapshot: FixtureSnapshot) -> None:
    result = ask(snapshot, "SELECT l.label, f.image FROM labels l JOIN frames f USING (video_id, frame)")
    total = result.explain_dict()["total"]
    assert result.measured is not None
    assert (result.measured.bytes, result.measured.frames) == (total["bytes"], total["frames"])
