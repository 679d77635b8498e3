"""python -m benchmarks.scale [--videos 10000 30000 100000] [--s3 1000 3000 10000]: what an index costs.

Synthetic videos with real manifests, routes, metadata and log entries (weights and latents are named, not
written: no index reads them), on a local root and, with `--s3`, on SeaweedFS. At each size, in one process
and with files in the page cache: the index is rebuilt from log and objects alone; a checkpoint is written; a
machine with an empty cache opens the archive from it; it is opened again with nothing new; once more after
one new video; rows of single videos are looked up. A request is a call of the store, which is one on S3.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import write_result
from benchmarks.servers.weed import Weed
from nvpstore.catalog import Catalog, Snapshot
from nvpstore.storage import keys
from nvpstore.storage.contract import describe
from nvpstore.storage.documents import encode_meta, encode_task
from nvpstore.storage.entries import LogDraft, LogEntry, encode_entry, new_entry
from nvpstore.storage.log import create_archive
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.storage.tables import (
    EncodedTable,
    encode_latents,
    encode_manifest,
    encode_routes,
    encode_weights,
)
from nvpstore.types import (
    ByteRange,
    RouteRecord,
    SegmentRecord,
    StoredLatents,
    StoredObject,
    StoredStage,
    StoredTensor,
    TaskRecord,
    TaskRoutes,
    VideoMeta,
    VideoRecord,
)

RESULTS = Path(__file__).parent / "results"
SEED = 0
SEGMENTS, FRAMES = 3, 96  # of a video, of a segment
STAGES = ("0", "1", "2", "3", "4", "rgb")
LOOKUPS = 50
CHUNK = 250  # videos that a process makes at once
TASK = TaskRecord(name="labels", version="5" * 64, kind="classification", cuts=16, labels=("cat",), spec="{}")

Objects = list[tuple[str, bytes]]
Put = Callable[[str, bytes], object]
Made = tuple[str, Objects, tuple[StoredObject, ...]]  # video id; what is written; what its entry names


# ---------------------------------------------------------------- synthetic videos


def make_video(number: int) -> Made:
    """Video `number` of the seed: its manifest, routes and metadata, and the objects that its entry names."""
    sha256 = hashlib.sha256(f"{SEED} {number}".encode()).hexdigest()
    video_id, attempt = sha256[:32], keys.new_attempt()
    draw = np.random.default_rng(number)
    weights_key = keys.weights_key(video_id, attempt, 0)
    latents_key = keys.latents_key(video_id, attempt, 0)
    weights, latents = _template()

    def moved(part: ByteRange, key: str) -> ByteRange:
        return replace(part, key=key, sha256=draw.bytes(32).hex())

    parts = [moved(part, weights_key) for part in weights.row_groups]
    records = tuple(
        SegmentRecord(
            segment=n,
            scene=n,
            start_frame=n * FRAMES,
            pts=(np.arange(FRAMES) + n * FRAMES) * 512,
            psnr=float(draw.normal(30, 2)),
            frame_psnr=draw.normal(30, 2, FRAMES).astype(np.float32),
            codec="hnerv",
            architecture='{"format":1,"widths":[96,72,54,40,30],"strides":[5,2,2,2,2],"latent":[16,2,4]}',
            stages=tuple(zip(STAGES, parts[len(STAGES) * n :][: len(STAGES)], strict=True)),
            gflops=tuple(0.1 * 2**k for k in range(len(STAGES))),
            latents=moved(latents.row_groups[n], latents_key),
        )
        for n in range(SEGMENTS)
    )
    footers = {weights_key: weights.footer, latents_key: latents.footer}
    video = _record(video_id, attempt, sha256, number, records, footers)
    meta = VideoMeta(video_id=video_id, name=f"clip {number}.mp4", tags={"camera": f"gate {number % 100}"})
    routes_key = keys.routes_key(video_id, TASK.version, attempt)
    written = [
        (routes_key, encode_routes(routes_key, _routes(video)).data),
        (keys.meta_key(video_id, attempt), encode_meta(meta)),
        (keys.manifest_key(video_id, attempt), encode_manifest(video)),
    ]
    named = [describe(key, part.data) for key, part in ((weights_key, weights), (latents_key, latents))]
    return video_id, written, (*named, *(describe(key, data) for key, data in written))


@lru_cache
def _template() -> tuple[EncodedTable, EncodedTable]:
    """Weights and latents whose footers and ranges every video has; keys and digests are its own."""
    latents = [_latents(n) for n in range(SEGMENTS)]
    return encode_weights("weights", _stages("template")), encode_latents("latents", latents)


def make_videos(numbers: range) -> list[Made]:
    return [make_video(number) for number in numbers]


def write_videos(root: Path, numbers: range) -> list[Made]:
    """The same, written below `root` in a local store's layout without waiting for the disk."""
    made = make_videos(numbers)
    for _, written, _ in made:
        for key, data in written:
            path = root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return [(video_id, [], named) for video_id, _, named in made]


def _record(
    video_id: str,
    attempt: str,
    sha256: str,
    number: int,
    segments: tuple[SegmentRecord, ...],
    footers: dict[str, bytes],
) -> VideoRecord:
    return VideoRecord(
        video_id=video_id,
        attempt=attempt,
        sha256=sha256,
        name=f"clip {number}.mp4",
        source_uri=f"file:///footage/{number}.mp4",
        source_bytes=5_000_000 + number,
        container="mp4",
        source_codec="h264",
        width=640,
        height=360,
        rotation_degrees=0,
        time_base=Fraction(1, 12800),
        average_fps=Fraction(25),
        preset="demo",
        psnr=30.0,
        psnr_p5=27.5,
        resize_bound_psnr=40.0,
        state="ready",
        fit_seconds=100.0,
        segments=segments,
        footers=footers,
    )


def _stages(content: str) -> list[StoredStage]:
    tensor = StoredTensor(name="w", shape=(8,), dtype="float32", encoding="raw", scale=b"", payload=b"")
    return [
        StoredStage(segment=n, stage=s, tensors=(replace(tensor, payload=f"{content}{n}{s}".encode()),))
        for n in range(SEGMENTS)
        for s in STAGES
    ]


def _latents(segment: int) -> StoredLatents:
    frames = np.arange(FRAMES) + segment * FRAMES
    return StoredLatents(
        segment=segment,
        frames=frames,
        pts=frames * 512,
        shape=(2,),
        encoding="int8",
        scale=b"\x01",
        payload=np.zeros((FRAMES, 2), np.uint8),
    )


def _routes(video: VideoRecord) -> TaskRoutes:
    adapter = RouteRecord(
        segment=0,
        route="adapter",
        stages=("1", "2"),
        cut="blocks.8",
        scope="segment",
        cka=0.9,
        ridge_r2=0.8,
        fidelity=0.95,
        fidelity_confident=0.99,
        confident_frames=40,
        gflops=0.4,
        bytes=90_000,
    )
    pixel = replace(adapter, route="pixel", stages=("rgb",), cut="", cka=None, ridge_r2=None)
    tensors = [stage.tensors for stage in _stages(video.sha256)]
    routes = [
        route
        for n in range(SEGMENTS)
        for route in (replace(adapter, segment=n, adapter=tensors[n]), replace(pixel, segment=n))
    ]
    return TaskRoutes(
        video_id=video.video_id,
        task=TASK.name,
        version=TASK.version,
        attempt=video.attempt,
        routes=tuple(routes),
    )


# ---------------------------------------------------------------- archives


class Counted(ObjectStore):
    """Another store, with its requests counted."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.requests: Counter[str] = Counter()

    @property
    def root(self) -> str:
        return self.inner.root

    def put(self, key: str, data: bytes) -> StoredObject:
        self.requests["put"] += 1
        return self.inner.put(key, data)

    def put_file(self, key: str, path: Path) -> StoredObject:
        self.requests["put"] += 1
        return self.inner.put_file(key, path)

    def get(self, key: str) -> bytes:
        self.requests["get"] += 1
        return self.inner.get(key)

    def get_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        self.requests["get"] += 1
        return self.inner.get_range(key, offset, size_bytes)

    def size(self, key: str) -> int:
        self.requests["head"] += 1
        return self.inner.size(key)

    def list(self, prefix: str = "") -> list[str]:
        self.requests["list"] += 1
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self.requests["delete"] += 1
        self.inner.delete(key)


class Growing:
    """An archive that videos are added to, in bulk, by whatever way is quick."""

    def __init__(self, store: ObjectStore, put: Put, make: Callable[[range], list[Made]]) -> None:
        self.store, self.put, self.make = store, put, make
        self.last: LogEntry = create_archive(store)
        self.videos = 0
        stored = store.put(keys.task_key(TASK.name, TASK.version), encode_task(TASK))
        self._commit("task", TASK.name, (stored,))

    def grow(self, videos: int, processes: Executor) -> None:
        """Add videos until there are `videos`."""
        starts = range(self.videos, videos, CHUNK)
        chunks = [range(start, min(start + CHUNK, videos)) for start in starts]
        with ThreadPoolExecutor(16) as writers:
            for made in processes.map(self.make, chunks):
                written = [pair for _, objects, _ in made for pair in objects]
                list(writers.map(lambda pair: self.put(*pair), written))
                for video_id, _, named in made:
                    self._commit("video", video_id, named)
        self.videos = max(self.videos, videos)

    def _commit(self, kind: Any, subject: str, objects: tuple[StoredObject, ...]) -> None:
        draft = LogDraft(kind=kind, attempt=keys.new_attempt(), subject=subject, objects=objects)
        self.last = new_entry(draft, number=self.last.number + 1, previous_digest=self.last.checksum)
        self.put(keys.log_key(self.last.number), encode_entry(self.last))


def local_archive(root: Path) -> Growing:
    def put(key: str, data: bytes) -> None:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return Growing(open_store(str(root)), put, _WriteBelow(root))


class _WriteBelow:
    """`write_videos` with its root: what can be sent to another process."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, numbers: range) -> list[Made]:
        return write_videos(self.root, numbers)


@contextlib.contextmanager
def s3_archive() -> Iterator[Growing]:
    with Weed() as server:
        server.make_bucket("scale")
        os.environ.update(server.environment)
        store = open_store("s3://scale/archive")
        yield Growing(store, store.put, make_videos)


# ---------------------------------------------------------------- measuring


def measure(archive: Growing, videos: int, processes: Executor, *, rebuild: bool) -> dict[str, Any]:
    began = time.perf_counter()
    archive.grow(videos - 1, processes)
    print(f"{archive.store.root}: {videos} videos made in {time.perf_counter() - began:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        row = _measure_size(archive, Path(folder), processes, rebuild=rebuild)
    print(f"  {row}", flush=True)
    return {"videos": videos, "segments": videos * SEGMENTS, "log_entries": archive.last.number, **row}


def _measure_size(archive: Growing, folder: Path, processes: Executor, *, rebuild: bool) -> dict[str, Any]:
    def writer(store: ObjectStore) -> Catalog:
        return Catalog(store, folder / "writer")

    row: dict[str, Any] = {}
    if rebuild:
        row["full_rebuild"] = timed(archive.store, lambda store: writer(store).rebuild())
    writer(archive.store).snapshot()
    row["checkpoint"] = timed(archive.store, lambda store: writer(store).checkpoint(force=True))
    key = max(archive.store.list("log/checkpoint-"))
    row["checkpoint_bytes"] = archive.store.size(key)

    def opened(store: ObjectStore) -> Snapshot:
        return Catalog(store, folder / "reader").snapshot()

    row["open_from_checkpoint"] = timed(archive.store, opened)
    row["nothing_new"] = timed(archive.store, opened)
    archive.grow(archive.videos + 1, processes)
    row["one_new_video"] = timed(archive.store, opened)
    snapshot = opened(archive.store)
    row["index_bytes"] = sum(path.stat().st_size for path in snapshot.index.file.paths)
    row["lookup_ms"] = lookups(snapshot, archive.videos)
    shutil.rmtree(folder / "reader")
    return row


def timed(store: ObjectStore, do: Callable[[ObjectStore], object]) -> dict[str, Any]:
    counted = Counted(store)
    began = time.perf_counter()
    do(counted)
    return {"seconds": round(time.perf_counter() - began, 4), "requests": counted.requests.total()}


def lookups(snapshot: Snapshot, videos: int) -> dict[str, float]:
    """Milliseconds (median) that readers of single videos take."""
    numbers = np.random.default_rng(SEED).integers(0, videos, LOOKUPS)
    ids = [hashlib.sha256(f"{SEED} {n}".encode()).hexdigest()[:32] for n in numbers]
    readers: dict[str, Callable[[str], object]] = {
        "video": snapshot.video,
        "segments": snapshot.segments,
        "routes": lambda video_id: snapshot.routes(video_id, TASK.version),
        "objects": snapshot.objects,
    }
    found = {}
    for name, read in readers.items():
        times = []
        for video_id in ids:
            began = time.perf_counter()
            read(video_id)
            times.append(time.perf_counter() - began)
        found[name] = round(1e3 * statistics.median(times), 3)
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, nargs="*", default=[10_000, 30_000, 100_000])
    parser.add_argument("--s3", type=int, nargs="*", default=[], metavar="VIDEOS")
    parser.add_argument("--rebuild-up-to", type=int, default=100_000, help="sizes that are also rebuilt")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    parser.add_argument("--folder", type=Path, help="where the local archive is made (default: temporary)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    def sizes(archive: Growing, wanted: Sequence[int]) -> list[dict[str, Any]]:
        return [
            measure(archive, videos, processes, rebuild=videos <= args.rebuild_up_to)
            for videos in sorted(wanted)
        ]

    result: dict[str, Any] = {"question": "scale", "seed": SEED, "segments_a_video": SEGMENTS}
    with ProcessPoolExecutor() as processes:
        if args.videos:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                result["local"] = sizes(local_archive(Path(folder, "archive")), args.videos)
        if args.s3:
            with s3_archive() as archive:
                result["s3"] = sizes(archive, args.s3)
    write_result(args.out, result)


if __name__ == "__main__":
    main(parse_arguments())
