"""What `verify` found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is not as it was committed.

    `object` is a key, `found` what is wrong with it. The rest says what of which video it is, as far as that
    can be told: `stage` is a decoder stage or `latents`, `route` a route of a task.
    """

    object: str
    found: str
    video_id: str | None = None
    name: str | None = None
    segment: int | None = None
    stage: str | None = None
    route: str | None = None

    def __str__(self) -> str:
        parts = []
        if self.video_id is not None:
            parts.append(f"video {self.video_id}" + (f" ({self.name})" if self.name else ""))
        if self.segment is not None:
            parts.append(f"segment {self.segment}")
        if self.stage is not None:
            parts.append(self.stage if self.stage == "latents" else f"stage {self.stage}")
        if self.route is not None:
            parts.append(f"route {self.route}")
        return ": ".join([", ".join(parts), self.object, self.found] if parts else [self.object, self.found])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepReport:
    """What decoding everything again has shown.

    `frames` of `videos` were decoded. Those of `compared` videos gave the stored PSNR within 0.01 dB, if no
    damage says otherwise; of `not_compared` ones no original was at hand, or not all could be decoded, or
    they are only added: then the original was looked at.
    """

    videos: int
    frames: int
    compared: int
    not_compared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was read and what is wrong with it.

    `entries` of the log, `objects` that it names (`superseded` of them only wait for gc) with `bytes`, and
    `checkpoints`. `orphans` are objects that no entry names: no damage, and work for gc. `damaged_caches` are
    files of this machine that were damaged and are removed now: no damage of the archive. `deep` is None
    where nothing was decoded.
    """

    entries: int
    objects: int
    superseded: int
    bytes: int
    checkpoints: int
    orphans: int
    damages: tuple[Damage, ...]
    damaged_caches: tuple[str, ...] = ()
    deep: DeepReport | None = None
