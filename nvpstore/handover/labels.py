"""Answers as data sets of labels: COCO for detections, FiftyOne's own layout for classifications.

Both are a folder `data/` of pictures beside a `labels.json`; FiftyOne reads the first as
`fo.types.COCODetectionDataset`, the second as `fo.types.FiftyOneImageClassificationDataset`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvpstore.archive import Archive
from nvpstore.errors import StoreError, UsageError

PICTURES = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelsExport:
    """What was written: `labels` is the JSON file; `pictures` 0 where only names were."""

    path: str
    images: int
    labels: int
    pictures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which frames: `where` is SQL over the columns of the `videos` view and `frame`, `ts`; a frame
    `every` so many seconds, None: all. `least_score`: of labels that are taken."""

    where: str | None = None
    every: float | None = None
    least_score: float = 0.0


def export_labels(
    archive: Archive,
    task: str,
    out: str | Path,
    *,
    chosen: Chosen | None = None,
    pictures: bool = True,
) -> LabelsExport:
    """Write a task's answers on frames, and the frames as JPEG, into the folder `out`.

    Detections as COCO: boxes in source pixels (x, y, width, height), categories under the index
    of their class (of coco91 that is COCO's own id), each with its score; frames without an object are
    images without annotations. Classifications: each frame's
    first label with its score. Raises UsageError for other kinds and for a folder that holds a data set.
    """
    folder, asked = Path(out), chosen or Chosen()
    if (folder / "labels.json").exists():
        raise UsageError(f"{folder} holds a data set: name another folder")
    record = archive.task(task)
    if record["kind"] not in _DOCUMENTS:
        raise UsageError(
            f"task {task} is of kind {record['kind']}: {' and '.join(sorted(_DOCUMENTS))} have such data sets"
        )
    images = _images(archive, asked)
    document, labels = _DOCUMENTS[record["kind"]](archive, task, record["labels"], images, asked)
    try:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        written = _write_pictures(archive, folder, images, asked) if pictures else 0
        # Last: who finds it finds all pictures.
        (folder / "labels.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    except OSError as cause:
        raise StoreError(f"{folder} cannot be written: {cause.strerror or cause}") from cause
    return LabelsExport(path=str(folder / "labels.json"), images=len(images), labels=labels, pictures=written)


Images = dict[tuple[str, int], dict[str, Any]]  # by video and frame


def _images(archive: Archive, asked: Chosen) -> Images:
    """COCO's images, in order; nothing is decoded for them."""
    rows = archive.sql(
        "SELECT f.video_id, v.name, f.frame, f.ts, v.width, v.height"
        f" FROM frames{_sampling(asked)} f JOIN videos v USING (video_id){_where(asked)}"
        " ORDER BY v.name, f.video_id, f.frame"
    )
    found: Images = {}
    for row in rows.arrow().to_pylist():
        file = f"{row['video_id'][:8]}-{row['frame']:08}.jpg"
        found[row["video_id"], row["frame"]] = {
            "id": len(found) + 1,
            "file_name": file,
            "width": row["width"],
            "height": row["height"],
            "video_id": row["video_id"],
            "video_name": row["name"],
            "frame": row["frame"],
            "ts": row["ts"],
        }
    if not found:
        raise UsageError("no frames are chosen: nothing to export")
    return found


def _answers(archive: Archive, task: str, columns: str, asked: Chosen, more: str) -> Iterator[dict[str, Any]]:
    name, _, version = task.partition("@")
    table = f'"{name}@{version}"' if version else f'"{name}"'
    condition = _where(asked) + (" AND " if asked.where else " WHERE ") + more
    batches = archive.stream(
        f"SELECT f.video_id, f.frame, {columns} FROM {table}{_sampling(asked)} f"
        f" JOIN videos v USING (video_id){condition}"
    )
    for batch in batches:
        yield from batch.to_pylist()


def _sampling(asked: Chosen) -> str:
    return "" if asked.every is None else f"(every := {asked.every:g})"


def _where(asked: Chosen) -> str:
    # On lines of its own, so that a comment in it ends before our parenthesis.
    return "" if asked.where is None else f" WHERE (\n{asked.where}\n)"


# ---------------------------------------------------------------- documents


def _coco(
    archive: Archive, task: str, names: list[str], images: Images, asked: Chosen
) -> tuple[dict[str, Any], int]:
    number = {name: i for i, name in enumerate(names)}
    found = _answers(
        archive, task, "f.label, f.score, f.box", asked, f"f.score >= {float(asked.least_score)!r}"
    )
    annotations = [
        _annotation(i, images[row["video_id"], row["frame"]]["id"], number[row["label"]], row)
        for i, row in enumerate(found, 1)
    ]
    document = {
        "info": {"description": f"answers of {task}, archive {archive.store.root}", "version": "1.0"},
        "licenses": [],
        "categories": [{"id": i, "name": name, "supercategory": ""} for name, i in number.items()],
        "images": list(images.values()),
        "annotations": annotations,
    }
    return document, len(annotations)


def _annotation(number: int, image: int, category: int, row: dict[str, Any]) -> dict[str, Any]:
    box = row["box"]
    width, height = box["x1"] - box["x0"], box["y1"] - box["y0"]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [box["x0"], box["y0"], width, height],
        "area": width * height,
        "iscrowd": 0,
        "score": row["score"],
    }


def _classes(
    archive: Archive, task: str, names: list[str], images: Images, asked: Chosen
) -> tuple[dict[str, Any], int]:
    condition = f"f.rank = 1 AND f.score >= {float(asked.least_score)!r}"
    labels: dict[str, Any] = {}
    for row in _answers(archive, task, "f.label, f.score", asked, condition):
        image = images[row["video_id"], row["frame"]]
        labels[image["file_name"].removesuffix(".jpg")] = {
            "label": names.index(row["label"]),
            "confidence": row["score"],
            "attributes": {name: image[name] for name in ("video_id", "video_name", "frame", "ts")},
        }
    return {"classes": list(names), "labels": labels}, len(labels)


_DOCUMENTS = {"detection": _coco, "classification": _classes}


def _write_pictures(archive: Archive, folder: Path, images: Images, asked: Chosen) -> int:
    """Every image as the archive shows it."""
    options = "format := 'jpg'" + ("" if asked.every is None else f", every := {asked.every:g}")
    batches = archive.stream(
        f"SELECT f.video_id, f.frame, f.image FROM frames({options}) f"
        f" JOIN videos v USING (video_id){_where(asked)}"
    )
    count = 0
    for batch in batches:
        for row in batch.to_pylist():
            file = images[row["video_id"], row["frame"]]["file_name"]
            (folder / PICTURES / file).write_bytes(row["image"])
            count += 1
    return count
