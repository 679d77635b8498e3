"""Tasks over HTTP: any installed model and weights as safetensors, and never anybody's code or files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from nvpstore.api.output import plain
from nvpstore.api.service.problems import Refused
from nvpstore.api.service.state import Service
from nvpstore.api.service.tasks import check_options
from nvpstore.tasks.weights import as_safetensors
from tests.api.service.served import service_behind

pytestmark = pytest.mark.slow  # one fit

Fresh = Callable[..., TestClient]
SIGNS: dict[str, Any] = {
    "name": "signs",
    "like": "resnet50",
    "model": "resnet18",
    "size": [32, 32],
    "labels": ["a", "b", "c"],
}


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Of a resnet18 of three classes, as safetensors."""
    from timm import create_model

    torch.manual_seed(7)
    return as_safetensors(create_model("resnet18", num_classes=3).state_dict())


def spool(client: TestClient) -> list[Path]:
    folder = service_behind(client).settings.spool_dir
    return list(folder.iterdir()) if folder.exists() else []


def send(client: TestClient, weights: bytes, description: Any = SIGNS) -> Any:
    said = description if isinstance(description, str) else json.dumps(description)
    return client.post("/v1/tasks", data={"task": said}, files={"weights": ("signs.safetensors", weights)})


class TestLooking:
    def test_the_registered_ones_are_listed(self, client: TestClient, service: Service) -> None:
        assert client.get("/v1/tasks").json() == {"tasks": plain(service.archive.tasks())}

    def test_so_are_all_that_are_known(self, client: TestClient, service: Service) -> None:
        found = client.get("/v1/tasks", params={"available": "true"}).json()["tasks"]
        assert found == plain(service.archive.tasks(available=True))
        assert {"labels", "resnet50"} <= {task["name"] for task in found}

    def test_one_has_its_labels_in_order(self, client: TestClient, service: Service) -> None:
        found = client.get("/v1/tasks/labels").json()
        assert found == plain(service.archive.task("labels"))
        assert len(found["labels"]) == 1000
        assert client.get(f"/v1/tasks/labels@{found['version'][:8]}").json() == found

    @pytest.mark.parametrize(
        ("name", "status"),
        [
            ("nothing", 404),
            ("labels@ffff", 404),
            ("resnet50", 404),
            ("No", 422),
            ("a;b", 422),
            ("x" * 64, 422),
        ],
    )
    def test_what_is_not_there_is_a_problem(self, client: TestClient, name: str, status: int) -> None:
        answer = client.get(f"/v1/tasks/{name}")
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")


class TestAdding:
    def test_a_described_one_is_registered_once(self, changing: TestClient) -> None:
        first = changing.post("/v1/tasks", json={**SIGNS, "seed": 1})
        assert first.status_code == 201, first.text
        assert (first.json()["kind"], first.json()["labels"], first.json()["weights"]) == (
            "classification",
            3,
            "random",
        )
        again = changing.post("/v1/tasks", json={**SIGNS, "seed": 1})
        assert again.status_code == 200
        assert again.json() == {**first.json(), "already_registered": True, "warning": None}
        assert changing.get("/v1/tasks/signs").json()["labels"] == ["a", "b", "c"]

    def test_weights_come_with_it_and_stay_in_the_archive(self, changing: TestClient, weights: bytes) -> None:
        answer = send(changing, weights)
        assert answer.status_code == 201, answer.text
        assert answer.json()["weights"] == "archive"
        assert answer.json()["weights_bytes"] == len(weights)
        assert spool(changing) == []

    @pytest.mark.parametrize("kind", ["pickle", "torch", "garbage", "cut"])
    def test_weights_that_are_no_safetensors_are_refused(
        self, changing: TestClient, weights: bytes, kind: str, tmp_path: Path
    ) -> None:
        torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
        data = {
            "pickle": pickle.dumps({"a": Path("/etc/passwd")}),
            "torch": (tmp_path / "a.pth").read_bytes(),
            "garbage": b"\xff" * 1000,
            "cut": weights[:-1000],
        }[kind]
        answer = send(changing, data)
        assert answer.status_code == 422
        assert "signs.safetensors: not a safetensors file" in answer.json()["detail"]
        assert str(service_behind(changing).settings.state_dir) not in answer.text
        assert spool(changing) == []
        assert changing.get("/v1/tasks/signs").status_code == 404

    def test_weights_of_another_model_are_refused(self, changing: TestClient) -> None:
        answer = send(changing, as_safetensors({"fc.weight": torch.zeros(3, 5)}))
        assert (answer.status_code, "missing" in answer.json()["detail"]) == (422, True)
        assert str(service_behind(changing).settings.state_dir) not in answer.text

    @pytest.mark.parametrize(
        ("description", "status"),
        [
            ("{", 422),
            ("[]", 422),
            ({**SIGNS, "weights": "/etc/passwd"}, 422),
            ({**SIGNS, "seed": 1}, 422),
            ({**SIGNS, "provider": "factory", "model": "os:system"}, 422),
        ],
    )
    def test_other_descriptions_with_weights_are_problems(
        self, changing: TestClient, weights: bytes, description: Any, status: int
    ) -> None:
        answer = send(changing, weights, description)
        assert answer.status_code == status, answer.text
        assert spool(changing) == []

    def test_a_form_has_just_these_two_parts(self, changing: TestClient, weights: bytes) -> None:
        files = {"weights": ("a", weights)}
        assert changing.post("/v1/tasks", files=files).status_code == 422
        more = {"task": json.dumps(SIGNS), "more": "x"}
        assert changing.post("/v1/tasks", files=files, data=more).status_code == 422
        assert spool(changing) == []

    @pytest.mark.parametrize(
        ("changes", "status"),
        [
            ({"name": "select"}, 400),
            ({"name": "Signs"}, 422),
            ({"provider": "factory", "model": "os:system"}, 422),
            ({"provider": "elsewhere"}, 400),
            ({"model": "hf-hub:somebody/model"}, 422),
            ({"model": "../../weights"}, 422),
            ({"size": [0, 32]}, 422),
            ({"size": [100_000, 100_000]}, 422),
            ({"size": [32]}, 422),
            ({"kind": "x"}, 422),
            ({"labels": ["a", "b"], "seed": None}, 422),
            ({"weights": "/etc/passwd"}, 422),
            ({"seed": -1}, 422),
            ({"options": {"build": {"checkpoint_path": "/etc/passwd"}}}, 422),
            ({"options": {"build": {"pretrained": True}}}, 422),
        ],
    )
    def test_what_no_task_can_be_is_a_problem(
        self, changing: TestClient, changes: dict[str, Any], status: int
    ) -> None:
        answer = changing.post("/v1/tasks", json={**SIGNS, "seed": 1, **changes})
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert [task["name"] for task in changing.get("/v1/tasks").json()["tasks"]] == ["labels"]

    def test_other_bodies_are_refused(self, changing: TestClient) -> None:
        answer = changing.post("/v1/tasks", content="name=signs", headers={"Content-Type": "text/plain"})
        assert answer.status_code == 415


@pytest.mark.parametrize(
    "options",
    [
        {"build": {"pretrained": True}},
        {"build": {"pretrained_cfg": {"url": 1}}},
        {"build": {"checkpoint_path": 1}},
        {"build": {"weights": True}},
        {"build": {"weights_backbone": True}},
        {"build": {"cache_dir": 1}},
        {"build": {"load_weights_only": False}},
        {"config": {"use_pretrained_backbone": True}},
        {"config": {"backbone": 1}},
        {"config": {"_name_or_path": 1}},
        {"build": {"act_layer": "os.system"}},
        {"build": {"width": 1 << 30}},
        {"build": {"width": float("nan")}},
        {"build": {"widths": [[[[[[1]]]]]]}},
        {"build": {"Width": 1}},
        {"build": {"trust_remote_code": True}},
        {"vocabulary": [1]},
        {"vocabulary": "/etc/passwd"},
    ],
)
def test_options_that_could_load_something_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        check_options(options)
    assert refused.value.status == 422


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"build": {"drop_rate": 0.1, "depths": [2, 2], "qkv_bias": False}},
        {"config": {"vision_config": {"hidden_size": 32, "image_size": 48}, "num_queries": 5}},
        {"vocabulary": ["a", "cat"]},
    ],
)
def test_figures_of_a_model_are_allowed(options: dict[str, Any]) -> None:
    check_options(options)


class TestTraining:
    def test_it_is_a_job(self, fresh: Fresh) -> None:
        client = fresh()
        asked = {"videos": "tags['camera'] = 'gate'", "share": 0.1, "measured": 16, "again": True}
        answer = client.post("/v1/tasks/labels/train", json=asked)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert (job["kind"], job["request"]) == ("train", {"task": "labels", **asked})
        assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"

    def test_the_same_key_is_the_same_job(self, fresh: Fresh) -> None:
        client = fresh()
        headers = {"Idempotency-Key": "once"}
        answers = [client.post("/v1/tasks/labels/train", json={}, headers=headers) for _ in range(2)]
        assert answers[0].json()["id"] == answers[1].json()["id"]
        other = client.post("/v1/tasks/labels/train", json={"again": True}, headers=headers)
        assert other.status_code == 422

    @pytest.mark.parametrize(
        ("name", "asked", "status"),
        [
            ("nothing", {}, 404),
            ("labels@ffff", {}, 404),
            ("labels", {"share": 0}, 422),
            ("labels", {"share": 2}, 422),
            ("labels", {"measured": 0}, 422),
            ("labels", {"videos": "x" * 100_000}, 422),
            ("labels", {"device": "cuda"}, 422),
        ],
    )
    def test_what_cannot_be_trained_is_no_job(
        self, fresh: Fresh, name: str, asked: dict[str, Any], status: int
    ) -> None:
        client = fresh()
        assert client.post(f"/v1/tasks/{name}/train", json=asked).status_code == status
        assert service_behind(client).queue.jobs() == []


class TestStabilizing:
    def test_it_is_a_job(self, fresh: Fresh) -> None:
        client = fresh()
        asked = {"videos": None, "share": 0.5, "steps": 3, "stability": 0.2, "variant": "learned"}
        answer = client.post("/v1/tasks/labels/stabilize", json=asked)
        assert answer.status_code == 202, answer.text
        assert (answer.json()["kind"], answer.json()["request"]) == ("stabilize", {"task": "labels", **asked})
        assert client.post("/v1/tasks/frames/stabilize", json={}).status_code == 202

    @pytest.mark.parametrize(
        ("name", "asked", "status"),
        [
            ("nothing", {}, 404),
            ("labels", {"share": 0}, 422),
            ("labels", {"steps": 0}, 422),
            ("labels", {"stability": 0.5}, 422),
            ("labels", {"variant": "fixed"}, 422),
        ],
    )
    def test_what_cannot_be_taught_is_no_job(
        self, fresh: Fresh, name: str, asked: dict[str, Any], status: int
    ) -> None:
        client = fresh()
        assert client.post(f"/v1/tasks/{name}/stabilize", json=asked).status_code == status
        assert service_behind(client).queue.jobs() == []
