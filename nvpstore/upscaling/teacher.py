"""The diffusion that a one-step upscaler comes from: flow matching, distillation, and folding time away.

With r = residual·SCALE in cells (what bicubic lacks), noise n and a time t in 0 … 1:

    x_t = (1 − t)·n + t·r,   v(x_t, t) = r − n,   loss = ‖net(x_t, t) − v‖²

(Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023). Sampling integrates v from t = 0. The
one-step net starts from no noise at t = 0, so that x_0 and t are constants: the noise's stem drops out, and
the time embedding goes into biases.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nvpstore.upscaling.net import Upscaler
from nvpstore.upscaling.parts import ResnetBlock2D

SCALE = 8.0  # residuals have a standard deviation near 1/8 of this: noise's is 1


def residual_cells(sharp: Tensor, soft: Tensor, net: Upscaler) -> Tensor:
    """What `soft` [b, 3, H, W] lacks of `sharp`, in cells and scaled. Sides are multiples of the patch."""
    return SCALE * F.pixel_unshuffle(sharp - soft, net.geometry.patch)


def velocity(teacher: Upscaler, cells: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
    """The teacher's v [b, 3·p², h, w] at x_t = `noisy`."""
    residual = teacher(cells, noisy, time)
    return SCALE * F.pixel_unshuffle(residual, teacher.geometry.patch)


def flow_matching_loss(teacher: Upscaler, cells: Tensor, target: Tensor, chance: torch.Generator) -> Tensor:
    """`target` as `residual_cells` gives it; one time and one noise a picture."""
    noise = torch.randn(target.shape, generator=chance).to(target.device)
    time = torch.rand(len(target), generator=chance).to(target.device)
    t = time[:, None, None, None]
    return F.mse_loss(velocity(teacher, cells, (1 - t) * noise + t * target, time), target - noise)


def sample(teacher: Upscaler, cells: Tensor, start: Tensor, *, steps: int) -> Tensor:
    """r after `steps` Euler steps from x_0 = `start` [b, 3·p², h, w]."""
    x = start
    for i in range(steps):
        time = torch.full((len(x),), i / steps, device=x.device)
        x = x + velocity(teacher, cells, x, time) / steps
    return x


def one_step(student: Upscaler, cells: Tensor) -> Tensor:
    """r of a timed student in one step, from no noise at t = 0."""
    return velocity(student, cells, *_at_start(student, cells))


def distillation_loss(student: Upscaler, teacher: Upscaler, cells: Tensor, *, steps: int) -> Tensor:
    """One step of the student against `steps` of the frozen teacher, both from no noise."""
    with torch.no_grad():
        noisy, _ = _at_start(teacher, cells)
        target = sample(teacher, cells, noisy, steps=steps)
    return F.mse_loss(one_step(student, cells), target)


def _at_start(net: Upscaler, cells: Tensor) -> tuple[Tensor, Tensor]:
    b, _, h, w = cells.shape
    return cells.new_zeros(b, net.geometry.picture_channels, h, w), cells.new_zeros(b)


@torch.no_grad()
def fold_time(timed: Upscaler) -> Upscaler:
    """The same one-step function without noise and time: conv1.bias += W·silu(embedding(0)) + b, a block."""
    folded = Upscaler(timed.geometry).to(timed.stem.weight.device)
    kept = set(folded.state_dict())
    folded.load_state_dict({name: value for name, value in timed.state_dict().items() if name in kept})
    embedded = F.silu(timed.embed(torch.zeros(1, device=timed.stem.weight.device)))
    blocks = {name: m for name, m in folded.named_modules() if isinstance(m, ResnetBlock2D)}
    for name, source in timed.named_modules():
        if isinstance(source, ResnetBlock2D):
            bias = blocks[name].conv1.bias
            assert bias is not None, "diffusers' convolutions have one"
            bias.add_(source.time_emb_proj(embedded)[0])
    return folded
