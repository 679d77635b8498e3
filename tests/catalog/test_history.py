"""Any history: an index grown step by step, a rebuilt one, one from a checkpoint and a plain fold agree."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.storage import keys
from nvpstore.storage.entries import LogDraft, LogEntry
from nvpstore.storage.keys import new_attempt
from nvpstore.storage.objects import open_store
from nvpstore.types import TaskRecord, VideoRecord
from tests.catalog.conftest import SmallArchive
from tests.catalog.test_index import all_rows

SOURCES = ("one", "two", "three")
TASKS = ("labels", "depth")

source = st.sampled_from(SOURCES)
task = st.sampled_from(TASKS)
step = st.one_of(
    st.tuples(st.just("video"), source, st.booleans()),
    st.tuples(st.just("routes"), source, task),
    st.tuples(st.just("meta"), source),
    st.tuples(st.just("answers"), source, task, st.booleans(), st.booleans()),
    st.tuples(st.just("task"), task),
    st.tuples(st.just("view"), source, st.booleans()),
    st.tuples(st.just("erase"), source),
    st.tuples(st.just("gc")),
    st.tuples(st.just("checkpoint")),
    st.tuples(st.just("sync")),
)


@dataclass
class History:
    """Writes what the steps say, as the real writers do: erased and collected objects are really gone."""

    archive: SmallArchive
    stored: dict[str, VideoRecord] = field(default_factory=dict)
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    changes: int = 0

    def video(self, name: str, again: bool) -> None:
        video, objects = self.archive.put_video(name, segments=1 + self.changes % 2)
        if again and name in self.stored:  # what is named again stays in force
            objects += [o for o in self._in_force(video.video_id) if "/routes/" in o.key]
        self.archive.commit("video", video.video_id, objects)
        self.stored[name] = video

    def routes(self, name: str, task_name: str) -> None:
        if name in self.stored and task_name in self.tasks:
            fidelity = self.changes / 100
            self.archive.add_routes(self.stored[name], self.tasks[task_name], fidelity=fidelity)

    def answers(self, name: str, task_name: str, instead: bool, damaged: bool) -> None:
        """More answers, or in place of those that are there; some have lost their footer."""
        if name not in self.stored or task_name not in self.tasks:
            return
        video, task = self.stored[name], self.tasks[task_name]
        folder = f"results/{video.video_id}/{task.version}/"
        there = [obj.key for obj in self._in_force(video.video_id) if obj.key.startswith(folder)]
        added = self.archive.add_answers(
            video, task, first=10 * self.changes, removed=there if instead else ()
        )
        if damaged:
            self.archive.store.delete(added.key)
            self.archive.store.put(added.key, bytes(added.size_bytes))
            self.damaged.add(added.key)

    def meta(self, name: str) -> None:
        if name in self.stored:
            video_id = self.stored[name].video_id
            self.archive.add_meta(video_id, name=f"{name} {self.changes}", tags={"n": str(self.changes)})

    def task(self, name: str) -> None:
        self.tasks[name] = self.archive.add_task(name, spec=f'{{"n":{self.changes % 3}}}')

    def view(self, name: str, drop: bool) -> None:
        if drop:
            self.archive.commit("view", name, [])
        else:
            self.archive.add_view(name, f"SELECT {self.changes}")

    def erase(self, name: str) -> None:
        if name in self.stored:
            video_id = self.stored.pop(name).video_id
            self.archive.commit("erase", video_id, [])
            for prefix in keys.video_prefixes(video_id):
                self.archive.store.delete_all(self.archive.store.list(prefix))

    def gc(self) -> None:
        removed = tuple(key for key, (_, _, replaced_at) in self.objects().items() if replaced_at)
        draft = LogDraft(
            kind="gc",
            attempt=new_attempt(),
            subject=self.archive.archive_id,
            removed=removed,
            fence=new_attempt(),
        )
        self.archive.log.append(draft)
        self.archive.store.delete_all(removed)

    def _in_force(self, video_id: str) -> list[Any]:
        named = {obj.key: obj for entry in self.entries() for obj in entry.objects}
        return [
            named[key] for key, (owner, _, gone) in self.objects().items() if owner == video_id and not gone
        ]

    def entries(self) -> list[LogEntry]:
        return list(self.archive.log.entries())

    def objects(self) -> dict[str, tuple[str, int, str | None]]:
        """The oracle: owner, newest entry and time of replacement of every object, as the rules say."""
        state: dict[str, tuple[str, int, str | None]] = {}
        for entry in self.entries():
            named = {obj.key for obj in entry.objects}
            for key, (owner, number, gone) in list(state.items()):
                parts = key.split("/")
                replaced = entry.kind == "video" and owner == entry.subject and "/meta/" not in key
                replaced |= any("/routes/" in new and new.split("/")[:4] == parts[:4] for new in named)
                replaced |= any("/meta/" in new and new.split("/")[:3] == parts[:3] for new in named)
                routed = f"videos/{owner}/routes/{parts[2]}/" if parts[0] == "results" else "none"
                replaced |= any(new.startswith(routed) for new in named)
                replaced |= entry.kind == "view" and parts[:2] == ["views", entry.subject]
                replaced |= entry.kind == "results" and key in entry.removed
                collected = entry.kind == "gc" and key in entry.removed
                if collected or (entry.kind == "erase" and owner == entry.subject):
                    del state[key]
                elif replaced and not gone:
                    state[key] = (owner, number, entry.time)
            for key in named:
                owned = key.startswith(("videos/", "sources/", "results/"))
                owner = key.split("/")[1] if owned else ""
                state[key] = (owner, entry.number, None)
        return state


def check(snapshot: Snapshot, history: History) -> None:
    """The index against the oracle: objects, and which contents stand in the other tables."""
    rows, state = all_rows(snapshot), history.objects()
    found = {r["key"]: (r["owner"], r["log_number"], r["replaced_at"]) for r in rows["idx.store.objects"]}
    times = {key: gone and datetime.fromisoformat(gone) for key, (_, _, gone) in state.items()}
    assert found == {key: (owner, number, times[key]) for key, (owner, number, _) in state.items()}
    in_force = [key.split("/") for key, (_, _, gone) in state.items() if not gone]
    manifests = {(p[1], p[2]) for p in in_force if p[-1] == "manifest.parquet"}
    assert {(r["video_id"], r["attempt"]) for r in rows["idx.store.videos"]} == manifests
    assert {(r["video_id"],) for r in rows["segments"]} == {(video_id,) for video_id, _ in manifests}
    routes = {(p[1], p[3]) for p in in_force if p[2:3] == ["routes"]}
    assert {(r["video_id"], r["version"]) for r in rows["idx.store.routes"]} == routes
    metas = {p[1] for p in in_force if p[2:3] == ["meta"]}
    assert {r["video_id"] for r in rows["idx.store.meta"]} == metas
    assert {r["name"] for r in rows["idx.store.views"]} == {p[1] for p in in_force if p[0] == "views"}
    held = {"/".join(p) for p in in_force}
    answers = {key for key in held if key.startswith("results/")} - history.damaged
    assert {r["key"] for r in rows["idx.store.results"]} == answers
    assert len(rows["idx.store.results"]) == 2 * len(answers)
    footers = {key for key in held if "/weights-" in key or "/latents-" in key or "/routes/" in key}
    footers |= answers
    assert {r["key"] for r in rows["idx.store.footers"]} == footers
    names = {r["video_id"]: r["name"] for r in rows["idx.store.meta"]}
    for video in rows["videos"]:
        assert video["name"] == names.get(video["video_id"], video["name"])
    erased = {e.subject: e.number for e in history.entries() if e.kind == "erase"}
    assert snapshot.erased() == erased
    assert snapshot.latest_attempt == max(entry.attempt for entry in history.entries())


# Each example is a whole archive.
@settings(max_examples=settings.default.max_examples // 8)
@given(steps=st.lists(step, min_size=4, max_size=14))
def test_every_way_to_an_index_gives_the_same_rows(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History(SmallArchive(open_store(f"memory://{new_attempt()}")))
        catalog = Catalog(history.archive.store, Path(folder, "grown"))
        for kind, *arguments in steps:
            history.changes += 1
            if kind == "sync":
                catalog.snapshot()
            elif kind == "checkpoint":
                catalog.checkpoint(force=True)
            else:
                getattr(history, kind)(*arguments)
        grown = catalog.snapshot()
        check(grown, history)
        expected = all_rows(grown)
        assert all_rows(Catalog(history.archive.store, Path(folder, "fresh")).snapshot()) == expected
        catalog.checkpoint(force=True)
        imported = Catalog(history.archive.store, Path(folder, "imported")).snapshot()
        assert imported.path.name.startswith("base-")
        assert all_rows(imported) == expected
        assert all_rows(catalog.rebuild()) == expected


@pytest.mark.parametrize("least", [0, 3])
def test_a_new_base_when_the_delta_has_grown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, least: int
) -> None:
    monkeypatch.setattr("nvpstore.catalog.index.step", lambda number: least)
    archive = SmallArchive(open_store(f"memory://{new_attempt()}"))
    catalog = Catalog(archive.store, tmp_path)
    seen = []
    for n in range(6):
        archive.add_video(f"video {n}", segments=1)
        seen.append(catalog.snapshot().path.name.partition("-")[0])
    assert seen == (["base"] * 6 if least == 0 else ["base", "delta", "delta", "delta", "base", "delta"])
    assert all_rows(catalog.snapshot()) == all_rows(Catalog(archive.store, tmp_path / "other").snapshot())
