"""The clips as nvpstore stores them, and what it answers through SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.answers import Answer, from_rows
from benchmarks.nets.families import FAMILIES
from nvpstore.archive import Archive
from nvpstore.codec.build import PRESETS, CodecKind, Preset
from nvpstore.errors import NvpError
from nvpstore.ingest.units import UnitPlan, units_at_ingest, units_to_train
from nvpstore.tasks.spec import TaskSpec
from nvpstore.types import StoredObject

# Weights and latents of 8 bits, compressed, with the footers of their files: bytes a parameter, as measured.
BYTES_A_PARAMETER = 0.98
LATER_SHARE = 0.10  # of the frames, for a task that the fit did not know
ROUTES = "/routes/"  # in the keys of objects
BASE = Preset(
    name="world",
    coded_pixels=None,
    parameters=1,
    strides=(5, 4, 2, 2),
    kernels=(1, 3, 3, 3),
    width_profile=(1.0, 0.75, 0.375, 0.2, 0.12),
    min_width=6,
    latent_channels=8,
    max_segment_frames=240,
    epochs=60,
    batch_frames=4,
    learning_rate=4e-3,
    target_psnr=None,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One clip in an archive, and what `videos` says of it."""

    archive: Archive
    video_id: str
    row: Mapping[str, Any]

    @property
    def network_bytes(self) -> int:
        """Of weights, latents and manifest."""
        return sum(each.size_bytes for each in self._objects if ROUTES not in each.key)

    @property
    def route_bytes(self) -> dict[str, int]:
        """All routes of each task."""
        return {
            task.name: sum(o.size_bytes for o in self._objects if f"{ROUTES}{task.version}/" in o.key)
            for task in self.archive.catalog.snapshot().tasks()
        }

    @property
    def _objects(self) -> list[StoredObject]:
        found = self.archive.catalog.snapshot().objects(self.video_id)
        return [each for each in found if not each.key.startswith("results/")]  # answers that were kept


def preset_for(bpp: float, *, pixels: int, codec: CodecKind, epochs: int) -> str:
    """The name of a preset that needs `bpp` bits a source pixel for a clip of `pixels` in all."""
    name = f"world-{codec}-{bpp:g}-{epochs}"
    parameters = round(bpp * pixels / 8 / BYTES_A_PARAMETER)
    PRESETS[name] = replace(BASE, name=name, codec=codec, parameters=parameters, epochs=epochs)
    return name


def open_archive(root: Path, nets: Path) -> Archive:
    """An archive in which the nets are registered, with their weights."""
    import nvpstore

    archive = nvpstore.open(root, create=True)
    known = {row["name"] for row in archive.tasks()}
    for name, family in FAMILIES.items():
        if name not in known:
            archive.add_task(
                name,
                provider=family.provider,
                model=family.model,
                kind=family.kind,
                size=family.size,
                labels=family.labels or None,
                clip=None if family.clip is None else (family.clip.frames, family.clip.stride),
                options=dict(family.options),
                weights=nets / f"{name}.safetensors",
            )
    return archive


def store(archive: Archive, path: Path, *, preset: str, tasks: Sequence[str], device: str) -> Stored:
    """Ingest a clip, jointly with `tasks`."""
    summary = archive.ingest(path, tasks=tasks, preset=preset, device=device)
    (row,) = [row for row in archive.videos() if row["video_id"] == summary.video_id]
    return Stored(archive=archive, video_id=summary.video_id, row=row)


def train(stored: Stored, net: str, *, share: float, device: str) -> None:
    """Adapters for a net behind what is stored, from a share of the frames; all others are measured."""
    (done,) = stored.archive.train_task(
        net,
        videos=f"video_id = '{stored.video_id}'",
        share=share,
        measured=stored.row["frames"],
        device=device,
        again=True,
    )
    if done.state != "trained":
        raise NvpError(f"{net} on {done.name}: {done.state}: {done.why}")


def ask(stored: Stored, net: str, units: Sequence[Sequence[int]], *, route: str) -> list[Answer]:
    """What a task table says of each unit, by one kind of route."""
    family = FAMILIES[net]
    top = f", top := {len(family.labels)}" if family.kind in ("classification", "action") else ""
    table = stored.archive.sql(
        f"SELECT * FROM {net}(route := '{route}'{top}) WHERE video_id = '{stored.video_id}'"
    ).arrow()
    return from_rows(family, table.to_pylist(), [unit[0] for unit in units])


def seen_at_ingest(spec: TaskSpec, frames: int, units: Sequence[Sequence[int]]) -> list[bool]:
    """Which units hold a picture that task terms and adapters saw."""
    return _seen(units_at_ingest(spec, start_frame=0, frames=frames), units)


def seen_later(spec: TaskSpec, frames: int, units: Sequence[Sequence[int]], *, share: float) -> list[bool]:
    """Which units hold a picture that a later task learned from."""
    return _seen(units_to_train(spec, frames=frames, share=share, measured=frames), units)


def _seen(plan: UnitPlan, units: Sequence[Sequence[int]]) -> list[bool]:
    taught = set(plan.frames[plan.seen].unique().tolist())
    return [any(frame in taught for frame in unit) for unit in units]
