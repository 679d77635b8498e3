"""What a user installs: links become folders, and the way it was built makes no difference."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGED = ("nvpstore", "adapters", "catalog", "api")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel from the tree, an sdist from the tree, and a wheel from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    # Building leaves folders behind, so it happens in a copy.
    tree = folder / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGED:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    _build("--sdist", source=tree, out=folder / "sdist")
    sdist = next((folder / "sdist").glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    _build("--wheel", source=next((folder / "unpacked").iterdir()), out=folder / "from_sdist")
    _build("--wheel", source=tree, out=folder / "from_tree")
    return {
        "sdist": sdist,
        "from_sdist": next((folder / "from_sdist").glob("*.whl")),
        "from_tree": next((folder / "from_tree").glob("*.whl")),
    }


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh folder that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(folder), str(built["from_tree"])], check=True)
    return folder


def _build(kind: str, *, source: Path, out: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run in an empty place where only `folder` has nvpstore."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_wheel_from_sdist_equals_wheel_from_tree(built: dict[str, Path]) -> None:
    from_sdist, from_tree = _contents(built["from_sdist"]), _contents(built["from_tree"])
    assert sorted(from_sdist) == sorted(from_tree)
    assert [name for name in from_tree if from_tree[name] != from_sdist[name]] == []


@pytest.mark.slow
def test_wheel_holds_every_source_file_and_nothing_outside_the_package(built: dict[str, Path]) -> None:
    names = set(_contents(built["from_tree"]))
    sources = {
        str(path.relative_to(ROOT) if room == "nvpstore" else Path("nvpstore") / path.relative_to(ROOT))
        for room in PACKAGED
        for path in (ROOT / room).rglob("*")
        if path.suffix in {".py", ".sql", ".txt", ".typed"}
    }
    assert sources - names == set()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nvpstore"}


@pytest.mark.slow
def test_installed_wheel_imports_from_its_own_folder(installed: Path) -> None:
    code = "import nvpstore.types, nvpstore.catalog; print(nvpstore.catalog.__file__)"
    done = _run(installed, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed)


@pytest.mark.slow
def test_installed_command_shows_its_help(installed: Path) -> None:
    done = _run(installed, str(installed / "bin" / "nvp"), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: nvp")


@pytest.mark.parametrize("room", ["adapters", "catalog", "api"])
def test_rooms_refuse_to_be_imported_under_their_bare_name(room: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"import nvpstore.{room}, not {room}" in done.stderr
