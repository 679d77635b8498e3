"""Stored videos as files for people, marked as reconstructed where they do not come from the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from nvpstore.catalog import IndexedVideo, Snapshot
from nvpstore.errors import UsageError
from nvpstore.storage.keys import manifest_key
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.originals import local_original, write_original
from nvpstore.storage.tables import decode_manifest
from nvpstore.types import FrameBatch
from nvpstore.video.export import write_pngs, write_video

GENERATOR = "nvpstore"
SYNTHESISED = "Upscaled {} times by a neural network: detail is synthesised, not recorded."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What `export` wrote. `upscaled`: how many times as large as the source."""

    path: str
    frames: int
    reconstructed: bool
    upscaled: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How pictures are written: without loss, how wide a pixel is for its height, and whether they were made
    steady and larger before.
    """

    pixel_aspect: Fraction = Fraction(1)
    lossless: bool = False
    stabilized: bool = False
    upscaled: int = 1


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


def pixel_aspect(store: ObjectStore, snapshot: Snapshot, video: IndexedVideo) -> Fraction:
    """A pixel's width over its height. A release that did not know it writes checkpoints without it, whatever
    the manifest says.
    """
    if video.pixel_aspect is not None:
        return video.pixel_aspect
    key = manifest_key(video.video_id, video.attempt)
    (manifest,) = (obj for obj in snapshot.objects(video.video_id) if obj.key == key)
    return decode_manifest(store.get_verified(manifest)).pixel_aspect


def export_whole(
    store: ObjectStore,
    video: IndexedVideo,
    batches: Iterator[FrameBatch],
    out: str,
    *,
    form: Form,
    original: Path | None = None,
) -> ExportSummary:
    """All frames, with the source's sound: that of `original` where one is given."""
    with nullcontext(str(original)) if original else _audio(store, video) as audio:
        return _write(video, batches, out, form=form, audio_from=audio)


def export_excerpt(
    video: IndexedVideo,
    batches: Iterator[FrameBatch],
    out: str,
    *,
    start: float | None,
    end: float | None,
    form: Form,
) -> ExportSummary:
    """Some frames, from time 0, without sound. Raises UsageError where there are none."""
    first = next(batches, None)
    if first is None:
        asked = f"from {start or 0:g} s" + ("" if end is None else f" to {end:g} s")
        lasts = video.duration_seconds or 0
        raise UsageError(f"{video.name}: no frames {asked}; it lasts {lasts:g} s")
    return _write(video, chain([first], batches), out, form=form, audio_from=None)


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
    form: Form,
    audio_from: str | None,
) -> ExportSummary:
    made = partial(ExportSummary, path=out, reconstructed=video.state != "added", upscaled=form.upscaled)
    if out.endswith("/") or Path(out).is_dir():
        return made(frames=write_pngs(batches, out, metadata=marks(video, form)))
    first = next(batches)
    written = write_video(
        chain([first], batches),
        out,
        width=form.upscaled * video.width,
        height=form.upscaled * video.height,
        time_base=video.time_base,
        average_fps=video.average_fps,
        pixel_aspect=form.pixel_aspect,
        audio_from=audio_from,
        lossless=form.lossless,
        metadata=marks(video, form),
        start_pts=int(first.pts[0]),
    )
    return made(frames=written)


PLAIN = Form()


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


def marks(video: IndexedVideo, form: Form = PLAIN) -> dict[str, str]:
    """What says in a file where its pictures come from."""
    steady = " Made steady from frame to frame by a learned stabilizer." if form.stabilized else ""
    larger = f" {SYNTHESISED.format(form.upscaled)}" if form.upscaled > 1 else ""
    done = steady + larger
    if video.state == "added":
        told = f"Encoded again from the original by {GENERATOR}.{done} source sha256={video.sha256}"
        return {"comment": told}
    return {
        "comment": (
            f"Reconstructed from a neural representation by {GENERATOR}, not the original pictures.{done} "
            f"source sha256={video.sha256} preset={video.preset} psnr={video.psnr:.2f} dB"
        )
    }
