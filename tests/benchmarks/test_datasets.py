"""Readers of published datasets, on tiny files in their layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import DatasetError, imagenet_vid, msr_vtt, ucf101
from nvpstore.video.source import read_frames


def ucf(root: Path) -> Path:
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g08_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\nBiking/v_Biking_g01_c02.avi\n")
    for name in ("Archery/v_Archery_g08_c01", "Archery/v_Archery_g01_c01", "Biking/v_Biking_g01_c02"):
        path = root / "UCF-101" / f"{name}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_ucf101_is_read_by_its_lists(tmp_path: Path) -> None:
    root = ucf(tmp_path)
    test, train = list(ucf101(root)), list(ucf101(root, split="train"))
    assert [(v.name, v.label) for v in test] == [
        ("v_Archery_g01_c01", "Archery"),
        ("v_Biking_g01_c02", "Biking"),
    ]
    assert [v.path.name for v in train] == ["v_Archery_g08_c01.avi"]


def test_ucf101_names_a_missing_video(tmp_path: Path) -> None:
    root = ucf(tmp_path)
    (root / "UCF-101/Biking/v_Biking_g01_c02.avi").unlink()
    with pytest.raises(DatasetError, match=r"no file .*v_Biking_g01_c02\.avi"):
        list(ucf101(root))


def test_ucf101_names_an_unknown_class(tmp_path: Path) -> None:
    root = ucf(tmp_path)
    (root / "ucfTrainTestlist/testlist01.txt").write_text("Chess/v_Chess_g01_c01.avi\n")
    with pytest.raises(DatasetError, match="no class 'Chess'"):
        list(ucf101(root))


def msr(root: Path) -> Path:
    (root / "TrainValVideo").mkdir(parents=True)
    for number in (0, 2, 10):
        (root / f"TrainValVideo/video{number}.mp4").touch()
    told = {
        "videos": [
            {"video_id": "video10", "split": "train"},
            {"video_id": "video2", "split": "train"},
            {"video_id": "video0", "split": "validate"},
        ],
        "sentences": [
            {"video_id": "video2", "caption": "a man is cooking"},
            {"video_id": "video0", "caption": "a cat"},
            {"video_id": "video2", "caption": "someone cooks"},
        ],
    }
    (root / "train_val_videodatainfo.json").write_text(json.dumps(told))
    return root


def test_msr_vtt_has_all_sentences_of_a_video(tmp_path: Path) -> None:
    found = list(msr_vtt(msr(tmp_path), split="train"))
    assert [(v.name, v.captions) for v in found] == [
        ("video2", ("a man is cooking", "someone cooks")),
        ("video10", ()),
    ]


def test_msr_vtt_without_its_list_says_which(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"test_videodatainfo\.json"):
        list(msr_vtt(tmp_path))


XML = """<annotation><object><trackid>0</trackid><name>n02691156</name><bndbox><xmax>40</xmax>
<xmin>8</xmin><ymax>30</ymax><ymin>4</ymin></bndbox></object></annotation>"""


def vid(root: Path) -> Path:
    pictures = root / "Data/VID/val/ILSVRC2015_val_00000000"
    told = root / "Annotations/VID/val/ILSVRC2015_val_00000000"
    pictures.mkdir(parents=True)
    told.mkdir(parents=True)
    for i in range(4):
        grey = Image.fromarray(np.full((32, 48, 3), 60 * i, np.uint8))
        grey.save(pictures / f"{i:06}.JPEG", quality=95)
        (told / f"{i:06}.xml").write_text(XML if i < 3 else "<annotation></annotation>")
    return root


def test_imagenet_vid_keeps_its_pictures_and_boxes(tmp_path: Path) -> None:
    root = vid(tmp_path / "vid")
    (found,) = imagenet_vid(root, tmp_path / "videos")
    assert found.boxes == ((("n02691156", 8.0, 4.0, 40.0, 30.0),),) * 3 + ((),)
    frames = np.concatenate([batch.rgb_thwc for batch in read_frames(str(found.path))])
    assert frames.shape == (4, 32, 48, 3)
    assert np.abs(frames.mean((1, 2, 3)) - [0, 60, 120, 180]).max() < 2


def test_imagenet_vid_names_an_object_without_a_box(tmp_path: Path) -> None:
    root = vid(tmp_path / "vid")
    told = root / "Annotations/VID/val/ILSVRC2015_val_00000000/000001.xml"
    told.write_text("<annotation><object><name>n1</name></object></annotation>")
    with pytest.raises(DatasetError, match=r"000001\.xml: an object without bndbox/xmin"):
        list(imagenet_vid(root, tmp_path / "videos"))
