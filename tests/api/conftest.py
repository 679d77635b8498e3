"""A small archive, filled once through the command line itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

FRAMES, WIDTH, HEIGHT, FPS = 12, 96, 64, 10


@dataclass(frozen=True)
class Nvp:
    """Runs `nvp` in a process of its own, as a user does."""

    archive: Path
    cache: Path

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "NVP_ARCHIVE": str(self.archive), "NVP_CACHE": str(self.cache)}
        command = [sys.executable, "-m", "nvpstore.api.cli", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=environment, **pipes, **options)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str) -> Any:
        """The one document that a successful command writes."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright square that moves over a gradient."""
    path = tmp_path_factory.mktemp("clips") / "square.mp4"
    write_clip(path, frames=FRAMES)
    return path


def write_clip(path: Path, *, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            rgb[..., 2] = np.linspace(0, 255, WIDTH, dtype=np.uint8)
            left = index * 6 % (WIDTH - 20)
            rgb[20:40, left : left + 20] = (255, 220, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def nvp(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Nvp:
    """An archive that holds `clip`, fitted at the smallest preset. Tests only read it."""
    folder = tmp_path_factory.mktemp("nvp")
    nvp = Nvp(folder / "archive", folder / "cache")
    for command in (
        ("init",),
        ("ingest", str(clip), "--preset", "micro", "--tag", "camera=gate", "--name", "square"),
    ):
        done = nvp.run(*command)
        assert done.returncode == 0, done.stderr
    return nvp


@pytest.fixture
def empty_nvp(tmp_path: Path) -> Nvp:
    nvp = Nvp(tmp_path / "archive", tmp_path / "cache")
    assert nvp.run("init").returncode == 0
    return nvp
