"""Registering tasks: a built-in one, one like it, or any model of a provider, with or without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch

from nvpstore.catalog import Catalog, Snapshot
from nvpstore.codec.grids import WHOLE
from nvpstore.errors import NvpError, TaskError, UsageError
from nvpstore.query.relation import output_schema
from nvpstore.storage.commit import register_task
from nvpstore.storage.weights import FOLDER, keep_weights
from nvpstore.tasks.backbone import Uncut
from nvpstore.tasks.heads import View
from nvpstore.tasks.preprocessing import Fit, Preprocessing
from nvpstore.tasks.recipes import IMAGENET, RECIPES, Recipe
from nvpstore.tasks.registry import PROVIDERS, LoadedTask, available, load, packaged_weights, spec_of
from nvpstore.tasks.spec import Clip, TaskSpec
from nvpstore.tasks.weights import as_safetensors, digest_of, read_weights
from nvpstore.types import TaskKind, TaskRecord, WeightsPlace
from nvpstore.upkeep.naming import check_table_name

LABELLED: frozenset[TaskKind] = frozenset({"classification", "detection", "segmentation", "action"})

Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """A task to register. What is None is as in the recipe of the built-in task `like`, else of `name`.

    `size` is the input's (height, width), `mean` and `std` are in 8-bit RGB, `clip` is (frames, stride).
    Weights come from the file `weights`, are drawn at random by `seed`, or else are a package's. With
    `new_version` the name may be that of a task which the archive has.
    """

    name: str
    like: str | None = None
    provider: str | None = None
    model: str | None = None
    kind: TaskKind | None = None
    size: tuple[int, int] | None = None
    fit: Fit | None = None
    mean: Colour | None = None
    std: Colour | None = None
    clip: tuple[int, int] | None = None
    labels: Sequence[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | Path | None = None
    seed: int | None = None
    new_version: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedTask:
    """A task as it is registered now. `labels` is their number, `weights_bytes` what the archive keeps.

    `warning` says what it cannot do.
    """

    name: str
    version: str
    kind: TaskKind
    cuts: int
    labels: int
    weights: WeightsPlace
    weights_bytes: int
    already_registered: bool
    warning: str | None


def add_task(catalog: Catalog, request: TaskRequest) -> AddedTask:
    """Check that the model answers as it is told to, then register it; its weights go with it.

    The same task again is no work. Raises UsageError for a name or a description that no task can have,
    TaskError for a name that is taken, and for a model, weights or labels that do not fit each other.
    """
    snapshot = catalog.snapshot()
    check_table_name(
        request.name,
        what="task",
        taken={view.name: "it is a saved view of this archive" for view in snapshot.views()},
    )
    spec, file = _with_weights(catalog.folder / FOLDER, request, _described(request))
    known = _newest(snapshot, spec.name)
    if known is not None and known.version == spec.version:
        return _told(snapshot, known)
    if known is not None and not request.new_version:
        raise TaskError(
            f"task {spec.name}: the archive has {known.version[:8]} of that name, this is "
            f"{spec.version[:8]}; --new-version registers it, and it answers from now on"
        )
    try:
        task = _loaded(spec, file)
        _check_answers(task)
    except NvpError:
        if file is not None:
            file.unlink(missing_ok=True)  # nobody will ask for it
        raise
    register_task(catalog.log, task.record(), weights=file)
    return _told(catalog.snapshot(), task.record(), task)


def _newest(snapshot: Snapshot, name: str) -> TaskRecord | None:
    return next((task for task in snapshot.tasks() if task.name == name), None)


def _told(snapshot: Snapshot, record: TaskRecord, task: LoadedTask | None = None) -> AddedTask:
    """`task` is what was registered just now; None where it was there."""
    stored = snapshot.stored_weights(record)
    why = task.backbone.why if task is not None and isinstance(task.backbone, Uncut) else None
    return AddedTask(
        name=record.name,
        version=record.version,
        kind=record.kind,
        cuts=record.cuts,
        labels=len(record.labels),
        weights=snapshot.weights_of(record),
        weights_bytes=stored.size_bytes if stored else 0,
        already_registered=task is None,
        warning=why and f"only pixel and source routes can answer it: {why}",
    )


# ---------------------------------------------------------------- the description


def _described(request: TaskRequest) -> TaskSpec:
    """All of the spec but the weights."""
    made = _recipe(request)
    kind = request.kind or made.kind
    changes: dict[str, Any] = {"kind": kind, "labels": _labels(request, made, kind)}
    changes |= {name: given for name in ("provider", "model") if (given := getattr(request, name))}
    shown: dict[str, Any] = {name: getattr(request, name) for name in ("fit", "mean", "std")}
    shown |= dict(zip(("height", "width"), request.size or (None, None), strict=True))
    shown = {name: given for name, given in shown.items() if given is not None}
    try:
        changes["preprocessing"] = replace(made.preprocessing, **shown)
        if request.clip is not None:
            frames, stride = request.clip
            changes["clip"] = Clip(frames=frames, stride=stride)
    except ValueError as cause:
        raise UsageError(f"task {request.name}: {cause}") from cause
    changes["options"] = {**made.options, **request.options}
    spec = spec_of(request.name, made, weights_sha256="", **changes)
    if spec.provider not in PROVIDERS:
        raise UsageError(f"task {spec.name}: provider {spec.provider!r}; there are {', '.join(PROVIDERS)}")
    if (spec.kind == "action") != (spec.clip is not None):
        raise UsageError(
            f"task {spec.name}: kind {spec.kind} {'with' if spec.clip else 'without'} a clip; actions, and "
            "only they, are told from clips (--clip FRAMESxSTRIDE)"
        )
    return spec


def _recipe(request: TaskRequest) -> Recipe:
    like = request.like or request.name
    if like in RECIPES:
        return RECIPES[like]
    if request.like is not None:
        raise UsageError(f"task {request.name}: like {like!r}; built in are {', '.join(available())}")
    if request.provider is None or request.model is None or request.kind is None or request.size is None:
        raise UsageError(
            f"task {request.name} is not built in (there are {', '.join(available())}): say --like one of "
            "them, or all of --provider, --model, --kind and --size"
        )
    height, width = request.size
    try:
        shown = Preprocessing(height=height, width=width, **IMAGENET)
    except ValueError as cause:
        raise UsageError(f"task {request.name}: {cause}") from cause
    return Recipe(
        kind=request.kind, provider=request.provider, model=request.model, preprocessing=shown, cuts=0
    )


def _labels(request: TaskRequest, made: Recipe, kind: TaskKind) -> tuple[str, ...]:
    if kind not in get_args(TaskKind):
        raise UsageError(f"task {request.name}: kind {kind!r}; there are {', '.join(get_args(TaskKind))}")
    if kind not in LABELLED:
        if request.labels is not None:
            raise UsageError(f"task {request.name}: labels of kind {kind}, which has none")
        return ()
    labels = made.label_names() if request.labels is None else tuple(request.labels)
    if not labels:
        raise UsageError(f"task {request.name}: kind {kind} needs --labels FILE, one a line in class order")
    return labels


# ---------------------------------------------------------------- weights


def _with_weights(folder: Path, request: TaskRequest, spec: TaskSpec) -> tuple[TaskSpec, Path | None]:
    """The spec with its weights, and a file of those that the archive is to keep."""
    if request.weights is not None and request.seed is not None:
        raise UsageError(f"task {spec.name}: weights from a file, or drawn at random: not both")
    if request.seed is not None:
        return replace(spec, options={**spec.options, "seed": request.seed}), None
    if request.weights is not None:
        file = keep_weights(folder, as_safetensors(read_weights(Path(request.weights))))
        return replace(spec, weights_sha256=file.stem), file
    packaged = packaged_weights(spec.provider, spec.model)
    if packaged is None:
        made = RECIPES.get(request.like or request.name)
        published = f" (published as {made.source})" if made is not None and made.source else ""
        raise TaskError(
            f"task {spec.name}: no package brings weights of {spec.model}: say --weights FILE{published}, or "
            "--random SEED for figures of cost alone"
        )
    return replace(spec, weights_sha256=digest_of(packaged)), None


def _loaded(spec: TaskSpec, file: Path | None) -> LoadedTask:
    try:
        return load(spec) if file is None else load(spec, find=lambda _: file)
    except NvpError:
        raise
    except Exception as cause:  # whatever a provider's library raises for a model that it cannot build
        raise _unusable(spec, "cannot be built", cause) from cause


@torch.inference_mode()
def _check_answers(task: LoadedTask) -> None:
    """Ask the backbone about nothing: it must run, say as many things as there are labels, and give rows."""
    spec, shape = task.spec, task.spec.preprocessing
    try:
        output = task.backbone.whole(torch.zeros(1, *spec.input_shape))
        told = task.head.labels_of(tuple(output.shape[1:]))
    except Exception as cause:
        raise _unusable(spec, "cannot be run", cause) from cause
    if told is not None and told != len(spec.labels):
        raise TaskError(
            f"task {spec.name}: {len(spec.labels)} labels, but {spec.model} tells {told} apart: give as many "
            "in --labels FILE"
        )
    try:
        view = View(height=shape.height, width=shape.width, region=WHOLE)
        task.head.rows(output, top=1, view=view, columns=output_schema(spec.kind).names)
    except Exception as cause:
        found = "×".join(str(side) for side in output.shape[1:])
        raise _unusable(spec, f"gives {found}, which is no {spec.kind}", cause) from cause


def _unusable(spec: TaskSpec, what: str, cause: Exception) -> TaskError:
    size = f"{spec.preprocessing.height}×{spec.preprocessing.width}"
    said = (str(cause) or type(cause).__name__).splitlines()[0]
    return TaskError(f"task {spec.name}: {spec.model} of {spec.provider} at {size} {what}: {said}")
