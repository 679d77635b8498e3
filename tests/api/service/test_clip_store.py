"""Clips on disk: made once, bounded, dropped when nobody needs them."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from nvpstore.api.jobs import spool
from nvpstore.api.service import clip_store
from nvpstore.api.service.clip_store import ClipName, ClipStore
from nvpstore.api.service.problems import Refused
from nvpstore.errors import SourceError, StoreError

T = TypeVar("T")
VIDEO, OTHER = "a" * 32, "b" * 32


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_store, "LOOK_SECONDS", 0.02)


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(20):
            return await work

    return asyncio.run(bounded())


def store(
    folder: Path, *, budget_bytes: int = 1 << 20, at_once: int = 2, gone: tuple[str, ...] = ()
) -> ClipStore:
    return ClipStore(
        folder, budget_bytes=budget_bytes, exists=lambda video_id: video_id not in gone, at_once=at_once
    )


def name(video_id: str = VIDEO, *, attempt: str = "01A", start: float | None = None) -> ClipName:
    return ClipName(video_id=video_id, attempt=attempt, start=start, end=None)


class Export:
    """Writes so many bytes, in steps that it tells of; counts how often it was asked."""

    def __init__(self, size_bytes: int = 100, *, steps: int = 1) -> None:
        self.size_bytes, self.steps = size_bytes, steps
        self.calls = 0
        self.going_on = threading.Event()  # set: it need not wait any more
        self.going_on.set()
        self.started = threading.Event()

    def __call__(self, path: Path, progress: Callable[[int], None]) -> None:
        self.calls += 1
        self.started.set()
        part = path.with_name(f".{path.name}.part")
        try:
            for step in range(self.steps):
                progress(step)
                time.sleep(0.01 if self.steps > 1 else 0)
                self.going_on.wait(20)
            part.write_bytes(b"x" * self.size_bytes)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


async def stays() -> bool:
    return False


async def leaves() -> bool:
    return True


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))


def test_a_clip_is_made_once(tmp_path: Path) -> None:
    export = Export()

    async def twice() -> list[Path]:
        clips = store(tmp_path)
        return [await clips.hold(name(), export, gone=stays) for _ in range(2)]

    first, second = run(twice())
    assert first == second
    assert (export.calls, first.stat().st_size) == (1, 100)


def test_all_who_ask_meanwhile_wait_for_the_one(tmp_path: Path) -> None:
    export = Export(steps=5)

    async def together() -> list[Path]:
        clips = store(tmp_path)
        return await asyncio.gather(*[clips.hold(name(), export, gone=stays) for _ in range(8)])

    assert len(set(run(together()))) == 1
    assert export.calls == 1


def test_one_in_the_making_stops_before_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: usage._replace(free=spool.SPARE_BYTES - 1))
    with pytest.raises(StoreError, match="the disk is full"):
        run(store(tmp_path).hold(name(), Export(), gone=stays))
    assert files(tmp_path) == []


def test_more_at_once_than_may_be_are_refused(tmp_path: Path) -> None:
    export = Export()
    export.going_on.clear()

    async def three() -> None:
        clips = store(tmp_path, at_once=2)
        begun = [asyncio.create_task(clips.hold(name(start=at), export, gone=stays)) for at in (0.0, 1.0)]
        await asyncio.sleep(0.05)
        with pytest.raises(Refused) as refused:
            await clips.hold(name(start=2.0), export, gone=stays)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "5")
        export.going_on.set()
        await asyncio.gather(*begun)
        await clips.hold(name(start=2.0), export, gone=stays)

    run(three())
    assert export.calls == 3


def test_when_the_last_one_goes_it_is_stopped_and_nothing_stays(tmp_path: Path) -> None:
    export = Export(steps=10_000)

    async def abandoned() -> None:
        with pytest.raises(Refused, match="went away"):
            await store(tmp_path).hold(name(), export, gone=leaves)

    run(abandoned())
    assert files(tmp_path) == []


def test_when_one_of_several_goes_the_others_get_theirs(tmp_path: Path) -> None:
    export = Export(steps=20)

    async def two() -> Path:
        clips = store(tmp_path)
        kept = asyncio.create_task(clips.hold(name(), export, gone=stays))
        with pytest.raises(Refused):
            await clips.hold(name(), export, gone=leaves)
        return await kept

    assert run(two()).exists()
    assert export.calls == 1


def test_who_asks_while_it_is_being_stopped_gets_a_new_one(tmp_path: Path) -> None:
    export = Export(steps=50)

    async def again() -> Path:
        clips = store(tmp_path)
        with pytest.raises(Refused):
            await clips.hold(name(), export, gone=leaves)
        return await clips.hold(name(), export, gone=stays)

    assert run(again()).exists()
    assert export.calls == 2


def test_a_request_that_is_cancelled_stops_it_too(tmp_path: Path) -> None:
    export = Export(steps=10_000)

    async def cancelled() -> None:
        waiting = asyncio.create_task(store(tmp_path).hold(name(), export, gone=stays))
        while not export.started.is_set():
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(cancelled())
    assert files(tmp_path) == []


def test_what_the_export_raises_is_told_to_all_and_tried_anew_later(tmp_path: Path) -> None:
    def broken(path: Path, progress: Callable[[int], None]) -> None:
        raise SourceError("the original is gone")

    async def failing() -> Path:
        clips = store(tmp_path)
        asked = [clips.hold(name(), broken, gone=stays) for _ in range(3)]
        for found in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(found, SourceError)
        return await clips.hold(name(), Export(), gone=stays)

    assert run(failing()).exists()


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    async def four() -> None:
        clips = store(tmp_path, budget_bytes=250)
        for place, start in enumerate((0.0, 1.0)):
            path = await clips.hold(name(start=start), Export(), gone=stays)
            clips.release(path)
            os.utime(path, (1000 + place, 1000))
        clips.release(await clips.hold(name(start=0.0), Export(), gone=stays))  # used again
        clips.release(await clips.hold(name(start=2.0), Export(), gone=stays))

    run(four())
    assert files(tmp_path) == [f"{VIDEO}/01A-0.0-None.mp4", f"{VIDEO}/01A-2.0-None.mp4"]


def test_what_is_being_sent_is_not_removed(tmp_path: Path) -> None:
    async def held() -> None:
        clips = store(tmp_path, budget_bytes=150)
        sent = await clips.hold(name(start=0.0), Export(), gone=stays)
        clips.release(await clips.hold(name(start=1.0), Export(), gone=stays))
        assert sent.exists()
        clips.release(sent)
        clips.release(await clips.hold(name(start=2.0), Export(), gone=stays))
        assert not sent.exists()

    run(held())
    assert files(tmp_path) == [f"{VIDEO}/01A-2.0-None.mp4"]


def test_one_that_is_larger_than_all_may_be_is_served_and_goes_with_the_next(tmp_path: Path) -> None:
    async def large() -> None:
        clips = store(tmp_path, budget_bytes=50)
        path = await clips.hold(name(start=0.0), Export(), gone=stays)
        assert path.exists()
        clips.release(path)
        clips.release(await clips.hold(name(start=1.0), Export(10), gone=stays))

    run(large())
    assert files(tmp_path) == [f"{VIDEO}/01A-1.0-None.mp4"]


def test_earlier_attempts_and_videos_that_are_gone_leave_nothing(tmp_path: Path) -> None:
    async def outdated() -> None:
        before = store(tmp_path)
        for clip in (name(), name(OTHER)):
            before.release(await before.hold(clip, Export(), gone=stays))
        after = store(tmp_path, gone=(OTHER,))
        after.release(await after.hold(name(attempt="01B"), Export(), gone=stays))

    run(outdated())
    assert files(tmp_path) == [f"{VIDEO}/01B-None-None.mp4"]


def test_an_erased_video_s_clips_are_forgotten(tmp_path: Path) -> None:
    async def erased() -> None:
        clips = store(tmp_path)
        for clip in (name(), name(OTHER)):
            clips.release(await clips.hold(clip, Export(), gone=stays))
        clips.forget(VIDEO)

    run(erased())
    assert files(tmp_path) == [f"{OTHER}/01A-None-None.mp4"]


def test_what_a_killed_server_left_half_made_is_removed(tmp_path: Path) -> None:
    (tmp_path / VIDEO).mkdir()
    (tmp_path / VIDEO / ".01A-None-None.mp4.0123abcd.part").write_bytes(b"half")
    store(tmp_path)
    assert files(tmp_path) == []
