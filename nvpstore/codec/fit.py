"""Fitting one segment: frames → decoder and latents, jointly with what tasks want of its stages.

The loss is reconstruction (MSE) + task terms + feature terms, weighted 1.0 / 0.5 / 0.2 *after* the
terms' gradients have been brought to one norm at the shallowest tapped stage: raw losses differ by
orders of magnitude. Adam, linear warm-up, cosine to zero, gradients clipped.
"""

from __future__ import annotations

import io
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
from nvpstore.codec.qat import RoundedWeights
from nvpstore.errors import CodecError
from nvpstore.types import RGB_STAGE

LOSS_SCALE = 100.0  # raw gradients are so small that Adam's epsilon and the clipping norm would miss them
VIEW_ZOOM = 0.8
BALANCE_EVERY = 8  # steps between two measurements of the terms' gradient norms
BALANCE_MEMORY = 0.9
CLIP_EVERY = 4  # steps between two clips of a term: each is several frames that are decoded besides
RATE_WEIGHT = 2.0  # of a rate that is twice its budget, beside the reconstruction's own loss
STEP_RATE = 10.0  # times the learning rate: logarithms of steps have further to go than weights
CHECKPOINT_SECONDS = 15.0
assert BALANCE_EVERY % CLIP_EVERY == 0, "a clip's gradient is measured when all others are"

TermLosses = tuple[Tensor, Tensor | None]  # feature term, task term
Weighed = tuple[Tensor, Tensor]  # a loss, and the shallowest tapped stage that it was computed from


class JointTerm(Protocol):
    """What a task adds to a fit. Frames are positions within the segment.

    A term of clips is asked about whole ones (their numbers, [b], in place of frames), the others about
    those frames of a batch that they see.
    """

    stages: tuple[str, ...]
    choice: str  # what the term connects, as text: with it a resumed fit makes the same term again
    clips: Tensor | None  # int64 [n, t]: frames of each clip that it learns from

    def parameters(self) -> Sequence[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object: ...

    def sees(self, frames: Tensor) -> Tensor:
        """Which of these frames the term is trained on, bool [b]."""
        ...

    def losses(self, taps: Mapping[str, Tensor], units: Tensor, *, with_task: bool) -> TermLosses:
        """(feature term, task term or None) for frames that the term sees, or for clips."""
        ...

    def view_losses(self, taps: Mapping[str, Tensor], views: Tensor, *, with_task: bool) -> TermLosses:
        """The same for other views [b, 3, H, W] (0 … 1) of frames that the term sees."""
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
    """`latents` float32 [t, …] on the CPU; `psnr` as in FitProgress, of the last epoch. `steps` [o] by the
    names of the decoder's kernels that learned to be rounded to multiples of them.
    """

    arch: Architecture
    decoder: Decoder
    latents: Tensor
    steps: Mapping[str, Tensor]
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

    `frames_tchw` float16 [t, 3, H, W] in 0 … 1 at coded size (a sixteenth of an 8-bit level exact).
    `terms_factory` is asked once, after `preset.feature_from` of the epochs, with the decoder and latents of
    that moment: only then is there something to rank stages by.
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
        self.rounded: RoundedWeights | None = None
        self.optimiser = torch.optim.Adam(
            self._parameters(), lr=preset.learning_rate, betas=(0.9, preset.adam_beta2)
        )
        self.scales: dict[str, float] = {}
        self.chance = torch.Generator()
        self.epochs = preset.epochs_for(len(frames_tchw))
        self.step, self.epoch, self.seconds, self.psnr = 0, 0, 0.0, -math.inf

    def run(self, progress: Callable[[FitProgress], None] | None = None) -> FittedSegment:
        """Train to the preset's target or budget. CodecError where the fit diverges."""
        self._resume()
        saved = time.monotonic()
        while self.epoch < self.epochs and not self._reached():
            began = time.monotonic()
            self._join_terms()
            self._round_weights()
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
        latents = self.all_latents().cpu()
        return FittedSegment(
            arch=self.arch,
            steps={} if self.rounded is None else self.rounded.finish(),
            decoder=self.decoder.eval(),
            latents=latents,
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

    def _round_weights(self) -> None:
        """From now on the decoder is what will be stored of it."""
        begins = self.preset.round_from * self.epochs
        if self.preset.weight_bits is None or self.rounded is not None or self.epoch < begins:
            return
        self.rounded = RoundedWeights(self.decoder, self.preset.weight_bits)
        self.optimiser.add_param_group({"params": self.rounded.parameters(), "factor": STEP_RATE})

    def _rate(self, reconstruction: Tensor) -> Tensor:
        """What a rate above its budget costs: as much of the reconstruction's loss as it is above."""
        if self.rounded is None or self.preset.weight_bits is None:
            return reconstruction.new_zeros(())
        above = F.relu(self.rounded.bits_a_weight() / self.preset.weight_bits - 1)
        return RATE_WEIGHT * reconstruction.detach() * above

    def _feature_epoch(self) -> int:
        return math.ceil(self.preset.feature_from * self.epochs)

    def run_epoch(self) -> None:
        """One pass over all frames."""
        # The order depends on seed and epoch alone, so that a resumed fit repeats an undisturbed one.
        self.chance.manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.frames), generator=self.chance).to(self.device)
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
            taps = self.decoder.taps(self._latents(frames), sorted(wanted))
        height, width = self.arch.content_height, self.arch.content_width
        shown = taps[RGB_STAGE][:, :, :height, :width].float()
        reconstruction = F.mse_loss(shown, self.frames[frames][:, :, :height, :width].float())
        terms = {**dict(self._task_losses(taps, frames)), **dict(self._clip_losses())}
        loss = self._weigh(reconstruction, taps, terms) + LOSS_SCALE * self._rate(reconstruction)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.preset.clip_norm)
        self.optimiser.step()
        self.step += 1
        return reconstruction.detach() * len(frames)

    @property
    def _with_task(self) -> bool:
        return self.epoch >= self.preset.task_from * self.epochs

    def _task_losses(self, taps: Mapping[str, Tensor], frames: Tensor) -> Iterator[tuple[str, Weighed]]:
        with_task = self._with_task
        for i, term in enumerate(self.terms):
            if term.clips is not None or not (seen := term.sees(frames)).any():
                continue
            shared = taps[self._shallowest()]
            parts = {s: taps[s][seen].float() for s in term.stages}
            both = [term.losses(parts, frames[seen], with_task=with_task)]
            if self.encoder is not None:
                both.append(self._view_losses(term, frames[seen], with_task=with_task))
            yield f"feature-{i}", (torch.stack([feature for feature, _ in both]).mean(), shared)
            if with_task:
                task = torch.stack([task for _, task in both if task is not None]).mean()
                yield f"task-{i}", (task, shared)

    def _clip_losses(self) -> Iterator[tuple[str, Weighed]]:
        """Now and then one clip of each term that learns from clips, decoded for it."""
        if self.step % CLIP_EVERY:
            return
        for i, term in enumerate(self.terms):
            if term.clips is None:
                continue
            drawn = torch.randint(len(term.clips), (1,), generator=self.chance)
            frames = term.clips[drawn[0]].to(self.device)
            stages = sorted({*term.stages, self._shallowest()})
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                taps = self.decoder.taps(self._latents(frames), stages)
            parts = {stage: taps[stage].float() for stage in term.stages}
            feature, task = term.losses(parts, drawn.to(self.device), with_task=self._with_task)
            yield f"feature-{i}", (feature, taps[self._shallowest()])
            if task is not None:
                yield f"task-{i}", (task, taps[self._shallowest()])

    def _shallowest(self) -> str:
        """The first stage that any term taps: all terms' gradients pass through it."""
        return min((s for term in self.terms for s in term.stages), key=self.decoder.names.index)

    def _view_losses(self, term: JointTerm, frames: Tensor, *, with_task: bool) -> TermLosses:
        """The term on moved and zoomed views of frames that it sees, encoded anew.

        Every second frame alone is learned by heart; what lies between frames looks like such views.
        """
        views = self._views(self.frames[frames].float())
        assert self.encoder is not None, "only an encoder can see a view"
        return term.view_losses(
            self.decoder.taps(self.encoder(views), term.stages), views, with_task=with_task
        )

    def _views(self, frames_bchw: Tensor) -> Tensor:
        """A random window of each frame, at least VIEW_ZOOM of its sides, at full size."""
        chance = torch.rand(len(frames_bchw), 3, generator=self.chance).to(self.device)
        zoom = VIEW_ZOOM + (1 - VIEW_ZOOM) * chance[:, 0]
        windows = torch.zeros(len(frames_bchw), 2, 3, device=self.device)
        windows[:, 0, 0] = windows[:, 1, 1] = zoom
        windows[:, :, 2] = (1 - zoom[:, None]) * (2 * chance[:, 1:] - 1)
        grid = F.affine_grid(windows, list(frames_bchw.shape), align_corners=False)
        views = F.grid_sample(frames_bchw, grid, align_corners=False, padding_mode="border")
        return views.contiguous(memory_format=torch.channels_last)

    def _weigh(
        self, reconstruction: Tensor, taps: Mapping[str, Tensor], terms: Mapping[str, Weighed]
    ) -> Tensor:
        """λ_recon·L_recon + Σ λ·s·L with s = ‖∂L_recon‖ / ‖∂L‖ at the shallowest tapped stage."""
        recon_weight, task_weight, feature_weight = self.preset.joint_weights
        if terms and (self.step % BALANCE_EVERY == 0 or not terms.keys() <= self.scales.keys()):
            self._balance((reconstruction, taps[self._shallowest()]), terms)
        loss = LOSS_SCALE * recon_weight * reconstruction
        for name, (value, _) in terms.items():
            weight = task_weight if name.startswith("task") else feature_weight
            loss = loss + LOSS_SCALE * weight * self.scales[name] * value
        return loss

    def _balance(self, reconstruction: Weighed, terms: Mapping[str, Weighed]) -> None:
        def norm(weighed: Weighed) -> float:
            loss, shared = weighed
            (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True)
            return float(gradient.norm())

        own = norm(reconstruction)
        for name, weighed in terms.items():
            ratio = own / max(norm(weighed), 1e-12)
            before = self.scales.get(name, ratio)
            self.scales[name] = BALANCE_MEMORY * before + (1 - BALANCE_MEMORY) * ratio

    def _set_learning_rate(self) -> None:
        steps = self.epochs * math.ceil(len(self.frames) / self.preset.batch_frames)
        done, warm = self.step / steps, self.preset.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, done - warm) / (1 - warm)))
        factor = (done + 1 / steps) / warm if done < warm else cosine
        for group in self.optimiser.param_groups:
            group["lr"] = self.preset.learning_rate * min(factor, 1.0) * group.get("factor", 1.0)

    def _reached(self) -> bool:
        """The target is met, and terms and rounding have had their share of the fit."""
        if self.preset.target_psnr is None or self.psnr < self.preset.target_psnr:
            return False
        if (
            self.preset.weight_bits is not None
            and self.epoch < (1 + self.preset.round_from) / 2 * self.epochs
        ):
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
            "rounded": self.rounded is not None,
            "optimiser": self.optimiser.state_dict(),
            "scales": self.scales,
            "position": (self.step, self.epoch, self.seconds, self.psnr),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoint.with_suffix(".part")
        buffer = io.BytesIO()
        torch.save(state, buffer)
        temporary.write_bytes(buffer.getvalue())  # torch's own writer hides a full disk in a RuntimeError
        temporary.replace(self.checkpoint)  # a kill leaves the old checkpoint or the new one

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.device)
        self.step, self.epoch, self.seconds, self.psnr = state["position"]
        if state["choices"]:
            self._join_terms(state["choices"])
        if state["rounded"]:
            self._round_weights()
        self.decoder.load_state_dict(state["decoder"])
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])
        for term, saved in zip(self.terms, state["terms"], strict=True):
            term.load_state_dict(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.scales = dict(state["scales"])
