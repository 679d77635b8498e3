"""Tasks that answer for clips: which pictures are decoded for which rows, and what plans say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvpstore.errors import QueryError
from nvpstore.query.clips import Clip, clip_of
from nvpstore.query.coverage import coverage
from nvpstore.storage import keys
from nvpstore.storage.objects import open_store
from nvpstore.types import TaskRecord
from tests.query.archive_fixture import (
    LATENTS_BYTES,
    CountingOperators,
    FixtureSnapshot,
    ask,
    naive,
)
from tests.query.test_answers import World, add_task, filled, unneeded

A, B, C = ("a" * 32, "b" * 32, "c" * 32)  # segments of A begin at frames 0, 30, 60, 90; 100 frames
ALL = "SELECT video_id, frame, ts, end_ts, rank, label, score FROM actions"


class TestClip:
    @given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 50), st.integers(1, 60))
    def test_clips_cover_a_segment_and_stay_inside(
        self, frames: int, stride: int, start: int, length: int
    ) -> None:
        clip, end = Clip(frames=frames, stride=stride), start + length
        starts = np.arange(start, end, clip.span)
        pictures = clip.pictures(starts, end=end).reshape(-1, frames)
        for first, last, shown in zip(starts, clip.last(starts, end=end), pictures, strict=True):
            whole = [first + n * stride for n in range(frames)]
            assert shown.tolist() == [min(frame, end - 1) for frame in whole]
            assert last == min(first + frames * stride, end) - 1
        # One clip stands for the frames up to the next one's first, the last one for the rest.
        assert clip.last(starts, end=end).tolist() == [*(starts[1:] - 1).tolist(), end - 1]

    def test_it_is_read_from_a_task_s_spec(self) -> None:
        def task(spec: str) -> TaskRecord:
            return TaskRecord(name="x", version="0", kind="action", cuts=1, labels=(), spec=spec)

        assert clip_of(task('{"clip": {"frames": 32, "stride": 2}}')) == Clip(frames=32, stride=2)
        assert clip_of(task("{}")) is clip_of(task("")) is clip_of(None) is None

    def test_it_says_what_it_is(self) -> None:
        assert str(Clip(frames=32, stride=2)) == "clips of 32 pictures 2 frames apart"
        assert str(Clip(frames=8, stride=1)) == "clips of 8 frames"


class TestRows:
    def test_a_row_set_a_clip_from_each_segment_s_first_frame_on(self, snapshot: FixtureSnapshot) -> None:
        rows = ask(snapshot, f"{ALL} WHERE video_id = '{A}' AND rank = 1 ORDER BY frame").fetchall()
        assert [row[1] for row in rows] == [0, 12, 24, 30, 42, 54, 60, 72, 84, 90]
        assert [row[2] for row in rows] == pytest.approx([frame * 0.04 for frame in (row[1] for row in rows)])
        last = [11, 23, 29, 41, 53, 59, 71, 83, 89, 99]
        assert [row[3] for row in rows] == pytest.approx([frame * 0.04 for frame in last])

    @pytest.mark.parametrize(
        "sql",
        [
            ALL,
            f"{ALL} WHERE ts BETWEEN 1.1 AND 2.1 AND rank < 3",
            f"{ALL} WHERE end_ts > 1.1 AND ts < 1.3",
            f"{ALL} WHERE frame % 5 = 0",
            "SELECT * FROM actions(top := 2) WHERE segment = 1",
            "SELECT count(*), max(end_ts), count(DISTINCT frame) FROM actions GROUP BY video_id",
            "SELECT a.frame, l.frame, l.label FROM actions a JOIN labels l ON l.video_id = a.video_id"
            " AND l.ts BETWEEN a.ts AND a.end_ts WHERE a.rank = 1 AND l.rank = 1 AND a.segment = 0",
            "SELECT f.image, a.label FROM frames f JOIN actions a USING (video_id, frame) WHERE a.ts < 1",
            "SELECT a.frame FROM actions a ANTI JOIN objects o USING (video_id, frame)",
            f"SELECT frame, label, route FROM actions(route := 'source') WHERE video_id = '{B}'",
        ],
    )
    @pytest.mark.parametrize("batch_frames", [32, 5, 1])
    def test_they_are_those_of_plain_duckdb(
        self, snapshot: FixtureSnapshot, sql: str, batch_frames: int
    ) -> None:
        found = ask(snapshot, sql, batch_frames=batch_frames).fetchall()
        expected = naive(snapshot, sql)
        assert expected
        assert sorted(map(repr, found)) == sorted(map(repr, expected))


class TestDecoding:
    def decoded(self, snapshot: FixtureSnapshot, sql: str, **options: Any) -> CountingOperators:
        operators = CountingOperators()
        ask(snapshot, sql, operators, **options).fetchall()
        return operators

    def test_only_a_clip_s_pictures_are(self, snapshot: FixtureSnapshot) -> None:
        operators = self.decoded(snapshot, f"{ALL} WHERE video_id = '{A}' AND frame = 42")
        assert operators.decoded == {(A, frame): 1 for frame in (42, 45, 48, 51)}
        assert operators.fetches == [(A, 1, "2")]
        assert operators.tails == 1

    def test_a_short_clip_ends_with_its_segment_s_last_picture(self, snapshot: FixtureSnapshot) -> None:
        operators = self.decoded(snapshot, f"{ALL} WHERE video_id = '{A}' AND frame IN (24, 84)")
        # Of 29, 30 and 33 the segment has the first alone.
        assert operators.decoded == {
            (A, frame): times for frame, times in ((24, 1), (27, 1), (29, 2), (84, 1), (87, 1), (89, 2))
        }

    @pytest.mark.parametrize(
        ("where", "starts"),
        [
            ("ts BETWEEN 0.5 AND 1.7", [24, 30, 42]),
            ("ts > 3.3", [84, 90]),
            ("frame < 13", [0, 12]),
            ("frame BETWEEN 31 AND 41", []),
            ("wall_ts >= TIMESTAMPTZ '2026-03-01 12:00:03.4+00'", [90]),
            ("ts = (SELECT max(start_ts) FROM segments WHERE start_ts < 1.3)", [30]),
        ],
    )
    def test_conditions_leave_the_clips_whose_first_frame_they_hold_for(
        self, snapshot: FixtureSnapshot, where: str, starts: list[int]
    ) -> None:
        operators = self.decoded(snapshot, f"{ALL} WHERE video_id = '{A}' AND {where}")
        shown = [frame for _, frame in operators.decoded]
        assert [frame for frame in shown if frame in {0, 12, 24, 30, 42, 54, 60, 72, 84, 90}] == starts
        assert operators.tails == len(starts)
        assert operators.decoded.total() == 4 * len(starts)

    def test_a_condition_on_the_end_does_not_narrow(self, snapshot: FixtureSnapshot) -> None:
        operators = self.decoded(snapshot, f"{ALL} WHERE video_id = '{A}' AND end_ts < 0.5")
        assert operators.tails == 10

    def test_a_limit_ends_it_early(self, snapshot: FixtureSnapshot) -> None:
        operators = self.decoded(snapshot, f"{ALL} LIMIT 7")
        assert operators.fetches == [(A, 0, "2")]
        assert operators.tails == 3

    @pytest.mark.parametrize(
        "sql",
        [
            "SELECT count(*) FROM actions",
            "SELECT video_id, frame, ts, rank, route FROM actions WHERE ts > 1",
        ],
    )
    def test_nothing_is_where_only_places_and_ranks_are_read(
        self, snapshot: FixtureSnapshot, sql: str
    ) -> None:
        found = ask(snapshot, sql, operators=object()).fetchall()
        assert sorted(map(repr, found)) == sorted(map(repr, naive(snapshot, sql)))

    def test_when_a_clip_ends_is_part_of_its_answer(self, snapshot: FixtureSnapshot) -> None:
        operators = self.decoded(snapshot, f"SELECT end_ts FROM actions WHERE video_id = '{C}'")
        assert operators.tails == 4

    def test_a_batch_holds_whole_clips(self, snapshot: FixtureSnapshot) -> None:
        for batch_frames, largest in ((32, 12), (9, 8), (5, 4), (1, 4)):
            operators = self.decoded(snapshot, f"{ALL} WHERE video_id = '{A}'", batch_frames=batch_frames)
            assert max(operators.batches) == largest
            assert all(size % 4 == 0 for size in operators.batches)

    def test_batches_do_not_hang_on_what_else_is_asked(self, snapshot: FixtureSnapshot) -> None:
        first_segment = f"{ALL} WHERE video_id = '{A}' AND segment = 0"
        assert self.decoded(snapshot, first_segment, batch_frames=8).batches == [8, 4]
        # Clips 12 and 24 come in the batches in which they are without the first.
        assert self.decoded(snapshot, f"{first_segment} AND frame > 0", batch_frames=8).batches == [4, 4]

    def test_the_source_s_pictures_are_read(self, snapshot: FixtureSnapshot) -> None:
        sql = f"SELECT label FROM actions(route := 'source') WHERE video_id = '{A}' AND segment = 3"
        operators = self.decoded(snapshot, sql)
        assert operators.read == {(A, frame): 1 for frame in (90, 93, 96, 99)}
        assert (operators.decoded.total(), operators.fetches, operators.tails) == (0, [], 1)


class TestCompany:
    """Clips beside frames, and beside clips of the same task."""

    BOTH = (
        "SELECT a.label, l.label FROM actions a JOIN labels l USING (video_id, frame)"
        f" WHERE a.video_id = '{A}' AND a.segment < 2"
    )

    def test_a_segment_is_fetched_once_and_decoded_by_itself_for_each(
        self, snapshot: FixtureSnapshot
    ) -> None:
        operators = CountingOperators()
        result = ask(snapshot, self.BOTH, operators)
        assert operators.fetches == [(A, 0, "2"), (A, 1, "2")]
        assert operators.decoded.total() == 6 * 4 + 60
        assert result.measured is not None
        assert result.measured.frames == 6 * 4 + 60
        assert result.measured.prefix_bytes == 2 * 7000

    def test_a_deeper_route_of_the_other_is_fetched_for_both(self, snapshot: FixtureSnapshot) -> None:
        operators = CountingOperators()
        sql = "SELECT a.label, f.image FROM actions a JOIN frames f USING (video_id, frame)"
        ask(snapshot, f"{sql} WHERE a.video_id = '{A}' AND a.frame = 12", operators)
        assert operators.fetches == [(A, 0, "rgb")]
        assert operators.deepest == [("2",), ("rgb",)]

    def test_clips_of_one_task_are_computed_once(self, snapshot: FixtureSnapshot) -> None:
        operators = CountingOperators()
        sql = f"SELECT a.label FROM actions a JOIN actions b USING (video_id, frame) WHERE a.video_id = '{C}'"
        ask(snapshot, sql, operators)
        assert operators.tails == 4


class TestOptions:
    @pytest.mark.parametrize("option", ["every := 0.5", "stride := 12"])
    def test_clips_follow_one_another_whatever_is_asked(self, snapshot: FixtureSnapshot, option: str) -> None:
        message = (
            r"line 2, column 6: actions answers for clips of 4 pictures 3 frames apart, one after another: "
            r"neither every nor stride is allowed"
        )
        with pytest.raises(QueryError, match=message):
            ask(snapshot, f"SELECT label\nFROM actions({option}, top := 2)")

    def test_the_others_mean_what_they_do_elsewhere(self, snapshot: FixtureSnapshot) -> None:
        with pytest.raises(QueryError, match="top := 9: actions has 8 labels"):
            ask(snapshot, "SELECT label FROM actions(top := 9)")
        for options, route, count in (
            ("top := 1", "adapter", 19),
            ("min_fidelity := 0.905, top := 3", "pixel", 57),
            ("route := 'source', on_error := 'skip', top := 1", "source", 15),
        ):
            sql = f"SELECT route, count(label) FROM actions({options}) GROUP BY ALL"
            assert ask(snapshot, sql).fetchall() == [(route, count)]

    def test_ranks_beyond_the_top_are_warned_of(self, snapshot: FixtureSnapshot) -> None:
        result = ask(snapshot, "SELECT label FROM actions WHERE rank = 7")
        assert "actions has ranks 1 to 5" in result.warnings[0]


class TestPlans:
    def test_figures_are_of_clips_and_pictures(self, snapshot: FixtureSnapshot) -> None:
        result = ask(snapshot, f"{ALL} WHERE video_id = '{A}' AND frame < 60")
        document = result.explain_dict()
        (scan,) = document["scans"]
        (part,) = scan["parts"]
        assert (scan["frames"], scan["clip"]) == (6, {"frames": 4, "stride": 3})
        # A route's GFLOPs are of a whole clip, a stage's of one picture.
        assert part["gflops_a_frame"] == pytest.approx(1.1)
        assert part["decode_gflops_a_frame"] == pytest.approx(4 * 0.08)
        total = document["total"]
        assert (total["frames"], total["segments"]) == (24, 2)
        assert total["gflops"] == pytest.approx(6 * 1.1)
        assert total["bytes"] == 2 * (7000 + LATENTS_BYTES + 300) == document["measured"]["bytes"]
        assert result.measured is not None
        assert result.measured.frames == 24

    def test_frames_beside_clips_are_added_up(self, snapshot: FixtureSnapshot) -> None:
        total = ask(snapshot, TestCompany.BOTH).explain_dict()["total"]
        assert (total["frames"], total["shared"]) == (84, 0)
        assert total["gflops"] == pytest.approx(6 * 1.1 + 60 * 0.3)

    def test_clips_of_one_sampling_share_their_decodes(self, snapshot: FixtureSnapshot) -> None:
        sql = (
            "SELECT a.label, b.label FROM actions a JOIN actions(route := 'pixel') b"
            f" USING (video_id, frame) WHERE a.video_id = '{A}'"
        )
        operators = CountingOperators()
        result = ask(snapshot, sql, operators)
        total = result.explain_dict()["total"]
        assert (total["frames"], total["shared"]) == (40, 40)
        assert operators.decoded.total() == 40
        assert result.measured is not None
        assert (result.measured.frames, result.measured.shared_decodes) == (40, 40)
        assert total["gflops"] == pytest.approx(10 * (5.0 + (1.1 - 4 * 0.08)))

    def test_explain_speaks_of_clips(self, snapshot: FixtureSnapshot) -> None:
        text = ask(snapshot, f"EXPLAIN {ALL} WHERE video_id = '{A}'").explain()
        for part in (
            "Scan actions@ac70…  clips 10, segments 4 of 7, top 5, clips of 4 pictures 3 frames apart\n",
            "aaaaaaaa/3, 10 clips, fidelity 0.900",
            "to stage 2  0.32 GFLOPs a clip",
            "from cut blocks.3  0.78 GFLOPs a clip",
            "40 frames decoded in 4 segments, 11 GFLOPs",
        ):
            assert part in text


class TestStoredAnswers:
    """Segments of four frames; `moves` answers for clips of three: two a segment, from 0 and from 3 on."""

    LIST = "SELECT frame, ts, end_ts, rank, label FROM moves ORDER BY ALL"

    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        archive, video, _ = filled(open_store(f"memory://{keys.new_attempt()}"))
        archive.add_routes(video, add_task(archive, "moves", "action"))
        return World(archive, tmp_path / "cache")

    def test_the_same_again_decodes_nothing(self, world: World) -> None:
        first = world.ask(self.LIST).fetchall()
        assert [row[0] for row in first if row[3] == 1] == [4 * n + k for n in range(6) for k in (0, 3)]
        assert world.operators.tails == 12
        again = world.ask(self.LIST, operators_factory=unneeded)
        assert again.fetchall() == first == world.plain(self.LIST)
        assert again.measured is not None
        assert (again.measured.answered_frames, again.measured.frames) == (12, 0)
        assert [result.frames for result in world.results()] == [12]

    def test_only_new_clips_are_computed(self, world: World) -> None:
        world.ask("SELECT label FROM moves WHERE frame IN (3, 4, 5, 8)").fetchall()
        assert world.decoded() == {3: 3, 4: 1, 5: 1, 6: 1, 8: 1, 9: 1, 10: 1}
        assert world.ask(self.LIST).fetchall() == world.plain(self.LIST)
        assert world.operators.tails == 12
        assert not {3, 4, 8} & set(world.decoded())
        assert sum(result.frames for result in world.results()) == 12

    def test_plans_say_what_is_left(self, world: World) -> None:
        world.ask("SELECT label FROM moves WHERE frame < 8").fetchall()
        text = world.ask("EXPLAIN SELECT label FROM moves").explain()
        assert "Stored answers  4 clips, 8 to compute" in text
        assert "24 frames decoded in 4 segments" in text

    def test_beside_a_task_of_frames(self, world: World) -> None:
        world.ask("SELECT label FROM moves WHERE frame < 8").fetchall()
        world.ask("SELECT label FROM labels WHERE frame >= 8").fetchall()
        world.decoded()
        sql = "SELECT frame, m.label, l.label FROM moves m JOIN labels l USING (frame) ORDER BY ALL"
        assert world.ask(sql).fetchall() == world.plain(sql)
        assert world.decoded() == {**dict.fromkeys(range(8), 1), **self.clips(8, 24)}

    def clips(self, first: int, stop: int) -> dict[int, int]:
        """How often each frame is in the clips of these segments."""
        times = (1, 1, 1, 3)
        return {frame: times[frame % 4] for frame in range(first, stop)}

    def test_coverage_counts_what_clips_stand_for(self, world: World) -> None:
        world.ask("SELECT label FROM moves WHERE frame IN (4, 11)").fetchall()
        snapshot = world.catalog.snapshot()
        (found,) = coverage(snapshot, snapshot.task("moves"), top=5)
        assert found.covered.listed().tolist() == [4, 5, 6, 11]
        assert found.left.listed().tolist() == [n for n in range(24) if n not in (4, 5, 6, 11)]
