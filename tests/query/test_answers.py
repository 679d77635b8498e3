"""Stored answers: no frame is computed twice, and rows are those of a query that never heard of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.catalog.answers import StoredResult, stored_results
from nvpstore.errors import CodecError, StoreError
from nvpstore.query.coverage import coverage
from nvpstore.query.keeping import MOST_OBJECTS, KeptAnswers, drop_answers
from nvpstore.query.request import Request
from nvpstore.query.result import Result
from nvpstore.query.run import execute, execute_stream
from nvpstore.storage import keys
from nvpstore.storage.documents import encode_task
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.storage.ranges import RangeReader, Traffic
from nvpstore.storage.tables import decode_manifest
from nvpstore.types import StoredObject, TaskRecord, VideoRecord
from nvpstore.upkeep.erasure import erase_video
from tests.catalog.conftest import SmallArchive, digest
from tests.query.archive_fixture import LABELS, SETTINGS, CountingOperators, FakeHandle, spec_of

FRAMES = 4  # of a segment
LIST = "SELECT video_id, frame, rank, label, score FROM labels ORDER BY ALL"
FOUND = "SELECT video_id, frame, object, label, score, box.x1 FROM objects ORDER BY ALL"


class Operators(CountingOperators):
    """For the catalog's small archive: its segments have four frames each."""

    def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> FakeHandle:
        self.fetches.append((video_id, segment, stage))
        return FakeHandle(
            video_id=video_id, segment=segment, stage=stage, start_frame=FRAMES * segment, traffic=Traffic()
        )

    def times(self, snapshot: Any, video_id: str, segment: int) -> NDArray[np.float64]:
        return (FRAMES * segment + np.arange(FRAMES)) * 0.04

    def start_frame(self, snapshot: Any, video_id: str, segment: int) -> int:
        return FRAMES * segment


def unneeded() -> Any:
    raise AssertionError("something is computed again")


@dataclass
class World:
    """An archive, a machine that asks it, and what its operators did."""

    archive: SmallArchive
    cache: Path
    operators: Operators = field(default_factory=Operators)
    writes: bool = True

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.archive.store, self.cache)
        ranges = RangeReader(self.archive.store)
        self.kept = KeptAnswers(self.catalog.log, self.catalog.snapshot, ranges, writes=self.writes)

    def elsewhere(self, name: str, **options: Any) -> World:
        """Another machine on the same archive."""
        return World(self.archive, self.cache / name, **options)

    def ask(self, sql: str, *, snapshot: Snapshot | None = None, **options: Any) -> Result:
        now = snapshot or self.catalog.snapshot()
        options.setdefault("operators_factory", lambda: self.operators)
        options.setdefault("answers", self.kept.at(now))
        return execute(Request(sql=sql, snapshot=now, settings=SETTINGS, **options))

    def plain(self, sql: str) -> list[Any]:
        """The same without stored answers."""
        made = Operators()
        now = self.catalog.snapshot()
        return execute(
            Request(sql=sql, snapshot=now, settings=SETTINGS, operators_factory=lambda: made)
        ).fetchall()

    def decoded(self) -> dict[int, int]:
        """How often each frame was, since the last look."""
        found = {frame: times for (_, frame), times in sorted(self.operators.decoded.items())}
        self.operators.decoded.clear()
        return found

    def results(self) -> list[StoredResult]:
        return stored_results(self.catalog.snapshot())


def add_task(archive: SmallArchive, name: str, kind: Any) -> TaskRecord:
    task = TaskRecord(name=name, version=digest(name), kind=kind, cuts=3, labels=LABELS, spec=spec_of(name))
    stored = archive.store.put(keys.task_key(name, task.version), encode_task(task))
    archive.commit("task", name, [stored])
    return task


def filled(store: ObjectStore, *, segments: int = 6) -> tuple[SmallArchive, VideoRecord, list[TaskRecord]]:
    archive = SmallArchive(store)
    tasks = [add_task(archive, "labels", "classification"), add_task(archive, "objects", "detection")]
    video = archive.add_video("one", segments=segments)
    for task in tasks:
        archive.add_routes(video, task)
    return archive, video, tasks


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """In memory, or where `parametrize("world", …, indirect=True)` says."""
    local = getattr(request, "param", "memory") == "local"
    where = str(tmp_path / "archive") if local else f"memory://{keys.new_attempt()}"
    archive, _, _ = filled(open_store(where))
    return World(archive, tmp_path / "cache")


def frames(sql_where: str) -> str:
    return f"SELECT frame, rank, label, score FROM labels WHERE {sql_where} ORDER BY ALL"


def flip(store: ObjectStore, key: str, where: int) -> None:
    data = bytearray(store.get(key))
    data[where] ^= 1
    store.delete(key)
    store.put(key, bytes(data))


class TestReading:
    @pytest.mark.parametrize("world", ["memory", "local"], indirect=True)
    def test_the_same_again_elsewhere_decodes_nothing(self, world: World) -> None:
        first = world.ask(LIST)
        assert set(world.decoded().values()) == {1}
        again = world.elsewhere("other").ask(LIST, operators_factory=unneeded)
        assert again.fetchall() == first.fetchall() == world.plain(LIST)
        assert again.measured is not None
        assert (again.measured.answered_frames, again.measured.frames) == (24, 0)

    @pytest.mark.parametrize(
        "sql",
        [
            frames("score > 0.3 AND label <> 'cat'"),
            frames("frame % 3 = 1"),
            "SELECT ts, route, fidelity, label FROM labels(stride := 5) WHERE rank = 1 ORDER BY ALL",
            "SELECT count(*), min(score) FROM labels WHERE ts < 0.5",
            "SELECT a.frame FROM labels a JOIN labels(stride := 3) b USING (frame, label) ORDER BY ALL",
            "SELECT frame FROM labels(route := 'adapter') WHERE label = 'car' ORDER BY ALL",
        ],
    )
    def test_other_predicates_and_samples_are_answered_too(self, world: World, sql: str) -> None:
        world.ask(LIST).fetchall()
        assert world.ask(sql, operators_factory=unneeded).fetchall() == world.plain(sql)

    def test_only_the_rest_is_computed(self, world: World) -> None:
        world.ask(frames("frame BETWEEN 5 AND 9")).fetchall()
        assert sorted(world.decoded()) == [5, 6, 7, 8, 9]
        world.ask("SELECT * FROM labels(stride := 4)").fetchall()
        assert sorted(world.decoded()) == [0, 4, 12, 16, 20]
        assert world.ask(LIST).fetchall() == world.plain(LIST)
        assert sorted(world.decoded()) == [1, 2, 3, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23]
        assert sum(result.frames for result in world.results()) == 24

    def test_nothing_found_is_an_answer(self, world: World) -> None:
        rows = world.ask(FOUND).fetchall()
        assert len({row[1] for row in rows}) < 24, "every frame has an object: this tests nothing"
        assert world.ask(FOUND, operators_factory=unneeded).fetchall() == rows == world.plain(FOUND)

    def test_one_task_stored_and_another_not(self, world: World) -> None:
        world.ask(frames("frame < 7")).fetchall()
        sql = "SELECT frame, l.label, o.label FROM labels l JOIN objects o USING (frame) ORDER BY ALL"
        world.operators.tails = 0
        assert world.ask(sql).fetchall() == world.plain(sql)
        assert world.operators.tails == 24 + 17

    def test_what_the_rows_depend_on_divides_them(self, world: World) -> None:
        world.ask("SELECT * FROM labels").fetchall()
        for sql in (
            "SELECT * FROM labels(top := 2)",
            "SELECT * FROM labels(route := 'pixel')",
        ):
            world.decoded()
            assert world.ask(sql).fetchall() == world.plain(sql)
            assert len(world.decoded()) == 24
        assert len({result.result for result in world.results()}) == 2

    def test_streams_and_limits_use_and_keep_answers(self, world: World) -> None:
        sql = "SELECT frame, label FROM labels WHERE rank = 1"
        now = world.catalog.snapshot()
        stream = execute_stream(
            Request(
                sql=sql,
                snapshot=now,
                settings=SETTINGS,
                operators_factory=lambda: world.operators,
                answers=world.kept.at(now),
            )
        )
        while next(stream).num_rows == 0:
            pass
        stream.close()
        (some,) = world.results()
        assert 0 < some.frames < 24
        assert world.ask(f"{sql} LIMIT 2", operators_factory=unneeded).fetchall() == world.plain(
            f"{sql} ORDER BY frame LIMIT 2"
        )

    def test_frames_and_plans_store_nothing(self, world: World) -> None:
        world.ask("SELECT frame, image FROM frames").fetchall()
        world.ask(f"EXPLAIN {LIST}").fetchall()
        world.ask("SELECT frame, rank FROM labels").fetchall()
        assert world.results() == []


class TestWhatMakesAnswersUseless:
    def test_a_refit(self, world: World) -> None:
        world.ask(LIST).fetchall()
        video = world.archive.add_video("one", segments=6)
        world.archive.add_routes(video, world.catalog.snapshot().task("labels"))
        world.decoded()
        assert world.results() == []
        assert world.ask(LIST).fetchall() == world.plain(LIST)
        assert len(world.decoded()) == 24

    def test_other_routes_of_the_task_but_not_of_another(self, world: World) -> None:
        world.ask(LIST).fetchall()
        world.ask(FOUND).fetchall()
        snapshot = world.catalog.snapshot()
        video = snapshot.find_video("one.mp4")
        (before,) = [r for r in world.results() if r.task == "objects"]
        world.archive.add_routes(stored_video(world, video), snapshot.task("labels"), fidelity=0.5)
        assert world.results() == [before]
        world.decoded()
        assert world.ask(LIST).fetchall() == world.plain(LIST)
        assert len(world.decoded()) == 24

    def test_an_erasure_takes_them_too(self, world: World) -> None:
        world.ask(LIST).fetchall()
        (result,) = world.results()
        erase_video(world.catalog, result.video_id)
        assert world.results() == []
        assert not world.archive.store.list(f"results/{result.video_id}/")

    def test_a_query_that_was_overtaken_by_an_erasure_leaves_nothing(self, world: World) -> None:
        before = world.catalog.snapshot()
        video_id = before.find_video("one.mp4")
        erase_video(world.elsewhere("other").catalog, video_id)
        result = world.ask(LIST, snapshot=before)
        assert result.fetchall()
        assert result.warnings == ()
        assert not world.archive.store.list("results/")


def stored_video(world: World, video_id: str) -> VideoRecord:
    (manifest,) = [
        o for o in world.catalog.snapshot().objects(video_id) if o.key.endswith("manifest.parquet")
    ]
    return decode_manifest(world.archive.store.get_verified(manifest))


class TestDamage:
    @pytest.mark.parametrize("world", ["memory", "local"], indirect=True)
    @pytest.mark.parametrize("part", ["rows", "footer", "all"])
    def test_is_computed_again_and_replaced(self, world: World, part: str) -> None:
        rows = world.ask(LIST).fetchall()
        (before,) = world.results()
        if part == "all":
            world.archive.store.delete(before.key)
        else:
            flip(world.archive.store, before.key, 20 if part == "rows" else -40)
        world.decoded()
        other = world.elsewhere("other")  # whose index never saw the footer whole
        result = other.ask(LIST)
        assert result.fetchall() == rows
        assert bool(result.warnings) == (part == "rows")
        assert other.decoded()
        (after,) = other.results()
        assert (after.frames, after.key != before.key) == (24, True)
        again = other.ask(LIST, operators_factory=unneeded)
        assert (again.fetchall(), again.warnings) == (rows, ())

    def test_an_object_that_is_gone_is_noticed_by_who_knew_it(self, world: World) -> None:
        rows = world.ask(LIST).fetchall()
        (before,) = world.results()
        world.archive.store.delete(before.key)
        result = world.ask(LIST)
        assert result.fetchall() == rows
        assert before.key in result.warnings[0]
        assert world.ask(LIST, operators_factory=unneeded).fetchall() == rows


class TestStoring:
    def test_a_query_that_fails_keeps_what_it_had_computed(self, world: World) -> None:
        class Failing(Operators):
            def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> FakeHandle:
                if segment == 3:
                    raise CodecError("broken")
                return super().fetch(snapshot, video_id, segment, stage)

        with pytest.raises(CodecError, match="broken"):
            world.ask(LIST, operators_factory=Failing).fetchall()
        world.ask(LIST).fetchall()
        assert sorted(world.decoded()) == list(range(12, 24))

    def test_a_skipped_segment_has_no_rows_whatever_is_stored(self, world: World) -> None:
        class Failing(Operators):
            def fetch(self, snapshot: Any, video_id: str, segment: int, stage: str) -> FakeHandle:
                raise CodecError("broken")

        world.ask(frames("frame IN (1, 5, 6, 7)")).fetchall()
        sql = "SELECT DISTINCT frame FROM labels(on_error := 'skip') WHERE frame IN (1, 4, 5, 6, 7)"
        result = world.ask(f"{sql} AND label <> ''", operators_factory=Failing)
        assert result.fetchall() == [(1,)]
        assert [skip.segment for skip in result.skipped] == [1]

    def test_racing_queries_store_each_frame_once(self, world: World) -> None:
        other = world.elsewhere("other")
        now, then = world.catalog.snapshot(), other.catalog.snapshot()
        world.ask(frames("frame < 14"), snapshot=now).fetchall()
        assert other.ask(LIST, snapshot=then).fetchall() == world.plain(LIST)
        assert sum(result.frames for result in world.results()) == 24
        assert sum(result.rows for result in world.results()) == 24 * 5
        assert world.ask(LIST, operators_factory=unneeded).fetchall() == world.plain(LIST)
        listed = set(world.archive.store.list("results/"))
        assert listed == {result.key for result in world.results()}, "a dropped commit leaves objects"

    def test_one_entry_a_video_for_all_of_a_query(self, world: World) -> None:
        before = world.catalog.snapshot().number
        world.ask("SELECT * FROM labels JOIN objects USING (frame), labels(top := 1) c").fetchall()
        assert world.catalog.snapshot().number == before + 1
        assert len(world.results()) == 3

    def test_many_small_objects_become_one(self, world: World) -> None:
        for frame in range(MOST_OBJECTS + 2):
            world.ask(frames(f"frame = {frame}")).fetchall()
        results = world.results()
        assert [result.frames for result in results] == [MOST_OBJECTS + 1, 1]
        sql = frames(f"frame < {MOST_OBJECTS + 2}")
        assert world.ask(sql, operators_factory=unneeded).fetchall() == world.plain(sql)

    def test_without_the_right_to_write_they_are_only_read(self, world: World) -> None:
        world.ask(frames("frame < 4")).fetchall()
        before = world.archive.store.list()
        reader = world.elsewhere("reader", writes=False)
        assert reader.ask(LIST).fetchall() == world.plain(LIST)
        assert sorted(reader.decoded()) == list(range(4, 24))
        assert world.archive.store.list() == before

    def test_a_store_that_refuses_is_said_once_and_fails_no_query(self, world: World) -> None:
        def put(key: str, data: bytes) -> StoredObject:
            raise StoreError(f"cannot write {key}: read-only")

        world.archive.store.put = put  # type: ignore[method-assign]
        first, second = world.ask(LIST), world.ask(LIST)
        assert len(first.fetchall()) == len(second.fetchall()) == 120
        assert "read-only" in first.warnings[0]
        assert second.warnings == ()


class TestDropping:
    @pytest.mark.parametrize(
        ("chosen", "left"),
        [({}, []), ({"task": "labels"}, ["objects"]), ({"task": digest("objects")}, ["labels"])],
    )
    def test_drops_what_is_named(self, world: World, chosen: dict[str, str], left: list[str]) -> None:
        world.ask(LIST).fetchall()
        world.ask(FOUND).fetchall()
        dropped = drop_answers(world.catalog, **chosen)
        assert {result.task for result in dropped} == {"labels", "objects"} - set(left)
        assert [result.task for result in world.results()] == left
        assert drop_answers(world.catalog, **chosen) == []
        world.decoded()
        assert world.ask(LIST).fetchall() == world.plain(LIST)
        assert bool(world.decoded()) == ("labels" not in left)


class TestCoverage:
    def test_says_what_is_new(self, world: World) -> None:
        world.archive.add_video("two", segments=1)
        world.ask(frames("frame IN (7, 8, 23)")).fetchall()
        snapshot = world.catalog.snapshot()
        task = snapshot.task("labels")
        found = {one.video_id: one for one in coverage(snapshot, task, top=5)}
        first, second = (found[snapshot.find_video(f"{name}.mp4")] for name in ("one", "two"))
        assert first.covered.listed().tolist() == [7, 8, 23]
        assert first.left.listed().tolist() == [n for n in range(24) if n not in (7, 8, 23)]
        assert (second.covered.frames, second.left.listed().tolist()) == (0, [0, 1, 2, 3])
        assert {one.covered.frames for one in coverage(snapshot, task, top=3)} == {0}


steps = st.lists(
    st.tuples(
        st.sampled_from(["labels", "objects", "labels(stride := 3)", "objects(every := 0.1)", "moves"]),
        st.integers(0, 23),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=settings.default.max_examples // 8)
@given(steps)
def test_any_queries_in_any_order_agree_and_compute_each_frame_once(
    tmp_path_factory: pytest.TempPathFactory, asked: Sequence[tuple[str, int, int]]
) -> None:
    archive, video, _ = filled(open_store(f"memory://{keys.new_attempt()}"))
    archive.add_routes(video, add_task(archive, "moves", "action"))
    world = World(archive, tmp_path_factory.mktemp("cache"))
    for table, first, count in asked:
        where = f"frame BETWEEN {first} AND {first + count}"
        sql = f"SELECT frame, label, score FROM {table} WHERE {where} ORDER BY ALL"
        assert world.ask(sql).fetchall() == world.plain(sql)
        covered = sum(result.frames for result in world.results())
        assert world.operators.tails == covered, "a frame was computed twice, or not kept"
