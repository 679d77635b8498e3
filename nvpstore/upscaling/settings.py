"""How an upscaler is trained: settings, and what a training says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from nvpstore.errors import UsageError
from nvpstore.upscaling.build import preset
from nvpstore.upscaling.degrade import Recipe

PhaseName = Literal["teacher", "distil", "recon", "adversarial"]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """`steps` of each phase, in their order; 0 leaves one out. `side` is a clip's, in sharp pixels. Clips of
    one frame teach nothing about time, and all else sooner.

    `pruning` None: the preset's. `ema_steps`: how many steps the average of the weights reaches back.
    `cyclic_every`: steps between two that go through their clips twice. The adversarial terms grow to their
    weights over `ramp` of that phase. `teacher_steps`: of sampling, where the teacher is distilled. On CUDA
    nets run in bfloat16; with `bf16_on_cpu` elsewhere too, which is faster where the processor has it.
    """

    preset: str = "tiny"
    steps: tuple[int, int, int, int] = (4000, 2000, 20000, 10000)
    learning_rates: tuple[float, float, float, float] = (1e-3, 1e-3, 1e-3, 2e-4)
    discriminator_rate: float = 4e-4
    frames: int = 5
    side: int = 128
    clips: int = 4
    pruning: float | None = None
    recipe: Recipe = field(default_factory=Recipe)
    teacher_steps: int = 4
    ema_steps: int = 500
    temporal_weight: float = 0.5
    cyclic_every: int = 4
    perceptual_weight: float = 0.05
    feature_weight: float = 0.005
    pixel_weight: float = 0.005
    ramp: float = 0.3
    seed: int = 0
    bf16_on_cpu: bool = False
    checkpoint_seconds: float = 60.0
    sample_every: int = 200

    def __post_init__(self) -> None:
        if min(self.steps) < 0 or not any(self.steps):
            raise UsageError(f"steps {self.steps}: some phase needs a step, and none fewer than 0")
        least = 2 if self.steps[3] else 1
        if self.frames < least:
            raise UsageError(f"clips of {self.frames} frames: at least {least} needed")
        step = preset(self.preset).geometry.patch * preset(self.preset).geometry.deepest
        if self.side < step or self.side % step:
            raise UsageError(f"side {self.side}: a multiple of {step} is needed by preset {self.preset}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """`loss` is the mean of the last steps; of the phase's own kind, not to be compared between phases."""

    phase: PhaseName
    step: int
    steps: int
    loss: float
    elapsed_seconds: float
    eta_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """`diverged`: the adversarial phase ended early, and the weights are its average from before."""

    weights: Path
    parameters: int
    seconds: float
    diverged: bool
