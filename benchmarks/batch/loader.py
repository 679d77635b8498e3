"""An epoch of a DataLoader over features, against decoding the file and running the backbone's stem."""

from __future__ import annotations

import importlib.util
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import nvpstore
from benchmarks.footage import write_bikes, write_collage
from nvpstore.archive import Archive
from nvpstore.config import load_settings
from nvpstore.handover.reading import CutReader
from nvpstore.handover.training import StoredFrames, features
from nvpstore.tasks.cuts import CutBackbone, _up_to
from nvpstore.tasks.registry import LoadedTask, builtin_spec, load

REPEATS = 3
BATCH = 16
FRAMES = "SELECT video_id, segment, frame FROM frames"


def epochs(root: Path, folder: Path) -> dict[str, Any]:
    """Both sides in turn, on the same frames, with one thread and no workers; then again as each likes it:
    ours from one worker process, PyAV with all of its threads. Cold: frames chosen by a query, weights
    fetched and dequantised in the epoch; else they stay in memory from the epoch before."""
    archive = _opened(root, folder)
    dataset = _dataset(archive)
    task, cut = load(builtin_spec("labels")), dataset.reader.cut  # type: ignore[attr-defined]
    assert isinstance(task.backbone, CutBackbone), "the demo's task is cut on its graph"
    stem = _up_to(task.backbone.graph, task.backbone.cut(cut).nodes)
    files = _files(archive, folder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sides: dict[str, Callable[[], int]] = {
            "features": lambda: _epoch(DataLoader(dataset, batch_size=None)),
            "features_cold": lambda: _epoch(DataLoader(_dataset(archive), batch_size=None)),
            "pyav_and_stem": lambda: _decoded(files, task, stem, threads="NONE"),
            "features_one_worker": lambda: _epoch(DataLoader(dataset, batch_size=None, num_workers=1)),
            "pyav_all_threads_and_stem": lambda: _decoded(files, task, stem, threads="AUTO"),
        }
        seconds, cpu_seconds, counts = _in_turn(sides)
    finally:
        torch.set_num_threads(before)
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    cpu = {name: statistics.median(runs) for name, runs in cpu_seconds.items()}
    return {
        "frames": counts["features"],
        "frames_equal": len(set(counts.values())) == 1,
        "cut": cut,
        "shapes": [list(shape) for shape in dataset.reader.shapes],  # type: ignore[attr-defined]
        "batch": BATCH,
        "seconds": {name: {"median": medians[name], "runs": runs} for name, runs in seconds.items()},
        # Of one thread the process's own seconds of CPU, which others on the machine do not change.
        "cpu_seconds": {name: cpu[name] for name in ("features", "features_cold", "pyav_and_stem")},
        "sooner": {
            "one_thread": cpu["pyav_and_stem"] / cpu["features"],
            "one_thread_cold": cpu["pyav_and_stem"] / cpu["features_cold"],
            "as_each_likes": medians["pyav_all_threads_and_stem"] / medians["features_one_worker"],
        },
        "torchcodec": _torchcodec(),
    }


def kept(root: Path, folder: Path) -> dict[str, Any]:
    """Bytes a frame of all that may be kept for later questions, on the same videos."""
    archive = _opened(root, folder)
    archive.drop_results()
    videos = archive.sql("SELECT video_id, frames, stored_bytes, source_bytes FROM videos").fetchall()
    count = sum(row[1] for row in videos)
    archive.batch("SELECT video_id, frame, label, score FROM labels WHERE rank <= 5", folder / "out")
    stored = sum(result.bytes for result in archive.results())
    whole, compressed = _feature_bytes(_dataset(archive))
    return {
        "frames": count,
        "video_bytes_a_frame": sum(row[2] for row in videos) / count,
        "source_bytes_a_frame": sum(row[3] for row in videos) / count,
        "answer_bytes_a_frame": stored / count,
        "feature_bytes_a_frame": {"float16": whole / count, "int8_zlib": compressed / count},
        "later_task": _later_task(archive, count),
    }


def _later_task(archive: Archive, frames: int) -> dict[str, Any]:
    """What a task that nobody thought of at the fit takes to learn, on one thread."""
    archive.add_task("look")
    began = time.process_time()
    trained = archive.train_task("look", device="cpu", again=True)
    return {
        "task": "look",
        "states": [one.state for one in trained],
        "frames": frames,
        "core_seconds": time.process_time() - began,
    }


def _opened(root: Path, folder: Path) -> Archive:
    settings = load_settings({"NVP_CACHE": str(folder / "cache"), "NVP_THREADS": "1"})
    return nvpstore.open(root, settings=settings)


def _dataset(archive: Archive) -> StoredFrames:
    """Frames of the segments that have an adapter at the cut that most have."""
    rows = archive.sql(FRAMES).arrow()
    reader = features(archive, "labels", rows).reader
    assert isinstance(reader, CutReader), "features are read at a cut"
    pairs = zip(rows["video_id"].to_pylist(), rows["segment"].to_pylist(), strict=True)
    held = np.array([pair in reader.segments and reader.segments[pair].cut == reader.cut for pair in pairs])
    return features(archive, "labels", rows.filter(held), cut=reader.cut, batch=BATCH, mix=4)


def _files(archive: Archive, folder: Path) -> list[tuple[Path, set[int]]]:
    """The demo's files, made again, and the frames of each that the data set has."""
    dataset = _dataset(archive)
    made = {
        "bikes.mp4": write_bikes(folder / "bikes.mp4"),
        "collage.mp4": write_collage(folder / "collage.mp4"),
    }
    names = {row["video_id"]: row["name"] for row in archive.videos()}
    wanted: dict[str, set[int]] = {name: set() for name in made}
    for video_id, frame in zip(
        dataset.table["video_id"].to_pylist(), dataset.table["frame"].to_pylist(), strict=True
    ):
        wanted[names[video_id]].add(frame)
    return [(path, wanted[name]) for name, path in made.items()]


def _in_turn(
    sides: dict[str, Callable[[], int]],
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, int]]:
    """Seconds of the clock and of this process, by side, and the frames that each gave."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}
    counts = {name: run() for name, run in sides.items()}  # warm
    for _ in range(REPEATS):
        for name, run in sides.items():
            began, worked = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - began)
            cpu_seconds[name].append(time.process_time() - worked)
    return seconds, cpu_seconds, counts


def _epoch(loader: DataLoader[Any]) -> int:
    return sum(len(batch.rows) for batch in loader)


@torch.inference_mode()
def _decoded(
    files: list[tuple[Path, set[int]]], task: LoadedTask, stem: torch.nn.Module, *, threads: str
) -> int:
    count = 0
    for batch in _pictures(files, task, threads):
        for part in batch.split(4):  # as queries run it: larger ones fall out of the caches
            count += len(stem(part)[0])
    return count


def _pictures(files: list[tuple[Path, set[int]]], task: LoadedTask, threads: str) -> Iterator[Tensor]:
    """Preprocessed batches; one swscale pass to the backbone's input size, the fastest way there."""
    given = task.spec.preprocessing
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (given.mean, given.std))
    pictures: list[Tensor] = []
    for path, wanted in files:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = threads
            for number, frame in enumerate(container.decode(video=0)):
                if number not in wanted:
                    continue
                rgb = frame.to_ndarray(
                    format="rgb24", width=given.width, height=given.height, interpolation="BILINEAR"
                )
                pictures.append((torch.from_numpy(rgb).permute(2, 0, 1) - mean) / std)
                if len(pictures) == BATCH:
                    yield torch.stack(pictures)
                    pictures = []
    if pictures:
        yield torch.stack(pictures)


def _feature_bytes(dataset: StoredFrames) -> tuple[int, int]:
    """Of all features: as float16, and as 8 bit a channel, compressed."""
    whole = compressed = 0
    for batch in DataLoader(dataset, batch_size=None):
        for tensor in batch.tensors:
            whole += 2 * tensor.numel()
            scale = tensor.abs().amax((0, 2, 3), keepdim=True).clamp_min(1e-9) / 127
            compressed += len(zlib.compress((tensor / scale).round().to(torch.int8).numpy().tobytes(), 6))
    return whole, compressed


def _torchcodec() -> str:
    """Whether the decoder that many would pick can be measured here."""
    if importlib.util.find_spec("torchcodec") is None:
        return "not measured: not installed (its registry builds do not load beside a CPU build of torch)"
    return "not measured: installed, but this benchmark has no side for it"
