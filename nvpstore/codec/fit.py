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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvpstore.codec.artifact import padded
from nvpstore.codec.balance import BALANCE_EVERY, LOSS_SCALE, Balance, Weighed, moved_views
from nvpstore.codec.build import Architecture, Preset
from nvpstore.codec.checkpoint import read_state, write_state
from nvpstore.codec.hnerv import Decoder, Encoder, nerv_times, on_device
from nvpstore.codec.qat import RoundedWeights, latent_steps, rounded_latents
from nvpstore.codec.terms import JointTerm, TermLosses, TermsFactory
from nvpstore.errors import CodecError
from nvpstore.types import RGB_STAGE

CLIP_EVERY = 4  # steps between two clips of a term: each is several frames that are decoded besides
RATE_WEIGHT = 2.0  # of a rate that is twice its budget, beside the reconstruction's own loss
STEP_RATE = 10.0  # times the learning rate: logarithms of steps have further to go than weights
CHECKPOINT_SECONDS = 15.0  # of work that a kill may cost
RETRIES = (1.0, 0.3, 0.1)  # of the learning rate: at first, and each time that a fit diverged
LAYOUT = 6  # of a checkpoint; a fit begins anew where another release wrote it
assert BALANCE_EVERY % CLIP_EVERY == 0, "a clip's gradient is measured when all others are"


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
    names of the decoder's kernels that learned to be rounded to multiples of them, `latent_steps` [c] those
    of the latents' channels.
    """

    arch: Architecture
    decoder: Decoder
    latents: Tensor
    steps: Mapping[str, Tensor]
    latent_steps: Tensor | None
    terms: tuple[JointTerm, ...]
    psnr: float
    epochs: int
    seconds: float


class Diverged(Exception):
    """The loss is no number any more."""


class SegmentFit:
    """The state of one fit: networks, optimiser, position. Resumable from its checkpoint, exactly.

    `frames_tchw` float16 [t, 3, H, W] in 0 … 1 at coded size (a sixteenth of an 8-bit level exact).
    `alike` int64 [runs]: how many frames each run of frames that show the same has (`alike_runs`; None: every
    frame differs); an epoch sees one frame of each, drawn by chance, and all of a run get one latent.
    `terms_factory` is asked once, after `preset.terms_from` of the epochs, with the decoder and latents of
    that moment: only then is there something to rank stages by. `checkpoint` is written every
    `checkpoint_seconds`, between any two steps.
    """

    def __init__(
        self,
        frames_tchw: Tensor,
        arch: Architecture,
        preset: Preset,
        *,
        alike: Tensor | None = None,
        terms_factory: TermsFactory | None = None,
        device: str = "cpu",
        seed: int = 0,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.arch, self.preset, self.device, self.seed = arch, preset, device, seed
        self.checkpoint, self.checkpoint_seconds = checkpoint, checkpoint_seconds
        self.terms_factory = terms_factory
        self.mixed = device == "cuda"  # bfloat16 where it pays
        self.frames = frames_tchw.to(device, memory_format=torch.channels_last)
        self.times = nerv_times(len(frames_tchw), torch.device(device))
        self.runs = torch.ones(len(frames_tchw), dtype=torch.int64) if alike is None else alike
        self.epochs = preset.epochs_for(len(self.frames), distinct=len(self.runs))
        self.seconds, self._saved = 0.0, time.monotonic()
        self._begin(attempt=0)

    def _begin(self, *, attempt: int) -> None:
        """Fresh networks, with the learning rate of this attempt."""
        self.attempt = attempt
        torch.manual_seed(self.seed)
        self.decoder = on_device(Decoder(self.arch), self.device)
        self.decoder.begin_at(self._content(self.frames).mean((0, 2, 3), dtype=torch.float32))
        self.encoder = self._build_encoder()
        self.terms: tuple[JointTerm, ...] = ()
        self._joined = False
        self.rounded: RoundedWeights | None = None
        self.latent_steps: Tensor | None = None
        self.optimiser = self._build_optimiser()
        self.balance = Balance(self.preset.joint_weights)
        self.chance = torch.Generator()
        self.step, self.epoch, self.psnr = 0, 0, -math.inf
        # Within the epoch: batches done, their squared error, and the state of chance to go on with.
        self._batch, self._error = 0, torch.zeros((), device=self.device)
        self._chance_state: Tensor | None = None

    def run(self, progress: Callable[[FitProgress], None] | None = None) -> FittedSegment:
        """Train to the preset's target or budget. CodecError where it diverges at every learning rate."""
        self._resume()
        while True:
            try:
                self._train(progress)
                return self._fitted()
            except Diverged as cause:
                self._retry(cause)

    def _train(self, progress: Callable[[FitProgress], None] | None) -> None:
        before, began = self.seconds, time.monotonic()
        while self.epoch < self.epochs and not self._reached():
            self._join_terms()
            self._round_weights()
            self.run_epoch()
            self.epoch += 1
            self.seconds = before + time.monotonic() - began
            if progress is not None:
                told = time.monotonic()
                self._tell(progress)
                began += time.monotonic() - told
        self._join_terms()
        self._save()

    def _tell(self, progress: Callable[[FitProgress], None]) -> None:
        try:
            progress(self._progress())
        except BaseException:
            self._save()  # whoever is told may stop the fit: nothing of it is lost then
            raise

    def _retry(self, cause: Diverged) -> None:
        """Begin anew with a lower learning rate, if there is one left."""
        if self.attempt + 1 == len(RETRIES):
            rates = ", ".join(f"{self.preset.learning_rate * share:g}" for share in RETRIES)
            raise CodecError(
                f"the fit diverged in epoch {self.epoch + 1} (its loss is no number): "
                f"tried learning rates {rates}"
            ) from cause
        self._begin(attempt=self.attempt + 1)
        self._save()

    def _fitted(self) -> FittedSegment:
        latents = self.all_latents().cpu()
        return FittedSegment(
            arch=self.arch,
            steps={} if self.rounded is None else self.rounded.finish(),
            latent_steps=self.latent_steps,
            decoder=self.decoder.eval(),
            latents=latents,
            terms=self.terms,
            psnr=self.psnr,
            epochs=self.epoch,
            seconds=self.seconds,
        )

    @torch.no_grad()
    def all_latents(self) -> Tensor:
        """Latents [t, …] of all frames as the networks are now: each run's first frame's."""
        first = (self.runs.cumsum(0) - self.runs).to(self.device)
        latents = torch.cat([self._latents(part) for part in first.split(self.preset.batch_frames)]).float()
        return latents.repeat_interleave(self.runs.to(self.device), 0)

    def _build_encoder(self) -> Encoder | None:
        if self.arch.codec == "nerv":
            return None
        encoder = Encoder(self.arch.strides, self.preset.encoder_width, self.arch.latent_channels)
        return on_device(encoder, self.device)

    def _build_optimiser(self) -> torch.optim.Optimizer:
        betas = (0.9, self.preset.adam_beta2)
        return torch.optim.Adam(self._parameters(), lr=self.learning_rate, betas=betas)

    @property
    def learning_rate(self) -> float:
        """The highest of the schedule."""
        return self.preset.learning_rate * RETRIES[self.attempt]

    def _parameters(self) -> list[nn.Parameter]:
        encoder = [] if self.encoder is None else list(self.encoder.parameters())
        return [*self.decoder.parameters(), *encoder]

    def _latents(self, frames: Tensor) -> Tensor:
        if self.encoder is None:
            return self.times[frames]
        latents: Tensor = self.encoder(self.frames[frames].float())
        return latents if self.latent_steps is None else rounded_latents(latents, self.latent_steps)

    def _join_terms(self, choices: Sequence[str] | None = None) -> None:
        if self.terms_factory is None or self._joined or self.epoch < self._feature_epoch():
            return
        self.decoder.eval()
        self.terms = tuple(self.terms_factory(self.decoder, self.all_latents(), choices=choices))
        self._joined = True
        self.decoder.train()
        for term in self.terms:
            self.optimiser.add_param_group({"params": list(term.parameters())})

    def _round_weights(self) -> None:
        """From now on decoder and latents are what will be stored of them."""
        begins = self.preset.round_from * self.epochs
        if self.preset.weight_bits is None or self.rounded is not None or self.epoch < begins:
            return
        if self.encoder is not None:
            self.latent_steps = latent_steps(self.all_latents())
        self.rounded = RoundedWeights(self.decoder, self.preset.weight_bits)
        self.optimiser.add_param_group({"params": self.rounded.parameters(), "factor": STEP_RATE})

    def _rate(self, reconstruction: Tensor) -> Tensor:
        """What a rate above its budget costs: as much of the reconstruction's loss as it is above."""
        if self.rounded is None or self.preset.weight_bits is None:
            return reconstruction.new_zeros(())
        above = F.relu(self.rounded.bits_a_weight() / self.preset.weight_bits - 1)
        return RATE_WEIGHT * reconstruction.detach() * above

    def _feature_epoch(self) -> int:
        return math.ceil(self.preset.terms_from * self.epochs)

    def run_epoch(self) -> None:
        """One pass over a frame of each run, or what is left of it."""
        for part in self._order().split(self.preset.batch_frames)[self._batch :]:
            self._error = self._error + self._train_step(part.sort().values)
            self._batch += 1
            if time.monotonic() - self._saved > self.checkpoint_seconds:
                self._save()
        squared = self._checked_error() / len(self.runs)
        self.psnr = -10 * math.log10(max(squared, 1e-12))
        self._batch, self._error = 0, torch.zeros_like(self._error)

    def _order(self) -> Tensor:
        """The epoch's frames in the order in which they are seen."""
        # It depends on seed and epoch alone, so that a resumed fit repeats an undisturbed one.
        self.chance.manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.runs), generator=self.chance)
        if len(self.runs) < len(self.frames):
            drawn = (torch.rand(len(self.runs), generator=self.chance) * self.runs).long()
            order = (self.runs.cumsum(0) - self.runs + drawn)[order]
        order = order.to(self.device)
        if self._chance_state is not None:
            self.chance.set_state(self._chance_state)
            self._chance_state = None
        return order

    def _checked_error(self) -> float:
        error = self._error.item()
        if not math.isfinite(error):
            raise Diverged
        return error

    def _train_step(self, frames: Tensor) -> Tensor:
        """One step; returns the batch's mean squared error × frames."""
        self._set_learning_rate()
        wanted = {RGB_STAGE, *(s for term in self.terms for s in term.stages)}
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
            taps = self.decoder.taps(self._latents(frames), sorted(wanted))
        shown = self._content(taps[RGB_STAGE]).float()
        reconstruction = F.mse_loss(shown, self._content(self.frames[frames]).float())
        terms = {**dict(self._task_losses(taps, frames)), **dict(self._clip_losses())}
        shared = taps[self._shallowest()] if terms else shown
        loss = self.balance.weigh(reconstruction, shared, terms, tasks=len(self.terms), step=self.step)
        loss = loss + LOSS_SCALE * self._rate(reconstruction)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.preset.clip_norm)
        self.optimiser.step()
        self.step += 1
        return reconstruction.detach() * len(frames)

    def _content(self, frames: Tensor) -> Tensor:
        """Coded pictures [b, 3, h, w] without their padding."""
        return frames[:, :, : self.arch.content_height, : self.arch.content_width]

    def _task_losses(self, taps: Mapping[str, Tensor], frames: Tensor) -> Iterator[tuple[str, Weighed]]:
        for i, term in enumerate(self.terms):
            if term.clips is not None or not (seen := term.sees(frames)).any():
                continue
            shared = taps[self._shallowest()]
            parts = {s: taps[s][seen].float() for s in term.stages}
            both = [term.losses(parts, frames[seen])]
            if self.encoder is not None:
                both.append(self._view_losses(term, frames[seen]))
            yield f"feature-{i}", (torch.stack([feature for feature, _ in both]).mean(), shared)
            yield f"task-{i}", (torch.stack([task for _, task in both]).mean(), shared)

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
            with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
                taps = self.decoder.taps(self._latents(frames), stages)
            parts = {stage: taps[stage].float() for stage in term.stages}
            feature, task = term.losses(parts, drawn.to(self.device))
            yield f"feature-{i}", (feature, taps[self._shallowest()])
            yield f"task-{i}", (task, taps[self._shallowest()])

    def _shallowest(self) -> str:
        """The first stage that any term taps: all terms' gradients pass through it."""
        return min((s for term in self.terms for s in term.stages), key=self.decoder.names.index)

    def _view_losses(self, term: JointTerm, frames: Tensor) -> TermLosses:
        """The term on moved and zoomed views of frames that it sees, encoded anew.

        Frames alone are learned by heart; what lies between them looks like such views.
        """
        assert self.encoder is not None, "only an encoder can see a view"
        views = moved_views(self._content(self.frames[frames]).float(), self.chance)
        taps = self.decoder.taps(self.encoder(padded(views, self.arch)), term.stages)
        return term.view_losses(taps, views)

    def _set_learning_rate(self) -> None:
        steps = self.epochs * math.ceil(len(self.runs) / self.preset.batch_frames)
        done, warm = self.step / steps, self.preset.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, done - warm) / (1 - warm)))
        factor = (done + 1 / steps) / warm if done < warm else cosine
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * min(factor, 1.0) * group.get("factor", 1.0)

    def _reached(self) -> bool:
        """The target is met, and terms and rounding have had their share of the fit."""
        if self.preset.target_psnr is None or self.psnr < self.preset.target_psnr:
            return False
        if (
            self.preset.weight_bits is not None
            and self.epoch < (1 + self.preset.round_from) / 2 * self.epochs
        ):
            return False
        if self.terms_factory is not None and not self._joined:
            return False  # whether there are terms is not known before
        return not self.terms or self.epoch >= (1 + self.preset.terms_from) / 2 * self.epochs

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
        self._saved = time.monotonic()
        if self.checkpoint is None:
            return
        self._checked_error()  # what is no number must not be gone on with
        state = {
            "layout": LAYOUT,
            "decoder": self.decoder.state_dict(),
            "encoder": None if self.encoder is None else self.encoder.state_dict(),
            "terms": [term.state_dict() for term in self.terms],
            "choices": [term.choice for term in self.terms],
            "joined": self._joined,
            "rounded": self.rounded is not None,
            "latent_steps": self.latent_steps,
            "optimiser": self.optimiser.state_dict(),
            "scales": self.balance.scales,
            "position": (self.attempt, self.step, self.epoch, self.seconds, self.psnr),
            "batch": (self._batch, self._error, self.chance.get_state()),
        }
        write_state(self.checkpoint, state)

    def _resume(self) -> None:
        state = read_state(self.checkpoint, device=self.device)
        if state is None or state.get("layout") != LAYOUT:
            return
        attempt, step, epoch, seconds, psnr = state["position"]
        self._begin(attempt=attempt)
        self.step, self.epoch, self.seconds, self.psnr = step, epoch, seconds, psnr
        self._batch, self._error, chance_state = state["batch"]
        self._chance_state = chance_state.cpu() if self._batch else None
        if state["joined"]:
            self._join_terms(state["choices"])
        if state["rounded"]:
            self._round_weights()
            self.latent_steps = state["latent_steps"]
        self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        self.decoder.load_state_dict(state["decoder"])
        if self.encoder is not None:
            self.encoder.load_state_dict(state["encoder"])
        for term, saved in zip(self.terms, state["terms"], strict=True):
            term.load_state_dict(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.balance.scales = dict(state["scales"])
