"""A user's own model: `package.module:factory`, called with the task's spec, gives a torch module (or a
Model).

Loading such a task runs that code, and a spec can come from anybody's archive: so only those run that this
machine's NVP_FACTORIES names.
"""

from __future__ import annotations

import importlib

from torch import nn

from nvpstore.config import load_settings
from nvpstore.errors import TaskError
from nvpstore.tasks.backbones.model import Model
from nvpstore.tasks.spec import TaskSpec


def build(spec: TaskSpec) -> Model:
    """Raises TaskError where NVP_FACTORIES does not name the factory, or it gives no module."""
    if spec.model not in load_settings().factories:
        raise TaskError(
            f"task {spec.name}: {spec.model!r} is code to run; if you trust it, name it in NVP_FACTORIES"
        )
    module, _, name = spec.model.partition(":")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as cause:
        raise TaskError(f"task {spec.name}: no factory {spec.model!r}: {cause}") from cause
    made = factory(spec)
    if isinstance(made, Model):
        return made
    if isinstance(made, nn.Module):
        return Model(net=made, answers=made)
    raise TaskError(f"task {spec.name}: {spec.model} gave {type(made).__name__}, not a torch.nn.Module")
