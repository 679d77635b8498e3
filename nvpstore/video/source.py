"""A source file as the rest sees it: what it is (`probe`), all of it once (`scan`), and its frames
(`read_frames`).
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import chain, islice, pairwise

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from nvpstore.errors import SourceError
from nvpstore.types import SLIMMEST_PIXEL, FrameBatch, SegmentSpan, SourceInfo, SourceScan
from nvpstore.video.converter import Converter, hdr_of, refuse_hdr
from nvpstore.video.decoder import Decoder, open_decoder, unreadable
from nvpstore.video.scenes import DEFAULT_CUT_THRESHOLD, THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH, CutDetector

_READ_BYTES = 1 << 20
_PROGRESS_FRAMES = 16
_SEEK_BACK_FRAMES = (0, 64)

Stamped = tuple[int, VideoFrame]  # (pts, frame)


def probe(path: str) -> SourceInfo:
    """What the container says about its first video stream, and what its first frame shows.

    `rotation_degrees` is the clockwise turn from stored to shown; a mirrored picture is mirrored as well when
    read. `declared_frames` is given by MP4 and MOV only, where it is exact. Raises SourceError for a path
    that is missing, a folder, empty, not a video, without video, or without frames.
    """
    with open_decoder(path) as decoder:
        for _, first in decoder.frames():
            return _describe(decoder, Converter(path, first))
        decoder.check_complete()  # says more, where the file is cut short
        raise decoder.no_frames()


def scan(
    path: str,
    *,
    max_segment_frames: int,
    cut_threshold: float = DEFAULT_CUT_THRESHOLD,
    tone_map: bool = False,
    progress: Callable[[int], None] | None = None,
) -> SourceScan:
    """Decode the whole file once: digest, every pts, and the segments. Memory holds 8 bytes a frame.

    Segments end at scene cuts; a longer scene is divided evenly into as few segments of at most
    `max_segment_frames` as it needs. `progress` is called with the number of frames decoded so far. Raises
    SourceError as `probe` does, and for a file that is truncated, damaged, or changes meanwhile, for pts
    that do not increase, and for HDR unless it may be mapped to SDR (`tone_map`).
    """
    if max_segment_frames < 1:
        raise ValueError(f"max_segment_frames {max_segment_frames} must be at least 1")
    with open_decoder(path) as decoder:
        before = fingerprint(path)
        detector = CutDetector(cut_threshold)
        info, pts, cuts = _scan_frames(decoder, detector, progress or _no_progress, tone_map=tone_map)
        sha256, size_bytes = digest_file(path)
        if fingerprint(path) != before or size_bytes != info.size_bytes:
            raise SourceError(f"{path}: changed while it was read; a finished file is needed")
    segments = divide(cuts, frames=len(pts), max_segment_frames=max_segment_frames)
    return SourceScan(info=info, sha256=sha256, pts=pts, segments=segments)


def divide(cuts: list[int], *, frames: int, max_segment_frames: int) -> tuple[SegmentSpan, ...]:
    """Frames 0 … `frames` as segments: cut at `cuts` (ascending), and each scene evenly where it is too
    long.
    """
    segments: list[SegmentSpan] = []
    bounds = [0, *cuts, frames]
    for scene, (start, end) in enumerate(pairwise(bounds)):
        parts = -(-(end - start) // max_segment_frames)
        edges = [start + (end - start) * part // parts for part in range(parts + 1)]
        for first, last in pairwise(edges):
            segments.append(
                SegmentSpan(segment=len(segments), scene=scene, start_frame=first, frames=last - first)
            )
    return tuple(segments)


def digest_file(path: str) -> tuple[str, int]:
    """SHA-256 (64 hex digits) of a file's bytes, and how many they are. Raises SourceError if it cannot be
    read.
    """
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest(), size_bytes


def read_frames(
    path: str,
    *,
    start_frame: int = 0,
    end_frame: int | None = None,
    batch_frames: int = 16,
    scan: SourceScan | None = None,
) -> Iterator[FrameBatch]:
    """Frames [start_frame, end_frame) as RGB, as shown, in batches of `batch_frames` (the last may be
    shorter).

    With `scan`, a start in the middle seeks to the keyframe before it, and every pts is checked against the
    scan's; without, the frames before it are decoded and dropped. `end_frame` None or past the end means the
    last frame. The file is closed when the iterator ends, is closed, or is dropped. Raises SourceError as
    `probe` does and for damage, ValueError for an empty or negative range.
    """
    if start_frame < 0 or (end_frame is not None and end_frame <= start_frame):
        raise ValueError(f"frames {start_frame} to {end_frame}: start must be ≥ 0 and end greater than start")
    if batch_frames < 1:
        raise ValueError(f"batch_frames {batch_frames} must be at least 1")
    return _read_batches(path, start_frame, end_frame, batch_frames, scan)


def _read_batches(
    path: str, start_frame: int, end_frame: int | None, batch_frames: int, scan: SourceScan | None
) -> Iterator[FrameBatch]:
    if scan is not None:
        end_frame = scan.frames if end_frame is None else min(end_frame, scan.frames)
        found = checked_frames(path, start_frame, scan)
    else:
        found = _sequential(path, start_frame)
    next_frame = start_frame
    with closing(found):
        wanted = islice(found, None if end_frame is None else max(end_frame - start_frame, 0))
        converter: Converter | None = None
        while chunk := list(islice(wanted, batch_frames)):
            converter = converter or Converter(path, chunk[0][1], scan.info if scan else None)
            batch = _to_batch(converter, next_frame, chunk)
            next_frame += len(batch)
            chunk.clear()  # decoded pictures are not held while the consumer works
            yield batch


def _sequential(path: str, start_frame: int) -> Generator[Stamped]:
    with open_decoder(path) as decoder:
        yield from islice(decoder.frames(), start_frame, None)
        decoder.check_complete()


def checked_frames(path: str, start_frame: int, scan: SourceScan) -> Generator[Stamped]:
    """Frames from `start_frame` on, each with the pts that the scan found there."""
    frame = start_frame
    with closing(_sought(path, start_frame, scan)) as found:
        for stamped in found:
            if frame >= scan.frames or stamped[0] != scan.pts[frame]:
                known = f"pts {scan.pts[frame]}" if frame < scan.frames else "no such frame"
                raise SourceError(
                    f"{path}: frame {frame} has pts {stamped[0]}, the scan found {known}; "
                    "the file has changed since"
                )
            yield stamped
            frame += 1
    if frame < scan.frames:
        raise SourceError(
            f"{path}: ends after {frame} frames, the scan found {scan.frames}; the file has changed since"
        )


def _sought(path: str, start_frame: int, scan: SourceScan) -> Generator[Stamped]:
    # An index is in decoding order and may be coarse: the keyframe found first may be shown after the frame
    # wanted. Then look further back, and at last decode from the start.
    for back_frames in _SEEK_BACK_FRAMES if start_frame > 0 else ():
        with open_decoder(path) as decoder:
            seek_pts = int(scan.pts[max(start_frame - back_frames, 0)])
            frames = _seek(decoder, seek_pts, wanted_pts=int(scan.pts[start_frame]))
            if frames is not None:
                yield from frames
                return
    yield from _sequential(path, start_frame)


def _seek(decoder: Decoder, seek_pts: int, *, wanted_pts: int) -> Iterator[Stamped] | None:
    """The frames from `wanted_pts` on, or None if it was not met."""
    frames = decoder.frames()
    try:
        decoder.seek(seek_pts)
        for pts, frame in frames:
            if frame.pts is None or pts > wanted_pts:
                return None
            if pts == wanted_pts:
                return chain([(pts, frame)], frames)
    except SourceError:
        # Decoders may also fail for having been started in the middle; from the start, damage is damage.
        return None
    return None


def _to_batch(converter: Converter, first_frame: int, chunk: list[Stamped]) -> FrameBatch:
    width, height = converter.size
    rgb_thwc = np.empty((len(chunk), height, width, 3), dtype=np.uint8)
    for target, (_, frame) in zip(rgb_thwc, chunk, strict=True):
        target[:] = converter.rgb(frame)
    pts = np.array([pts for pts, _ in chunk], dtype=np.int64)
    return FrameBatch(first_frame=first_frame, rgb_thwc=rgb_thwc, pts=pts)


def _scan_frames(
    decoder: Decoder, detector: CutDetector, progress: Callable[[int], None], *, tone_map: bool
) -> tuple[SourceInfo, NDArray[np.int64], list[int]]:
    all_pts, cuts = array("q"), list[int]()
    converter: Converter | None = None
    info: SourceInfo | None = None
    for pts, frame in decoder.frames():
        if all_pts and pts <= all_pts[-1]:
            raise SourceError(
                f"{decoder.path}: frame {len(all_pts)} has pts {pts} after {all_pts[-1]}; "
                "pts must increase strictly"
            )
        if converter is None:
            converter = Converter(decoder.path, frame)
            info = _describe(decoder, converter)
        if not tone_map:
            refuse_hdr(decoder.path, hdr_of(frame))
        all_pts.append(pts)
        cut = detector.feed(converter.thumbnail(frame, THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT))
        if cut is not None:
            cuts.append(cut)
        if len(all_pts) % _PROGRESS_FRAMES == 0:
            progress(len(all_pts))
    decoder.check_complete()
    assert info is not None, "check_complete lets no stream without frames through"
    progress(len(all_pts))
    return info, np.array(all_pts, dtype=np.int64), cuts + detector.finish()


def _describe(decoder: Decoder, converter: Converter) -> SourceInfo:
    stream, container = decoder.stream, decoder.container
    width, height = converter.size
    seconds = container.duration / av.time_base if container.duration else 0.0
    if stream.duration:
        seconds = float(stream.duration * decoder.time_base)
    return SourceInfo(
        path=decoder.path,
        size_bytes=os.path.getsize(decoder.path),
        container=container.format.name,
        codec=stream.codec_context.name,
        pixel_format=stream.codec_context.pix_fmt or "unknown",
        width=width,
        height=height,
        rotation_degrees=converter.orientation.rotation_degrees,
        time_base=decoder.time_base,
        average_fps=decoder.fps,
        declared_frames=decoder.declared_frames,
        duration_seconds=seconds,
        audio_streams=len(container.streams.audio),
        subtitle_streams=len(container.streams.subtitles),
        hdr=converter.hdr,
        pixel_aspect=_pixel_aspect(stream.sample_aspect_ratio, turned=converter.orientation.transpose),
    )


def _pixel_aspect(stored: Fraction | None, *, turned: bool) -> Fraction:
    """A pixel's width over its height as shown. Where nothing is declared, or nonsense, pixels are square."""
    if not stored or not SLIMMEST_PIXEL <= stored <= 1 / SLIMMEST_PIXEL:
        return Fraction(1)
    return 1 / stored if turned else stored


def fingerprint(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _no_progress(frames: int) -> None:
    pass
