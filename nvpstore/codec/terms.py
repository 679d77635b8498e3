"""What tasks add to a fit: the contract between codec.fit and whoever knows tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from nvpstore.codec.hnerv import Decoder

TermLosses = tuple[Tensor, Tensor]  # feature term, task term


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

    def losses(self, taps: Mapping[str, Tensor], units: Tensor) -> TermLosses:
        """(feature term, task term) for frames that the term sees, or for clips."""
        ...

    def view_losses(self, taps: Mapping[str, Tensor], views: Tensor) -> TermLosses:
        """The same for other views [b, 3, H, W] (0 … 1) of frames that the term sees."""
        ...


class TermsFactory(Protocol):
    """Makes the terms of a fit from its decoder and latents; `choices` are those of an earlier run."""

    def __call__(
        self, decoder: Decoder, latents: Tensor, *, choices: Sequence[str] | None
    ) -> Sequence[JointTerm]: ...
