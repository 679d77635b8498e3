"""Fitting one segment: frames → decoder and latents, jointly with what tasks want of its stages.

The loss is reconstruction (MSE) + task terms + feature terms, weighted 1.0 / 0.5 / 0.2 *after* the
terms' gradients have been brought to one norm at the shallowest tapped stage: raw losses differ by
orders of magnitude. Adam, linear warm-up, cosine to zero, gradients clipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.codec.build import Architecture, Preset
from nvpstore.codec.hnerv import Decoder, Encoder, nerv_times, on_device
from nvpstore.errors import CodecError
from nvpstore.types import RGB_STAGE

LOSS_SCALE = 100.0  # raw gradients are so small that Adam's epsilon and the clipping norm would miss them
BALANCE_EVERY = 8  # steps between two measurements of the terms' gradient norms
BALANCE_MEMORY = 0.9
CLIP_NORM = 1.0
CHECKPOINT_SECONDS = 15.0


class JointTerm(Protocol):
    """What a task adds to a fit. Frames are positions within the segment."""

    stages: tuple[str, ...]
    choice: str  # what the term connects, as text: with it a resumed fit makes the same term again

    def parameters(self) -> Sequence[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object: ...

    def sees(self, frames: Tensor) -> Tensor:
        """Which of these frames the term is trained on, bool [b]."""
        ...

    def losses(
        self, taps: Mapping[str, Tensor], frames: Tensor, *, with_task: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(feature term, task term or None) for frames that the term sees."""
        ...

    def partners(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """For each frame that the term sees, a neighbour in time that it sees too, by chance before or after."""
        ...

    def mixed_loss(
        self, taps: Mapping[str, Tensor], frames: Tensor, partners: Tensor, share: float
    ) -> Tensor:
        """Task term of features decoded between `frames` and `partners`, `share` of the way to the partners."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FitProgress:
    """`psnr` is at coded size, before quantisation, over the epoch just run (dB)."""

    epoch: int
    epochs: int
    psnr: float
    elapsed_seconds: float
    eta_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSegment:
    """`latents` float32 [t, …] on the CPU; `psnr` as in FitProgress, of the last epoch."""

    arch: Architecture
    decoder: Decoder
    latents: Tensor
    terms: tuple[JointTerm, ...]
    psnr: float
    epochs: int
    seconds: float


class TermsFactory(Protocol):
    """Makes the terms of a fit from its decoder and latents; `choices` are those of an earlier run."""

    def __call__(
        self, decoder: Decoder, latents: Tensor, *, choices: Sequence[str] | None
    ) -> Sequence[JointTerm]: ...


class SegmentFit:
    """The state of one fit: networks, optimiser, position. Resumable from its checkpoint, exactly.

    `frames_tchw` float16 [t, 3, H, W] in 0 … 1 at coded size (a sixteenth of an 8-bit level exact). `terms_factory` is asked once, after
    `preset.feature_from` of the epochs, with the decoder and latents of that moment: only then is
    there something to rank stages by.
    """

    def __init__(
        self,
        frames_tchw: Tensor,
        arch: Architecture,
        preset: Preset,
        *,
        terms_factory: TermsFactory | None = None,
        device: str = "cpu",
        seed: int = 0,
        checkpoint: Path | None = None,
    ) -> None:
        self.arch, self.preset, self.device, self.seed = arch, preset, device, seed
        self.checkpoint = checkpoint
        self.terms_factory = terms_factory
        self.frames = frames_tchw.to(device, memory_format=torch.channels_last)
        torch.manual_seed(seed)
        self.decoder = on_device(Decoder(arch), device)
        self.encoder = self._build_encoder()
        self.times = nerv_times(len(frames_tchw), torch.device(device))
        self.terms: tuple[JointTerm, ...] = ()
        self.optimiser = torch.optim.Adam(self._parameters(), lr=preset.learning_rate, betas=(0.9, 0.99))
        self.scales: dict[str, float] = {}
        self.recent = torch.zeros(
            len(frames_tchw), *arch.latent_shape, device=device
        )  # latents, as last seen
        self.epochs = preset.epochs_for(len(frames_tchw))
        self.step, self.epoch, self.seconds, self.psnr = 0, 0, 0.0, -math.inf

    def run(self, progress: Callable[[FitProgress], None] | None = None) -> FittedSegment:
        """Train to the preset's target or budget. CodecError where the fit diverges."""
        self._resume()
        saved = time.monotonic()
        while self.epoch < self.epochs and not self._reached():
            began = time.monotonic()
            self._join_terms()
            self.run_epoch()
            self.epoch += 1
            self.seconds += time.monotonic() - began
            if progress is not None:
                progress(self._progress())
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save()
                saved = time.monotonic()
        self._join_terms()
        self._save()
        return FittedSegment(
            arch=self.arch,
            decoder=self.decoder.eval(),
            latents=self.all_latents().cpu(),
            terms=self.terms,
            psnr=self.psnr,
            epochs=self.epoch,
            seconds=self.seconds,
        )

    @torch.no_grad()
    def all_latents(self) -> Tensor:
        """Latents [t, …] of all frames as the networks are now."""
        order = torch.arange(len(self.frames), device=self.device)
        return torch.cat([self._latents(part) for part in order.split(self.preset.batch_frames)]).float()

    def _build_encoder(self) -> Encoder | None:
        if self.arch.codec == "nerv":
            return None
        encoder = Encoder(self.arch.strides, self.preset.encoder_width, self.arch.latent_channels)
        return on_device(encoder, self.device)

    def _parameters(self) -> list[nn.Parameter]:
        encoder = [] if self.encoder is None else list(self.encoder.parameters())
        return [*self.decoder.parameters(), *encoder]

    def _latents(self, frames: Tensor) -> Tensor:
        return self.times[frames] if self.encoder is None else self.encoder(self.frames[frames].float())

    def _join_terms(self, choices: Sequence[str] | None = None) -> None:
        if self.terms_factory is None or self.epoch < self._feature_epoch():
            return
        self.decoder.eval()
        self.terms = tuple(self.terms_factory(self.decoder, self.all_latents(), choices=choices))
        self.terms_factory = None
        self.decoder.train()
        for term in self.terms:
            self.optimiser.add_param_group({"params": list(term.parameters())})

    def _feature_epoch(self) -> int:
        return math.ceil(self.preset.feature_from * self.epochs)

    def run_epoch(self) -> None:
        """One pass over all frames."""
        # The order depends on seed and epoch alone, so that a resumed fit repeats an undisturbed one.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.frames), generator=generator).to(self.device)
        self.chance = generator
        errors = [self._train_step(part.sort().values) for part in order.split(self.preset.batch_frames)]
        squared = torch.stack(errors).sum().item() / len(self.frames)
        if not math.isfinite(squared):
            raise CodecError(f"the fit diverged in epoch {self.epoch + 1} (loss is not finite)")
        self.psnr = -10 * math.log10(max(squared, 1e-12))

    def _train_step(self, frames: Tensor) -> Tensor:
        """One step; returns the batch's mean squared error × frames."""
        self._set_learning_rate()
        wanted = {RGB_STAGE, *(s for term in self.terms for s in term.stages)}
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            latents = self._latents(frames)
            taps = self.decoder.taps(latents, sorted(wanted))
        self.recent[frames] = latents.detach().float()
        height, width = self.arch.content_height, self.arch.content_width
        shown = taps[RGB_STAGE][:, :, :height, :width].float()
        reconstruction = F.mse_loss(shown, self.frames[frames][:, :, :height, :width].float())
        loss = self._weigh(reconstruction, taps, dict(self._task_losses(taps, latents, frames)))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        self.optimiser.step()
        self.step += 1
        return reconstruction.detach() * len(frames)

    def _task_losses(
        self, taps: Mapping[str, Tensor], latents: Tensor, frames: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        with_task = self.epoch >= self.preset.task_from * self.epochs
        for i, term in enumerate(self.terms):
            seen = term.sees(frames)
            if not seen.any():
                continue
            parts = {s: taps[s][seen].float() for s in term.stages}
            feature, task = term.losses(parts, frames[seen], with_task=with_task)
            yield f"feature-{i}", feature
            if task is not None:
                yield f"task-{i}", (task + self._mixed(term, latents[seen], frames[seen])) / 2

    def _mixed(self, term: JointTerm, latents: Tensor, frames: Tensor) -> Tensor:
        """The task term between frames that it sees: what keeps answers right on the frames that it does not.

        Mixup (Zhang et al., ICLR 2018) of neighbouring frames' latents instead of pictures.
        """
        share = float(torch.rand((), generator=self.chance))
        partners = term.partners(frames, self.chance)
        between = torch.lerp(latents.float(), self.recent[partners], share)
        taps = self.decoder.taps(between, term.stages)
        return term.mixed_loss(taps, frames, partners, share)

    def _weigh(self, reconstruction: Tensor, taps: Mapping[str, Tensor], terms: dict[str, Tensor]) -> Tensor:
        """λ_recon·L_recon + Σ λ·s·L with s = ‖∂L_recon‖ / ‖∂L‖ at the shallowest tapped stage."""
        recon_weight, task_weight, feature_weight = self.preset.joint_weights
        if terms and (self.step % BALANCE_EVERY == 0 or not terms.keys() <= self.scales.keys()):
            shared = taps[min((s for term in self.terms for s in term.stages), key=self.decoder.names.index)]
            self._balance(reconstruction, terms, shared)
        loss = LOSS_SCALE * recon_weight * reconstruction
        for name, value in terms.items():
            weight = task_weight if name.startswith("task") else feature_weight
            loss = loss + LOSS_SCALE * weight * self.scales[name] * value
        return loss

    def _balance(self, reconstruction: Tensor, terms: Mapping[str, Tensor], shared: Tensor) -> None:
        def norm(loss: Tensor) -> float:
            (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True)
            return float(gradient.norm())

        own = norm(reconstruction)
        for name, loss in terms.items():
            ratio = own / max(norm(loss), 1e-12)
            before = self.scales.get(name, ratio)
            self.scales[name] = BALANCE_MEMORY * before + (1 - BALANCE_MEMORY) * ratio

    def _set_learning_rate(self) -> None:
        steps = self.epochs * math.ceil(len(self.frames) / self.preset.batch_frames)
        done, warm = self.step / steps, self.preset.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, done - warm) / (1 - warm)))
        factor = (done + 1 / steps) / warm if done < warm else cosine
        for group in self.optimiser.param_groups:
            group["lr"] = self.preset.learning_rate * min(factor, 1.0)

    def _reached(self) -> bool:
        """The target is met and every term has had its share of the fit."""
        if self.preset.target_psnr is None or self.psnr < self.preset.target_psnr:
            return False
        return not self.terms or self.epoch >= (1 + self.preset.task_from) / 2 * self.epochs

    def _progress(self) -> FitProgress:
        left = self.epochs - self.epoch
        return FitProgress(
            epoch=self.epoch,
            epochs=self.epochs,
            psnr=self.psnr,
            elapsed_seconds=self.seconds,
            eta_seconds=left * self.seconds / self.epoch,
        )

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        state = {
            "decoder": self.decoder.state_dict(),
            "encoder": None if self.encoder is None else self.encoder.state_dict(),
            "terms": [term.state_dict() for term in self.terms],
            "choices": [term.choice for term in self.terms],
            "optimiser": self.optimiser.state_dict(),
            "scales": self.scales,
            "recent": self.recent,
            "position": (self.step, self.epoch, self.seconds, self.psnr),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)  # a kill leaves the old checkpoint or the new one

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.device)
        self.step, self.epoch, self.seconds, self.psnr = state["position"]
        if state["choices"]:
            self._join_terms(state["choices"])
        self.decoder.load_state_dict(state["decoder"])
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])
        for term, saved in zip(self.terms, state["terms"], strict=True):
            term.load_state_dict(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.scales = dict(state["scales"])
        self.recent = state["recent"]
