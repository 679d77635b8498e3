"""Stored videos as files for people, marked as reconstructed where they do not come from the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from nvpstore.catalog import IndexedVideo
from nvpstore.errors import UsageError
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.originals import local_original, write_original
from nvpstore.types import FrameBatch
from nvpstore.video.export import write_pngs, write_video

GENERATOR = "nvpstore"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What `export` wrote."""

    path: str
    frames: int
    reconstructed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One frame of a stored video, `rgb_hwc` uint8 [height, width, 3], at `ts` seconds.

    `psnr` (dB) is this frame's own; None where it comes from the original.
    """

    video: IndexedVideo
    frame: int
    ts: float
    psnr: float | None
    rgb_hwc: NDArray[np.uint8]


def export_whole(
    store: ObjectStore,
    video: IndexedVideo,
    batches: Iterator[FrameBatch],
    out: str,
    *,
    lossless: bool,
    original: Path | None = None,
) -> ExportSummary:
    """All frames, with the source's sound: that of `original` where one is given."""
    with nullcontext(str(original)) if original else _audio(store, video) as audio:
        return _write(video, batches, out, lossless=lossless, audio_from=audio)


def export_excerpt(
    video: IndexedVideo,
    batches: Iterator[FrameBatch],
    out: str,
    *,
    start: float | None,
    end: float | None,
    lossless: bool,
) -> ExportSummary:
    """Some frames, from time 0, without sound. Raises UsageError where there are none."""
    first = next(batches, None)
    if first is None:
        asked = f"from {start or 0:g} s" + ("" if end is None else f" to {end:g} s")
        lasts = video.duration_seconds or 0
        raise UsageError(f"{video.name}: no frames {asked}; it lasts {lasts:g} s")
    return _write(video, chain([first], batches), out, lossless=lossless, audio_from=None)


def export_original(store: ObjectStore, video: IndexedVideo, out: str) -> ExportSummary:
    """The source's own bytes. Raises UsageError where they were not kept, else as `write_original` does."""
    if video.source_uri is None:
        raise UsageError(f"the original of {video.name} was not kept (--keep-source none)")
    write_original(store, video, Path(out))
    return ExportSummary(path=out, frames=video.frames, reconstructed=False)


def told(batches: Iterator[FrameBatch], progress: Callable[[int], None] | None) -> Iterator[FrameBatch]:
    """The same batches; `progress` is told before each how many frames came before it."""
    done = 0
    for batch in batches:
        if progress is not None:
            progress(done)
        yield batch
        done += len(batch)


def _write(
    video: IndexedVideo,
    batches: Iterator[FrameBatch],
    out: str,
    *,
    lossless: bool,
    audio_from: str | None,
) -> ExportSummary:
    if out.endswith("/") or Path(out).is_dir():
        written = write_pngs(batches, out, metadata=marks(video))
        return ExportSummary(path=out, frames=written, reconstructed=video.state != "added")
    first = next(batches)
    written = write_video(
        chain([first], batches),
        out,
        width=video.width,
        height=video.height,
        time_base=video.time_base,
        average_fps=video.average_fps,
        audio_from=audio_from,
        lossless=lossless,
        metadata=marks(video),
        start_pts=int(first.pts[0]),
    )
    return ExportSummary(path=out, frames=written, reconstructed=video.state != "added")


@contextmanager
def _audio(store: ObjectStore, video: IndexedVideo) -> Iterator[str | None]:
    """A file with the audio streams: the original where it is at hand, else the stored copy's."""
    if video.audio is None:
        yield None
        return
    path = local_original(store, video)
    if path is not None:
        yield str(path)
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "audio.mka"
        store.get_file(video.audio, copy)
        yield str(copy)


def marks(video: IndexedVideo) -> dict[str, str]:
    """What says in a file where its pictures come from."""
    if video.state == "added":
        return {"comment": f"Encoded again from the original by {GENERATOR}. source sha256={video.sha256}"}
    return {
        "comment": (
            f"Reconstructed from a neural representation by {GENERATOR}, not the original pictures. "
            f"source sha256={video.sha256} preset={video.preset} psnr={video.psnr:.2f} dB"
        )
    }
