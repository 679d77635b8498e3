"""docs/format.md names what the code names, and the reader beside it sees what nvpstore sees."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvpstore.archive import Archive
from nvpstore.codec.build import Architecture
from nvpstore.codec.quantize import ENCODINGS, decode_tensor
from nvpstore.storage import keys, tables
from nvpstore.storage.checkpoints import TABLES
from nvpstore.storage.documents import FORMAT_VERSION, encode_meta, encode_task, encode_view
from nvpstore.storage.entries import EntryKind, LogDraft, decode_entry, encode_entry, new_entry
from nvpstore.storage.parquet import footer_of
from nvpstore.storage.results import encode_results
from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.tasks.spec import TaskSpec
from nvpstore.types import (
    RouteName,
    RouteScope,
    SavedView,
    StoredObject,
    StoredTensor,
    TaskKind,
    TaskRecord,
    VideoMeta,
    VideoState,
)
from tests.conftest import Micro, open_micro
from tests.storage.test_results import some_answers
from tests.storage.test_tables import some_latents, some_routes, some_stages, some_video
from tests.video.conftest import Clip, write_clip

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "format.md").read_text(encoding="utf-8")
GOLDEN = Path(__file__).parents[1] / "golden" / f"format-{FORMAT_VERSION}"
READER = DOCS / "read_without_nvpstore.py"


def table(first_heading: str) -> list[list[str]]:
    """Cells of the page's table whose first column is headed so, without the heading."""
    (found,) = re.findall(
        rf"^\| {re.escape(first_heading)} \|[^\n]*\n\| ---[^\n]*\n((?:\|[^\n]*\n)+)", PAGE, re.MULTILINE
    )
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.strip().splitlines()]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def named(first_heading: str) -> set[str]:
    """Everything that the first column of a table names."""
    return {name for row in table(first_heading) for name in names(row[0])}


def index_of(data: bytes) -> Any:
    return json.loads(pq.read_metadata(io.BytesIO(data)).metadata[b"nvp:index"])


def schema_of(data: bytes) -> pa.Schema:
    return pq.read_schema(io.BytesIO(data))


def some_entry(kind: EntryKind = "init") -> bytes:
    attempt = keys.new_attempt()
    obj = StoredObject(key="log/x", size_bytes=1, sha256="0" * 64)
    draft = LogDraft(kind=kind, attempt=attempt, subject=attempt, objects=(obj,), grace_seconds=1)
    return encode_entry(new_entry(draft, number=0, previous_digest=""))


class TestThePageNamesWhatTheCodeNames:
    def test_keys(self) -> None:
        assert named("key") == set(keys._TEMPLATES.values())
        assert named("placeholder") - {"spec"} == {f"{{{name}}}" for name in keys._FIELDS}
        assert f"`{keys._FIELDS['name'][0]}`" in PAGE

    def test_entries(self) -> None:
        entry = json.loads(some_entry())
        assert named("entry field") == set(entry)
        assert named("object field") == set(entry["objects"][0])
        assert named("entry kind") == set(get_args(EntryKind))
        assert {name for row in table("entry") for name in names(row[0])} == set(get_args(EntryKind)) - {
            "init"
        }

    def test_manifest(self) -> None:
        data = tables.encode_manifest(some_video())
        schema = schema_of(data)
        assert named("manifest field") == set(index_of(data))
        assert named("manifest column") == set(schema.names)
        assert named("field of a part") == {field.name for field in schema.field("parts").type.value_type}
        assert named("field of a footer") == {field.name for field in schema.field("footers").type.value_type}
        assert not any(field.nullable for field in schema)
        (state,) = [row for row in table("manifest field") if row[0] == "`state`"]
        assert set(names(state[2])) == set(get_args(VideoState))

    def test_weights_and_latents(self) -> None:
        weights = tables.encode_weights("w", some_stages(100)).data
        latents = tables.encode_latents("l", [some_latents()]).data
        assert named("weights column") == set(schema_of(weights).names)
        assert {"segment", "stages"} == set(index_of(weights)[0])
        assert named("latents column") == set(schema_of(latents).names)
        assert named("latents field") == set(index_of(latents)[0])
        assert f"up to {tables.SEGMENTS_PER_FILE} consecutive segments" in PAGE

    def test_routes(self) -> None:
        index = index_of(tables.encode_routes("r", some_routes()).data)
        assert named("routes field") == set(index)
        assert named("field of a route") == set(index["routes"][0])
        cells = {row[0]: row[2] for row in table("field of a route")}
        assert set(names(cells["`scope`"])) == set(get_args(RouteScope))
        assert set(names(cells["`route`"])) == set(get_args(RouteName))

    def test_results(self) -> None:
        index = index_of(encode_results(some_answers(), keys.new_attempt()).data)
        assert named("results field") == set(index)
        assert named("field of a results part") == set(index["parts"][0])

    def test_encodings_and_architecture(self) -> None:
        assert named("encoding") == set(ENCODINGS)
        assert named("architecture field") == {field.name for field in dataclasses.fields(Architecture)}

    def test_documents(self) -> None:
        task = TaskRecord(name="a", version="0" * 64, kind="classification", cuts=1, labels=(), spec="{}")
        assert named("task field") == set(json.loads(encode_task(task)))
        meta = VideoMeta(video_id="0" * 32, name="a", recorded_at=datetime.now(UTC))
        assert named("meta field") == set(json.loads(encode_meta(meta)))
        view = SavedView(name="night", sql="SELECT 1", saved_at=datetime.now(UTC))
        assert named("view field") == set(json.loads(encode_view(view)))
        assert named("spec field") == {field.name for field in dataclasses.fields(TaskSpec)}
        inner = {row[0]: row[2] for row in table("spec field")}["`preprocessing`"]
        assert set(names(inner)) == {field.name for field in dataclasses.fields(Preprocessing)}
        kinds = {row[0]: row[2] for row in table("task field")}["`kind`"]
        assert set(names(kinds)) == set(get_args(TaskKind))

    def test_checkpoints(self) -> None:
        rows = {names(row[0])[0]: names(row[2]) for row in table("checkpoint table")}
        assert rows == {name: schema.names for name, schema in TABLES.items()}

    def test_footers_metadata_and_version(self) -> None:
        data = tables.encode_manifest(some_video())
        assert {f"`{key.decode()}`" for key in pq.read_metadata(io.BytesIO(data)).metadata} <= set(
            re.findall(r"`nvp:\w+`", PAGE)
        )
        assert PAGE.startswith(f"# The format of an archive, version {FORMAT_VERSION}\n")
        assert footer_of(data).endswith(b"PAR1")

    def test_sizes_are_the_measured_ones(self) -> None:
        drawn = json.loads((DOCS.parent / "benchmarks/results/container.json").read_text())["drawn"]
        sizes = {(row["segment"], row["segments"]): row for row in drawn}
        for segment, *cells in table("segment"):
            for cell, count in zip(cells, (1, 64), strict=True):
                row = sizes[segment, count]
                assert cell == f"{row['overhead_bytes'] / 1000:.1f} KB, {100 * row['overhead']:.1f} %"


class TestTheExamples:
    def test_the_entry_is_one(self) -> None:
        (line,) = re.findall(r"^```json\n(.*)\n```$", PAGE, re.MULTILINE)
        assert decode_entry(line.encode(), 0).kind == "init"

    def test_the_tensor_is_decoded_so(self) -> None:
        payload, scale = (
            bytes.fromhex(text) for text in re.findall(r"`((?:[0-9a-f]{2} )+[0-9a-f]{2})`", PAGE)
        )
        tensor = StoredTensor(
            name="x",
            shape=(2, 1, 1, 2),
            dtype="float32",
            encoding="int8-channel",
            scale=scale,
            payload=payload,
        )
        assert decode_tensor(tensor).flatten().tolist() == [1.984375, -1.984375, 0, 2]


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_without_nvpstore", READER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_frames(archive: Archive, ref: str) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.uint8]]]]:
    for batch in archive.frames(ref):
        yield from zip(batch.pts.tolist(), batch.rgb_thwc, strict=True)


def same_frames(reader: ModuleType, archive: Archive, root: Path, ref: str) -> int:
    """How many frames there are; all of them equal to the last bit."""
    pairs = zip(reader.frames(root, ref), all_frames(archive, ref), strict=True)
    number = -1
    for number, ((pts, seconds, picture), (own_pts, own_picture)) in enumerate(pairs):  # noqa: B007
        assert pts == own_pts
        assert seconds >= 0
        np.testing.assert_array_equal(picture.numpy(), own_picture)
    return number + 1


class TestTheReader:
    def test_is_short_and_needs_torch_and_pyarrow_only(self) -> None:
        text = READER.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 200
        imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)) - sys.stdlib_module_names
        assert imported == {"torch", "pyarrow"}

    @pytest.mark.slow
    def test_gives_nvpstores_frames(self, reader: ModuleType, micro: Micro) -> None:
        for ref in (micro.video_id, micro.clip.name):
            assert same_frames(reader, micro.archive, micro.root, ref) == micro.video.frames

    def test_gives_nvpstores_frames_of_the_golden_archive(self, reader: ModuleType, tmp_path: Path) -> None:
        shutil.copytree(GOLDEN / "archive", tmp_path / "archive")
        expected = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
        archive = open_micro(tmp_path / "archive", tmp_path / "cache")
        for ref in (expected["video_id"], expected["name"]):
            assert same_frames(reader, archive, tmp_path / "archive", ref) == len(expected["pts"])
        listed = reader.videos(tmp_path / "archive", reader.objects_in_force(tmp_path / "archive"))
        assert set(listed) == {expected["video_id"]}

    def test_folds_the_log_as_nvpstore_does(self, reader: ModuleType, tmp_path: Path) -> None:
        shutil.copytree(GOLDEN / "archive", tmp_path / "archive")
        archive = open_micro(tmp_path / "archive", tmp_path / "cache")
        rows = archive.catalog.snapshot().connect().execute(
            "SELECT key FROM idx.store.objects WHERE replaced_at IS NULL"
        )  # fmt: skip
        assert {key for (key,) in rows.fetchall()} == set(reader.objects_in_force(tmp_path / "archive"))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("preset", "width", "height"), [("nerv-micro", 53, 37), ("micro", 37, 29)], ids=["nerv", "padded"]
    )
    def test_gives_nvpstores_frames_of_other_networks(
        self, reader: ModuleType, tmp_path: Path, preset: str, width: int, height: int
    ) -> None:
        clip = Clip(name="odd.mkv", frames=5, width=width, height=height, pixel_format="yuv444p")
        archive = open_micro(tmp_path / "archive", tmp_path / "cache", create=True)
        archive.ingest(write_clip(tmp_path, clip), preset=preset, tasks=())
        assert same_frames(reader, archive, tmp_path / "archive", "odd.mkv") == 5

    @pytest.mark.slow
    def test_writes_pictures_as_a_script(self, micro: Micro, tmp_path: Path) -> None:
        ran = subprocess.run(
            [sys.executable, "-I", str(READER), str(micro.root), micro.video_id, str(tmp_path)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines = [line.split() for line in ran.stdout.splitlines()]
        times = micro.archive.sql("SELECT frame, ts FROM frames ORDER BY frame").fetchall()
        assert [int(number) for number, _, _ in lines] == [frame for frame, _ in times]
        assert [float(ts) for *_, ts in lines] == pytest.approx([ts for _, ts in times], abs=1e-6)
        assert len(list(tmp_path.glob("*.ppm"))) == micro.video.frames

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["weights", "latents", "manifest", "log"])
    def test_notices_a_flipped_bit(self, micro: Micro, tmp_path: Path, reader: ModuleType, kind: str) -> None:
        root = tmp_path / "archive"
        shutil.copytree(micro.root, root)
        (path, *_) = sorted((root / "log").iterdir() if kind == "log" else root.rglob(f"{kind}*.parquet"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"differs from its digest|is damaged|JSON|Invalid|Expecting"):
            list(reader.frames(root, micro.video_id))
