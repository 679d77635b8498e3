"""Decoding everything again from the stored bytes, and comparing it with originals that are at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvpstore.codec.artifact import decode_taps, load_decoder, load_latents, shown_rgb
from nvpstore.codec.build import Architecture
from nvpstore.errors import CodecError, NvpError, SourceError
from nvpstore.ingest.segment import psnr, rgb_tensor
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.originals import source_path, write_original
from nvpstore.storage.tables import decode_latents, decode_manifest, decode_stages
from nvpstore.types import RGB_STAGE, FrameBatch, SegmentRecord, SourceScan, StoredObject, VideoRecord
from nvpstore.upkeep.progress import Counter, OnProgress
from nvpstore.upkeep.report import Damage, DeepReport
from nvpstore.video.source import digest_file, probe, read_frames

TOLERANCE_DB = 0.01
_BATCH_FRAMES = 16

Errors = NDArray[np.float64]


class Decodable(Protocol):
    """A video in force and its manifest."""

    @property
    def frames(self) -> int: ...
    @property
    def manifest(self) -> StoredObject: ...
    def damage(self, key: str, found: str) -> Damage: ...


def decode_videos(
    store: ObjectStore,
    videos: Sequence[Decodable],
    *,
    known: Iterable[Damage] = (),
    progress: OnProgress | None = None,
) -> tuple[DeepReport, list[Damage]]:
    """Decode all frames of `videos`, and compare their PSNR where the original is at hand.

    Returns the report and damages, without those of objects that `known` names already.
    """
    damaged = {damage.object for damage in known}
    counter = Counter("decode", sum(video.frames for video in videos), progress)
    damages: list[Damage] = []
    frames = compared = 0
    for video in videos:
        look = _Look(store, video, counter)
        look.decode()
        frames += look.frames
        compared += look.compared
        damages += [damage for damage in look.damages if damage.object not in damaged]
    report = DeepReport(
        videos=len(videos), frames=frames, compared=compared, not_compared=len(videos) - compared
    )
    return report, damages


class _Look:
    """One video's decoding: how many `frames` were decoded, and whether all were `compared`."""

    def __init__(self, store: ObjectStore, video: Decodable, counter: Counter) -> None:
        self._store, self._video, self._counter = store, video, counter
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.frames = 0
        self.compared = False
        self.damages: list[Damage] = []

    def decode(self) -> None:
        manifest = self._video.manifest
        try:
            record = decode_manifest(self._store.get_verified(manifest))
        except NvpError as error:
            self.damages.append(self._video.damage(manifest.key, str(error)))
            return
        with _original(self._store, record) as original:
            if record.state == "added":
                self._counter.add(record.frames)
                self.damages += [] if original else [self._video.damage(manifest.key, _gone(record))]
                return
            measured = [self._segment(record, segment, original) for segment in record.segments]
        errors = [each for each in measured if each is not None]
        if errors and len(errors) == len(measured):
            self.compared = True
            found = _psnr(np.concatenate(errors))
            if abs(found - record.psnr) > TOLERANCE_DB:
                self.damages.append(self._video.damage(manifest.key, _differs(found, record.psnr)))

    def _segment(
        self, record: VideoRecord, segment: SegmentRecord, original: SourceScan | None
    ) -> Errors | None:
        """Each frame's mean squared error; None where it cannot be decoded or there is nothing to compare."""
        key = segment.stages[0][1].key
        try:
            errors = _errors(self._shown(record, segment), original, segment)
        except NvpError as error:
            self._damaged(key, f"it cannot be decoded: {error}", segment)
            return None
        self.frames += segment.frames
        self._counter.add(segment.frames)
        if errors is not None and abs((found := _psnr(errors)) - segment.psnr) > TOLERANCE_DB:
            self._damaged(key, _differs(found, segment.psnr), segment)
        return errors

    def _shown(self, record: VideoRecord, segment: SegmentRecord) -> Iterator[Tensor]:
        """The segment's frames as exported, uint8 [t, 3, height, width], some at a time."""
        prefix, latents_at = segment.prefix(RGB_STAGE), segment.latents
        assert latents_at is not None, "only fitted segments are decoded"
        weights = self._store.get_range(prefix.key, prefix.offset, prefix.size_bytes)
        stages = decode_stages(
            weights, prefix.offset, record.footers[prefix.key], [found for _, found in segment.stages]
        )
        latents = self._store.get_range(latents_at.key, latents_at.offset, latents_at.size_bytes)
        stored = decode_latents(latents, latents_at.offset, record.footers[latents_at.key], latents_at)
        if not np.array_equal(stored.pts, segment.pts):
            raise CodecError("its latents are of other frames than the manifest says")
        arch = Architecture.from_json(segment.architecture)
        decoder = load_decoder(arch, stages, device=self._device)
        for taps in decode_taps(decoder, load_latents(stored), (RGB_STAGE,), batch_frames=_BATCH_FRAMES):
            rgb = taps[RGB_STAGE].float().cpu()
            if not bool(torch.isfinite(rgb).all()):
                raise CodecError("its frames are not finite")
            yield shown_rgb(rgb, arch, record.height, record.width)

    def _damaged(self, key: str, found: str, segment: SegmentRecord) -> None:
        self.damages.append(replace(self._video.damage(key, found), segment=segment.segment))


def _errors(shown: Iterator[Tensor], original: SourceScan | None, segment: SegmentRecord) -> Errors | None:
    source = _source_frames(original, segment)
    errors: list[Errors] | None = [] if original is not None else None
    frames = 0
    for decoded in shown:
        frames += len(decoded)
        if errors is not None:
            try:
                expected = rgb_tensor(next(source))
            except (SourceError, StopIteration):  # at hand, but not to be read here: no damage of ours
                errors = None
                continue
            difference = decoded.float() - expected.float()
            errors.append(difference.square().flatten(1).double().mean(1).numpy())
    if frames != segment.frames:
        raise CodecError(f"it has {frames} frames, not {segment.frames}")
    return None if errors is None else np.concatenate(errors)


def _source_frames(original: SourceScan | None, segment: SegmentRecord) -> Iterator[FrameBatch]:
    if original is None:
        return iter(())
    return read_frames(
        original.info.path,
        start_frame=segment.start_frame,
        end_frame=segment.start_frame + segment.frames,
        batch_frames=_BATCH_FRAMES,
        scan=original,
    )


@contextmanager
def _original(store: ObjectStore, record: VideoRecord) -> Iterator[SourceScan | None]:
    """The file that the video was fitted to, where it is at hand with exactly those bytes."""
    with tempfile.TemporaryDirectory(prefix="nvp-verify-") as folder:
        path = _fetched(store, record, Path(folder) / "original")
        try:
            if path is None or digest_file(str(path))[0] != record.sha256:
                yield None
                return
            pts = np.concatenate([segment.pts for segment in record.segments])
            scan = SourceScan(info=probe(str(path)), sha256=record.sha256, pts=pts, segments=())
        except SourceError:
            yield None
            return
        yield scan


def _fetched(store: ObjectStore, record: VideoRecord, temporary: Path) -> Path | None:
    """A referenced local file, the archive's own local copy, or a remote one in `temporary`."""
    uri = record.source_uri
    path = source_path(store, uri)
    far = uri is not None and "://" in uri
    # Far away it is only looked for where nothing else is stored of the video.
    if path is not None or uri is None or (far and record.state != "added"):
        return path
    try:
        write_original(store, record, temporary)
    except NvpError:  # damage of the copy is found when its digest is compared
        return None
    return temporary


def _gone(record: VideoRecord) -> str:
    return f"it is only added, and its original is not at {record.source_uri} with the bytes that were added"


def _psnr(errors: Errors) -> float:
    return float(psnr(np.array([errors.mean()]))[0])


def _differs(found: float, stored: float) -> str:
    return f"it decodes to a PSNR of {found:.3f} dB; {stored:.3f} dB was stored"
