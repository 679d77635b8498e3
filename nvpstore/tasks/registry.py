"""Which tasks there are, and a task made ready to run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Protocol, cast

from torch import nn

from nvpstore.errors import TaskError
from nvpstore.tasks.backbones import efficientnet_lite
from nvpstore.tasks.cuts import CutBackbone
from nvpstore.tasks.heads import Head, build_head
from nvpstore.tasks.preprocessing import Preprocessing
from nvpstore.tasks.spec import TaskSpec
from nvpstore.types import TaskKind, TaskRecord


class Provider(Protocol):
    """A module under `tasks.backbones`."""

    def weights_path(self, model: str) -> Path: ...

    def build(self, model: str) -> nn.Module: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTask:
    """A task ready to run: spec, cut backbone and head."""

    spec: TaskSpec
    backbone: CutBackbone
    head: Head

    def record(self) -> TaskRecord:
        return TaskRecord(
            name=self.spec.name,
            version=self.spec.version,
            kind=self.spec.kind,
            cuts=len(self.backbone.cuts),
            labels=self.spec.labels,
            spec=self.spec.to_json(),
        )


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 ImageNet class names in class order."""
    text = resources.files("nvpstore.tasks").joinpath("labels/imagenet1k.txt").read_text("utf-8")
    return tuple(text.splitlines())


def _labels() -> TaskSpec:
    model = "efficientnet-lite0"
    side = efficientnet_lite.INPUT_PIXELS[model]
    return TaskSpec(
        name="labels",
        kind="classification",
        provider="efficientnet_lite",
        model=model,
        weights_sha256=hashlib.sha256(efficientnet_lite.weights_path(model).read_bytes()).hexdigest(),
        preprocessing=Preprocessing(height=side, width=side, mean=(127.0,) * 3, std=(128.0,) * 3),
        labels=imagenet_labels(),
    )


_BUILT_IN = {"labels": _labels}
KINDS: Mapping[str, TaskKind] = {"labels": "classification"}  # known also where weights are absent
_PROVIDERS: Mapping[str, Provider] = {"efficientnet_lite": cast(Provider, efficientnet_lite)}


def available() -> tuple[str, ...]:
    """Names of all built-in tasks, also of those whose weights are absent."""
    return tuple(sorted(_BUILT_IN))


@cache
def builtin_spec(name: str) -> TaskSpec:
    """The current spec of a built-in task; TaskError naming those there are, or the absent package."""
    if name not in _BUILT_IN:
        raise TaskError(f"task {name!r}: there are {', '.join(available())}")
    return _BUILT_IN[name]()


def describe_available() -> list[dict[str, object]]:
    """`name, version, kind, cuts` of every built-in task; version and cuts None where weights are absent."""
    return [_describe(name) for name in available()]


def _describe(name: str) -> dict[str, object]:
    try:
        record = load(builtin_spec(name)).record()
    except TaskError:
        return {"name": name, "version": None, "kind": KINDS[name], "cuts": None}
    return {"name": name, "version": record.version, "kind": record.kind, "cuts": record.cuts}


def load(spec: TaskSpec, device: str = "cpu") -> LoadedTask:
    """Build the backbone, check its weights against the spec, cut it. Once a process, version and device."""
    return _load(spec, device)  # one spelling of the arguments: a cache would tell a default from its value


@cache
def _load(spec: TaskSpec, device: str) -> LoadedTask:
    provider = _PROVIDERS.get(spec.provider)
    if provider is None:
        raise TaskError(f"task {spec.name}: provider {spec.provider!r}; there are {', '.join(_PROVIDERS)}")
    found = hashlib.sha256(provider.weights_path(spec.model).read_bytes()).hexdigest()
    if found != spec.weights_sha256:
        raise TaskError(
            f"task {spec.name}@{spec.version[:8]}: weights of {spec.model} here have SHA-256 {found[:12]}…, "
            f"the stored answers were made with {spec.weights_sha256[:12]}…"
        )
    backbone = CutBackbone(provider.build(spec.model), spec.input_shape, device=device)
    return LoadedTask(spec=spec, backbone=backbone, head=build_head(spec.kind, spec.labels))
