"""Damage of every kind, made on disk: it is found, and said of which video, segment and stage it is."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nvpstore.catalog import Catalog
from nvpstore.storage import keys
from nvpstore.storage.erase import erase
from nvpstore.storage.log import Log, LogDraft
from nvpstore.storage.objects import open_store
from nvpstore.storage.tables import decode_manifest, encode_manifest
from nvpstore.types import StoredObject, VideoRecord
from nvpstore.upkeep.progress import UpkeepProgress
from nvpstore.upkeep.report import Damage, VerifyReport
from nvpstore.upkeep.verify import verify
from tests.catalog.conftest import SmallArchive

FLIPS = 150


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Two videos, one of them fitted twice, one with routes and a name; all in files below `root`."""

    root: Path
    log: Log
    catalog: Catalog
    gate: VideoRecord
    older_gate: VideoRecord
    yard: VideoRecord

    def verify(self, **options: object) -> VerifyReport:
        return verify(self.log.store, **options)  # type: ignore[arg-type]

    def files(self) -> list[str]:
        found = (path for path in self.root.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def damage(self, key: str, content: bytes | None) -> None:
        path = self.root / key
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    def flip(self, key: str, at: int, bit: int = 0) -> bytes:
        """Flip a bit; returns the bytes from before."""
        before = (self.root / key).read_bytes()
        flipped = bytearray(before)
        flipped[at] ^= 1 << bit
        self.damage(key, bytes(flipped))
        return before

    def record_on_disk(self, video: VideoRecord) -> VideoRecord:
        key = keys.manifest_key(video.video_id, video.attempt)
        return decode_manifest((self.root / key).read_bytes())


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[VideoRecord, ...]]:
    """The archive, made once, and its videos."""
    folder = tmp_path_factory.mktemp("template")
    small = SmallArchive(open_store(str(folder / "archive")))
    older = small.add_video("gate")
    task = small.add_task()
    gate = small.add_video("gate", segments=3)
    small.add_routes(gate, task)
    small.add_meta(gate.video_id, name="the gate", tags={})
    yard = small.add_video("yard")
    small.add_view("night")
    Catalog(small.store, folder / "cache").checkpoint(force=True)
    return folder / "archive", (gate, older, yard)


@pytest.fixture
def stored(template: tuple[Path, tuple[VideoRecord, ...]], tmp_path: Path) -> Stored:
    made, (gate, older, yard) = template
    root = Path(shutil.copytree(made, tmp_path / "archive"))
    store = open_store(str(root))
    catalog = Catalog(store, tmp_path / "cache")
    return Stored(root=root, log=catalog.log, catalog=catalog, gate=gate, older_gate=older, yard=yard)


def put_video(stored: Stored, source: str) -> tuple[VideoRecord, list[StoredObject]]:
    """Objects that no entry names."""
    small = SmallArchive(open_store(f"memory://{keys.new_attempt()}"))
    video, objects = small.put_video(source)
    return video, [stored.log.store.put(obj.key, small.store.get(obj.key)) for obj in objects]


def only(report: VerifyReport) -> Damage:
    (damage,) = report.damages
    return damage


class TestWhole:
    def test_everything_is_counted_and_nothing_is_damaged(self, stored: Stored) -> None:
        report = stored.verify()
        objects = [key for key in stored.files() if not key.startswith("log/")]
        assert report.damages == ()
        assert report.objects == len(objects)
        assert report.bytes == sum((stored.root / key).stat().st_size for key in objects)
        assert (report.entries, report.checkpoints) == (8, 1)
        assert report.superseded == sum(stored.older_gate.attempt in key for key in objects) == 4

    def test_orphans_are_counted_and_are_no_damage(self, stored: Stored) -> None:
        put_video(stored, "never committed")
        report = stored.verify()
        assert (report.damages, report.orphans) == ((), 4)

    def test_progress_ends_with_all_bytes(self, stored: Stored) -> None:
        said: list[UpkeepProgress] = []
        report = stored.verify(progress=said.append)
        assert (said[-1].phase, said[-1].done, said[-1].total) == ("read", report.bytes, report.bytes)

    def test_an_empty_archive_is_whole(self, tmp_path: Path) -> None:
        report = verify(SmallArchive(open_store(str(tmp_path))).store)
        assert (report.entries, report.objects, report.damages) == (1, 0, ())

    def test_objects_pass_in_pieces(self, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nvpstore.upkeep.readings.PIECE_BYTES", 100)
        assert stored.verify().damages == ()
        segment = stored.yard.segments[1]
        stored.flip(segment.latents.key, segment.latents.offset + segment.latents.size_bytes - 1)
        assert (only(stored.verify()).segment, only(stored.verify()).stage) == (1, "latents")


class TestFlips:
    def test_every_flipped_bit_is_found_in_its_object(self, stored: Stored) -> None:
        chance = random.Random(3)
        files = stored.files()
        for number in range(FLIPS):
            key = files[number % len(files)]
            at = chance.randrange((stored.root / key).stat().st_size)
            before = stored.flip(key, at, chance.randrange(8))
            damaged = {damage.object for damage in stored.verify().damages}
            stored.damage(key, before)
            if key.startswith("log/0"):  # what the entry says of others is lost with it
                assert key in damaged, (key, at)
            else:
                assert damaged == {key}, (key, at)
        assert stored.verify().damages == ()

    def test_damaged_weights_and_latents_name_segment_and_stage(self, stored: Stored) -> None:
        record = stored.record_on_disk(stored.gate)
        for segment in record.segments:
            for stage, part in (*segment.stages, ("latents", segment.latents)):
                before = stored.flip(part.key, part.offset + part.size_bytes // 2)
                found = only(stored.verify())
                stored.damage(part.key, before)
                assert (found.video_id, found.name) == (stored.gate.video_id, "the gate")
                assert (found.segment, found.stage, found.object) == (segment.segment, stage, part.key)
                for text in (found.video_id, f"segment {segment.segment}", stage, part.key):
                    assert str(text) in str(found)

    def test_a_damaged_footer_is_no_segment_s(self, stored: Stored) -> None:
        key = stored.gate.segments[0].stages[0][1].key
        stored.flip(key, (stored.root / key).stat().st_size - 20)
        found = only(stored.verify())
        assert (found.segment, found.stage) == (None, None)
        assert "footer" in found.found

    def test_damaged_routes_name_segment_and_route_by_the_index(self, stored: Stored) -> None:
        snapshot = stored.catalog.snapshot()
        (task,) = snapshot.tasks()
        for indexed in snapshot.routes(stored.gate.video_id, task.version):
            if indexed.row_group is None:
                continue
            before = stored.flip(indexed.row_group.key, indexed.row_group.offset)
            found = only(stored.verify(indexed=lambda: snapshot))
            stored.damage(indexed.row_group.key, before)
            assert found.segment == indexed.route.segment
            assert found.route == "labels adapter 0+1 to blocks.8"

    def test_damaged_routes_are_found_without_an_index(self, stored: Stored) -> None:
        (key,) = (key for key in stored.files() if "/routes/" in key)
        stored.flip(key, 10)
        assert only(stored.verify()).object == key


class TestLost:
    def test_a_missing_object_says_what_was_in_it(self, stored: Stored) -> None:
        key = stored.gate.segments[0].stages[0][1].key
        stored.damage(key, None)
        found = only(stored.verify())
        assert (found.object, found.video_id) == (key, stored.gate.video_id)
        assert "missing (segments 0 to 2)" in found.found

    def test_a_cut_object_names_the_stages_that_are_gone(self, stored: Stored) -> None:
        last = stored.gate.segments[-1]
        _, rgb = last.stages[-1]
        stored.damage(rgb.key, (stored.root / rgb.key).read_bytes()[: rgb.offset + 1])
        damages = stored.verify().damages
        assert [(d.segment, d.stage) for d in damages if d.segment is not None] == [(last.segment, "rgb")]
        assert all("were committed" in damage.found for damage in damages)

    def test_added_bytes_are_found(self, stored: Stored) -> None:
        key = stored.gate.segments[0].latents.key
        stored.damage(key, (stored.root / key).read_bytes() + b"more")
        assert only(stored.verify()).object == key

    def test_the_superseded_are_looked_after_too(self, stored: Stored) -> None:
        key = stored.older_gate.segments[0].latents.key
        stored.damage(key, None)
        assert only(stored.verify()).object == key


class TestManifests:
    def commit(self, stored: Stored, change: object) -> str:
        """Commit a video whose manifest says something else than its files."""
        video, objects = put_video(stored, "wrong")
        stored.log.store.delete(objects[-1].key)
        wrong = stored.log.store.put(objects[-1].key, encode_manifest(change(video)))  # type: ignore[operator]
        draft = LogDraft(
            kind="video",
            attempt=keys.new_attempt(),
            subject=video.video_id,
            objects=(*objects[:-1], wrong),
        )
        stored.log.append(draft)
        return wrong.key

    def test_a_digest_that_is_not_the_file_s(self, stored: Stored) -> None:
        def change(video: VideoRecord) -> VideoRecord:
            first, *rest = video.segments
            (name, part), *stages = first.stages
            wrong = replace(first, stages=((name, replace(part, sha256="0" * 64)), *stages))
            return replace(video, segments=(wrong, *rest))

        self.commit(stored, change)
        found = only(stored.verify())
        assert (found.segment, found.stage) == (0, "0")
        assert "manifest" in found.found

    def test_a_row_group_outside_of_its_file(self, stored: Stored) -> None:
        def change(video: VideoRecord) -> VideoRecord:
            first, *rest = video.segments
            wrong = replace(first, latents=replace(first.latents, offset=10**6))
            return replace(video, segments=(wrong, *rest))

        self.commit(stored, change)
        assert (only(stored.verify()).segment, only(stored.verify()).stage) == (0, "latents")

    def test_a_footer_that_is_not_the_file_s(self, stored: Stored) -> None:
        def change(video: VideoRecord) -> VideoRecord:
            return replace(video, footers={key: footer[:-1] + b"?" for key, footer in video.footers.items()})

        self.commit(stored, change)
        assert all("footer" in damage.found for damage in stored.verify().damages)
        assert len(stored.verify().damages) == 2

    def test_another_video_s_manifest(self, stored: Stored) -> None:
        key = self.commit(stored, lambda video: replace(video, attempt=keys.new_attempt()))
        assert only(stored.verify()).object == key


class TestLog:
    def test_a_view_that_is_none(self, stored: Stored) -> None:
        key = keys.view_key("day", keys.new_attempt())
        objects = (stored.log.store.put(key, b'{"format":1}'),)
        stored.log.append(LogDraft(kind="view", attempt=keys.new_attempt(), subject="day", objects=objects))
        damage = only(stored.verify())
        assert damage.object == key
        assert "it was committed so, but a saved view is malformed" in damage.found

    def test_a_missing_entry_is_said(self, stored: Stored) -> None:
        stored.damage(keys.log_key(2), None)
        assert keys.log_key(2) in {damage.object for damage in stored.verify().damages}

    def test_an_exchanged_entry_is_said(self, stored: Stored, tmp_path: Path) -> None:
        other = SmallArchive(open_store(str(tmp_path / "other")))
        other.add_video("gate")
        valid = (tmp_path / "other" / keys.log_key(1)).read_bytes()
        stored.damage(keys.log_key(1), valid)
        found = [damage for damage in stored.verify().damages if "follow" in damage.found]
        assert [damage.object for damage in found] == [keys.log_key(1), keys.log_key(2)]

    def test_a_lost_end_is_said_where_a_checkpoint_remembers_it(self, stored: Stored) -> None:
        stored.damage(keys.log_key(7), None)
        found = [damage for damage in stored.verify().damages if damage.object == keys.log_key(7)]
        assert "the log ends at entry 6" in only_of(found).found

    def test_all_damages_are_found_at_once(self, stored: Stored) -> None:
        broken = [keys.log_key(3), stored.yard.segments[0].latents.key]
        for key in broken:
            stored.flip(key, 30)
        assert set(broken) <= {damage.object for damage in stored.verify().damages}


def only_of(damages: list[Damage]) -> Damage:
    (damage,) = damages
    return damage


class TestMeanwhile:
    def racing(self, stored: Stored, act: object) -> VerifyReport:
        """Verify while `act` happens as soon as something was read."""
        once: Iterator[object] = iter([act])

        def report(_: UpkeepProgress) -> None:
            for do in once:
                do()  # type: ignore[operator]

        return stored.verify(progress=report)

    def test_a_video_that_is_erased_meanwhile_is_no_damage(self, stored: Stored) -> None:
        def act() -> None:
            snapshot = stored.catalog.snapshot()
            for video in (stored.gate, stored.yard):
                number = stored.catalog.snapshot().number
                erase(stored.log, video.video_id, number=number, latest_attempt=snapshot.latest_attempt)

        assert self.racing(stored, act).damages == ()

    def test_what_is_collected_meanwhile_is_no_damage(self, stored: Stored) -> None:
        gone = [key for key in stored.files() if stored.older_gate.attempt in key]

        def act() -> None:
            log = stored.log
            draft = LogDraft(
                kind="gc", attempt=keys.new_attempt(), subject=log.archive_id, removed=tuple(gone)
            )
            log.append(draft)
            stored.log.store.delete_all(gone)

        assert self.racing(stored, act).damages == ()
