"""Training an upscaler, from a diffusion teacher to a one-step recurrent net that fools discriminators.

    teacher → distil → fold and prune → recon → adversarial

Each phase is a number of steps. Killed anywhere, a rerun goes on from the last checkpoint. An adversarial
phase that diverges ends early, with what its average was before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvpstore.errors import UsageError
from nvpstore.upscaling.adversarial import Adversaries, Diverged
from nvpstore.upscaling.batches import ClipBatch, draw_batch
from nvpstore.upscaling.build import FACTORS, REACH, Geometry, preset
from nvpstore.upscaling.footage import Footage
from nvpstore.upscaling.losses import reconstruction_loss, temporal_loss
from nvpstore.upscaling.net import Upscaler, to_cells
from nvpstore.upscaling.parts import FixedNorm
from nvpstore.upscaling.pruning import prune, shaped_like
from nvpstore.upscaling.recurrence import Held, softened, upscale_again, upscale_clip, window
from nvpstore.upscaling.samples import write_sample
from nvpstore.upscaling.sd_turbo import start_from
from nvpstore.upscaling.settings import (
    PHASES,
    PhaseName,
    TrainingProgress,
    TrainingSettings,
    TrainingSummary,
)
from nvpstore.upscaling.teacher import distillation_loss, flow_matching_loss, fold_time, residual_cells
from nvpstore.upscaling.weights import load, save

STATE, WEIGHTS, SAMPLES = "training.pt", "upscaler.safetensors", "samples"
REPORT_EVERY = 20  # steps
CLIP_NORM = 1.0
WATCHING = ("steps", "checkpoint_seconds", "sample_every")


class Training:
    """The state of one training in a folder: nets, optimisers, place. Not for several processes at once."""

    def __init__(
        self,
        footage: Sequence[Footage],
        settings: TrainingSettings,
        folder: Path,
        *,
        shares: Sequence[float] | None = None,
        initial: Path | None = None,
        sd_turbo: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """`shares`: how often each footage is drawn from. `initial`: weights to begin with, in place of the
        preset's geometry; a teacher cannot come from them. `sd_turbo`: a local folder that the teacher's own
        weights begin with."""
        self.initial, self.sd_turbo = initial, sd_turbo
        self.footage, self.settings, self.folder, self.device = footage, settings, folder, device
        self.shares = list(shares or [1.0] * len(footage))
        self.chance = torch.Generator()
        self.at, self.step, self.seconds, self.diverged = 0, 0, 0.0, False
        torch.manual_seed(settings.seed)
        self.net = self._fresh()
        self.teacher: Upscaler | None = None
        self.average: dict[str, Tensor] = {}
        self.adversaries: Adversaries | None = None
        self.optimiser = self._optimiser()
        self.losses: list[float] = []

    def run(self, progress: Callable[[TrainingProgress], None] | None = None) -> TrainingSummary:
        """All phases that are not done. Raises UsageError where the folder holds another training."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        saved = began = time.monotonic()
        while self.at < len(PHASES):
            if self.step >= self.settings.steps[self.at]:
                self._next_phase()
                continue
            self._one_step()
            now = time.monotonic()
            self.seconds += now - began
            began = now
            if progress is not None and self.step % REPORT_EVERY == 0:
                progress(self._progress())
            if now - saved > self.settings.checkpoint_seconds:
                self._save()
                saved = now
        self._save()
        return self._finish()

    @property
    def _seed(self) -> int:
        """Of the phase."""
        return self.settings.seed * 8 + self.at

    @property
    def phase(self) -> PhaseName:
        return PHASES[self.at]

    # ------------------------------------------------------------ steps

    def _one_step(self) -> None:
        # The batch depends on seed and place alone, so that a resumed training repeats an undisturbed one.
        self.chance.manual_seed(self._seed * 10_000_019 + self.step)
        self._set_learning_rate()
        try:
            batch, halved = self._batch(), self.device == "cuda" or self.settings.bf16_on_cpu
            with torch.autocast(self.device, torch.bfloat16, enabled=halved):
                loss = self._loss(batch).float()
        except Diverged:
            self._take_average()
            self.diverged, self.step = True, self.settings.steps[self.at]
            return
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), CLIP_NORM)
        if torch.isfinite(norm):  # one bad batch is passed over; many are a divergence
            self.optimiser.step()
            self._average()
        self.losses = [*self.losses[-REPORT_EVERY + 1 :], float(loss.detach())]
        self.step += 1
        if self.settings.sample_every and self.step % self.settings.sample_every == 0:
            write_sample(self.net, self._batch(), self.folder / SAMPLES / f"{self.phase}-{self.step:06d}.png")

    def _batch(self) -> ClipBatch:
        s = self.settings
        factor = FACTORS[int(torch.randint(len(FACTORS), (), generator=self.chance))]
        return draw_batch(
            self.footage,
            self.shares,
            recipe=s.recipe,
            factor=factor,
            clips=s.clips,
            frames=s.frames,
            side=s.side,
            chance=self.chance,
            device=self.device,
        )

    def _loss(self, batch: ClipBatch) -> Tensor:
        if self.phase == "teacher":
            cells, target = self._still(batch)
            return flow_matching_loss(self.net, cells, target, self.chance)
        if self.phase == "distil":
            assert self.teacher is not None, "made as the phase begins"
            cells, _ = self._still(batch)
            return distillation_loss(self.net, self.teacher, cells, steps=self.settings.teacher_steps)
        pictures = upscale_clip(self.net, batch.lows, batch.steps, batch.factor)
        loss = self._clip_loss(pictures, batch)
        if self.step % self.settings.cyclic_every == 0:
            again = upscale_again(self.net, batch.lows, pictures, batch.steps)
            loss = (loss + self._clip_loss(again, batch)) / 2
        if self.adversaries is not None:
            self.adversaries.watch(loss.item())  # without the hinges, which may be anything
            loss = loss + self.adversaries.generator_loss(pictures, batch, self._ramp(), self.chance)
        return loss

    def _clip_loss(self, pictures: Sequence[Tensor], batch: ClipBatch) -> Tensor:
        steady = temporal_loss(pictures, batch.sharp, batch.steps)
        return reconstruction_loss(pictures, batch.sharp) + self.settings.temporal_weight * steady

    def _still(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Windows of soft pictures around the clips' middle frames, and what these lack, in cells."""
        at = min(REACH, len(batch.lows) - 1)
        frames = [Held(low=low, picture=softened(low, batch.factor)) for low in batch.lows]
        soft = frames[at].picture
        cells = to_cells(window(soft, frames, batch.steps, at), self.net.geometry)
        return cells, residual_cells(batch.sharp[at], soft, self.net)

    def _ramp(self) -> float:
        return min(1.0, self.step / max(1, self.settings.ramp * self.settings.steps[self.at]))

    def _set_learning_rate(self) -> None:
        """Linear warm-up over a twentieth of the phase, then cosine to zero."""
        done = self.step / self.settings.steps[self.at]
        rate = min(1.0, 20 * done + 0.01) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rates[self.at] * rate

    # ------------------------------------------------------------ averages

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(1 - 1 / self.settings.ema_steps, self.step / (self.step + 10))
        for name, value in self.net.state_dict().items():
            if name in self.average:
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name] = value.clone()

    def _take_average(self) -> None:
        if self.average:
            self.net.load_state_dict(self.average)

    # ------------------------------------------------------------ phases

    def _fresh(self) -> Upscaler:
        """Where training begins: timed if there is to be a teacher."""
        chosen = preset(self.settings.preset)
        if self.initial is not None:
            if any(self.settings.steps[:2]):
                raise UsageError(
                    f"{self.initial}: a folded net cannot become a teacher; leave these steps out"
                )
            return load(self.initial).net.requires_grad_(True).to(self.device)
        net = Upscaler(chosen.geometry, timed=any(self.settings.steps[:2]))
        if self.sd_turbo is not None and not (self.folder / STATE).exists():
            start_from(net, self.sd_turbo)
        return net.to(self.device)

    def _optimiser(self) -> torch.optim.Optimizer:
        # The momentum of GANs is low.
        momentum = 0.5 if self.at < len(PHASES) and self.phase == "adversarial" else 0.9
        return torch.optim.Adam(self.net.parameters(), betas=(momentum, 0.99))

    def _next_phase(self) -> None:
        self._take_average()
        self.at, self.step = self.at + 1, 0
        self._enter()

    def _enter(self) -> None:
        """What the phase needs besides the net that comes from the one before."""
        if self.at >= len(PHASES):
            return
        self.chance.manual_seed(self._seed)
        if self.phase == "distil" and self.settings.steps[1]:
            self.teacher = Upscaler(self.net.geometry, timed=True).to(self.device)
            self.teacher.load_state_dict(self.net.state_dict())
            self.teacher.requires_grad_(False)
        if self.phase == "recon":
            self._fold_and_prune()
        if self.phase == "adversarial" and self.settings.steps[3]:
            self.adversaries = self._adversaries()
        self.average, self.losses = {}, []
        self.optimiser = self._optimiser()

    def _fold_and_prune(self) -> None:
        self.teacher = None
        ratio = self.settings.pruning
        ratio = preset(self.settings.preset).pruning if ratio is None else ratio
        net = (fold_time(self.net) if self.net.timed else self.net).cpu()
        if net.geometry.norm_groups is not None:
            self._calibrate(net)
        self.net = prune(net, 0 if self.initial is not None else ratio).to(self.device)

    def _calibrate(self, net: Upscaler) -> None:
        """A few batches settle the statistics of norms for good."""
        norms = [module for module in net.modules() if isinstance(module, FixedNorm)]
        for norm in norms:
            norm.measuring = True
        for _ in range(REPORT_EVERY):
            cells, _ = self._still(self._batch())
            with torch.no_grad():
                net(cells.cpu())
        for norm in norms:
            norm.measuring = False

    def _adversaries(self) -> Adversaries:
        s = self.settings
        frozen = shaped_like(Upscaler(self.net.geometry), self.net.state_dict())
        frozen.load_state_dict(self.net.state_dict())
        with torch.random.fork_rng():  # what was built before, as by a resumed training, must not count
            torch.manual_seed(self._seed)
            return Adversaries(
                frozen.to(self.device),
                weights=(s.feature_weight, s.pixel_weight),
                perceptual_weight=s.perceptual_weight,
                learning_rate=s.discriminator_rate,
                device=self.device,
            )

    # ------------------------------------------------------------ on disk

    def _identity(self) -> str:
        """What a training is, but for how long its phases are, and how it is watched."""
        same = {name: value for name, value in asdict(self.settings).items() if name not in WATCHING}
        return f"{same!r} {self.initial} {self.sd_turbo}"

    def _save(self) -> None:
        state: dict[str, Any] = {
            "identity": self._identity(),
            "place": [self.at, self.step],
            "seconds": self.seconds,
            "diverged": self.diverged,
            "geometry": self.net.geometry.to_json(),
            "timed": self.net.timed,
            "net": self.net.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "losses": self.losses,
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "adversaries": None if self.adversaries is None else self.adversaries.state_dict(),
        }
        part = self.folder / f".{STATE}.part"
        torch.save(state, part)
        part.replace(self.folder / STATE)

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["identity"] != self._identity():
            raise UsageError(f"{self.folder}: holds a training with other settings; choose another folder")
        self.at, self.step = state["place"]
        self.seconds, self.diverged = state["seconds"], state["diverged"]
        self.net = self._net_of(state["net"], state["geometry"], timed=state["timed"])
        if self.at < len(PHASES):
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["teacher"] is not None:
            self.teacher = self._net_of(state["teacher"], state["geometry"], timed=True).requires_grad_(False)
        if state["adversaries"] is not None:
            self.adversaries = self._adversaries()
            self.adversaries.load_state_dict(state["adversaries"])
        self.average, self.losses = state["average"], state["losses"]
        self.optimiser = self._optimiser()
        self.optimiser.load_state_dict(state["optimiser"])

    def _net_of(self, tensors: dict[str, Tensor], geometry: str, *, timed: bool) -> Upscaler:
        net = shaped_like(Upscaler(Geometry.from_json(geometry), timed=timed), tensors)
        net.load_state_dict(tensors)
        return net.to(self.device)

    def _finish(self) -> TrainingSummary:
        path = self.folder / WEIGHTS
        save(self.net, path, name=self.settings.preset)
        return TrainingSummary(
            weights=path,
            parameters=sum(p.numel() for p in self.net.parameters()),
            seconds=self.seconds,
            diverged=self.diverged,
        )

    def _progress(self) -> TrainingProgress:
        total = self.settings.steps[self.at]
        done = sum(self.settings.steps[: self.at]) + self.step
        left = (total - self.step) * self.seconds / max(done, 1)
        return TrainingProgress(
            phase=self.phase,
            step=self.step,
            steps=total,
            loss=sum(self.losses) / len(self.losses),
            elapsed_seconds=self.seconds,
            eta_seconds=left,
        )
