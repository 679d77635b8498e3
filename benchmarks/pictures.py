"""Original and decoded frames side by side, for people: stills and a film, as data URIs."""

from __future__ import annotations

import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nvpstore.archive import Archive
from nvpstore.types import FrameBatch
from nvpstore.video.export import write_video
from nvpstore.video.source import read_frames

JPEG_QUALITY = 90
STRIP = 6  # moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One moment: the original and the decoded frame as data URIs."""

    frame: int
    original: str
    decoded: str


def moments(scores: Sequence[float], count: int = STRIP) -> tuple[int, ...]:
    """The frame with the highest score in each of `count` equal parts."""
    edges = np.linspace(0, len(scores), count + 1).round().astype(int)
    parts = [range(a, b) for a, b in pairwise(edges) if b > a]
    return tuple(max(part, key=lambda frame: scores[frame]) for part in parts)


def picture_pairs(archive: Archive, video_id: str, file: Path, frames: Sequence[int]) -> tuple[Pair, ...]:
    """Both pictures of each of `frames`."""
    return tuple(
        Pair(frame=frame, original=jpeg(original), decoded=jpeg(decoded))
        for frame, original, decoded in _both(archive, video_id, file)
        if frame in set(frames)
    )


def film(archive: Archive, video_id: str, file: Path) -> str:
    """A film of both at once, so that they are in step: original above or left, decoded below or right."""
    video = archive.catalog.snapshot().video(video_id)
    axis = 0 if is_wide(video.width, video.height) else 1

    def batches() -> Iterator[FrameBatch]:
        for frame, original, decoded in _both(archive, video_id, file):
            picture = np.concatenate([original, decoded], axis)[None]
            yield FrameBatch(first_frame=frame, rgb_thwc=picture, pts=np.array([frame]))

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "film.mp4"
        write_video(
            batches(),
            str(out),
            width=video.width * (1 + axis),
            height=video.height * (2 - axis),
            time_base=1 / video.average_fps,
            average_fps=video.average_fps,
            metadata={"comment": f"original and reconstruction, source sha256={video.sha256}"},
        )
        return data_uri("video/mp4", out.read_bytes())


def is_wide(width: int, height: int) -> bool:
    """Whether two pictures are better shown above each other than side by side."""
    return width > 1.5 * height


def jpeg(rgb_hwc: NDArray[np.uint8]) -> str:
    data = BytesIO()
    Image.fromarray(rgb_hwc).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return data_uri("image/jpeg", data.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode('ascii')}"


def _both(
    archive: Archive, video_id: str, file: Path
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """(frame, original, decoded), RGB uint8 [h, w, 3]."""
    originals = (rgb for batch in read_frames(str(file)) for rgb in batch.rgb_thwc)
    decoded = (rgb for batch in archive.frames(video_id) for rgb in batch.rgb_thwc)
    for frame, (left, right) in enumerate(zip(originals, decoded, strict=True)):
        yield frame, left, right
