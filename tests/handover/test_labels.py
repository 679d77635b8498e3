"""Data sets of labels: every frame an image, every answer a label, boxes as the query has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nvpstore.api.cli import main
from nvpstore.errors import UsageError
from nvpstore.handover.labels import Chosen, export_labels
from tests.conftest import Micro
from tests.query.conftest import all_kinds as all_kinds
from tests.query.conftest import kinds as kinds
from tests.query.kinds import FACTORIES, FRAMES, HEIGHT, WIDTH, Kinds

pytestmark = pytest.mark.slow  # reads fitted videos


@pytest.fixture(autouse=True)
def _factories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVP_FACTORIES", FACTORIES)


def read(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "labels.json").read_text())
    return document


def test_detections_become_coco(kinds: Kinds, tmp_path: Path) -> None:
    done = export_labels(kinds.archive, "things", tmp_path / "out")
    found = read(tmp_path / "out")
    rows = kinds.archive.sql("SELECT frame, label, score, box FROM things ORDER BY frame, object").fetchall()
    assert (done.images, done.labels, done.pictures) == (FRAMES, len(rows), FRAMES)
    assert [category["name"] for category in found["categories"]] == ["cup", "key", "pen", "lid", "jar"]
    names = {category["id"]: category["name"] for category in found["categories"]}
    images = {image["id"]: image for image in found["images"]}
    assert sorted(image["frame"] for image in images.values()) == list(range(FRAMES))
    exported = sorted(
        (images[a["image_id"]]["frame"], names[a["category_id"]], a["score"], *a["bbox"])
        for a in found["annotations"]
    )
    expected = sorted(
        (frame, label, score, box["x0"], box["y0"], box["x1"] - box["x0"], box["y1"] - box["y0"])
        for frame, label, score, box in rows
    )
    assert [row[:2] for row in exported] == [row[:2] for row in expected]
    for ours, theirs in zip(exported, expected, strict=True):
        assert ours[2:] == pytest.approx(theirs[2:], abs=1e-4)
    for image in images.values():
        with Image.open(tmp_path / "out/data" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (WIDTH, HEIGHT)


def test_classifications_become_fiftyones(kinds: Kinds, tmp_path: Path) -> None:
    chosen = Chosen(where="f.frame < 9", every=0.1)
    done = export_labels(kinds.archive, "scenes", tmp_path / "out", chosen=chosen, pictures=False)
    found = read(tmp_path / "out")
    rows = kinds.archive.sql(
        "SELECT frame, label, score FROM scenes(every := 0.1) WHERE rank = 1 AND frame < 9 ORDER BY frame"
    ).fetchall()
    assert (done.images, done.labels, done.pictures) == (len(rows), len(rows), 0)
    assert found["classes"] == ["day", "night", "dusk"]
    exported = sorted(
        (one["attributes"]["frame"], found["classes"][one["label"]], one["confidence"])
        for one in found["labels"].values()
    )
    assert [row[:2] for row in exported] == [tuple(row[:2]) for row in rows]
    assert list((tmp_path / "out/data").iterdir()) == []


def test_labels_below_a_score_are_left_out(kinds: Kinds, tmp_path: Path) -> None:
    done = export_labels(
        kinds.archive, "things", tmp_path / "out", chosen=Chosen(least_score=2.0), pictures=False
    )
    assert (done.images, done.labels) == (FRAMES, 0)


def test_what_has_no_such_data_set_is_said(kinds: Kinds, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kind depth: classification and detection have"):
        export_labels(kinds.archive, "far", tmp_path / "out")
    with pytest.raises(UsageError, match="no frames are chosen"):
        export_labels(kinds.archive, "scenes", tmp_path / "out", chosen=Chosen(where="false"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/labels.json").touch()
    with pytest.raises(UsageError, match="holds a data set"):
        export_labels(kinds.archive, "scenes", tmp_path / "out")


def test_the_command(micro: Micro, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--archive", str(micro.root), "--json", "export-labels", "labels", str(tmp_path / "out")]
    assert main([*arguments, "--every", "0.5"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (
        said["images"] == said["labels"] == said["pictures"] == len(list((tmp_path / "out/data").iterdir()))
    )
    assert main(arguments) == 2
    assert "holds a data set" in capsys.readouterr().err
