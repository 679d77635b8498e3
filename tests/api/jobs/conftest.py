"""A queue with a clock of its own, a server's settings, and small files to work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvpstore.api.jobs.queue import JobQueue
from nvpstore.api.service.settings import ServiceSettings
from nvpstore.archive import Archive
from tests.api.conftest import write_clip
from tests.conftest import open_micro


@dataclass
class Clock:
    """Seconds since 1970, when a test says so."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> JobQueue:
    return JobQueue(tmp_path / "state" / "jobs.sqlite", clock=clock)


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(state_dir=tmp_path / "state")


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An empty one."""
    return open_micro(tmp_path / "archive", tmp_path / "cache", create=True)


@pytest.fixture
def upload(settings: ServiceSettings) -> Callable[[str], Path]:
    """A finished upload under a name, of 12 frames in 64x96 pixels."""

    def finished(name: str = "clip.mp4") -> Path:
        number = len(list(settings.spool_dir.glob("*")))
        folder = settings.spool_dir / f"{number:026d}"
        folder.mkdir(parents=True)
        write_clip(folder / name, frames=12)
        return folder / name

    return finished
