"""Plans as text: each `plans/<name>.sql` has its plan beside it as `plans/<name>.txt`."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from nvpstore.errors import QueryError
from nvpstore.query import details
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


@pytest.mark.parametrize("prefix", ["EXPLAIN (FORMAT json)", "explain ( format  JSON )"])
def test_explain_as_json_is_one_row(snapshot: FixtureSnapshot, prefix: str) -> None:
    sql = "SELECT label FROM labels WHERE video_id = repeat('a', 32) AND ts < 1"
    result = ask(snapshot, f"{prefix} {sql}", operators=object())
    ((text,),) = result.fetchall()
    assert json.loads(text) == json.loads(json.dumps(ask(snapshot, f"EXPLAIN {sql}").explain_dict()))


@pytest.mark.parametrize("prefix", ["EXPLAIN (ANALYZE, FORMAT json)", "EXPLAIN ANALYZE (format json)"])
def test_analyze_as_json_says_what_it_took(snapshot: FixtureSnapshot, prefix: str) -> None:
    ((text,),) = ask(snapshot, f"{prefix} SELECT label FROM labels WHERE ts < 1").fetchall()
    document = json.loads(text)
    assert document["measured"]["bytes"] == document["total"]["bytes"] == 23400


def test_explain_of_a_query_in_parentheses_is_no_option(snapshot: FixtureSnapshot) -> None:
    assert ask(snapshot, "EXPLAIN (SELECT name FROM videos)").fetchall()[0] == ("Query",)
    assert ask(snapshot, "EXPLAIN (ANALYZE) SELECT name FROM videos").columns == ["plan"]


@pytest.mark.parametrize("option", ["format xml", "format", "analyze, verbose"])
def test_an_unknown_option_of_explain_names_those_there_are(snapshot: FixtureSnapshot, option: str) -> None:
    with pytest.raises(QueryError, match="allowed are analyze, format text and format json"):
        ask(snapshot, f"EXPLAIN ({option}) SELECT name FROM videos")


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_too_large_to_be_at_hand_have_the_same_figures(
    snapshot: FixtureSnapshot, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(details, "CHUNK_SEGMENTS", 1)
    test_the_plan_is_the_stored_one(snapshot, path)


def test_figures_of_a_large_plan_are_read_while_its_query_runs(
    snapshot: FixtureSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(details, "CHUNK_SEGMENTS", 1)
    assert "Total" in ask(snapshot, "EXPLAIN SELECT label FROM labels").explain()
    with pytest.raises(QueryError, match="while its query runs"):
        ask(snapshot, "SELECT label FROM labels").explain()
