"""Fits with several tasks at once: other kinds, clips, the archive's own, one that no adapter pays for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nvpstore.archive import Archive
from nvpstore.errors import TaskError, UsageError
from nvpstore.ingest import segment
from nvpstore.ingest.routes import TaskTerms
from tests.conftest import open_micro
from tests.ingest.test_pipeline import clip

pytestmark = pytest.mark.slow  # fits

FRAMES = 18
TASKS: dict[str, dict[str, Any]] = {
    "looks": {"like": "resnet50", "model": "resnet18", "kind": "embedding", "size": (64, 64), "seed": 1},
    "signs": {
        **{"like": "resnet50", "model": "resnet18", "size": (64, 64), "fit": "letterbox", "seed": 2},
        "labels": ["a", "b"],
    },
    "moves": {
        **{"like": "i3d_r50", "size": (32, 32), "clip": (4, 2), "labels": ["run", "sit"], "seed": 3},
        "options": {"build": {"head_pool_kernel_size": [2, 1, 1]}},
    },
    # Its backbone is so small that no adapter would be micro beside it.
    "tiny": {
        **{"provider": "factory", "model": "tests.tasks.factories:tiny", "kind": "classification"},
        **{"size": (32, 32), "labels": ["x", "y"], "seed": 4},
    },
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Empty, but for tasks."""
    monkeypatch.setenv("NVP_FACTORIES", "tests.tasks.factories:tiny")
    archive = open_micro(tmp_path / "archive", tmp_path / "cache", create=True)
    for name, described in TASKS.items():
        archive.add_task(name, **described)
    return archive


def test_each_gets_the_routes_that_it_can_have(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[Sequence[Any]] = []

    class Counted(TaskTerms):
        def __call__(self, *arguments: Any, **options: Any) -> Sequence[Any]:
            joined.append(terms := super().__call__(*arguments, **options))
            return terms

    monkeypatch.setattr(segment, "TaskTerms", Counted)
    path = clip(tmp_path, frames=FRAMES)
    video = archive.ingest(path, preset="micro", tasks=list(TASKS), device="cpu")
    found = archive.sql(
        "SELECT task, list(DISTINCT route ORDER BY route) FROM routes GROUP BY task ORDER BY task"
    ).fetchall()
    everything = ["adapter", "pixel", "source"]
    assert dict(found) == {
        "looks": everything,
        "moves": everything,
        "signs": everything,
        "tiny": ["pixel", "source"],
    }
    versions = {name: archive.task(name)["version"] for name in TASKS}
    (terms,) = joined
    assert {term.version for term in terms} == {versions[name] for name in ("looks", "signs", "moves")}
    assert [term.clips is not None for term in terms] == [False, False, True]
    for table, rows in (("looks", FRAMES), ("signs", 2 * FRAMES), ("tiny", 2 * FRAMES), ("moves", 2 * 3)):
        assert archive.sql(f"SELECT count(*) FROM {table}").fetchall() == [(rows,)]
    measured = archive.sql(
        "SELECT DISTINCT task FROM routes WHERE fidelity IS NOT NULL AND route = 'adapter' ORDER BY 1"
    ).fetchall()
    assert measured == [("looks",), ("moves",), ("signs",)]
    assert archive.ingest(path, preset="micro", tasks=["looks"]).video_id == video.video_id
    with pytest.raises(UsageError, match="without routes for labels: train them on it"):
        archive.ingest(path, preset="micro", tasks=["looks", "labels"])


def test_the_newest_version_is_fitted_unless_one_is_named(archive: Archive, tmp_path: Path) -> None:
    old = archive.task("looks")["version"]
    archive.add_task("looks", **{**TASKS["looks"], "seed": 9}, new_version=True)
    new = archive.task("looks")["version"]
    path = clip(tmp_path, frames=6)
    for ref, version in (("looks", new), (f"looks@{old[:8]}", old)):
        archive.ingest(path, preset="micro", tasks=[ref], device="cpu", refit=True)
        assert archive.sql("SELECT DISTINCT version FROM routes").fetchall() == [(version,)]


def test_unknown_names_are_said_with_those_of_the_archive(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(
        TaskError, match=r"'lokks': this archive has looks, moves, signs, tiny; built in are .*labels"
    ):
        archive.ingest(clip(tmp_path, frames=6), preset="micro", tasks=["lokks"])
