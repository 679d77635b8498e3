"""Every kind of task by every route: rows against the backbone run by hand on the same pictures."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import nvpstore
from nvpstore.codec.artifact import content_rgb
from nvpstore.errors import QueryError
from nvpstore.query.relation import relation_schema
from nvpstore.query.request import Request
from nvpstore.query.result import Result
from nvpstore.query.run import execute
from nvpstore.tasks.heads import View
from nvpstore.tasks.registry import LoadedTask
from nvpstore.types import RGB_STAGE, RouteName, SegmentRecord
from tests.query.kinds import FRAMES, HEIGHT, SPECS, STAGES, WIDTH, Kinds, few_threads, middle_cut, settings
from tests.query.test_operators import source_rgb

pytestmark = pytest.mark.slow  # models of transformers and torchvision are imported

ROUTES: tuple[RouteName, ...] = ("source", "pixel", "adapter")
DEEPEST = {"source": "", "pixel": RGB_STAGE, "adapter": STAGES[-1]}
TOP = 5


def units(task: LoadedTask, segment: SegmentRecord) -> list[list[int]]:
    """The frames of each unit's pictures, clips written out one by one."""
    start, stop = segment.start_frame, segment.start_frame + segment.frames
    clip = task.spec.clip
    if clip is None:
        return [[frame] for frame in range(start, stop)]
    span = clip.frames * clip.stride
    return [
        [min(first + n * clip.stride, stop - 1) for n in range(clip.frames)]
        for first in range(start, stop, span)
    ]


Pictures = Mapping[RouteName, Tensor]


@pytest.fixture(scope="module")
def pictures(all_kinds: Kinds) -> Pictures:
    """All frames [t, 3, h, w] as the routes that begin at pixels show them to a backbone."""
    with few_threads():
        parts = [decoded(all_kinds, segment, frames(segment), RGB_STAGE) for segment in all_kinds.segments]
        return {"source": source_rgb(all_kinds.clip), "pixel": torch.cat(parts)}


def frames(segment: SegmentRecord) -> list[int]:
    return list(range(segment.start_frame, segment.start_frame + segment.frames))


def decoded(kinds: Kinds, segment: SegmentRecord, frames: Sequence[int], stage: str) -> Any:
    """Taps of `STAGES`; for `rgb` pictures [t, 3, h, w] in 0 … 255, at the size at which they are coded."""
    operators, snapshot = kinds.operators(), kinds.archive.catalog.snapshot()
    handle = operators.fetch(snapshot, kinds.video.video_id, segment.segment, stage)
    taps: Any = operators.decode(handle, np.array(frames), STAGES if stage != RGB_STAGE else (RGB_STAGE,))
    return taps if stage != RGB_STAGE else content_rgb(taps[RGB_STAGE].rgb, handle.arch)


@torch.inference_mode()
def output(
    kinds: Kinds, pictures: Pictures, task: LoadedTask, route: RouteName, segment: SegmentRecord
) -> Tensor:
    """The backbone's output for all units of a segment."""
    asked = [frame for unit in units(task, segment) for frame in unit]
    if route != "adapter":
        return task.backbone.whole(task.spec.prepare(pictures[route][asked], size=(HEIGHT, WIDTH)))
    taps = decoded(kinds, segment, asked, STAGES[-1])
    adapter = kinds.adapters[(task.spec.name, segment.segment)]
    found: Tensor = task.backbone.tail(middle_cut(task))(*adapter(taps))
    return found


def expected(kinds: Kinds, pictures: Pictures, task: LoadedTask, route: RouteName) -> pa.Table:
    """The rows of the whole video, less what every kind has."""
    region = task.spec.preprocessing.region(HEIGHT, WIDTH)
    view = View(height=HEIGHT, width=WIDTH, region=region)
    columns = relation_schema(task.spec.kind).names
    tables = []
    for segment in kinds.segments:
        asked = units(task, segment)
        places, table = task.head.rows(
            output(kinds, pictures, task, route, segment), top=TOP, view=view, columns=columns
        )
        first = [asked[place][0] for place in places]
        table = table.append_column("frame", pa.array(first, pa.int64()))
        if task.spec.clip is not None:
            span, stop = task.spec.clip.span, segment.start_frame + segment.frames
            last = [min(frame + span, stop) - 1 for frame in first]
            table = table.append_column("end_ts", pa.array([frame / 25 for frame in last]))
        tables.append(table.append_column("segment", pa.array([segment.segment] * len(first), pa.int32())))
    return pa.concat_tables(tables)


def ask(kinds: Kinds, sql: str, **options: Any) -> Result:
    """On operators that hold nothing yet."""
    return execute(
        Request(
            sql=sql,
            snapshot=kinds.archive.catalog.snapshot(),
            operators_factory=kinds.operators,
            settings=kinds.archive.settings,
            **options,
        )
    )


def rows(kinds: Kinds, sql: str) -> pa.Table:
    table: pa.Table = kinds.archive.sql(sql).arrow()
    return table


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", SPECS)
def test_rows_are_the_backbone_s_own(kinds: Kinds, pictures: Pictures, name: str, route: RouteName) -> None:
    task = kinds.tasks[name]
    result = kinds.archive.sql(f"SELECT * FROM {name}(route := '{route}') ORDER BY frame")
    found = result.arrow()
    assert found.schema.names == relation_schema(task.spec.kind).names
    assert types(found.schema) == types(relation_schema(task.spec.kind))
    wanted = expected(kinds, pictures, task, route)
    assert found.num_rows == wanted.num_rows > 0
    for column in wanted.schema.names:
        assert_alike(found[column].to_pylist(), wanted[column].to_pylist())
    assert set(found["route"].to_pylist()) == {route}
    assert set(found["fidelity"].to_pylist()) == {{"source": 1.0, "pixel": 0.5, "adapter": 0.75}[route]}
    assert found["ts"].to_pylist() == pytest.approx([frame / 25 for frame in found["frame"].to_pylist()])
    assert result.measured is not None
    shown = sum(len(unit) for segment in kinds.segments for unit in units(task, segment))
    assert result.measured.frames_decoded == {DEEPEST[route]: shown}


def types(schema: pa.Schema) -> list[str]:
    """Names of an element in a list are DuckDB's business."""
    return [str(kind.value_type) if pa.types.is_list(kind) else str(kind) for kind in schema.types]


def assert_alike(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Equal but for rounding, which hangs on batches."""
    for mine, theirs in zip(found, wanted, strict=True):
        if isinstance(theirs, bytes):
            own, other = picture(mine), picture(theirs)
            assert own.shape == other.shape == (HEIGHT, WIDTH)
            assert own.dtype == other.dtype
            # A level of 65,535 more or less, or a label at the border of another.
            assert np.mean(np.abs(own.astype(float) - other) > 2) < 0.01
        elif isinstance(theirs, (dict, list)):
            parts = [list(x.values()) if isinstance(x, dict) else x for x in (mine, theirs)]
            assert parts[0] == pytest.approx(parts[1], abs=1e-3)
        elif isinstance(theirs, float):
            assert mine == pytest.approx(theirs, abs=1e-4)
        else:
            assert mine == theirs


def picture(png: bytes) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_clip_s_pictures_are_prepared_one_by_one(kinds: Kinds, pictures: Pictures) -> None:
    spec = kinds.tasks["moves"].spec
    asked = [frame for unit in units(kinds.tasks["moves"], kinds.segments[0]) for frame in unit]
    clips = spec.prepare(pictures["source"][asked])
    assert clips.shape == (2, 3, 4, 32, 32)
    for n, frame in enumerate(asked):
        alone = spec.preprocessing.apply(pictures["source"][frame][None])[0]
        assert torch.equal(clips[n // 4, :, n % 4], alone)


class TestWhatRowsMean:
    """By what is known of the models, not by their heads."""

    def test_boxes_are_pixels_of_the_source(self, kinds: Kinds) -> None:
        # Its random detector puts every box in the middle half of what it is shown, a letterbox of 64 × 64:
        # the picture takes 64 × 42.7 of it.
        found = rows(kinds, "SELECT box.x0, box.y0, box.x1, box.y1 FROM things(route := 'source')")
        for column, side in zip(found.columns, (24, 8, 72, 56), strict=True):
            assert column.to_pylist() == pytest.approx([side] * found.num_rows, abs=0.5)

    def test_masks_and_areas_are_of_what_was_shown(self, kinds: Kinds) -> None:
        found = rows(kinds, "SELECT frame, label, area, mask FROM parts ORDER BY frame")
        assert found.num_rows > FRAMES  # several labels a picture
        masks: dict[int, list[NDArray[Any]]] = {}
        areas: dict[int, list[float]] = {}
        for row in found.to_pylist():
            masks.setdefault(row["frame"], []).append(picture(row["mask"]))
            areas.setdefault(row["frame"], []).append(row["area"])
        for frame, own in masks.items():
            assert sum(mask // 255 for mask in own).tolist() == np.ones((HEIGHT, WIDTH)).tolist()
            assert sum(areas[frame]) == pytest.approx(1)
            assert areas[frame] == sorted(areas[frame], reverse=True)

    def test_depths_lie_between_their_ends(self, kinds: Kinds) -> None:
        found = rows(kinds, 'SELECT depth, "min", "max" FROM far(route := \'source\')')
        for row in found.to_pylist():
            levels = picture(row["depth"])
            assert (levels.dtype, levels.min(), levels.max()) == (np.uint16, 0, 65535)
            assert row["min"] < row["max"]

    def test_embeddings_have_unit_length(self, kinds: Kinds) -> None:
        found = rows(kinds, "SELECT list_dot_product(embedding, embedding) AS n FROM looks")
        assert found["n"].to_pylist() == pytest.approx([1] * FRAMES, abs=1e-5)

    def test_captions_are_sentences(self, kinds: Kinds) -> None:
        found = rows(kinds, "SELECT DISTINCT caption FROM lines(route := 'source')")
        assert all(word.startswith("token") for row in found["caption"].to_pylist() for word in row.split())

    def test_fewer_labels_than_are_asked_for_by_default(self, kinds: Kinds) -> None:
        for name in ("scenes", "moves"):
            found = kinds.archive.sql(f"SELECT DISTINCT rank FROM {name}(route := 'pixel') ORDER BY 1")
            assert found.fetchall() == [(1,), (2,), (3,)]
            with pytest.raises(QueryError, match=f"top := 4: {name} has 3 labels"):
                kinds.archive.sql(f"SELECT label FROM {name}(top := 4)")


class TestCompany:
    ALL = (
        "SELECT s.frame, s.label, k.embedding, f.min, p.area, t.object, l.caption"
        " FROM scenes s JOIN looks k USING (video_id, frame) JOIN far f USING (video_id, frame)"
        " JOIN parts p USING (video_id, frame) JOIN things t USING (video_id, frame)"
        " JOIN lines l USING (video_id, frame) WHERE s.rank = 1 AND s.frame < 6"
    )

    def test_tasks_of_all_kinds_share_one_decode(self, kinds: Kinds) -> None:
        result = ask(kinds, self.ALL)
        assert result.measured is not None
        assert (result.measured.frames, result.measured.fetches) == (6, 1)
        assert result.measured.shared_decodes == 5 * 6
        assert {row[0] for row in result.fetchall()} == set(range(6))

    def test_clips_beside_them_share_the_fetch(self, kinds: Kinds) -> None:
        sql = (
            "SELECT m.frame, m.label, m.end_ts, s.label FROM moves m JOIN scenes s"
            " ON s.video_id = m.video_id AND s.ts BETWEEN m.ts AND m.end_ts"
            " WHERE m.rank = 1 AND s.rank = 1 AND m.segment = 0 AND s.segment = 0 ORDER BY m.frame, s.frame"
        )
        result = ask(kinds, sql)
        assert result.measured is not None
        assert (result.measured.fetches, result.measured.frames) == (1, 13 + 2 * 4)
        found = result.fetchall()
        assert [row[0] for row in found] == [0] * 12 + [12]
        for table in ("moves", "scenes"):
            alone = kinds.archive.sql(
                f"SELECT label FROM {table} WHERE rank = 1 AND segment = 0 ORDER BY frame"
            )
            column = 1 if table == "moves" else 3
            assert {row[column] for row in found} == {label for (label,) in alone.fetchall()}

    @pytest.mark.parametrize("batch_frames", [1, 5])
    def test_no_batch_changes_what_is_answered(self, kinds: Kinds, batch_frames: int) -> None:
        sql = "SELECT frame, end_ts, rank, label, score FROM moves ORDER BY ALL"
        whole, again = rows(kinds, sql), ask(kinds, sql, batch_frames=batch_frames).arrow()
        for column in whole.schema.names:
            assert_alike(again[column].to_pylist(), whole[column].to_pylist())


def test_stored_answers_are_what_was_computed(kinds: Kinds, tmp_path: Path) -> None:
    shutil.copytree(kinds.clip.parent / "archive", tmp_path / "archive")
    archive = nvpstore.open(tmp_path / "archive", settings=settings(tmp_path / "cache", answers="on"))
    for name in SPECS:
        sql = f"SELECT * FROM {name} ORDER BY ALL"
        first, again = archive.sql(sql), archive.sql(sql)
        assert first.measured is not None
        assert again.measured is not None
        assert (first.measured.answered_frames, again.measured.frames) == (0, 0)
        assert first.measured.frames > 0
        assert again.arrow().equals(first.arrow())
