"""Upscaled frames of an archive: queries, exports and clips show the same pictures, with time and sound."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from PIL import Image

import nvpstore
from nvpstore.errors import UsageError
from nvpstore.video.source import scan
from tests.video.conftest import Clip, write_clip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from nvpstore.archive import Archive
    from tests.conftest import Micro


def shown(archive: Archive, ref: str, **options: object) -> NDArray[np.uint8]:
    return np.concatenate([batch.rgb_thwc for batch in archive.frames(ref, upscale=2, **options)])  # type: ignore[arg-type]


def asked(archive: Archive, sql: str) -> dict[int, NDArray[np.uint8]]:
    rows = archive.sql(sql).fetchall()
    return {frame: np.asarray(Image.open(io.BytesIO(image))) for frame, image in rows}


def test_a_query_shows_what_frames_shows(micro: Micro) -> None:
    whole = shown(micro.archive, micro.video_id)
    small = np.concatenate([batch.rgb_thwc for batch in micro.archive.frames(micro.video_id)])
    assert whole.shape == (len(small), 2 * small.shape[1], 2 * small.shape[2], 3)
    found = asked(micro.archive, "SELECT frame, image FROM frames(upscale := 2) WHERE frame BETWEEN 5 AND 20")
    assert sorted(found) == list(range(5, 21))
    for frame, picture in found.items():
        assert np.array_equal(picture, whole[frame])


def test_rows_do_not_depend_on_what_else_was_asked(micro: Micro) -> None:
    one = asked(micro.archive, "SELECT frame, image FROM frames(upscale := 2) WHERE frame = 11")
    some = asked(micro.archive, "SELECT frame, image FROM frames(upscale := 2, stride := 11)")
    assert np.array_equal(one[11], some[11])
    batch = next(iter(micro.archive.frames(micro.video_id, start=0.44, end=0.5, upscale=2, batch_frames=1)))
    assert batch.first_frame == 11
    assert np.array_equal(batch.rgb_thwc[0], one[11])


def test_sizes_are_those_of_the_larger_picture(micro: Micro) -> None:
    (small,) = micro.archive.sql("SELECT width, height FROM frames WHERE frame = 0").fetchall()
    (large,) = micro.archive.sql(
        "SELECT width, height, octet_length(image) > 0 FROM frames(upscale := 4) WHERE frame = 0"
    ).fetchall()
    assert large == (4 * small[0], 4 * small[1], True)


def test_a_plan_says_that_it_upscales(micro: Micro) -> None:
    lines = micro.archive.sql("EXPLAIN SELECT image FROM frames(upscale := 4)").arrow()["plan"].to_pylist()
    plan = "\n".join(lines)
    assert "upscale 4" in plan
    assert "Upscale 4 times the size" in plan


def test_an_export_says_that_its_detail_is_synthesised(micro: Micro, tmp_path: Path) -> None:
    summary = micro.archive.export(micro.video_id, tmp_path / "out.mkv", lossless=True, end=0.2, upscale=2)
    assert (summary.frames, summary.upscaled) == (5, 2)
    with av.open(str(tmp_path / "out.mkv")) as container:
        marks = {name.lower(): value for name, value in container.metadata.items()}
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert "synthesised" in marks["comment"]
    assert np.array_equal(np.stack(frames), shown(micro.archive, micro.video_id, end=0.2))


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A clip with sound whose frames do not follow each other evenly."""
    clip = Clip(
        name="uneven.mkv",
        frames=14,
        width=48,
        height=32,
        time_base=Fraction(1, 1000),
        pts=[0, 40, 80, 200, 240, 250, 300, 420, 460, 500, 700, 740, 760, 800],
        audio="aac",
    )
    return write_clip(tmp_path, clip)


def test_time_and_sound_of_an_uneven_clip_are_kept(uneven: Path, tmp_path: Path) -> None:
    archive = nvpstore.open(str(tmp_path / "archive"), create=True)
    video = archive.add(str(uneven), keep_source="copy")
    archive.export(video.video_id, tmp_path / "out.mkv", upscale=2)
    source, made = (scan(str(path), max_segment_frames=99) for path in (uneven, tmp_path / "out.mkv"))
    assert (made.info.width, made.info.height) == (2 * source.info.width, 2 * source.info.height)
    assert made.frames == source.frames
    seconds = [(found.pts - found.pts[0]) * float(found.info.time_base) for found in (source, made)]
    assert np.allclose(*seconds, atol=0.0011)  # Matroska counts milliseconds
    assert made.info.audio_streams == source.info.audio_streams == 1


@pytest.mark.parametrize("factor", [0, 3, 8])
def test_other_factors_are_refused(micro: Micro, factor: int) -> None:
    with pytest.raises(UsageError, match="2 or 4"):
        next(iter(micro.archive.frames(micro.video_id, upscale=factor)))
