"""Which tasks there are, and a task made ready to run."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvpstore.errors import TaskError
from nvpstore.tasks.backbone import Backbone, Uncut
from nvpstore.tasks.backbones.model import Model, Words
from nvpstore.tasks.chain import ChainBackbone
from nvpstore.tasks.cuts import CutBackbone
from nvpstore.tasks.drawn import settle
from nvpstore.tasks.heads import Head, build_head
from nvpstore.tasks.recipes import RECIPES, Recipe
from nvpstore.tasks.spec import TaskSpec
from nvpstore.tasks.weights import digest_of, load_into, read_weights
from nvpstore.types import TaskRecord

_ROOM = "nvpstore.tasks.backbones"
PROVIDERS: Mapping[str, str] = {
    "efficientnet_lite": f"{_ROOM}.efficientnet_lite",
    "timm": f"{_ROOM}.timm_models",
    "torchvision": f"{_ROOM}.torchvision_models",
    "open_clip": f"{_ROOM}.open_clip_models",
    "pytorchvideo": f"{_ROOM}.pytorchvideo_models",
    "transformers": f"{_ROOM}.transformers_models",
    "factory": f"{_ROOM}.factory",
}

FindWeights = Callable[[TaskSpec], Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTask:
    """A task ready to run: spec, cut backbone and head; the text side of a model of embeddings."""

    spec: TaskSpec
    backbone: Backbone
    head: Head
    words: Words | None = None
    weights: Path | None = None

    def record(self) -> TaskRecord:
        return TaskRecord(
            name=self.spec.name,
            version=self.spec.version,
            kind=self.spec.kind,
            cuts=len(self.backbone.cuts),
            labels=self.spec.labels,
            spec=self.spec.to_json(),
        )

    def on(self, device: str) -> LoadedTask:
        """The same task on another device."""
        return load(self.spec, device, find=lambda _: self.weights or _absent(self.spec))


def available() -> tuple[str, ...]:
    """Names of all built-in tasks, also of those whose weights are absent."""
    return tuple(sorted(RECIPES))


def recipe(name: str) -> Recipe:
    """The built-in task of this name; TaskError naming those there are."""
    if name not in RECIPES:
        raise TaskError(f"task {name!r}: there are {', '.join(available())}")
    return RECIPES[name]


@cache
def builtin_spec(name: str) -> TaskSpec:
    """The spec of a built-in task whose weights are at hand; TaskError naming what is absent."""
    made = recipe(name)
    path = packaged_weights(made.provider, made.model)
    if path is None:
        raise TaskError(
            f"task {name}: weights of {made.model} are absent; nvp tasks add {name} --weights FILE "
            f"(published as {made.source})"
        )
    return spec_of(name, made, weights_sha256=digest_of(path))


def spec_of(name: str, made: Recipe, *, weights_sha256: str, **changes: Any) -> TaskSpec:
    """The spec that a recipe and weights give, under a name."""
    said = {
        "kind": made.kind,
        "provider": made.provider,
        "model": made.model,
        "preprocessing": made.preprocessing,
        "labels": made.label_names(),
        "clip": made.clip,
        "options": dict(made.options),
    }
    return TaskSpec(name=name, weights_sha256=weights_sha256, **{**said, **changes})


def describe_available() -> list[dict[str, object]]:
    """`name, version, kind, cuts` of every built-in task; version None where weights are absent."""
    return [_describe(name) for name in available()]


def _describe(name: str) -> dict[str, object]:
    made = RECIPES[name]
    try:
        version: str | None = builtin_spec(name).version
    except TaskError:
        version = None
    return {"name": name, "version": version, "kind": made.kind, "cuts": made.cuts}


_LOADED: dict[tuple[str, str], LoadedTask] = {}
_LOADING = threading.Lock()  # a model is traced when it is loaded, which patches torch for all threads


def load(spec: TaskSpec, device: str = "cpu", *, find: FindWeights | None = None) -> LoadedTask:
    """Build the backbone, check its weights against the spec, cut it. Once a process, version and device.

    `find` gives the file of weights that no package brings.
    """
    key = spec.version, device
    with _LOADING:
        if key not in _LOADED:
            _LOADED[key] = _load(spec, device, find or _absent)
        return _LOADED[key]


def _load(spec: TaskSpec, device: str, find: FindWeights) -> LoadedTask:
    model = build_model(spec)
    weights = None
    if not spec.random:
        weights = _weights(spec, find)
        _check(spec, weights)
        load_weights(model, weights, what=f"task {spec.name}, {weights.name}")
    backbone = cut_backbone(model, spec.input_shape, device=device)
    head = build_head(spec, model)
    return LoadedTask(spec=spec, backbone=backbone, head=head, words=model.words, weights=weights)


def build_model(spec: TaskSpec) -> Model:
    """What a provider makes of a spec; of random weights the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.options.get("seed", 0))
        model: Model = _provider(spec).build(spec)
        if spec.random and spec.provider != "factory":  # a user's code draws as it likes
            settle(model.net.eval(), model.run, spec.input_shape)
    return model


def load_weights(model: Model, weights: Path, *, what: str) -> None:
    """The tensors of a file into a model; TaskError saying of `what` they do not fit."""
    tensors: Mapping[str, Tensor] = read_weights(weights)
    try:
        named = tensors if model.own_names is None else model.own_names(tensors)
    except TaskError as cause:
        raise TaskError(f"{what}: {cause}") from cause
    load_into(model.net, named, what=what)


def cut_backbone(model: Model, input_shape: tuple[int, ...], *, device: str) -> Backbone:
    """Along its blocks, or on its graph; as a whole where neither can be had."""
    model.net.eval().requires_grad_(False)
    if model.blocks:
        return ChainBackbone(model.blocks, input_shape, device=device)
    try:
        return CutBackbone(model.whole, input_shape, device=device)
    except TaskError as cause:
        return Uncut(model.whole, input_shape, why=str(cause), device=device)


def _provider(spec: TaskSpec) -> Any:
    if spec.provider not in PROVIDERS:
        raise TaskError(f"task {spec.name}: provider {spec.provider!r}; there are {', '.join(PROVIDERS)}")
    return importlib.import_module(PROVIDERS[spec.provider])


def _weights(spec: TaskSpec, find: FindWeights) -> Path:
    """The package's file; what `find` gives where that is of other weights, or there is none."""
    absent: TaskError | None = None
    packaged: Path | None = None
    try:
        packaged = packaged_weights(spec.provider, spec.model)
    except TaskError as cause:
        absent = cause
    if packaged is not None and digest_of(packaged) == spec.weights_sha256:
        return packaged
    try:
        return find(spec)
    except TaskError:
        if absent is not None:
            raise absent from None
        if packaged is None:
            raise
        return packaged  # `_check` says how it differs


def packaged_weights(provider: str, model: str) -> Path | None:
    """Where a package keeps these weights; None for providers whose weights no package brings.

    Raises TaskError naming the package where it is absent.
    """
    if provider not in PROVIDERS:
        return None
    module: Any = importlib.import_module(PROVIDERS[provider])
    path: Path | None = module.weights_path(model) if hasattr(module, "weights_path") else None
    return path


def _check(spec: TaskSpec, weights: Path) -> None:
    found = digest_of(weights)
    if found != spec.weights_sha256:
        raise TaskError(
            f"task {spec.name}@{spec.version[:8]}: weights of {spec.model} here have SHA-256 {found[:12]}…, "
            f"the stored answers were made with {spec.weights_sha256[:12]}…"
        )


def _absent(spec: TaskSpec) -> Path:
    raise TaskError(f"task {spec.name}@{spec.version[:8]}: weights of {spec.model} are absent")
