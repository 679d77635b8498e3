"""EXPLAIN with stored answers: what is stored is told, and only what is left is estimated."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from nvpstore.query import details
from nvpstore.query.keeping import KeptAnswers
from nvpstore.query.scheduler import Cancelled
from nvpstore.storage import keys
from nvpstore.storage.objects import open_store
from nvpstore.storage.ranges import RangeReader
from tests.query.test_answers import World, add_task, filled, flip

GOLDEN = Path(__file__).parent / "plans" / "partly_stored.txt"
MIXED = "SELECT l.label, o.label FROM labels l JOIN objects o USING (video_id, frame)"
QUERIES = (
    "SELECT * FROM labels",
    "SELECT * FROM labels WHERE frame % 3 = 1",
    "SELECT * FROM labels(stride := 5)",
    "SELECT * FROM labels(every := 0.08) WHERE ts > 0.2",
    "SELECT * FROM labels(route := 'pixel')",
    "SELECT a.frame FROM labels a JOIN labels(stride := 3) b USING (frame, label)",
    "SELECT f.image, l.label FROM frames f JOIN labels l USING (video_id, frame)",
    MIXED,
    "SELECT * FROM moves",
    "SELECT m.label, l.label FROM moves m JOIN labels l USING (video_id, frame) WHERE frame > 4",
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    archive, video, _ = filled(open_store(f"memory://{keys.new_attempt()}"))
    archive.add_routes(video, add_task(archive, "moves", "action"))
    return World(archive, tmp_path / "cache")


def explained(world: World, sql: str) -> dict[str, Any]:
    ((text,),) = world.ask(f"EXPLAIN (FORMAT json) {sql}", operators_factory=None).fetchall()
    return dict(json.loads(text))


def counts(document: dict[str, Any]) -> list[tuple[int, int]]:
    return [(scan["answered_frames"], scan["frames_left"]) for scan in document["scans"]]


def test_a_plan_says_what_is_stored_and_what_is_left(world: World) -> None:
    assert "Stored answers  0 frames, 24 to compute" in world.ask("EXPLAIN SELECT * FROM labels").explain()
    world.ask("SELECT * FROM labels WHERE frame < 7").fetchall()
    result = world.ask("EXPLAIN ANALYZE SELECT * FROM labels")
    text = "\n".join(row[0] for row in result.fetchall())
    assert text == result.explain()
    # What was just written holds attempts' random names: its size differs by some bytes between runs.
    text = re.sub(r"(Seconds|Bytes  |Reads  |Share  ).*", r"\1 …", text)
    text = re.sub(r"\d+ % of the|[\d.]+ kB", "…", text) + "\n"
    if os.environ.get("NVP_UPDATE_PLANS") == "1":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_all_stored_leaves_nothing(world: World) -> None:
    world.ask("SELECT * FROM labels").fetchall()
    document = explained(world, "SELECT label FROM labels WHERE frame > 3")
    assert counts(document) == [(20, 0)]
    assert document["scans"][0]["parts"] == []
    assert (document["total"]["bytes"], document["total"]["gflops"], document["total"]["frames"]) == (0, 0, 0)
    text = world.ask("EXPLAIN ANALYZE SELECT label FROM labels").explain()
    assert "Stored answers  24 frames, 0 to compute" in text
    assert "Stored  24 frames answered" in text


@pytest.mark.parametrize("chunk", [1024, 1])
@pytest.mark.parametrize("sql", QUERIES)
def test_what_is_left_is_what_the_run_takes(
    world: World, sql: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(details, "CHUNK_SEGMENTS", chunk)
    world.ask("SELECT * FROM labels WHERE frame < 7 OR frame = 13").fetchall()
    world.ask("SELECT * FROM objects WHERE frame BETWEEN 6 AND 9").fetchall()
    world.ask("SELECT * FROM moves WHERE frame BETWEEN 3 AND 11").fetchall()
    told = explained(world, sql)
    result = world.ask(f"EXPLAIN (ANALYZE, FORMAT json) {sql}")
    ((text,),) = result.fetchall()
    ran = json.loads(text)
    measured = ran.pop("measured")
    assert ran == told
    assert measured["bytes"] == told["total"]["bytes"]
    assert sum(measured["frames_decoded"].values()) == told["total"]["frames"]
    assert measured["answered_frames"] == sum(stored for stored, _ in counts(told))


def test_what_is_not_kept_is_left(world: World) -> None:
    world.ask("SELECT * FROM labels").fetchall()
    assert counts(explained(world, "SELECT frame, image FROM frames")) == [(0, 24)]
    assert counts(explained(world, "SELECT frame, rank FROM labels")) == [(0, 0)]


def test_each_table_has_its_own(world: World) -> None:
    world.ask("SELECT * FROM labels WHERE frame < 7").fetchall()
    assert counts(explained(world, MIXED)) == [(7, 17), (0, 24)]


def test_damage_is_met_by_the_run_alone(world: World) -> None:
    world.ask("SELECT * FROM labels").fetchall()
    (stored,) = world.results()
    flip(world.archive.store, stored.key, 40)
    told = world.elsewhere("other").ask("EXPLAIN (ANALYZE, FORMAT json) SELECT * FROM labels")
    ((text,),) = told.fetchall()
    document = json.loads(text)
    assert counts(document) == [(24, 0)]
    assert document["measured"]["answered_frames"] < 24


def test_without_answers_nothing_is_said_of_them(world: World) -> None:
    result = world.ask("EXPLAIN SELECT * FROM labels", answers=None)
    assert "Stored" not in result.explain()
    assert counts(result.explain_dict()) == [(None, None)]


def test_looking_stores_nothing_and_can_be_cancelled(world: World) -> None:
    world.ask("SELECT * FROM labels WHERE frame < 7").fetchall()
    before = world.results()
    explained(world, "SELECT * FROM labels")
    assert world.results() == before

    def stopped() -> None:
        raise Cancelled("the query was cancelled")

    now = world.catalog.snapshot()
    kept = KeptAnswers(world.catalog.log, world.catalog.snapshot, RangeReader(world.archive.store))
    plan = world.ask("SELECT * FROM labels").plan
    with pytest.raises(Cancelled):
        kept.at(now).left(plan, stopped)
