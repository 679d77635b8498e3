"""Stored tables: what goes in comes out, from one fetched range, and nothing wrong passes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvpstore.errors import ArchiveError, IntegrityError
from nvpstore.storage import parquet, tables
from nvpstore.types import (
    ByteRange,
    RouteRecord,
    SegmentRecord,
    StoredLatents,
    StoredObject,
    StoredStage,
    StoredTensor,
    TaskRoutes,
    VideoRecord,
)

KEY = "videos/x/weights-0.parquet"

tensors = st.builds(
    StoredTensor,
    name=st.text(max_size=12),
    shape=st.lists(st.integers(0, 2**20), max_size=4).map(tuple),
    dtype=st.sampled_from(["float32", "float16"]),
    encoding=st.sampled_from(["int8-channel", "raw"]),
    scale=st.binary(max_size=8),
    payload=st.binary(max_size=64),
)
stage_lists = st.lists(
    st.builds(
        StoredStage,
        segment=st.integers(0, 3),
        stage=st.sampled_from(["0", "1", "rgb"]),
        tensors=st.lists(tensors, min_size=1, max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=6,
).map(lambda stages: sorted(stages, key=lambda stage: stage.segment))


def some_stages(total_bytes: int, *, segments: int = 1) -> list[StoredStage]:
    """Stages as a real net has them: six, with a kernel and a bias each, bell-shaped int8 weights."""
    rng = np.random.default_rng(0)
    stages = []
    for segment in range(segments):
        for position, share in enumerate((0.07, 0.26, 0.5, 0.1, 0.05, 0.02)):
            weights = np.clip(rng.normal(0, 42, int(total_bytes * share)), -127, 127).astype(np.int8)
            bias = rng.random(64, dtype=np.float32).astype(np.float16)
            kernel = StoredTensor(
                name=f"stages.{position}.conv.weight", shape=(64, 64, 3, 3), dtype="float32",
                encoding="int8-channel", scale=bias.tobytes(), payload=weights.tobytes(),
            )  # fmt: skip
            plain = replace(kernel, name=f"stages.{position}.conv.bias", shape=(64,), encoding="float16")
            plain = replace(plain, scale=b"", payload=bias.tobytes())
            stages.append(StoredStage(segment=segment, stage=str(position), tensors=(kernel, plain)))
    return stages


def some_latents(segment: int = 0, frames: int = 5) -> StoredLatents:
    rng = np.random.default_rng(segment)
    return StoredLatents(
        segment=segment,
        frames=np.arange(frames, dtype=np.int64) + 100 * segment,
        pts=np.arange(frames, dtype=np.int64) * 512 + 7,
        shape=(16, 2, 4),
        encoding="int8",
        scale=b"\x00\xff\x01\x02",
        payload=rng.integers(0, 256, (frames, 128), dtype=np.uint8),
    )


def some_routes() -> TaskRoutes:
    adapter = some_stages(1000)[2].tensors
    base = RouteRecord(
        segment=0, route="adapter", stages=("1", "2"), cut="blocks.8", scope="segment", cka=0.91,
        ridge_r2=0.5, fidelity=0.96, fidelity_confident=1.0, confident_frames=40, gflops=0.125,
        bytes=4711, adapter=adapter,
    )  # fmt: skip
    other = replace(base, segment=1, adapter=some_stages(2000)[1].tensors)
    pixel = replace(base, route="pixel", stages=("rgb",), cut="", cka=None, ridge_r2=None, adapter=())
    again = replace(base, segment=1, scope="video")
    return TaskRoutes(
        video_id="a" * 32, task="labels", version="b" * 64, attempt="01", routes=(base, other, pixel, again)
    )


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@settings(max_examples=60, deadline=None)
@given(stages=stage_lists, data=st.data())
def test_any_run_of_stages_comes_back_from_one_range_and_the_footer(
    stages: list[StoredStage], data: st.DataObject
) -> None:
    encoded = tables.encode_weights(KEY, stages)
    first = data.draw(st.integers(0, len(stages) - 1))
    last = data.draw(st.integers(first, len(stages) - 1))
    wanted = encoded.row_groups[first : last + 1]
    start, end = wanted[0].offset, wanted[-1].offset + wanted[-1].size_bytes
    decoded = tables.decode_stages(encoded.data[start:end], start, encoded.footer, wanted)
    assert decoded == [stage.tensors for stage in stages[first : last + 1]]


def test_row_groups_are_contiguous_and_carry_their_digests() -> None:
    encoded = tables.encode_weights(KEY, some_stages(20_000, segments=3))
    position = 4
    for part in encoded.row_groups:
        assert part.offset == position
        position += part.size_bytes
        assert part.sha256 == digest(encoded.data[part.offset : position])
    assert encoded.data[position:] == encoded.footer
    assert len(encoded.row_groups) == 18


def test_plain_parquet_readers_can_read_weights() -> None:
    stages = some_stages(3000)
    table = pq.read_table(pa.BufferReader(tables.encode_weights(KEY, stages).data))
    assert table.column_names == ["name", "shape", "dtype", "scale", "encoding", "payload"]
    assert table["payload"].to_pylist() == [tensor.payload for stage in stages for tensor in stage.tensors]


@pytest.mark.parametrize(("payload_bytes", "limit"), [(500_000, 0.03), (50_000, 0.10)])
def test_container_overhead_is_small_even_where_nothing_compresses(payload_bytes: int, limit: float) -> None:
    rng = np.random.default_rng(1)
    stages = [
        replace(stage, tensors=tuple(replace(t, payload=rng.bytes(len(t.payload))) for t in stage.tensors))
        for stage in some_stages(payload_bytes)
    ]
    payload = sum(len(t.payload) + len(t.scale) for stage in stages for t in stage.tensors)
    assert len(tables.encode_weights(KEY, stages).data) <= payload * (1 + limit)


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_fetched_range_is_noticed(position: int, bit: int) -> None:
    encoded = tables.encode_weights(KEY, some_stages(500))
    parts = encoded.row_groups[:3]
    end = parts[-1].offset + parts[-1].size_bytes
    fetched = bytearray(encoded.data[4:end])
    fetched[position % len(fetched)] ^= 1 << bit
    with pytest.raises(IntegrityError, match=rf"{KEY} at offset \d+"):
        tables.decode_stages(bytes(fetched), 4, encoded.footer, parts)


def test_a_short_range_and_a_foreign_range_are_noticed() -> None:
    encoded = tables.encode_weights(KEY, some_stages(500))
    part = encoded.row_groups[1]
    body = encoded.data[part.offset : part.offset + part.size_bytes]
    with pytest.raises(IntegrityError, match="were fetched"):
        tables.decode_stages(body[:-1], part.offset, encoded.footer, [part])
    moved = replace(part, offset=part.offset + 1)
    with pytest.raises(IntegrityError, match="no row group"):
        tables.decode_stages(body, moved.offset, encoded.footer, [moved])


def test_more_segments_than_a_file_takes_are_refused() -> None:
    tensors = some_stages(100)[0].tensors
    stages = [StoredStage(segment=n, stage="0", tensors=tensors) for n in range(65)]
    with pytest.raises(ValueError, match="64"):
        tables.encode_weights(KEY, stages)
    assert [len(part) for part in tables.segment_files(130)] == [64, 64, 2]
    assert tables.segment_files(0) == ()


def test_a_stage_without_tensors_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        tables.encode_weights(KEY, [StoredStage(segment=0, stage="0", tensors=())])


def test_latents_come_back_one_segment_at_a_time() -> None:
    items = [some_latents(0, 5), some_latents(1, 1), replace(some_latents(2, 3), scale=b"", shape=())]
    encoded = tables.encode_latents("latents", items)
    for item, part in zip(items, encoded.row_groups, strict=True):
        body = encoded.data[part.offset : part.offset + part.size_bytes]
        found = tables.decode_latents(body, part.offset, encoded.footer, part)
        assert (found.segment, found.shape, found.encoding, found.scale) == (
            item.segment, item.shape, item.encoding, item.scale,
        )  # fmt: skip
        np.testing.assert_array_equal(found.frames, item.frames)
        np.testing.assert_array_equal(found.pts, item.pts)
        np.testing.assert_array_equal(found.payload, item.payload)


def test_latents_cost_few_bytes_beside_their_payload() -> None:
    item = some_latents(0, 100)
    encoded = tables.encode_latents("latents", [item])
    assert len(encoded.data) <= item.payload.nbytes + 1200


def test_routes_come_back_whole_and_one_by_one() -> None:
    routes = some_routes()
    encoded = tables.encode_routes("routes", routes)
    assert tables.decode_routes(encoded.data) == routes
    ranges = tables.route_ranges("routes", encoded.data)
    assert ranges[2] is None
    assert ranges[3] == ranges[0]
    for route, part in zip(routes.routes, ranges, strict=True):
        if part is not None:
            body = encoded.data[part.offset : part.offset + part.size_bytes]
            assert tables.decode_route(body, tables.footer_of(encoded.data), part) == route.adapter


def test_an_adapters_size_does_not_depend_on_the_figures_beside_it() -> None:
    routes = some_routes()
    filled = replace(routes, routes=tuple(replace(r, bytes=r.bytes * 10**6) for r in routes.routes))
    first, second = (tables.encode_routes("routes", value) for value in (routes, filled))
    assert first.row_groups == second.row_groups


def test_routes_without_any_adapter_are_a_file_too() -> None:
    pixel = replace(some_routes(), routes=some_routes().routes[2:3])
    assert tables.decode_routes(tables.encode_routes("routes", pixel).data) == pixel


def some_video(segments: int = 2, **changes: object) -> VideoRecord:
    part = ByteRange(key="w", offset=4, size_bytes=10, sha256="c" * 64)
    rows = tuple(
        SegmentRecord(
            segment=n, scene=0, start_frame=3 * n, pts=np.array([0, 5, 9]) + 20 * n, psnr=30.5,
            frame_psnr=np.array([30, 31, 32.5], np.float32), codec="hnerv", architecture="{}",
            stages=(("0", part), ("rgb", replace(part, offset=14))), gflops=(0.25, 1.5),
            latents=replace(part, key="l"),
        )
        for n in range(segments)
    )  # fmt: skip
    video = VideoRecord(
        video_id="a" * 32, attempt="01", sha256="a" * 64, name="clip.mp4", source_uri=None, source_bytes=9,
        container="mp4", source_codec="h264", width=641, height=272, rotation_degrees=90,
        time_base=Fraction(1, 12800), average_fps=Fraction(30000, 1001), preset="demo", psnr=float("inf"),
        psnr_p5=29.25, resize_bound_psnr=43.0, state="ready", fit_seconds=12.5, segments=rows,
        footers={"w": b"\x00footer", "l": b""} if segments else {},
        audio=StoredObject(key="a.mka", size_bytes=5, sha256="d" * 64),
    )  # fmt: skip
    return replace(video, **changes)  # type: ignore[arg-type]


def same_video(left: VideoRecord, right: VideoRecord) -> bool:
    """Equality that looks into arrays, which dataclasses cannot."""
    for one, other in zip(left.segments, right.segments, strict=True):
        np.testing.assert_array_equal(one.pts, other.pts)
        np.testing.assert_array_equal(one.frame_psnr, other.frame_psnr)
        empty = {"pts": np.zeros(0, np.int64), "frame_psnr": np.zeros(0, np.float32)}
        ours, theirs = replace(one, **empty), replace(other, **empty)
        assert repr(ours) == repr(theirs)
    return replace(left, segments=()) == replace(right, segments=())


@pytest.mark.parametrize(
    "changes",
    [{}, {"audio": None, "source_uri": "file:///x", "psnr": 31.0}, {"pixel_aspect": Fraction(64, 45)}],
)
@pytest.mark.parametrize("segments", [0, 1, 130])
def test_manifests_come_back(segments: int, changes: dict[str, object]) -> None:
    video = some_video(segments, **changes)
    assert same_video(tables.decode_manifest(tables.encode_manifest(video)), video)


@pytest.mark.parametrize("aspect", ["1e30", "1/0", "-1", "0", "wide"])
def test_a_manifest_with_an_impossible_pixel_aspect_is_damaged(aspect: str) -> None:
    data = tables.encode_manifest(replace(some_video(), pixel_aspect=Wrong(aspect)))
    with pytest.raises(IntegrityError, match="malformed"):
        tables.decode_manifest(data)


class Wrong(Fraction):
    """What no encoder writes."""

    def __new__(cls, text: str) -> Wrong:
        self = super().__new__(cls, 1)
        self.text = text  # type: ignore[attr-defined]
        return self

    def __str__(self) -> str:
        return str(self.text)  # type: ignore[attr-defined]


def test_an_unknown_format_version_is_an_archive_error() -> None:
    for data, decode in [
        (tables.encode_manifest(some_video()), tables.decode_manifest),
        (tables.encode_routes("routes", some_routes()).data, tables.decode_routes),
    ]:
        newer = data.replace(b"nvp:format\x18\x011", b"nvp:format\x18\x017")
        assert newer != data
        with pytest.raises(ArchiveError, match="version 7; this release of nvpstore reads versions up to 1"):
            decode(newer)


def test_columns_and_fields_of_later_releases_are_passed_over() -> None:
    weights = tables.encode_weights(KEY, some_stages(500))
    table = pq.read_table(pa.BufferReader(weights.data)).append_column("mood", pa.array(["new"] * 12))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"nvp:format": "1", "nvp:kind": "weights", "nvp:index": "[]"})
    data = sink.getvalue().to_pybytes()
    (found,) = tables.decode_stages(data, 0, tables.footer_of(data), parquet.ranges_of(KEY, data))
    assert list(found) == [tensor for stage in some_stages(500) for tensor in stage.tensors]
    routes = tables.encode_routes("routes", some_routes())
    old, new = b'"cut":"blocks.8"', b'"cut":"","a":1  '  # of one length, as Parquet wants it
    assert tables.decode_routes(routes.data.replace(old, new)).routes[0].cut == ""


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\xff" * 20 + b"PAR1", b"not parquet at all"])
def test_bytes_that_are_no_table_are_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        tables.decode_manifest(data)
    with pytest.raises(IntegrityError):
        tables.decode_routes(data)
