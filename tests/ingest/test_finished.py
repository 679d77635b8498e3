"""Segments that are finished stay so: a rerun goes on with the one that was at work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvpstore.api.commands.intake import check_targets
from nvpstore.archive import Archive
from nvpstore.codec.artifact import store_latents, store_weights
from nvpstore.codec.build import PRESETS, build_architecture
from nvpstore.codec.hnerv import Decoder
from nvpstore.errors import SourceError
from nvpstore.ingest import pipeline
from nvpstore.ingest.finished import keep_finished, kept_finished
from nvpstore.ingest.segment import FinishedSegment
from nvpstore.types import RouteRecord, SegmentSpan
from tests.conftest import open_micro

FRAMES = 12
MICRO = PRESETS["micro"]


@pytest.fixture
def local(tmp_path: Path) -> Archive:
    return open_micro(tmp_path / "archive", tmp_path / "cache", create=True)


def segment() -> FinishedSegment:
    """With every kind of value: encodings with and without scales, an adapter, figures that are not known."""
    arch = build_architecture(32, 48, FRAMES, MICRO)
    pts = np.arange(FRAMES, dtype=np.int64) * 512
    weights = store_weights(Decoder(arch), segment=3)
    latents = torch.randn(FRAMES, *arch.latent_shape)
    route = RouteRecord(
        segment=3,
        route="adapter",
        stages=("1", "2"),
        cut="blocks.4",
        scope="segment",
        cka=0.75,
        ridge_r2=None,
        fidelity=0.5,
        fidelity_confident=None,
        confident_frames=3,
        gflops=0.25,
        bytes=1234,
        adapter=weights[0].tensors,
    )
    return FinishedSegment(
        span=SegmentSpan(segment=3, scene=1, start_frame=24, frames=FRAMES),
        pts=pts,
        arch=arch,
        weights=weights,
        latents=store_latents(latents, segment=3, start_frame=24, pts=pts),
        squared_error=np.random.default_rng(0).random(FRAMES),
        resize_squared_error=np.random.default_rng(1).random(FRAMES),
        values_per_frame=4608,
        routes=((route, replace(route, adapter=())), ()),
        fit_seconds=1.5,
    )


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    path, kept = tmp_path / "segment.finished", segment()
    keep_finished(path, kept)
    found = kept_finished(path)
    assert found is not None
    for name in ("pts", "squared_error", "resize_squared_error"):
        np.testing.assert_array_equal(getattr(found, name), getattr(kept, name))
    for name in ("frames", "pts", "payload"):
        np.testing.assert_array_equal(getattr(found.latents, name), getattr(kept.latents, name))
    for name in ("segment", "shape", "encoding", "scale"):
        assert getattr(found.latents, name) == getattr(kept.latents, name)
    for name in ("span", "arch", "weights", "routes", "values_per_frame", "fit_seconds"):
        assert getattr(found, name) == getattr(kept, name)


def test_nothing_is_kept_where_nothing_was(tmp_path: Path) -> None:
    assert kept_finished(tmp_path / "nowhere.finished") is None


def test_what_another_release_kept_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "segment.finished"
    keep_finished(path, segment())
    monkeypatch.setattr("nvpstore.ingest.finished.LAYOUT", 2)
    assert kept_finished(path) is None


@pytest.mark.slow
def test_a_rerun_fits_only_what_is_left(
    local: Archive, real_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    finish = pipeline.finish_segment

    def killed_in_the_second(read: Any, span: SegmentSpan, *args: Any, **options: Any) -> FinishedSegment:
        fitted.append(span.segment)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return finish(read, span, *args, **options)

    monkeypatch.setattr(pipeline, "finish_segment", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        local.ingest(real_clip, preset="micro", tasks=())
    assert local.videos() == []
    video = local.ingest(real_clip, preset="micro", tasks=())
    assert fitted == [0, 1, 1, 2]
    assert video.frames == 40
    assert local.verify(deep=True).damages == ()
    assert not list((local.catalog.folder / "fits").rglob("segment-*"))


@pytest.mark.slow
def test_a_video_below_its_target_says_so(
    local: Archive, real_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "micro", replace(MICRO, target_psnr=80.0, epochs=1))
    video = local.ingest(real_clip, preset="micro", tasks=())
    assert video.state == "below_target"
    assert local.show(video.video_id)["state"] == "below_target"
    assert local.sql("SELECT name FROM videos WHERE state = 'below_target'").fetchall() == [("bikes.mp4",)]
    check_targets([video], strict=False)
    with pytest.raises(SourceError, match=r"below the PSNR target: bikes\.mp4"):
        check_targets([video], strict=True)
