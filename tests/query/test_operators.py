"""Answers of a stored real clip against the backbone run by hand, whatever the route, batch or company."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from nvpstore.archive import Archive
from nvpstore.codec.artifact import content_rgb
from nvpstore.codec.build import Architecture
from nvpstore.query.operators import DecodedPixels, TorchOperators
from nvpstore.query.run import execute
from nvpstore.storage.objects import ObjectStore
from nvpstore.tasks.registry import builtin_spec, load
from nvpstore.types import RGB_STAGE, FrameBatch, StoredObject
from tests.conftest import CLIP_FRAMES, Micro

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
        sql,
        snapshot=archive.catalog.snapshot(),
        operators_factory=lambda: TorchOperators(archive.store, threads=2),
        settings=archive.settings,
        batch_frames=batch_frames,
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
    logits = [task.backbone.whole(task.spec.preprocessing.apply(frame[None])) for frame in rgb_tchw]
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


class TestFidelity:
    def test_it_is_first_rank_agreement_on_odd_frames(self, micro: Micro) -> None:
        # Task terms see even frame numbers of the video; a route is judged on the odd ones.
        reference = dict(micro.archive.sql(FIRST.format(options="(route := 'source')")).fetchall())
        segments = micro.archive.sql("SELECT segment, start_frame, frames FROM segments").fetchall()
        for route in ("adapter", "pixel"):
            sql = f"SELECT frame, label, fidelity FROM labels(route := '{route}') WHERE rank = 1"
            rows = micro.archive.sql(sql).fetchall()
            for segment, start, count in segments:
                odd = [r for r in rows if start <= r[0] < start + count and r[0] % 2 == 1]
                agreement = np.mean([label == reference[frame] for frame, label, _ in odd])
                assert [r[2] for r in odd] == pytest.approx([agreement] * len(odd)), (route, segment)

    def test_confident_frames_are_those_of_the_source_s_answers(self, micro: Micro) -> None:
        sql = "SELECT frame, score FROM labels(route := 'source') WHERE rank = 1"
        sure = {frame for frame, score in micro.archive.sql(sql).fetchall() if score >= 0.4}
        rows = micro.archive.sql(
            "SELECT DISTINCT s.start_frame, s.frames, r.confident_frames "
            "FROM routes r JOIN segments s USING (video_id, segment)"
        ).fetchall()
        assert rows
        for start, count, confident in rows:
            assert confident == len([f for f in sure if start <= f < start + count and f % 2 == 1])

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


class CountingStore(ObjectStore):
    """A store that notes what its ranged reads bring."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.ranges: list[tuple[str, int, int]] = []

    @property
    def root(self) -> str:
        return self.inner.root

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        data = self.inner.get_range(key, offset, size_bytes)
        self.ranges.append((key, offset, len(data)))
        return data

    def put(self, key: str, data: bytes) -> StoredObject:
        raise AssertionError(f"a query wrote {key}")

    def get(self, key: str) -> bytes:
        raise AssertionError(f"a query read the whole of {key}")

    def size(self, key: str) -> int:
        return self.inner.size(key)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def list(self, prefix: str = "") -> list[str]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        raise AssertionError(f"a query deleted {key}")

    @property
    def bytes(self) -> int:
        return sum(size for _, _, size in self.ranges)


class TestBytes:
    SQL = "SELECT ts, label FROM labels WHERE rank = 1 AND ts < 1"

    def counted(self, micro: Micro, sql: str) -> tuple[CountingStore, dict[str, Any]]:
        store = CountingStore(micro.archive.store)
        result = execute(
            sql,
            snapshot=micro.archive.catalog.snapshot(),
            operators_factory=lambda: TorchOperators(store, threads=2),
            settings=micro.archive.settings,
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
        measured = explained["measured"]
        assert measured["bytes"] == store.bytes > 0
        assert explained["total"]["bytes"] == pytest.approx(store.bytes, rel=0.01)
        parts = (measured["prefix_bytes"], measured["latents_bytes"], measured["route_bytes"])
        assert sum(parts) == store.bytes
        assert all(parts)

    def test_a_segment_is_three_reads(self, micro: Micro) -> None:
        store, _ = self.counted(micro, self.SQL)
        needed = micro.archive.sql("SELECT segment FROM segments WHERE start_ts < 1").fetchall()
        assert len(store.ranges) == 3 * len(needed)
        assert len(set(store.ranges)) == len(store.ranges)

    @pytest.mark.parametrize("route", ["adapter", "pixel"])
    def test_bytes_of_routes_are_what_a_cold_read_takes(self, micro: Micro, route: str) -> None:
        store, _ = self.counted(micro, f"SELECT label FROM labels(route := '{route}')")
        chosen = micro.archive.sql(
            "SELECT segment, min_by(bytes, gflops) FROM "
            "(SELECT *, max(fidelity) OVER (PARTITION BY segment) AS best FROM routes WHERE route = ?) "
            "WHERE fidelity >= best - 0.02 GROUP BY segment",
            params=[route],
        ).fetchall()
        assert sum(size for _, size in chosen) == pytest.approx(store.bytes, rel=0.01)

    def test_reading_times_alone_fetches_nothing(self, micro: Micro) -> None:
        store, _ = self.counted(micro, "SELECT frame, ts FROM labels WHERE rank = 1")
        assert store.ranges == []
