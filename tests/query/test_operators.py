"""Answers of a stored real clip against the backbone run by hand, whatever the route, batch or company."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from nvpstore.archive import Archive
from nvpstore.catalog import IndexedVideo, Snapshot
from nvpstore.codec.artifact import content_rgb
from nvpstore.codec.build import Architecture
from nvpstore.errors import IntegrityError
from nvpstore.query.operators import ADAPTER_BRIDGE_BYTES, TorchOperators
from nvpstore.query.operators.pixels import DecodedPixels
from nvpstore.query.request import Request
from nvpstore.query.run import execute
from nvpstore.storage.keys import new_attempt, source_key
from nvpstore.storage.local import LocalStore
from nvpstore.tasks.registry import builtin_spec, load
from nvpstore.types import RGB_STAGE, FrameBatch, SegmentRecord
from tests.conftest import CLIP_FRAMES, Micro
from tests.storage.counting import CountingStore

pytestmark = pytest.mark.slow  # one fit

EXACT = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)
ALL_RANKS = "SELECT frame, rank, label, score FROM labels{options} ORDER BY frame, rank"
FIRST = "SELECT frame, label FROM labels{options} WHERE rank = 1 ORDER BY frame"
Answers = dict[int, list[tuple[str, float]]]


def answers(archive: Archive, options: str = "", *, batch_frames: int = 32) -> Answers:
    """{frame: [(label, score) by rank]} through SQL."""
    return grouped(run(archive, ALL_RANKS.format(options=options), batch_frames=batch_frames))


def run(archive: Archive, sql: str, *, batch_frames: int) -> list[tuple[Any, ...]]:
    return execute(
        Request(
            sql=sql,
            snapshot=archive.catalog.snapshot(),
            operators_factory=lambda: TorchOperators(archive.store, threads=2),
            settings=archive.settings,
            batch_frames=batch_frames,
        )
    ).fetchall()


def grouped(rows: Sequence[tuple[Any, ...]]) -> Answers:
    found: Answers = {}
    for frame, _, label, score in rows:
        found.setdefault(frame, []).append((label, score))
    return found


@torch.inference_mode()
def by_hand(rgb_tchw: torch.Tensor) -> NDArray[np.float64]:
    """Softmax scores [t, classes] of the registry's backbone on pixels in 0 … 255, frame by frame."""
    task = load(builtin_spec("labels"))
    logits = [task.backbone.whole(task.spec.prepare(frame[None])) for frame in rgb_tchw]
    scores: NDArray[np.float64] = torch.cat(logits).double().softmax(-1).numpy()
    return scores


def assert_answers(found: Answers, scores: NDArray[np.float64], *, tolerance: float = 1e-4) -> None:
    """The first label is the best class; each score is its class's own."""
    labels = builtin_spec("labels").labels
    assert sorted(found) == list(range(len(scores)))
    for frame, ranked in found.items():
        assert ranked[0][0] == labels[int(scores[frame].argmax())]
        for label, score in ranked:
            same = [i for i, name in enumerate(labels) if name == label]
            assert min(abs(scores[frame, i] - score) for i in same) < tolerance
        assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def source_rgb(path: Path) -> torch.Tensor:
    """RGB uint8 [t, 3, h, w] by PyAV alone."""
    with av.open(str(path)) as container:
        decoded = [f.reformat(format="rgb24", interpolation=EXACT) for f in container.decode(video=0)]
    return torch.from_numpy(np.stack([frame.to_ndarray() for frame in decoded])).permute(0, 3, 1, 2)


def content_frames(archive: Archive, video_id: str) -> torch.Tensor:
    """Decoded frames [t, 3, h, w] in 0 … 255 at the size at which they are coded."""
    snapshot = archive.catalog.snapshot()
    operators = TorchOperators(archive.store, threads=2)
    parts = []
    for record in snapshot.segments(video_id):
        handle = operators.fetch(snapshot, video_id, record.segment, RGB_STAGE)
        frames = np.arange(record.start_frame, record.start_frame + record.frames)
        pixels = operators.decode(handle, frames, (RGB_STAGE,))[RGB_STAGE]
        assert isinstance(pixels, DecodedPixels)
        parts.append(content_rgb(pixels.rgb, Architecture.from_json(record.architecture)).cpu())
    return torch.cat(parts)


class TestRoutes:
    def test_the_default_is_an_adapter_route(self, micro: Micro) -> None:
        routes = micro.archive.sql("SELECT DISTINCT route FROM labels").fetchall()
        assert routes == [("adapter",)]

    def test_the_source_route_is_the_backbone_on_the_source(self, micro: Micro) -> None:
        found = answers(micro.archive, "(route := 'source')")
        assert_answers(found, by_hand(source_rgb(micro.clip)))

    def test_the_pixel_route_is_the_backbone_on_decoded_pixels(self, micro: Micro) -> None:
        found = answers(micro.archive, "(route := 'pixel')")
        assert_answers(found, by_hand(content_frames(micro.archive, micro.video_id)))

    def test_pixels_for_backbones_and_for_people_are_the_same_pictures(self, micro: Micro) -> None:
        content = content_frames(micro.archive, micro.video_id)
        batches: list[FrameBatch] = list(micro.archive.frames(micro.video_id))
        shown = torch.from_numpy(np.concatenate([b.rgb_thwc for b in batches])).permute(0, 3, 1, 2).float()
        small = torch.nn.functional.interpolate(shown, content.shape[2:], mode="area")
        assert float((small - content).abs().mean()) < 3  # of 255: the way to source size and back

    def test_every_route_gives_ranks_and_scores(self, micro: Micro) -> None:
        for route in ("adapter", "pixel", "source"):
            found = answers(micro.archive, f"(route := '{route}', top := 3)")
            assert {len(ranked) for ranked in found.values()} == {3}
            assert len(found) == CLIP_FRAMES

    def test_an_original_far_away_is_fetched_once(self, micro: Micro, tmp_path: Path) -> None:
        key = source_key(micro.video_id, new_attempt())
        (kept := LocalStore(tmp_path / "archive")).put_file(key, micro.clip)
        store = CountingStore(kept)
        operators = TorchOperators(store, threads=2, cache_dir=tmp_path / "cache", cache_bytes=10**9)
        expected = source_rgb(micro.clip)
        for frames in (np.array([0, 7]), np.array([31])):
            pixels: Any = operators.source(Keeping(micro, key), micro.video_id, frames)[RGB_STAGE]
            assert torch.equal(pixels.for_people(), expected[torch.from_numpy(frames)])
        assert store.total_bytes == micro.clip.stat().st_size


class Keeping(Snapshot):
    """The snapshot as it were if the archive had kept a copy of the original."""

    def __init__(self, micro: Micro, key: str) -> None:
        self.real, self.key = micro.archive.catalog.snapshot(), key
        self.number = self.real.number

    def video(self, video_id: str) -> IndexedVideo:
        return replace(self.real.video(video_id), source_uri=self.key)

    def segments(self, video_id: str, *, only: int | None = None) -> tuple[SegmentRecord, ...]:
        return self.real.segments(video_id, only=only)


class TestFidelity:
    def test_it_is_first_rank_agreement_on_every_third_frame(self, micro: Micro) -> None:
        # Task terms see two of three frames of the video; a route is judged on the others.
        reference = dict(micro.archive.sql(FIRST.format(options="(route := 'source')")).fetchall())
        segments = micro.archive.sql("SELECT segment, start_frame, frames FROM segments").fetchall()
        for route in ("adapter", "pixel"):
            sql = f"SELECT frame, label, fidelity FROM labels(route := '{route}') WHERE rank = 1"
            rows = micro.archive.sql(sql).fetchall()
            for segment, start, count in segments:
                unseen = [r for r in rows if start <= r[0] < start + count and r[0] % 3 == 2]
                agreement = np.mean([label == reference[frame] for frame, label, _ in unseen])
                assert [r[2] for r in unseen] == pytest.approx([agreement] * len(unseen)), (route, segment)

    def test_confident_frames_are_those_of_the_source_s_answers(self, micro: Micro) -> None:
        sql = "SELECT frame, score FROM labels(route := 'source') WHERE rank = 1"
        sure = {frame for frame, score in micro.archive.sql(sql).fetchall() if score >= 0.4}
        rows = micro.archive.sql(
            "SELECT DISTINCT s.start_frame, s.frames, r.confident_frames "
            "FROM routes r JOIN segments s USING (video_id, segment)"
        ).fetchall()
        assert rows
        for start, count, confident in rows:
            assert confident == len([f for f in sure if start <= f < start + count and f % 3 == 2])

    def test_the_source_route_agrees_with_itself(self, micro: Micro) -> None:
        assert micro.archive.sql(
            "SELECT DISTINCT fidelity FROM routes WHERE route = 'source'"
        ).fetchall() == [(1.0,)]


class TestSameRows:
    @pytest.mark.parametrize("batch_frames", [1, 7])
    def test_under_any_batch(self, micro: Micro, batch_frames: int) -> None:
        # Pixels are rounded to 8 bits: sums that round differently may move a value by one.
        for route, tolerance in (("adapter", 1e-5), ("pixel", 1e-3)):
            options = f"(route := '{route}')"
            found = answers(micro.archive, options, batch_frames=batch_frames)
            assert_same(found, answers(micro.archive, options), tolerance=tolerance)

    def test_in_any_company(self, micro: Micro) -> None:
        alone = answers(micro.archive)
        sql = (
            "SELECT a.frame, a.rank, a.label, a.score FROM labels a "
            "JOIN labels(route := 'pixel', top := 1) b USING (video_id, frame) "
            "JOIN labels(route := 'source', top := 2) c USING (video_id, frame) "
            "WHERE b.rank = 1 AND c.rank = 1 ORDER BY a.frame, a.rank"
        )
        assert_same(grouped(micro.archive.sql(sql).fetchall()), alone)

    def test_under_a_restriction_of_time(self, micro: Micro) -> None:
        whole = micro.archive.sql("SELECT frame, rank, label, score, ts FROM labels").fetchall()
        for where, keep in (
            ("ts < 0.5", lambda ts: ts < 0.5),
            ("ts BETWEEN 0.5 AND 1.3", lambda ts: 0.5 <= ts <= 1.3),
            ("ts >= 1.5", lambda ts: ts >= 1.5),
        ):
            expected = grouped(sorted(row[:4] for row in whole if keep(row[4])))
            sql = f"SELECT frame, rank, label, score FROM labels WHERE {where} ORDER BY frame, rank"
            assert_same(grouped(micro.archive.sql(sql).fetchall()), expected)

    def test_with_a_stride(self, micro: Micro) -> None:
        whole = answers(micro.archive)
        found = answers(micro.archive, "(stride := 5)")
        assert_same(found, {frame: whole[frame] for frame in range(0, CLIP_FRAMES, 5)})


def assert_same(found: Answers, expected: Answers, *, tolerance: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for frame, ranked in found.items():
        assert ranked[0][0] == expected[frame][0][0]
        scores = [score for _, score in expected[frame]]
        assert [score for _, score in ranked] == pytest.approx(scores, abs=tolerance)


class TestSharing:
    """Nothing of what is shared changes a single bit: the same batches are decoded."""

    SQL = (
        "SELECT l.frame, l.rank, l.label, l.score, hash(f.image) AS picture"
        " FROM labels l JOIN frames f USING (video_id, frame) WHERE {} ORDER BY l.frame, l.rank"
    )
    PREDICATES = (
        *("l.rank = 1", "l.score > 0.01", "l.frame < 17", "l.ts > 0.3"),
        *("l.label LIKE 'm%'", "l.frame BETWEEN 5 AND 33", "l.rank < 3", "f.width > 0"),
    )

    def fresh(self, micro: Micro) -> TorchOperators:
        return TorchOperators(micro.archive.store, threads=2)

    def ask(self, micro: Micro, operators: TorchOperators, predicate: str) -> list[tuple[Any, ...]]:
        return execute(
            Request(
                sql=self.SQL.format(predicate),
                snapshot=micro.archive.catalog.snapshot(),
                operators_factory=lambda: operators,
                settings=micro.archive.settings,
            )
        ).fetchall()

    def test_queries_at_once_give_the_rows_of_queries_alone(self, micro: Micro) -> None:
        shared = self.fresh(micro)
        with ThreadPoolExecutor(len(self.PREDICATES)) as pool:
            together = list(pool.map(partial(self.ask, micro, shared), self.PREDICATES))
        for predicate, found in zip(self.PREDICATES, together, strict=True):
            assert found == self.ask(micro, self.fresh(micro), predicate)

    def test_sizes_are_those_in_memory(self, micro: Micro) -> None:
        operators, snapshot = self.fresh(micro), micro.archive.catalog.snapshot()
        handle = operators.fetch(snapshot, micro.video_id, 0, "2")
        features: Any = operators.decode(handle, np.arange(8), ("1", "2"))
        assert operators.size_bytes(features) == 4 * (features["1"].numel() + features["2"].numel())
        assert operators.size_bytes(features) <= 8 * operators.frame_bytes(handle, ("1", "2"))
        weights = sum(value.numel() for value in handle.decoder.parameters())
        assert operators.size_bytes(handle) == 4 * (weights + handle.latents.numel())


class TestBytes:
    SQL = "SELECT ts, label FROM labels WHERE rank = 1 AND ts < 1"

    def counted(
        self, micro: Micro, sql: str, *, cache_dir: Path | None = None
    ) -> tuple[CountingStore, dict[str, Any]]:
        """The ranged reads that a query makes on an archive that is far away."""
        store = CountingStore(micro.archive.store)
        result = execute(
            Request(
                sql=sql,
                snapshot=micro.archive.catalog.snapshot(),
                operators_factory=lambda: TorchOperators(
                    store, threads=2, cache_dir=cache_dir, cache_bytes=10**9
                ),
                settings=micro.archive.settings,
            )
        )
        return store, result.explain_dict()

    def test_explain_names_only_what_is_needed(self, micro: Micro) -> None:
        needed = micro.archive.sql("SELECT segment FROM segments WHERE start_ts < 1").fetchall()
        names = {f"{micro.video_id[:8]}/{segment}" for (segment,) in needed}
        others = {
            f"{micro.video_id[:8]}/{s['segment']}" for s in micro.archive.show(micro.video_id)["segments"]
        }
        text = "\n".join(line for (line,) in micro.archive.sql(f"EXPLAIN {self.SQL}").fetchall())
        assert all(name in text for name in names)
        assert others - names
        assert not any(name in text for name in others - names)

    def test_explain_analyze_counts_the_bytes_that_travel(self, micro: Micro) -> None:
        store, explained = self.counted(micro, f"EXPLAIN ANALYZE {self.SQL}")
        measured, total = explained["measured"], explained["total"]
        for kind in ("prefix_bytes", "latents_bytes", "route_bytes"):
            assert measured[kind] == total[kind] > 0
        assert measured["traffic"]["store_bytes"] == store.total_bytes
        # Adapters of other routes may lie between the needed ones: fewer requests for a few bytes more.
        passed_over = store.total_bytes - measured["bytes"]
        assert 0 <= passed_over <= len(measured["frames_decoded"]) * ADAPTER_BRIDGE_BYTES

    def test_a_segment_is_two_requests_and_a_video_one_more(self, micro: Micro) -> None:
        store, explained = self.counted(micro, "EXPLAIN ANALYZE SELECT label FROM labels")
        segments = micro.archive.sql("SELECT segment FROM segments").fetchall()
        assert len(segments) > 1
        assert len(store.ranges) == 2 * len(segments) + 1
        assert len(set(store.ranges)) == len(store.ranges)
        traffic = explained["measured"]["traffic"]
        assert (traffic["requests"], traffic["store_bytes"]) == (len(store.ranges), store.total_bytes)

    def test_frames_for_people_take_two_requests_a_segment(self, micro: Micro) -> None:
        store = CountingStore(micro.archive.store)
        operators = TorchOperators(store, threads=2)
        snapshot = micro.archive.catalog.snapshot()
        frames = operators.decode_frames(snapshot, micro.video_id, start=None, end=None, batch_frames=16)
        assert sum(len(batch) for batch in frames) == CLIP_FRAMES
        assert len(store.ranges) == 2 * len(snapshot.segments(micro.video_id))

    def test_a_second_query_finds_it_all_in_the_cache(self, micro: Micro, tmp_path: Path) -> None:
        sql = f"EXPLAIN ANALYZE {self.SQL}"
        cold, first = self.counted(micro, sql, cache_dir=tmp_path)
        warm, second = self.counted(micro, sql, cache_dir=tmp_path)
        assert cold.ranges
        assert warm.ranges == []
        assert second["measured"]["bytes"] == first["measured"]["bytes"]
        assert second["measured"]["traffic"] == {
            "requests": 0,
            "store_bytes": 0,
            "cache_bytes": first["measured"]["bytes"],
        }

    def test_damage_names_video_segment_stage_and_object(self, micro: Micro) -> None:
        store = CountingStore(micro.archive.store)
        store.damage = lambda data: bytes([data[0] ^ 1]) + data[1:]
        with pytest.raises(
            IntegrityError,
            match=rf"labels@\w+…, video {micro.video_id} segment 0, fetching stages up to \w+: "
            rf"videos/{micro.video_id}/\w+/(weights|latents)-0.parquet at offset \d+ ",
        ):
            execute(
                Request(
                    sql="SELECT label FROM labels",
                    snapshot=micro.archive.catalog.snapshot(),
                    operators_factory=lambda: TorchOperators(store, threads=2),
                    settings=micro.archive.settings,
                )
            )

    @pytest.mark.parametrize("route", ["adapter", "pixel"])
    def test_bytes_of_routes_are_what_a_cold_read_takes(self, micro: Micro, route: str) -> None:
        _, explained = self.counted(micro, f"SELECT label FROM labels(route := '{route}')")
        chosen = micro.archive.sql(
            "SELECT segment, min_by(bytes, gflops) FROM "
            "(SELECT *, max(fidelity) OVER (PARTITION BY segment) AS best FROM routes WHERE route = ?) "
            "WHERE fidelity >= best - 0.02 GROUP BY segment",
            params=[route],
        ).fetchall()
        assert sum(size for _, size in chosen) == explained["measured"]["bytes"]

    def test_reading_times_alone_fetches_nothing(self, micro: Micro) -> None:
        store, _ = self.counted(micro, "SELECT frame, ts FROM labels WHERE rank = 1")
        assert store.ranges == []
