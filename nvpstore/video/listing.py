"""What a source file holds, from its packets alone: many times faster than decoding it (`source.scan`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import chain, islice, pairwise

import numpy as np

from nvpstore.errors import SourceError
from nvpstore.types import SegmentSpan, SourceInfo, SourceScan
from nvpstore.video.converter import refuse_hdr
from nvpstore.video.decoder import open_decoder
from nvpstore.video.source import checked_frames, digest_file, fingerprint, probe, scan

# Of these every packet is one frame that is shown, where each packet has a pts of its own. Of others, VP8 for
# one, some packets are never shown.
_FRAME_A_PACKET = frozenset({"h264", "hevc", "av1", "vp9", "mjpeg", "ffv1", "prores", "rawvideo"})
_CHECKED_FRAMES = 24
_PROGRESS_PACKETS = 4096

SHORTEST_SEGMENT = 96
LONGEST_SEGMENT = 384


def list_frames(
    path: str, *, tone_map: bool = False, progress: Callable[[int], None] | None = None
) -> SourceScan:
    """Digest, every pts, and segments that begin at keyframes, of one scene: cuts are not looked for.

    Only the first frames and the last are decoded, and compared with their packets; where that differs, or
    for codecs whose packets say too little, the whole file is decoded as `source.scan` does. Segments have
    SHORTEST_SEGMENT frames or more (the last may have less) and at most LONGEST_SEGMENT. `progress` is called
    with the number of frames found so far. Raises SourceError as `source.scan` does; damage in the middle of
    a file is only noticed when it is decoded, and of HDR only the first frame.
    """
    info = probe(path)
    if not tone_map:
        refuse_hdr(path, info.hdr)
    listed = _listed(info, progress or _no_progress) if info.codec in _FRAME_A_PACKET else None
    if listed is None:
        found = scan(path, max_segment_frames=LONGEST_SEGMENT, tone_map=tone_map, progress=progress)
        segments = divide_at((), frames=found.frames)
        return SourceScan(info=found.info, sha256=found.sha256, pts=found.pts, segments=segments)
    if progress is not None:
        progress(listed.frames)
    return listed


def divide_at(starts: Sequence[int], *, frames: int) -> tuple[SegmentSpan, ...]:
    """Frames 0 … `frames` as segments of one scene that begin at some of `starts` (ascending)."""
    bounds = [0]
    for start in starts:
        if start - bounds[-1] >= SHORTEST_SEGMENT:
            bounds.append(start)
    cut = [
        first + (last - first) * part // parts
        for first, last in pairwise([*bounds, frames])
        for parts in [-(-(last - first) // LONGEST_SEGMENT)]
        for part in range(parts)
    ]
    return tuple(
        SegmentSpan(segment=number, scene=0, start_frame=first, frames=last - first)
        for number, (first, last) in enumerate(pairwise([*cut, frames]))
    )


def _listed(info: SourceInfo, progress: Callable[[int], None]) -> SourceScan | None:
    """None where the packets do not tell what would be decoded."""
    path = info.path
    before = fingerprint(path)
    with open_decoder(path) as decoder:
        packets = []
        for packet in decoder.packets():
            packets.append(packet)
            if len(packets) % _PROGRESS_PACKETS == 0:
                progress(len(packets))
        decoder.check_complete()
    stamps = [(pts, starts) for pts, starts in packets if pts is not None]
    pts = np.array(sorted(pts for pts, _ in stamps), dtype=np.int64)
    if len(stamps) < len(packets) or (len(pts) > 1 and np.diff(pts).min() <= 0):
        return None
    keyframes = np.searchsorted(pts, sorted(pts for pts, starts in stamps if starts)).tolist()
    sha256, size_bytes = digest_file(path)
    if fingerprint(path) != before or size_bytes != info.size_bytes:
        raise SourceError(f"{path}: changed while it was read; a finished file is needed")
    segments = divide_at(keyframes, frames=len(pts))
    found = SourceScan(info=info, sha256=sha256, pts=pts, segments=segments)
    return found if _decodes_so(found) else None


def _decodes_so(found: SourceScan) -> bool:
    """Whether the first frames and the last have the pts of their packets, and nothing follows."""
    path = found.info.path
    try:
        with (
            closing(checked_frames(path, 0, found)) as first,
            closing(checked_frames(path, found.frames - 1, found)) as last,
        ):
            for _ in chain(islice(first, _CHECKED_FRAMES), last):
                pass
    except SourceError:
        return False
    return True


def _no_progress(frames: int) -> None:
    pass
