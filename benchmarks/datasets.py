"""Published datasets in their own layouts, for people who have them: ImageNet-VID, UCF101, MSR-VTT.

Each reader yields videos with their ground truth, in an order that does not change. Nothing is downloaded.

Russakovsky et al., "ImageNet large scale visual recognition challenge", IJCV 2015 (object detection from
video, 2015); Soomro et al., "UCF101", 2012; Xu et al., "MSR-VTT", CVPR 2016.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import av
from PIL import Image

Box = tuple[str, float, float, float, float]  # WordNet id, x0, y0, x1, y1 in pixels

IMAGENET_VID_FPS = 25


class DatasetError(Exception):
    """A folder is not in the dataset's published layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledVideo:
    """One video and what is true of it: a class, sentences, or the boxes of each frame."""

    name: str
    path: Path
    label: str | None = None
    captions: tuple[str, ...] = ()
    boxes: tuple[tuple[Box, ...], ...] = ()


# ---------------------------------------------------------------- UCF101


def ucf101(
    root: Path, *, split: Literal["train", "test"] = "test", fold: Literal[1, 2, 3] = 1
) -> Iterator[LabelledVideo]:
    """ROOT/UCF-101/<class>/v_*.avi and ROOT/ucfTrainTestlist/{classInd,trainlist01,testlist01,…}.txt."""
    lists = _folder(root / "ucfTrainTestlist", "UCF101")
    known = {line.split()[1] for line in _lines(lists / "classInd.txt", "UCF101")}
    for line in _lines(lists / f"{split}list{fold:02}.txt", "UCF101"):
        name = line.split()[0]  # in train lists a class number follows
        label = name.partition("/")[0]
        if label not in known:
            raise DatasetError(f"UCF101: {name}: classInd.txt has no class {label!r}")
        yield LabelledVideo(name=Path(name).stem, path=_file(root / "UCF-101" / name, "UCF101"), label=label)


# ---------------------------------------------------------------- MSR-VTT


def msr_vtt(root: Path, *, split: Literal["train", "validate", "test"] = "test") -> Iterator[LabelledVideo]:
    """ROOT/{TrainValVideo,TestVideo}/video<n>.mp4 and ROOT/{train_val,test}_videodatainfo.json."""
    part = "test" if split == "test" else "train_val"
    info = _file(root / f"{part}_videodatainfo.json", "MSR-VTT")
    told = json.loads(info.read_text(encoding="utf-8"))
    sentences: dict[str, list[str]] = {}
    for sentence in told["sentences"]:
        sentences.setdefault(sentence["video_id"], []).append(sentence["caption"])
    folder = root / ("TestVideo" if split == "test" else "TrainValVideo")
    for video in sorted(told["videos"], key=lambda video: _number(video["video_id"])):
        if video["split"] == split:
            name = video["video_id"]
            yield LabelledVideo(
                name=name,
                path=_file(folder / f"{name}.mp4", "MSR-VTT"),
                captions=tuple(sentences.get(name, ())),
            )


# ---------------------------------------------------------------- ImageNet-VID


def imagenet_vid(
    root: Path, videos: Path, *, split: Literal["train", "val"] = "val"
) -> Iterator[LabelledVideo]:
    """ROOT/Data/VID/<split>/…/<snippet>/000000.JPEG … and ROOT/Annotations/VID/ the same with .xml.

    A snippet's JPEGs are put into one file under `videos`, byte for byte, unless it is there already.
    """
    data = _folder(root / "Data/VID" / split, "ImageNet-VID")
    annotations = _folder(root / "Annotations/VID" / split, "ImageNet-VID")
    for snippet in sorted({path.parent for path in data.rglob("*.JPEG")}):
        pictures = sorted(snippet.glob("*.JPEG"))
        beside = annotations / snippet.relative_to(data)
        boxes = tuple(_boxes(_file(beside / f"{picture.stem}.xml", "ImageNet-VID")) for picture in pictures)
        path = videos / split / f"{snippet.name}.mkv"
        if not path.exists():
            mux_jpegs(pictures, path, fps=IMAGENET_VID_FPS)
        yield LabelledVideo(name=snippet.name, path=path, boxes=boxes)


def mux_jpegs(pictures: Sequence[Path], out: Path, *, fps: int) -> None:
    """JPEG files as the packets of one Motion JPEG stream: nothing is encoded again."""
    with Image.open(pictures[0]) as first:
        width, height = first.size
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}")
    with av.open(str(part), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        for i, picture in enumerate(pictures):
            packet = av.Packet(picture.read_bytes())
            packet.stream, packet.pts, packet.dts = stream, i, i
            packet.time_base, packet.is_keyframe = Fraction(1, fps), True
            container.mux(packet)
    part.replace(out)


def _boxes(path: Path) -> tuple[Box, ...]:
    found = []
    for seen in ElementTree.parse(path).getroot().iter("object"):
        corners = [_said(seen, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = (float(corner) for corner in corners)
        found.append((_said(seen, "name", path), x0, y0, x1, y1))
    return tuple(found)


def _said(element: ElementTree.Element, name: str, path: Path) -> str:
    text = element.findtext(name)
    if text is None:
        raise DatasetError(f"ImageNet-VID: {path}: an object without {name}")
    return text


# ---------------------------------------------------------------- parts


def _folder(path: Path, dataset: str) -> Path:
    if not path.is_dir():
        raise DatasetError(f"{dataset}: there is no folder {path}")
    return path


def _file(path: Path, dataset: str) -> Path:
    if not path.is_file():
        raise DatasetError(f"{dataset}: there is no file {path}")
    return path


def _lines(path: Path, dataset: str) -> list[str]:
    text = _file(path, dataset).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _number(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found.group()) if found else -1
