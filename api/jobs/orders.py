"""What a worker is told when it starts: a line of JSON on its standard input, which ends with its parent."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nvpstore.api.service.settings import ServiceSettings

AFRESH = 75  # a worker's exit status that asks for a new process in its place, at once

# Of the service's settings, those that bound what a job may do.
_SETTINGS = ("worker_bytes", "roots", "upload_bytes", "upload_seconds", "pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Whose jobs to do: those of `queue`, on the archive at the URI `archive`, as `worker`.

    `device` as in `Archive.ingest`. `lease_seconds` is how long a job is the worker's without a sign of life,
    `grace_seconds` how long work has to notice that it is to stop.
    """

    archive: str
    queue: Path
    worker: str
    settings: ServiceSettings
    device: str
    lease_seconds: float
    grace_seconds: float

    def to_line(self) -> str:
        settings = {name: getattr(self.settings, name) for name in _SETTINGS}
        return json.dumps(
            {
                **asdict(self),
                "queue": str(self.queue),
                "settings": {**settings, "state_dir": str(self.settings.state_dir)},
            }
        )

    @classmethod
    def from_line(cls, line: str | bytes) -> Orders:
        given = json.loads(line)
        settings = given.pop("settings")
        return cls(
            **{
                **given,
                "queue": Path(given["queue"]),
                "settings": ServiceSettings(
                    **{
                        **settings,
                        "state_dir": Path(settings["state_dir"]),
                        "roots": tuple(settings["roots"]),
                    }
                ),
            }
        )
