"""python -m benchmarks.container [--archive ROOT]: what storing a segment costs beside its payload.

Payload is what the codec gives: the bytes of weights, scales and latents. Overhead is everything else in the
weights file, the latents file and the manifest; the name and tags, the routes without their adapters and the
log entry are stated apart. Overhead is measured with the payload replaced by noise of its size, so that what
compression takes off the payload does not hide it. Segments of 500 KB and 50 KB with bell-shaped weights, as
trained ones are, as videos of one and of 64; with `--archive`, also every video that is stored there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import write_result
from nvpstore.adapters.micro import MicroAdapter
from nvpstore.codec.artifact import store_latents, store_weights
from nvpstore.codec.build import Architecture, build_architecture, find_preset, stage_gflops
from nvpstore.codec.hnerv import Decoder
from nvpstore.codec.quantize import encode_tensor
from nvpstore.storage import keys
from nvpstore.storage.documents import encode_meta
from nvpstore.storage.log import LogDraft, create_archive, open_log
from nvpstore.storage.objects import ObjectStore, open_store
from nvpstore.storage.tables import (
    EncodedTable,
    decode_latents,
    decode_manifest,
    decode_stages,
    encode_latents,
    encode_manifest,
    encode_routes,
    encode_weights,
    footer_of,
)
from nvpstore.types import (
    RouteRecord,
    SegmentRecord,
    StoredLatents,
    StoredObject,
    StoredStage,
    StoredTensor,
    TaskRoutes,
    VideoMeta,
    VideoRecord,
)

RESULTS = Path(__file__).parent / "results"
SEED = 0
HEIGHT, WIDTH = 540, 960
# Payload bytes of a segment, and its frames: short segments get small networks.
SIZES = {500_000: 160, 50_000: 20}
CUT_SHAPE = (40, 28, 28)  # an adapter ends in a cut of about this size


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A segment before it is put into files."""

    arch: Architecture
    stages: tuple[StoredStage, ...]
    latents: StoredLatents

    @property
    def payload_bytes(self) -> int:
        tensors = sum(_tensors_bytes(stage.tensors) for stage in self.stages)
        return tensors + self.latents.payload.nbytes + len(self.latents.scale)


def drawn_segment(number: int, payload_bytes: int) -> Segment:
    """A segment of the demo preset's shape whose network and latents have about `payload_bytes`."""
    frames = SIZES[payload_bytes]
    # The budget counts 8-bit parameters; scales and 16-bit biases come on top of it.
    preset = replace(find_preset("demo"), parameters=round(payload_bytes * 0.98), max_segment_frames=frames)
    arch = build_architecture(HEIGHT, WIDTH, frames, preset)
    rng = np.random.default_rng((SEED, number))
    stages = store_weights(_drawn_decoder(arch, rng), segment=number)
    latents = store_latents(
        torch.from_numpy(rng.standard_normal((frames, *arch.latent_shape), np.float32)),
        segment=number,
        start_frame=number * frames,
        pts=(np.arange(frames, dtype=np.int64) + number * frames) * 512,
    )
    return Segment(arch=arch, stages=stages, latents=latents)


def _drawn_decoder(arch: Architecture, rng: np.random.Generator) -> Decoder:
    """Bell-shaped weights. Each output channel has a spread of its own, as after training."""
    decoder = Decoder(arch)
    for parameter in decoder.parameters():
        values = rng.standard_normal(parameter.shape, np.float32)
        spread = rng.uniform(0.5, 2, (parameter.shape[0], *(1,) * (parameter.ndim - 1)))
        parameter.data = torch.from_numpy((0.05 * values * spread).astype(np.float32))
    return decoder


def _as_noise(segment: Segment, rng: np.random.Generator) -> Segment:
    latents = segment.latents
    return replace(
        segment,
        stages=tuple(
            replace(stage, tensors=tuple(_noise(tensor, rng) for tensor in stage.tensors))
            for stage in segment.stages
        ),
        latents=replace(latents, payload=rng.integers(0, 256, latents.payload.shape, np.uint8)),
    )


def _noise(tensor: StoredTensor, rng: np.random.Generator) -> StoredTensor:
    return replace(tensor, payload=rng.bytes(len(tensor.payload)), scale=rng.bytes(len(tensor.scale)))


def stored_videos(root: str) -> Iterator[tuple[str, list[Segment]]]:
    """(name, segments) of every video of an archive."""
    store = open_store(root)
    for key in (obj.key for entry in open_log(store).entries() for obj in entry.objects):
        if keys.parse_key(key).kind == "manifest":
            video = decode_manifest(store.get(key))
            yield video.name, [_stored_segment(store, video, record) for record in video.segments]


def _stored_segment(store: ObjectStore, video: VideoRecord, record: SegmentRecord) -> Segment:
    prefix, at = record.prefix("rgb"), record.latents
    tensors = decode_stages(
        store.get_range(prefix.key, prefix.offset, prefix.size_bytes),
        prefix.offset,
        video.footers[prefix.key],
        [part for _, part in record.stages],
    )
    names = [name for name, _ in record.stages]
    return Segment(
        arch=Architecture.from_json(record.architecture),
        stages=tuple(
            StoredStage(segment=record.segment, stage=name, tensors=found)
            for name, found in zip(names, tensors, strict=True)
        ),
        latents=decode_latents(
            store.get_range(at.key, at.offset, at.size_bytes), at.offset, video.footers[at.key], at
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A video's three files, before they are put."""

    video: VideoRecord
    weights: EncodedTable
    latents: EncodedTable
    manifest: bytes

    @property
    def sizes(self) -> dict[str, int]:
        return {
            "weights": len(self.weights.data),
            "latents": len(self.latents.data),
            "manifest": len(self.manifest),
        }


def encode(segments: Sequence[Segment]) -> Files:
    """The files of a video of at most 64 segments."""
    video_id, attempt = "0123456789abcdef" * 2, keys.new_attempt()
    weights = encode_weights(
        keys.weights_key(video_id, attempt, 0), [stage for segment in segments for stage in segment.stages]
    )
    latents = encode_latents(keys.latents_key(video_id, attempt, 0), [s.latents for s in segments])
    video = _video(video_id, attempt, segments, weights, latents)
    return Files(video=video, weights=weights, latents=latents, manifest=encode_manifest(video))


def measure(segments: Sequence[Segment]) -> dict[str, Any]:
    """Bytes of a video, each figure for one segment: a 64th of the whole where there are 64."""
    rng = np.random.default_rng(SEED)
    as_stored, as_noise = encode(segments), encode([_as_noise(segment, rng) for segment in segments])
    payload = sum(segment.payload_bytes for segment in segments)
    each = 1 / len(segments)
    return {
        "segments": len(segments),
        "payload_bytes": round(payload * each),
        "overhead_bytes": round((sum(as_noise.sizes.values()) - payload) * each),
        "overhead": round(sum(as_noise.sizes.values()) / payload - 1, 5),
        "of_which": {name: round(size * each) for name, size in _shares(as_noise, segments).items()},
        "apart": {name: round(size * each) for name, size in _apart(as_noise.video, segments).items()},
        "stored_bytes": {name: round(size * each) for name, size in as_stored.sizes.items()},
        "stored_to_payload": round(sum(as_stored.sizes.values()) / payload, 5),
    }


def _shares(files: Files, segments: Sequence[Segment]) -> dict[str, int]:
    """What the overhead is made of. Footers are plain, the manifest's copies of them compressed."""
    video = files.video
    copies = len(files.manifest) - len(
        encode_manifest(replace(video, footers=dict.fromkeys(video.footers, b"")))
    )
    tensors = sum(_tensors_bytes(stage.tensors) for segment in segments for stage in segment.stages)
    latents = sum(segment.latents.payload.nbytes for segment in segments)
    return {
        "weights_footer": len(files.weights.footer),
        "weights_row_groups": len(files.weights.data) - len(files.weights.footer) - tensors,
        "latents_footer": len(files.latents.footer),
        "latents_row_groups": len(files.latents.data) - len(files.latents.footer) - latents,
        "manifest_copies_of_footers": copies,
        "manifest_footer": len(footer_of(files.manifest)),
        "manifest_rows": len(files.manifest) - len(footer_of(files.manifest)) - copies,
    }


def _video(
    video_id: str, attempt: str, segments: Sequence[Segment], weights: EncodedTable, latents: EncodedTable
) -> VideoRecord:
    groups = iter(weights.row_groups)
    rng = np.random.default_rng(SEED)
    records = tuple(
        SegmentRecord(
            segment=number,
            scene=number,
            start_frame=int(segment.latents.frames[0]),
            pts=segment.latents.pts,
            psnr=30.0 + rng.random(),
            frame_psnr=rng.normal(30, 1, len(segment.latents.pts)).astype(np.float32),
            codec=segment.arch.codec,
            architecture=segment.arch.to_json(),
            stages=tuple((stage.stage, next(groups)) for stage in segment.stages),
            gflops=stage_gflops(segment.arch),
            latents=part,
        )
        for number, (segment, part) in enumerate(zip(segments, latents.row_groups, strict=True))
    )
    return VideoRecord(
        video_id=video_id, attempt=attempt, sha256=video_id * 2, name="2026-11-21 gate camera.mp4",
        source_uri="file:///footage/2026-11-21%20gate%20camera.mp4", source_bytes=12_345_678,
        container="mov,mp4,m4a,3gp,3g2,mj2", source_codec="h264", width=WIDTH, height=HEIGHT,
        rotation_degrees=0, time_base=Fraction(1, 12800), average_fps=Fraction(30000, 1001), preset="demo",
        psnr=30.123456789, psnr_p5=28.123456789, resize_bound_psnr=38.123456789, state="ready",
        fit_seconds=123.456789, segments=records,
        footers={weights.row_groups[0].key: weights.footer, latents.row_groups[0].key: latents.footer},
    )  # fmt: skip


def _apart(video: VideoRecord, segments: Sequence[Segment]) -> dict[str, int]:
    version = "ab" * 32
    routes = TaskRoutes(
        video_id=video.video_id,
        task="labels",
        version=version,
        attempt=video.attempt,
        routes=tuple(route for segment in segments for route in _routes_of(segment)),
    )
    key = keys.routes_key(video.video_id, version, video.attempt)
    adapters = sum(_tensors_bytes(route.adapter) for route in routes.routes)
    meta = VideoMeta(video_id=video.video_id, name=video.name, tags={"camera": "gate"})
    return {
        "routes_without_adapters": len(encode_routes(key, routes).data) - adapters,
        "name_and_tags": len(encode_meta(meta)),
        "log_entry": _log_entry_bytes(video, key),
    }


def _routes_of(segment: Segment) -> Iterator[RouteRecord]:
    """Three adapter routes and the pixel route, as an ingest writes them."""
    rng = np.random.default_rng(segment.latents.segment)
    base = RouteRecord(
        segment=segment.latents.segment,
        route="pixel",
        stages=("rgb",),
        cut="",
        scope="segment",
        cka=None,
        ridge_r2=None,
        fidelity=rng.random(),
        fidelity_confident=rng.random(),
        confident_frames=40,
        gflops=rng.random(),
        bytes=segment.payload_bytes,
    )
    yield base
    for stage in ("1", "2", "3"):
        adapter = MicroAdapter((stage,), [segment.arch.widths[int(stage)]], [CUT_SHAPE])
        tensors = tuple(
            _noise(encode_tensor(name, value.numpy()), rng) for name, value in adapter.state_dict().items()
        )
        yield replace(
            base, route="adapter", stages=(stage,), cut="blocks.5", cka=rng.random(), adapter=tensors
        )


def _log_entry_bytes(video: VideoRecord, routes_key: str) -> int:
    """Commit a video of as many objects to a throw-away archive."""
    store = open_store(f"memory://{keys.new_attempt()}")
    create_archive(store)
    meta_key = keys.meta_key(video.video_id, video.attempt)
    manifest_key = keys.manifest_key(video.video_id, video.attempt)
    objects: list[StoredObject] = [
        store.put(key, bytes(100_000)) for key in (*video.footers, routes_key, meta_key, manifest_key)
    ]
    draft = LogDraft(kind="video", attempt=video.attempt, subject=video.video_id, objects=tuple(objects))
    return store.size(keys.log_key(open_log(store).append(draft).number))


def _tensors_bytes(tensors: Sequence[StoredTensor]) -> int:
    return sum(len(tensor.payload) + len(tensor.scale) for tensor in tensors)


def measure_all(archive: str | None) -> dict[str, Any]:
    drawn = [
        {"segment": f"{size // 1000} KB", **measure([drawn_segment(number, size) for number in range(count)])}
        for size in SIZES
        for count in (1, 64)
    ]
    stored = [{"video": name, **measure(found)} for name, found in stored_videos(archive)] if archive else []
    return {"question": "bytes of a stored segment beside its payload", "drawn": drawn, "stored": stored}


def summary(result: dict[str, Any]) -> str:
    return "\n".join(
        f"{row.get('video') or row['segment'] + ' segment'}, {row['segments']} in the video: "
        f"{row['overhead_bytes']} bytes a segment beside {row['payload_bytes']} of payload "
        f"({100 * row['overhead']:.2f} %); stored in {100 * row['stored_to_payload']:.1f} % of the payload"
        for row in [*result["drawn"], *result["stored"]]
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", help="also measure the videos of this archive")
    parser.add_argument("--out", type=Path, default=RESULTS / "container.json")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    measured = measure_all(arguments.archive)
    write_result(arguments.out, measured)
    print(summary(measured))
