"""Which pictures of a segment a backbone is asked about: those to learn from, and those to be judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvpstore.tasks.spec import Clip, TaskSpec

MEASURED_EVERY = 3  # of a video's frames, and of clips that follow one another, the third measures
MEASURED_AT = MEASURED_EVERY - 1  # and of each three frames this one
CLIPS_A_SPAN = 8  # clips to learn from begin so often
FEW_CLIPS = 12  # below so many to learn from, they are also shown in other ways


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlan:
    """`frames` int64 [u, t]: positions in the segment of each unit's pictures; `seen` bool [u]: those that
    task terms learn from. No picture of a seen unit is one of an unseen unit's.
    """

    frames: Tensor
    seen: Tensor

    def __post_init__(self) -> None:
        if self.frames.ndim != 2 or self.seen.shape != self.frames.shape[:1]:
            raise ValueError(f"frames {tuple(self.frames.shape)} and seen {tuple(self.seen.shape)}")

    @property
    def pictures(self) -> tuple[int, ...]:
        """Positions of all pictures that some unit needs, ascending."""
        return tuple(self.frames.unique().tolist())

    @property
    def taught(self) -> int:
        """How many pictures the seen units have."""
        return len(self.frames[self.seen].unique())

    @property
    def judged(self) -> int:
        """How many pictures the unseen units have."""
        return len(self.frames[~self.seen].unique())


def units_at_ingest(spec: TaskSpec, *, start_frame: int, frames: int) -> UnitPlan:
    """All frames of a segment, every third one of the video unseen, or the last of two; or every third clip
    unseen, and clips that begin often in between.
    """
    if spec.clip is not None:
        return _clips(spec.clip, frames)
    positions = torch.arange(frames)
    seen = ~is_measured(positions + start_frame)
    if frames > 1:
        seen[-1] &= not seen.all()  # of two frames at least one measures
    return UnitPlan(frames=positions[:, None], seen=seen)


def is_measured(frames: Tensor) -> Tensor:
    """Of a video's frames [n] those by which tasks of pictures are judged at ingest: they do not teach."""
    return frames % MEASURED_EVERY == MEASURED_AT


def units_to_train(spec: TaskSpec, *, frames: int, share: float, measured: int) -> UnitPlan:
    """Of the units that queries ask about, a `share` seen, at least one, spread evenly; of the others as many
    as have at most `measured` pictures, but at least one where any may be measured. Few clips are shown in
    other ways as well, which needs no other pictures.
    """
    units = units_asked(spec, frames=frames)
    seen = torch.zeros(len(units), dtype=torch.bool)
    seen[_spread(len(units), max(1, round(share * len(units))))] = True
    others = (~seen).nonzero().squeeze(1)
    wanted = max(1, measured // spec.frames) if measured else 0
    others = others[_spread(len(others), min(len(others), wanted))]
    if spec.clip is not None:
        return _plan_of(_shown(units[seen]), units[others])
    chosen = torch.cat([seen.nonzero().squeeze(1), others]).sort().values
    return UnitPlan(frames=units[chosen], seen=seen[chosen])


def thinned(plan: UnitPlan, most: int) -> UnitPlan:
    """The plan; where it has more than `most` units, as many of both sides in proportion, spread evenly, and
    at least one of each that it has.
    """
    if len(plan.seen) <= most:
        return plan
    unseen, seen = ((plan.seen == side).nonzero().squeeze(1) for side in (False, True))
    measured = min(len(unseen), max(1, round(most * len(unseen) / len(plan.seen))))
    learned = min(len(seen), max(1, most - measured))
    kept = [unseen[_spread(len(unseen), measured)], seen[_spread(len(seen), learned)]]
    chosen = torch.cat(kept).sort().values
    return UnitPlan(frames=plan.frames[chosen], seen=plan.seen[chosen])


def units_asked(spec: TaskSpec, *, frames: int) -> Tensor:
    """The units [u, t] of a segment of so many frames that queries ask about, in order."""
    return torch.arange(frames)[:, None] if spec.clip is None else _asked_clips(spec.clip, frames)


def _spread(count: int, wanted: int) -> Tensor:
    """`wanted` of `count` places, in the middle of as many equal parts."""
    return ((torch.arange(wanted) + 0.5) * count / max(1, wanted)).long()


def _asked_clips(clip: Clip, frames: int) -> Tensor:
    """The clips [u, t] that follow one another from a segment's first frame; its last picture fills it up."""
    starts = torch.arange(0, frames, clip.span)
    return (starts[:, None] + torch.arange(clip.frames) * clip.stride).clamp_max(frames - 1)


def _clips(clip: Clip, frames: int) -> UnitPlan:
    """Every third of the clips that queries ask about is unseen, or the first of two; those to learn from
    begin often in what is left.
    """
    starts = torch.arange(0, frames, clip.span)
    whole = frames // clip.span
    third = range(MEASURED_EVERY - 1, whole, MEASURED_EVERY)
    judged = torch.tensor([0] if whole == 2 else third, dtype=torch.long)
    steps = torch.arange(clip.frames) * clip.stride
    begins, ends = [0, *(starts[judged] + clip.span).tolist()], [*starts[judged].tolist(), frames]
    learned = []
    for begin, end in zip(begins, ends, strict=True):
        often = range(begin, end - clip.span + 1, max(1, clip.span // CLIPS_A_SPAN))
        learned.append(torch.tensor(often, dtype=torch.long)[:, None] + steps)
    if not whole:
        learned = [steps.clamp_max(frames - 1)[None]]
    return _plan_of(_shown(torch.cat(learned)), starts[judged][:, None] + steps)


def _plan_of(seen: Tensor, unseen: Tensor) -> UnitPlan:
    marks = torch.arange(len(seen) + len(unseen)) < len(seen)
    return UnitPlan(frames=torch.cat([seen, unseen]), seen=marks)


def _shown(clips: Tensor) -> Tensor:
    """Clips [u, t] to learn from; few ones also slowed, there and back, and everything backwards, until they
    are FEW_CLIPS.
    """
    if len(clips) >= FEW_CLIPS:
        return clips
    count = clips.shape[1]
    forth = torch.arange(count)
    ways = [forth, forth // 2, (count + forth) // 2, torch.cat([forth[::2], forth[::2].flip(0)])[:count]]
    shown = torch.cat([clips[:, way] for way in (*ways, *(way.flip(0) for way in ways))])
    once = dict.fromkeys(tuple(clip) for clip in shown.tolist())
    return torch.tensor(list(once)[: max(FEW_CLIPS, len(clips))])


class Gathering:
    """Pictures of a segment in order of their frames → whole units, as soon as their last picture came."""

    def __init__(self, plan: UnitPlan) -> None:
        self.plan = plan
        self._last = plan.frames.amax(1)
        self._kept: dict[int, Tensor] = {}
        self._next = 0
        self._needed = set(plan.pictures)

    def add(self, positions: Sequence[int], rgb_tchw: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pictures [t, 3, h, w] at the next `positions` → (which units [u], their pictures [u·t, 3, h, w]).

        Positions ascend from call to call; those that no unit needs may be left out.
        """
        first, self._next = self._next, positions[-1] + 1
        for i, picture in zip(positions, rgb_tchw, strict=True):
            if i in self._needed:
                self._kept[i] = picture
        complete = ((self._last >= first) & (self._last < self._next)).nonzero().squeeze(1)
        if len(complete):
            frames = self.plan.frames[complete].flatten().tolist()
            yield complete, torch.stack([self._kept[i] for i in frames])
        open_units = self.plan.frames[self._last >= self._next]
        oldest = int(open_units.min()) if len(open_units) else self._next
        self._kept = {i: picture for i, picture in self._kept.items() if i >= oldest}
