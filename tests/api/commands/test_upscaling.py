"""`nvp upscale train`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.api.conftest import Nvp

QUICK = ("--preset", "micro", "--steps", "0,0,2,0", "--side", "32", "--clips", "2")


def test_an_archive_trains_from_its_originals_and_what_it_shows_of_them(nvp: Nvp, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    done = nvp.run("upscale", "train", "-o", str(out), *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    assert "square: its decodes at " in done.stderr
    summary = json.loads(done.stdout)
    assert Path(summary["weights"]) == out / "upscaler.safetensors"
    assert (out / "upscaler.safetensors").stat().st_size > 2 * summary["parameters"]
    assert summary["diverged"] is False


def test_an_archive_without_originals_says_what_to_name(empty_nvp: Nvp, tmp_path: Path) -> None:
    done = empty_nvp.run("upscale", "train", "-o", str(tmp_path / "trained"), *QUICK)
    assert done.returncode == 2
    assert "name videos, pictures or folders" in done.stderr
