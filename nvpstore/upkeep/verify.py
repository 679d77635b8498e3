"""Checking an archive against its log, from the store alone: nothing that this machine keeps is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from nvpstore.catalog import Snapshot
from nvpstore.catalog.fold import HeldObject
from nvpstore.errors import IntegrityError, NvpError, StoreError
from nvpstore.storage import keys
from nvpstore.storage.checkpoints import Checkpoint, list_checkpoints
from nvpstore.storage.documents import decode_meta, decode_task, decode_view
from nvpstore.storage.objects import ObjectStore
from nvpstore.storage.tables import decode_manifest
from nvpstore.types import StoredObject
from nvpstore.upkeep.manifests import indexed_parts, manifest_parts, misfits
from nvpstore.upkeep.progress import Counter, OnProgress
from nvpstore.upkeep.readings import Part, check_checkpoint, check_object
from nvpstore.upkeep.report import Damage, DeepReport, VerifyReport
from nvpstore.upkeep.whole_log import WholeLog, catch_up, read_whole_log

READERS = 8  # each holds one piece of an object
_OWNERS_AT_ONCE = 64  # whose manifests are in memory
_FOLDERS = (
    *("videos/", "sources/", "adapters/", "results/", "tasks/", "views/", "decoders/"),
    keys.STABILIZERS_PREFIX,
)

T = TypeVar("T")

Indexed = Callable[[], Snapshot]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVideo:
    """A video in force, and where its readable manifest is. `frames` are those that it says there are."""

    video_id: str
    name: str | None
    manifest: StoredObject
    frames: int

    def damage(self, key: str, found: str) -> Damage:
        return Damage(object=key, found=found, video_id=self.video_id, name=self.name)


@dataclass(slots=True, kw_only=True)
class _Described:
    """One owner's objects, what its manifests say of their parts, and what is wrong with the descriptions."""

    about: Damage
    objects: list[StoredObject]
    parts: dict[str, list[Part]]
    damages: list[Damage]
    video: StoredVideo | None = None


def verify(
    store: ObjectStore,
    *,
    deep: bool = False,
    indexed: Indexed | None = None,
    damaged_caches: Sequence[str] = (),
    progress: OnProgress | None = None,
) -> VerifyReport:
    """Read every entry of the log and every byte that it names, and compare all with their digests.

    Objects that wait for gc count too. `deep` also decodes every frame (upkeep.deep). `indexed` gives this
    machine's index, asked only which routes a damaged object held. `damaged_caches` is passed on to the
    report. Raises ArchiveError for a format of a newer release, StoreError where nothing can be listed.
    """
    checkpoints = list_checkpoints(store)  # before the log: newer ones may be of entries that it lacks
    log = read_whole_log(store)
    held = [held for owner in log.owners.values() for held in owner.objects.values()]
    total_bytes = sum(item.stored.size_bytes for item in held)
    damages = [*log.damages, *_check_checkpoints(store, checkpoints, log.number)]
    videos: list[StoredVideo] = []
    counter = Counter("read", total_bytes, progress)
    for described, found in _checked(store, log, indexed, counter):
        damages += found
        videos += [described.video] if described.video else []
    orphans = _count_orphans(store, log)
    decoded = _decoded(store, log, videos, damages, progress) if deep else None
    return VerifyReport(
        entries=log.entries,
        objects=len(held),
        superseded=sum(item.replaced_at is not None for item in held),
        bytes=total_bytes,
        checkpoints=len(checkpoints),
        orphans=orphans,
        damages=tuple(_still_there(store, log, damages)),
        damaged_caches=tuple(damaged_caches),
        deep=decoded,
    )


def _check_checkpoints(store: ObjectStore, checkpoints: Sequence[Checkpoint], last: int) -> Iterator[Damage]:
    for checkpoint in checkpoints:
        if damage := check_checkpoint(store, checkpoint):
            yield damage
        elif checkpoint.number > last:
            yield Damage(
                object=keys.log_key(last + 1),
                found=f"it is missing: the log ends at entry {last}, but {checkpoint.key} is of a later one",
            )


def _checked(
    store: ObjectStore, log: WholeLog, indexed: Indexed | None, counter: Counter
) -> Iterator[tuple[_Described, list[Damage]]]:
    """Every owner with all damages of its objects."""
    owners = sorted(log.owners)
    readers = ThreadPoolExecutor(READERS)
    try:
        for first in range(0, len(owners), _OWNERS_AT_ONCE):
            some = owners[first : first + _OWNERS_AT_ONCE]
            described = list(readers.map(lambda owner: _describe(store, owner, log.held(owner)), some))
            jobs = [(own, obj) for own in described for obj in own.objects]
            found = readers.map(lambda job: _check(store, job[0], job[1], indexed, counter), jobs)
            by_key = {obj.key: damages for (_, obj), damages in zip(jobs, found, strict=True)}
            for own in described:
                yield own, own.damages + [damage for obj in own.objects for damage in by_key[obj.key]]
    finally:
        readers.shutdown(cancel_futures=True)


def _check(
    store: ObjectStore, own: _Described, obj: StoredObject, indexed: Indexed | None, counter: Counter
) -> list[Damage]:
    about = replace(own.about, object=obj.key)
    damages = check_object(store, obj, own.parts.get(obj.key, ()), about, read=counter.add)
    parsed = keys.parse_key(obj.key)
    if damages and parsed.kind == "routes" and indexed is not None:
        # Only the index knows the digests of their row groups, and it may be what cannot be built.
        with suppress(NvpError):
            parts = indexed_parts(indexed(), obj, parsed, about)
            return check_object(store, obj, parts, about, read=lambda _: None) or damages
    return damages


# ---------------------------------------------------------------- descriptions


def _describe(store: ObjectStore, owner: str, held: Mapping[str, HeldObject]) -> _Described:
    """Read the small objects, whose own damage is found when they are checked like all others."""
    objects = {key: item.stored for key, item in sorted(held.items())}
    in_force = [key for key in objects if held[key].replaced_at is None]
    damages: list[Damage] = []
    name = _name(store, [objects[key] for key in in_force], damages) if owner else None
    about = Damage(object="", found="", video_id=owner or None, name=name)
    described = _Described(about=about, objects=list(objects.values()), parts={}, damages=damages)
    sizes = {key: obj.size_bytes for key, obj in objects.items()}
    for key, obj in objects.items():
        parsed = keys.parse_key(key)
        here = replace(about, object=key)
        if parsed.kind == "task":
            _read(store, obj, decode_task, here, damages)
        if parsed.kind == "view":
            _read(store, obj, decode_view, here, damages)
        record = _read(store, obj, decode_manifest, here, damages) if parsed.kind == "manifest" else None
        if record is not None:
            damages += misfits(record, parsed, objects, here)
            described.parts |= manifest_parts(record, sizes, about)
            if key in in_force:
                described.video = StoredVideo(
                    video_id=owner, name=name or record.name, manifest=obj, frames=record.frames
                )
    return described


def _name(store: ObjectStore, in_force: Sequence[StoredObject], damages: list[Damage]) -> str | None:
    for obj in in_force:
        if keys.parse_key(obj.key).kind == "meta":
            meta = _read(store, obj, decode_meta, Damage(object=obj.key, found=""), damages)
            return meta.name if meta else None
    return None


def _read(
    store: ObjectStore,
    obj: StoredObject,
    decode: Callable[[bytes], T],
    about: Damage,
    damages: list[Damage],
) -> T | None:
    """The object's content; None where it is not what was committed, which is found elsewhere."""
    try:
        data = store.get_verified(obj)
    except StoreError:
        return None
    try:
        return decode(data)
    except IntegrityError as error:
        damages.append(replace(about, found=f"it was committed so, but {error}"))
        return None


# ---------------------------------------------------------------- the rest


def _decoded(
    store: ObjectStore,
    log: WholeLog,
    videos: Sequence[StoredVideo],
    damages: list[Damage],
    progress: OnProgress | None,
) -> DeepReport:
    # Here, so that a look at the bytes never pays for torch.
    from nvpstore.upkeep.deep import decode_videos

    report, more = decode_videos(store, videos, known=damages, progress=progress)
    damages += more
    return report


def _count_orphans(store: ObjectStore, log: WholeLog) -> int:
    return sum(key not in log for folder in _FOLDERS for key in store.list(folder))


def _still_there(store: ObjectStore, log: WholeLog, damages: Sequence[Damage]) -> Iterator[Damage]:
    """Without those of objects that were erased or collected while this looked around."""
    if damages:
        catch_up(log, store)
    for damage in damages:
        if damage.object.startswith(keys.LOG_PREFIX) or damage.object in log:
            yield damage
