"""Data sets for training: the query's frames, each once; the tensors that queries compute with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
import torch
from torch.utils.data import DataLoader

from nvpstore.archive import Archive
from nvpstore.errors import RouteError, StoreError, TaskError, UsageError
from nvpstore.handover.clusters import ray_dataset
from nvpstore.handover.reading import CutReader
from nvpstore.handover.training import StoredBatch, StoredFrames, features, pixels
from nvpstore.query.operators import TorchOperators
from nvpstore.query.routes import Route
from nvpstore.tasks.heads import View
from nvpstore.tasks.registry import load
from nvpstore.tasks.spec import TaskSpec
from tests.conftest import Micro
from tests.ingest.test_pipeline import clip

pytestmark = pytest.mark.slow  # reads a fitted video
FRAMES = "SELECT video_id, segment, frame, ts FROM frames"


@pytest.fixture(scope="module")
def rows(micro: Micro) -> pa.Table:
    return micro.archive.sql(FRAMES).arrow()


def loaded(dataset: StoredFrames, workers: int) -> list[StoredBatch]:
    return list(DataLoader(dataset, batch_size=None, num_workers=workers))


def together(lists: Sequence[list[int]]) -> list[int]:
    return [frame for frames in lists for frame in frames]


def frames_of(batches: Sequence[StoredBatch]) -> list[list[int]]:
    return [batch.columns["frame"].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_frame_comes_once_with_its_columns(micro: Micro, rows: pa.Table, workers: int) -> None:
    dataset = features(micro.archive, "labels", rows, batch=4, mix=2)
    batches = loaded(dataset, workers)
    assert len(batches) == len(dataset)
    assert sorted(together(frames_of(batches))) == list(range(40))
    ts = rows["ts"].to_numpy()
    for batch in batches:
        (tensor,) = batch.tensors
        assert tensor.shape[1:] == dataset.reader.shapes[0]  # type: ignore[attr-defined]
        assert len(tensor) == len(batch.rows) <= 4
        assert batch.columns["ts"].tolist() == ts[batch.rows.numpy()].tolist()
        assert set(batch.columns["video_id"]) == {micro.video_id}
        (tensor * torch.ones(1, requires_grad=True)).sum().backward()  # training may use them


def answers_from(dataset: StoredFrames, workers: int = 0) -> list[str]:
    """The first label of each frame, from its features through the tail."""
    reader = dataset.reader
    assert isinstance(reader, CutReader)
    task = load(reader.spec)
    found: list[str] = []
    for batch in loaded(dataset, workers):
        with torch.inference_mode():
            output = task.backbone.tail(reader.cut)(*batch.tensors)
        view = View(height=1, width=1, region=reader.spec.preprocessing.region(1, 1))
        _, table = task.head.rows(output, top=1, view=view, columns=frozenset({"label"}))
        found += table["label"].to_pylist()
    return found


def queried(archive: Archive, route: str) -> list[str]:
    ours = archive.sql(f"SELECT frame, label FROM labels(route := '{route}') WHERE rank = 1 ORDER BY frame")
    return [label for _, label in ours.fetchall()]


def test_features_are_those_that_queries_compute_with(micro: Micro, rows: pa.Table) -> None:
    dataset = features(micro.archive, "labels", rows, batch=16, seed=None)
    operators = TorchOperators(micro.archive.store, threads=1)
    snapshot = micro.archive.catalog.snapshot()
    task = snapshot.task("labels")
    reader = dataset.reader
    assert isinstance(reader, CutReader)
    best: dict[int, Route] = {}
    for found in snapshot.routes(micro.video_id, task.version):
        route = found.route
        if route.route == "adapter" and route.cut == reader.cut:
            known = best.get(route.segment)
            if known is None or (route.fidelity or 0, -route.gflops) > (known.fidelity or 0, -known.gflops):
                best[route.segment] = route
    compared = 0
    for batch in loaded(dataset, 0):
        for place, frame in enumerate(batch.columns["frame"].tolist()):
            segment = int(batch.columns["segment"][place])
            if segment not in best:
                continue
            handle = operators.fetch(snapshot, micro.video_id, segment, best[segment].stages[-1])
            taps = operators.decode(handle, np.array([frame]), best[segment].stages)
            adapter = dataset._own(threads=1).adapter(reader.segments[micro.video_id, segment], reader.shapes)
            assert tuple(adapter.stages) == tuple(best[segment].stages)
            with torch.inference_mode():
                (expected,) = adapter(taps)
            torch.testing.assert_close(batch.tensors[0][place], expected[0].clone(), atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared > 0


def test_an_earlier_adapter_and_the_blocks_between_serve_a_later_cut(micro: Micro, rows: pa.Table) -> None:
    last = load(TaskSpec.from_json(micro.archive.catalog.snapshot().task("labels").spec)).backbone.cuts[-1]
    dataset = features(micro.archive, "labels", rows, cut=last.name, batch=16, seed=None)
    reader = dataset.reader
    assert isinstance(reader, CutReader)
    assert {known.cut for known in reader.segments.values()} - {last.name}, "all have one at the last cut"
    # The best adapter of each segment's latest cut is not always the one that a query takes.
    same = sum(a == b for a, b in zip(answers_from(dataset), queried(micro.archive, "adapter"), strict=True))
    assert same >= 36


@pytest.mark.parametrize("workers", [0, 1])
def test_what_has_no_adapter_comes_from_its_pixels(micro: Micro, tmp_path: Path, workers: int) -> None:
    archive = Archive.create(tmp_path / "added", settings=micro.archive.settings)
    archive.add(micro.clip)
    rows = archive.sql(FRAMES).arrow()
    cut = features(micro.archive, "labels", rows).reader.cut  # type: ignore[attr-defined]
    dataset = features(archive, "labels", rows, cut=cut, batch=16, seed=None)
    assert answers_from(dataset, workers) == queried(archive, "source")
    # Frames that the segment no longer has: it was fitted meanwhile, and divided otherwise.
    others = rows.set_column(2, "frame", pa.compute.add(rows["frame"], 1000))
    with pytest.raises(StoreError, match="was fitted since"):
        loaded(features(archive, "labels", others, cut=cut, seed=None), 0)
    with pytest.raises(StoreError, match="was fitted since"):
        loaded(pixels(archive, others), 0)


def test_order_is_the_seeds_and_epochs(micro: Micro, rows: pa.Table) -> None:
    def order(seed: int | None, epoch: int = 0) -> list[list[int]]:
        dataset = features(micro.archive, "labels", rows, batch=4, mix=2, seed=seed)
        dataset.resume(epoch=epoch)
        return frames_of(loaded(dataset, 0))

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3) != order(3, epoch=1)
    assert together(order(None)) == list(range(40))
    assert order(3)[0] != sorted(order(3)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_goes_on_where_it_was_left(micro: Micro, rows: pa.Table, workers: int) -> None:
    def passed(batches: int) -> list[list[int]]:
        dataset = features(micro.archive, "labels", rows, batch=4, mix=2, seed=1)
        dataset.resume(epoch=2, batches=batches)
        return frames_of(loaded(dataset, workers))

    whole = passed(0)
    for left_at in (3, len(whole) - 1, len(whole)):
        assert passed(left_at) == whole[left_at:]


def test_pixels_are_those_that_the_archive_shows(micro: Micro, rows: pa.Table) -> None:
    dataset = pixels(micro.archive, rows.slice(0, 3), batch=2, seed=None)
    shown = np.concatenate([part.rgb_thwc for part in micro.archive.frames(micro.video_id)])
    for batch in loaded(dataset, 0):
        for place, frame in enumerate(batch.columns["frame"].tolist()):
            ours = batch.tensors[0][place].permute(1, 2, 0).numpy().astype(int)
            # Sums differ in the last bit with the batch, and so a value here and there by one.
            assert np.abs(ours - shown[frame]).max() <= 1


def test_sampling_and_columns_are_the_querys(micro: Micro) -> None:
    own = pa.table({"frame": [0, 8, 16], "target": [1.0, 2.0, 3.0]})
    chosen = micro.archive.sql(
        f"{FRAMES}(stride := 8) JOIN own USING (frame)".replace("ts FROM", "ts, target FROM"),
        tables={"own": own},
    ).arrow()
    (batch,) = loaded(features(micro.archive, "labels", chosen, seed=None), 0)
    assert batch.columns["target"].tolist() == [1.0, 2.0, 3.0]
    assert batch.columns["frame"].tolist() == [0, 8, 16]


def test_videos_of_several_sizes_need_one(micro: Micro, tmp_path: Path) -> None:
    archive = micro.copy(tmp_path)
    archive.add(clip(tmp_path, frames=3, width=48, height=32), tasks=())
    rows = archive.sql(FRAMES).arrow()
    with pytest.raises(UsageError, match=r"videos of 2 sizes \(32×48, .*\): give size"):
        pixels(archive, rows)
    batches = loaded(pixels(archive, rows, size=(16, 24), batch=8), 0)
    assert sum(len(batch.rows) for batch in batches) == 43
    assert {tuple(batch.tensors[0].shape[1:]) for batch in batches} == {(3, 16, 24)}


def refused(make: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_what_cannot_be_handed_over_is_said(micro: Micro, rows: pa.Table, tmp_path: Path) -> None:
    archive = micro.archive
    refused(lambda: features(archive, "lables", rows), TaskError, "lables")
    refused(lambda: features(archive, "labels", rows, cut="nowhere"), TaskError, "nowhere")
    refused(lambda: features(archive, "labels", rows, batch=0), UsageError, "batch 0")
    refused(lambda: pixels(archive, rows).resume(epoch=-1), UsageError, "epoch -1")
    only_added = Archive.create(tmp_path / "added", settings=archive.settings)
    only_added.add(micro.clip)
    refused(lambda: features(only_added, "labels", rows), RouteError, "train it .* or give cut")


def test_a_refit_is_noticed(micro: Micro, rows: pa.Table) -> None:
    dataset = features(micro.archive, "labels", rows)
    reader = dataset.reader
    assert isinstance(reader, CutReader)
    # As it was before: what is stored now is of another attempt.
    before = {key: replace(known, latents_key="videos/x/old") for key, known in reader.segments.items()}
    dataset.reader = replace(reader, segments=before)
    with pytest.raises(StoreError, match="was fitted anew since"):
        loaded(dataset, 0)


def test_ray_has_the_same_rows(micro: Micro, rows: pa.Table) -> None:
    frames = pixels(micro.archive, rows, batch=8, size=(8, 12), seed=None)
    found = ray_dataset(frames).take_all()
    assert sorted(row["frame"] for row in found) == list(range(40))
    by_frame = {row["frame"]: row["tensor_0"] for row in found}
    for batch in loaded(frames, 0):
        for place, frame in enumerate(batch.columns["frame"].tolist()):
            assert (by_frame[frame] == batch.tensors[0][place].numpy()).all()
