"""Files from a server, for people. Nothing is visible under its name before it is whole."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import av
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nvpstore.client.pictures import frames
from nvpstore.client.transport import QUERY_SECONDS, Ask, Transport
from nvpstore.client.values import ExportSummary
from nvpstore.errors import StoreError, UsageError
from nvpstore.types import FrameBatch

_BATCH_FRAMES = 16


def export(
    transport: Transport,
    video: Mapping[str, Any],
    out: str,
    *,
    start: float | None,
    end: float | None,
    original: bool,
    stabilize: bool = False,
    upscale: int = 1,
) -> ExportSummary:
    """Write a video (its details): its clip, PNGs for a folder, or the original's bytes.

    Raises StoreError where `out` cannot be written or is there, UsageError for a suffix that is not offered.
    """
    path = f"videos/{video['video_id']}"
    if original:
        _fetch(transport, Ask(method="GET", path=f"{path}/original", read_seconds=QUERY_SECONDS), Path(out))
        return ExportSummary(path=out, frames=int(video["frames"]), reconstructed=False)
    made = partial(ExportSummary, path=out, reconstructed=video["state"] != "added", upscaled=upscale)
    if out.endswith("/") or Path(out).is_dir():
        wanted = frames(
            transport,
            video,
            start=start,
            end=end,
            batch_frames=_BATCH_FRAMES,
            stabilize=stabilize,
            upscale=upscale,
        )
        written = _write_pngs(wanted, Path(out), _mark(video, stabilize, upscale))
        if not written:
            raise UsageError(f"{video['name']}: no frames there; it lasts {video['duration'] or 0:g} s")
        return made(frames=written)
    if Path(out).suffix.lower() not in (".mp4", ".m4v"):
        raise UsageError(f"{out}: servers write .mp4 or, for a folder (`…/`), PNGs")
    asked = {
        "start": start,
        "end": end,
        "stabilize": "true" if stabilize else None,
        "upscale": upscale if upscale != 1 else None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    _fetch(
        transport,
        Ask(method="GET", path=f"{path}/clip.mp4", params=given, read_seconds=QUERY_SECONDS),
        Path(out),
    )
    return made(frames=_frames_in(Path(out)))


def _fetch(transport: Transport, ask: Ask, out: Path) -> None:
    """The answer's body as a file; begun anew where the connection breaks off."""

    def once() -> None:
        # The answer is there first: what the server refuses leaves no trace here.
        with transport.streamed(ask) as response, _part(out) as part, part.open("xb") as file:
            for piece in response.iter_bytes():
                file.write(piece)

    if out.exists():
        raise StoreError(f"{out} exists already: choose another name")
    transport.persistently(once, retry=True)


def _write_pngs(batches: Iterator[FrameBatch], folder: Path, mark: str) -> int:
    if any(folder.glob("frame-*.png")):
        raise StoreError(f"{folder}: holds frame-*.png already; choose another folder")
    text = PngInfo()
    text.add_text("comment", mark)
    written = 0
    for batch in batches:
        with _writing(folder):
            folder.mkdir(exist_ok=True)
            for frame, rgb_hwc in enumerate(batch.rgb_thwc, start=batch.first_frame):
                Image.fromarray(rgb_hwc).save(folder / f"frame-{frame:08d}.png", pnginfo=text)
        written += len(batch)
    return written


def _mark(video: Mapping[str, Any], stabilized: bool, upscaled: int) -> str:
    """What says in a picture where it comes from, as in files that servers write."""
    source = f"source sha256={video['sha256']}"
    done = " Made steady from frame to frame by a learned stabilizer." if stabilized else ""
    if upscaled > 1:
        done += f" Upscaled {upscaled} times by a neural network: detail is synthesised, not recorded."
    if video["state"] == "added":
        return f"Encoded again from the original by nvpstore.{done} {source}"
    return (
        f"Reconstructed from a neural representation by nvpstore, not the original pictures.{done} "
        f"{source} preset={video['preset']} psnr={video['psnr']:.2f} dB"
    )


def _frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return int(container.streams.video[0].frames)


@contextmanager
def _part(out: Path) -> Iterator[Path]:
    """A file beside `out` that takes its name when the block ends well."""
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    with _writing(out):
        try:
            yield part
            os.replace(part, out)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise StoreError(f"cannot write {out}: {cause.strerror or cause}") from cause
