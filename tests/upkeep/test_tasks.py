"""Registering tasks: every error, weights that travel with the archive, and answers right after."""

from __future__ import annotations

import json
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nvpstore.archive import Archive
from nvpstore.errors import NvpError, TaskError, UsageError
from nvpstore.storage import keys
from nvpstore.storage.entries import LogDraft
from nvpstore.tasks import registry
from nvpstore.tasks.registry import builtin_spec, load
from nvpstore.tasks.spec import TaskSpec
from nvpstore.tasks.weights import as_safetensors, digest_of
from tests.conftest import Micro, open_micro
from tests.ingest.test_pipeline import clip

LABELS = ["a", "b", "c"]
SMALL: dict[str, Any] = {"like": "resnet50", "model": "resnet18", "size": (32, 32), "labels": LABELS}
OWN: dict[str, Any] = {"provider": "timm", "model": "resnet18", "kind": "classification", "size": (32, 32)}
ROWS = "SELECT frame, label, score, route FROM signs WHERE rank = 1 ORDER BY frame"


@pytest.fixture
def local(tmp_path: Path) -> Archive:
    return open_micro(tmp_path / "archive", tmp_path / "cache", create=True)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    """Once as files and once on a real S3 server."""
    root = request.getfixturevalue("s3_root") if request.param == "s3" else tmp_path / "archive"
    return open_micro(root, tmp_path / "cache", create=True)


@pytest.fixture(scope="session")
def tensors() -> dict[str, Tensor]:
    """Weights of a resnet18 of three classes."""
    from timm import create_model

    torch.manual_seed(7)
    state: dict[str, Tensor] = create_model("resnet18", num_classes=3).state_dict()
    return state


@pytest.fixture
def weights(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    path = tmp_path / "signs.pth"
    torch.save({"state_dict": tensors}, path)
    return path


def elsewhere(archive: Archive, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """The same archive on another machine: an empty cache, and a process that has loaded no model."""
    monkeypatch.setattr(registry, "_LOADED", {})
    return open_micro(archive.store.root, folder / "elsewhere")


class TestNames:
    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("Signs", "a lowercase letter"),
            ("1signs", "a lowercase letter"),
            ("traffic-signs", "a lowercase letter"),
            ("select", "a word or a table function of SQL"),
            ("range", "a word or a table function of SQL"),
            ("videos", "a view of the catalog"),
            ("routes", "a view of the catalog"),
            ("frames", "a table of every archive"),
            ("duckdb_things", "names that begin so are kept"),
            ("night", "a saved view of this archive"),
        ],
    )
    def test_what_means_something_else_is_refused(self, local: Archive, name: str, why: str) -> None:
        local.save_view("night", "SELECT name FROM videos")
        with pytest.raises(UsageError, match=why):
            local.add_task(name, **SMALL, seed=1)
        assert local.tasks() == []

    def test_a_name_that_is_there_needs_a_new_version(self, local: Archive) -> None:
        first = local.add_task("signs", **SMALL, seed=1)
        assert (first.already_registered, first.kind, first.labels) == (False, "classification", 3)
        again = local.add_task("signs", **SMALL, seed=1)
        assert again == replace(first, already_registered=True)
        with pytest.raises(TaskError, match=rf"the archive has {first.version[:8]} .*--new-version"):
            local.add_task("signs", **SMALL, seed=2)
        second = local.add_task("signs", **SMALL, seed=2, new_version=True)
        assert local.task("signs")["version"] == second.version
        assert local.task(f"signs@{first.version[:6]}")["version"] == first.version

    def test_an_older_version_can_answer_again(self, local: Archive) -> None:
        first = local.add_task("signs", **SMALL, seed=1)
        local.add_task("signs", **SMALL, seed=2, new_version=True)
        local.add_task("signs", **SMALL, seed=1, new_version=True)
        assert local.task("signs")["version"] == first.version
        local.rebuild_catalog()
        assert local.task("signs")["version"] == first.version


class TestDescriptions:
    @pytest.mark.parametrize(
        ("name", "described", "says"),
        [
            ("faces", {}, "not built in .*say --like one of them, or all of --provider"),
            ("faces", {**OWN, "size": None}, "not built in"),
            ("faces", {"like": "fases"}, "like 'fases'; built in are .*labels"),
            (
                "faces",
                {**OWN, "provider": "elsewhere", "labels": LABELS},
                "provider 'elsewhere'; there are .*timm",
            ),
            ("faces", {**OWN}, "kind classification needs --labels"),
            ("faces", {**OWN, "labels": []}, "needs --labels"),
            (
                "faces",
                {**OWN, "kind": "embedding", "labels": LABELS},
                "labels of kind embedding, which has none",
            ),
            ("faces", {**OWN, "kind": "poetry", "labels": LABELS}, "kind 'poetry'; there are classification"),
            ("faces", {**OWN, "size": (0, 32), "labels": LABELS}, "both sides must be at least 1"),
            ("faces", {**OWN, "fit": "squeeze", "labels": LABELS}, "stretch, crop and letterbox"),
            ("faces", {**OWN, "std": (0.0, 1.0, 1.0), "labels": LABELS}, "all above 0"),
            ("faces", {**OWN, "clip": (1, 1), "labels": LABELS}, "at least 2 and 1"),
            ("faces", {**OWN, "clip": (4, 1), "labels": LABELS}, "classification with a clip"),
            ("faces", {**OWN, "kind": "action", "labels": LABELS}, "action without a clip"),
            ("faces", {**SMALL, "weights": "w", "seed": 1}, "not both"),
        ],
    )
    def test_what_no_task_can_be_is_a_usage_error(
        self, local: Archive, name: str, described: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(UsageError, match=says):
            local.add_task(name, **described)
        assert local.tasks() == []

    @pytest.mark.parametrize(
        ("described", "says"),
        [
            ({"like": "resnet50"}, r"weights of resnet50: say --weights FILE \(published as timm/resnet50"),
            ({**OWN, "labels": LABELS}, "weights of resnet18: say --weights FILE, or --random SEED"),
            ({**SMALL, "model": "resnet1", "seed": 1}, "resnet1"),
            ({"like": "i3d_r50", "size": (32, 32), "clip": (4, 1), "seed": 1}, "at 32×32 cannot be"),
            ({"like": "labels", "labels": LABELS}, "3 labels, but efficientnet-lite0 tells 1000 apart"),
            ({**SMALL, "kind": "segmentation", "seed": 1}, "gives 3, which is no segmentation"),
            ({**SMALL, "kind": "depth", "labels": None, "seed": 1}, "gives 512, which is no depth"),
            ({**SMALL, "kind": "caption", "labels": None, "seed": 1}, "writes no captions"),
            ({"like": "detr_r50", "model": "yolo", "seed": 1}, "transformers models .* are known"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_together_is_a_task_error(
        self, local: Archive, described: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(TaskError, match=says):
            local.add_task("faces", **described)
        assert local.tasks() == []
        assert local.store.list("tasks/") == []

    def test_a_library_that_is_absent_is_named_with_its_package(
        self, local: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(TaskError, match=r"resnet18 needs timm: pip install timm"):
            local.add_task("faces", **SMALL, seed=12345)

    def test_a_factory_runs_only_where_it_is_trusted(
        self, local: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = {
            **OWN,
            "provider": "factory",
            "model": "tests.tasks.factories:tiny",
            "labels": LABELS,
            "seed": 3,
        }
        with pytest.raises(TaskError, match="name it in NVP_FACTORIES"):
            local.add_task("faces", **own)
        monkeypatch.setenv("NVP_FACTORIES", "tests.tasks.factories:tiny")
        assert local.add_task("faces", **own).cuts > 0

    def test_what_is_said_goes_before_the_recipe(self, local: Archive) -> None:
        local.add_task("seen", **{**SMALL, "fit": "letterbox", "mean": (1.0, 2.0, 3.0)}, seed=4)
        spec = TaskSpec.from_json(local.task("seen")["spec"])
        shown = spec.preprocessing
        assert (shown.height, shown.width, shown.fit, shown.mean) == (32, 32, "letterbox", (1.0, 2.0, 3.0))
        assert (spec.model, spec.labels, spec.options) == ("resnet18", tuple(LABELS), {"seed": 4})

    def test_a_model_without_cuts_is_registered_with_a_warning(
        self, local: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NVP_FACTORIES", "tests.upkeep.test_tasks:winding")
        own = {**OWN, "provider": "factory", "model": "tests.upkeep.test_tasks:winding"}
        added = local.add_task("faces", **own, labels=LABELS, seed=5)
        assert added.cuts == 0
        assert "only pixel and source routes can answer it" in str(added.warning)


class Winding(torch.nn.Module):
    """What it does depends on what it sees: nothing that can be traced."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.last = torch.nn.Linear(3, labels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        answers: Tensor = self.last(pooled if float(pooled.sum()) > 0 else pooled * 2)
        return answers


def winding(spec: TaskSpec) -> torch.nn.Module:
    return Winding(len(spec.labels))


class TestWeights:
    def test_where_they_are_is_said(self, local: Archive, weights: Path) -> None:
        local.add_task("signs", **SMALL, weights=weights)
        local.add_task("dice", **SMALL, seed=1)
        local.add_task("labels")
        assert {task["name"]: task["weights"] for task in local.tasks()} == {
            "signs": "archive",
            "dice": "random",
            "labels": "package",
        }
        assert [local.task(name)["weights"] for name in ("signs", "dice", "labels")] == [
            "archive",
            "random",
            "package",
        ]
        rows = local.sql("SELECT name, weights FROM tasks ORDER BY name").fetchall()
        assert rows == [("dice", "random"), ("labels", "package"), ("signs", "archive")]
        listed = {task["name"]: task["weights"] for task in local.tasks(available=True)}
        assert (listed["signs"], listed["resnet50"]) == ("archive", None)

    def test_one_entry_names_spec_and_weights(self, local: Archive, weights: Path) -> None:
        added = local.add_task("signs", **SMALL, weights=weights)
        entry = local.log.read(local.log.head())
        assert (entry.kind, entry.subject) == ("task", "signs")
        assert [obj.key for obj in entry.objects] == [
            keys.task_key("signs", added.version),
            keys.task_weights_key("signs", added.version),
        ]
        spec = TaskSpec.from_json(local.task("signs")["spec"])
        assert entry.objects[1].sha256 == spec.weights_sha256
        assert entry.objects[1].size_bytes == added.weights_bytes

    def test_the_same_tensors_are_the_same_task_from_whatever_file(
        self, local: Archive, tmp_path: Path, weights: Path, tensors: dict[str, Tensor]
    ) -> None:
        added = local.add_task("signs", **SMALL, weights=weights)
        other = tmp_path / "other.safetensors"
        other.write_bytes(as_safetensors(tensors))
        assert local.add_task("signs", **SMALL, weights=other).already_registered
        assert digest_of(other) == TaskSpec.from_json(local.task("signs")["spec"]).weights_sha256
        assert added.weights_bytes == other.stat().st_size

    def test_own_weights_go_before_a_packages(self, local: Archive, tmp_path: Path) -> None:
        state = load(builtin_spec("labels"))
        assert state.weights is not None
        own = dict(torch.load(state.weights, weights_only=True))
        own["_fc.bias"] = own["_fc.bias"] + 1
        torch.save(own, tmp_path / "own.pth")
        added = local.add_task("mine", like="labels", weights=tmp_path / "own.pth")
        assert added.weights == "archive"

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda t: {k: v for k, v in t.items() if k != "fc.bias"}, r"weights missing: fc\.bias"),
            (lambda t: {**t, "extra": torch.zeros(1)}, "weights unknown: extra"),
            (lambda t: {**t, "fc.bias": torch.zeros(4)}, r"of another shape: fc\.bias \(4,\), not \(3,\)"),
        ],
    )
    def test_what_is_not_the_models_is_named(
        self, local: Archive, tmp_path: Path, tensors: dict[str, Tensor], change: Any, says: str
    ) -> None:
        torch.save(change(tensors), tmp_path / "w.pth")
        with pytest.raises(TaskError, match=says):
            local.add_task("signs", **SMALL, weights=tmp_path / "w.pth")
        assert local.store.list("tasks/") == []
        assert list((local.catalog.folder / "weights").glob("*.safetensors")) == []

    def test_a_pickle_and_a_missing_file_are_refused(self, local: Archive, tmp_path: Path) -> None:
        (tmp_path / "evil.pth").write_bytes(pickle.dumps({"w": print}))
        with pytest.raises(TaskError, match="a pickle that runs code is never loaded"):
            local.add_task("signs", **SMALL, weights=tmp_path / "evil.pth")
        with pytest.raises(TaskError, match="there is no such file"):
            local.add_task("signs", **SMALL, weights=tmp_path / "none.pth")


class TestAnswers:
    def test_originals_answer_at_once_here_and_on_a_machine_that_knows_nothing(
        self, both: Archive, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both.add(clip(tmp_path, frames=4), tasks=())
        both.add_task("signs", **SMALL, weights=weights)
        rows = both.sql(ROWS).fetchall()
        assert [(row[0], row[3]) for row in rows] == [(n, "source") for n in range(4)]
        assert {row[1] for row in rows} <= set(LABELS)
        weights.unlink()
        other = elsewhere(both, tmp_path, monkeypatch)
        assert other.sql(ROWS).fetchall() == rows
        assert both.verify().damages == ()

    @pytest.mark.s3
    def test_weights_are_fetched_once_and_again_where_they_are_damaged(
        self, s3_root: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archive = open_micro(s3_root, tmp_path / "cache", create=True)
        archive.add(clip(tmp_path, frames=4), tasks=())
        archive.add_task("signs", **SMALL, weights=weights)
        rows = archive.sql(ROWS).fetchall()
        for damage in (False, False, True):
            other = elsewhere(archive, tmp_path, monkeypatch)
            (*_, path) = [None, *(other.catalog.folder / "weights").glob("*.safetensors")]
            if damage:
                assert path is not None
                path.write_bytes(b"\0" + path.read_bytes()[1:])
            before = path and path.stat().st_mtime_ns
            assert other.sql(ROWS).fetchall() == rows
            (now,) = (other.catalog.folder / "weights").glob("*.safetensors")
            assert now.stem == digest_of(now)
            assert (now.stat().st_mtime_ns == before) == (path is not None and not damage)

    @pytest.mark.slow
    def test_a_fitted_video_answers_from_its_original_until_it_is_trained(
        self, micro: Micro, tmp_path: Path, weights: Path
    ) -> None:
        archive = micro.copy(tmp_path)
        archive.add_task("signs", **SMALL, weights=weights)
        assert {row[3] for row in archive.sql(ROWS).fetchall()} == {"source"}

    def test_an_archive_without_the_weights_says_so(
        self, local: Archive, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        local.add(clip(tmp_path, frames=4), tasks=())
        added = local.add_task("signs", **SMALL, weights=weights)
        other = elsewhere(local, tmp_path, monkeypatch)
        (tmp_path / "archive" / keys.task_weights_key("signs", added.version)).unlink()
        with pytest.raises(NvpError, match=r"signs@\w+: its weights are neither in a package nor in"):
            other.sql(ROWS).fetchall()


class TestWeightsStay:
    def test_gc_never_removes_them(self, tmp_path: Path, weights: Path) -> None:
        archive = Archive.create(tmp_path / "archive", grace_seconds=1)
        archive.add_task("signs", **SMALL, weights=weights)
        archive.add_task("signs", **SMALL, seed=1, new_version=True)
        stored = archive.store.list("tasks/")
        assert len(stored) == 3
        time.sleep(1.1)
        archive.gc()
        assert archive.store.list("tasks/") == stored
        assert archive.verify().damages == ()

    def test_verify_finds_them_damaged_and_missing(self, local: Archive, weights: Path) -> None:
        added = local.add_task("signs", **SMALL, weights=weights)
        key = keys.task_weights_key("signs", added.version)
        path = Path(str(local.store.local_path(key)))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        (damage,) = local.verify().damages
        assert damage.object == key
        path.unlink()
        (damage,) = local.verify().damages
        assert (damage.object, "missing" in damage.found) == (key, True)

    def test_a_rebuilt_index_and_one_from_a_checkpoint_know_them(
        self, local: Archive, tmp_path: Path, weights: Path
    ) -> None:
        added = local.add_task("signs", **SMALL, weights=weights)
        local.rebuild_catalog()
        assert local.task("signs")["weights"] == "archive"
        local.catalog.checkpoint(force=True)
        local.store.delete(keys.task_key("signs", added.version))  # so that it is not read again
        fresh = open_micro(local.store.root, tmp_path / "fresh")
        stored = fresh.catalog.snapshot().stored_weights(fresh.catalog.snapshot().task("signs"))
        assert stored is not None
        assert (stored.size_bytes, fresh.task("signs")["weights"]) == (added.weights_bytes, "archive")

    def test_reading_the_log_fetches_no_weights(
        self, local: Archive, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        local.add_task("signs", **SMALL, weights=weights)
        fresh = open_micro(local.store.root, tmp_path / "fresh")
        fetched: list[str] = []
        get = type(fresh.store).get

        def counted(store: Any, key: str) -> bytes:
            fetched.append(key)
            return get(store, key)

        monkeypatch.setattr(type(fresh.store), "get", counted)
        assert [task["name"] for task in fresh.tasks()] == ["signs"]
        assert [key for key in fetched if key.startswith("tasks/")] == [
            keys.task_key("signs", fresh.task("signs")["version"])
        ]

    def test_a_killed_writers_weights_are_the_next_ones(self, local: Archive, weights: Path) -> None:
        append = local.log.append

        def killed(draft: LogDraft, **_: Any) -> Any:
            raise KeyboardInterrupt

        local.log.append = killed  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            local.add_task("signs", **SMALL, weights=weights)
        assert local.tasks() == []
        local.log.append = append  # type: ignore[method-assign]
        assert local.add_task("signs", **SMALL, weights=weights).already_registered is False
        assert [task["name"] for task in local.tasks()] == ["signs"]

    def test_copies_take_them_along(self, local: Archive, tmp_path: Path, weights: Path) -> None:
        local.add_task("signs", **SMALL, weights=weights)
        local.add(clip(tmp_path, frames=4), tasks=["signs"])
        target = open_micro(tmp_path / "target", tmp_path / "cache2", create=True)
        assert local.copy_to(target).tasks == 1
        assert target.task("signs")["weights"] == "archive"
        assert target.verify().damages == ()
        assert target.sql(ROWS).fetchall() == local.sql(ROWS).fetchall()
        assert list((target.catalog.folder / "fits").rglob("weights")) == []


def test_a_description_is_json_for_programs(local: Archive) -> None:
    local.add_task("signs", **SMALL, seed=1)
    shown = local.task("signs")
    assert json.loads(shown["spec"])["options"] == {"seed": 1}
    assert set(shown) == {"name", "version", "kind", "cuts", "labels", "spec", "weights"}
