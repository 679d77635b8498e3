"""The pages say what is true: commands, settings, files, folders, dependencies, figures."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

import nvpstore
from nvpstore.api.docs import cli_reference
from nvpstore.api.service import settings as service
from nvpstore.config import VARIABLES, Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
FORBIDDEN = ("TODO", "FIXME", "XXX", "TBD", "lorem", "coming soon")
FILE_SUFFIXES = ("py", "md", "sql", "toml", "txt", "json", "sh")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under `## heading`."""
    match = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"no section {heading!r}"
    return match[1]


def prose(text: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads(page("pyproject.toml"))["project"]
    return table


def explained_dependencies() -> set[str]:
    """First column of ARCHITECTURE's table, without its heading."""
    table = section(page("ARCHITECTURE.md"), "Dependencies")
    return set(re.findall(r"^\| ([a-z][\w-]*) \|", table, re.MULTILINE)) - {"package"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryPage:
    def test_holds_no_leftovers(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert [word for word in FORBIDDEN if re.search(rf"\b{word}\b", text, re.IGNORECASE)] == []

    def test_links_lead_somewhere(self, path: Path) -> None:
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
        local = [link for link in links if "://" not in link]
        assert [link for link in local if not (path.parent / link).exists()] == []

    def test_named_files_exist(self, path: Path) -> None:
        named = re.findall(
            rf"`([\w./-]+\.(?:{'|'.join(FILE_SUFFIXES)}))`", prose(path.read_text(encoding="utf-8"))
        )
        assert [name for name in named if not _exists_somewhere(name)] == []


def _exists_somewhere(name: str) -> bool:
    """As a path from the root, or as a file of that name in some room."""
    if "/" in name or name.startswith("."):
        return (ROOT / name).exists()
    rooms = ("", "nvpstore", "adapters", "catalog", "api", "benchmarks", "docs")
    return any((ROOT / room / name).exists() for room in rooms)


def test_cli_reference_equals_help() -> None:
    assert page("docs/cli.md") == cli_reference(), "run: python -m nvpstore.api.docs docs/cli.md"


def test_every_setting_is_documented_once() -> None:
    rows = re.findall(r"^\| `(NVP_\w+)` \| `(\w+)` \|", page("docs/configuration.md"), re.MULTILINE)
    known = [*VARIABLES.items(), *service.VARIABLES.items()]
    assert sorted(rows) == sorted((variable, name) for name, variable in known)


def test_every_setting_has_a_variable() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} == set(VARIABLES)


def test_every_variable_that_the_code_reads_is_documented() -> None:
    sources = [p for room in ("nvpstore", "adapters", "catalog", "api") for p in (ROOT / room).rglob("*.py")]
    used = {
        name for path in sources for name in re.findall(r"\bNVP_[A-Z_]+", path.read_text(encoding="utf-8"))
    }
    documented = set(re.findall(r"\bNVP_[A-Z_]+", page("docs/configuration.md")))
    assert used <= documented


def test_every_dependency_has_its_line_in_architecture() -> None:
    table = project()
    extras = table["optional-dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(table["dependencies"], list)
    wanted = [*table["dependencies"], *(line for extra in extras.values() for line in extra)]
    names = {re.match(r"[\w-]+", line)[0] for line in wanted} - {"nvpstore"}  # type: ignore[index]
    assert explained_dependencies() == names


def test_every_folder_in_architecture_exists() -> None:
    folders = re.findall(r"`([\w./-]+/)`", prose(page("ARCHITECTURE.md")))
    assert folders
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


def test_every_room_stands_in_architecture() -> None:
    rooms = section(page("ARCHITECTURE.md"), "Rooms")
    packages = [p.parent.name for p in (ROOT / "nvpstore").glob("*/__init__.py")]
    assert [name for name in packages if f"{name}/`" not in rooms] == []


def test_changelog_has_the_version() -> None:
    assert re.search(
        rf"^## \[{re.escape(nvpstore.__version__)}\] - \d{{4}}-\d\d-\d\d$", page("CHANGELOG.md"), re.MULTILINE
    )


def test_every_pinned_dependency_is_named_once() -> None:
    names = re.findall(r"^([\w.-]+)==", page("constraints.txt"), re.MULTILINE)
    canonical = [re.sub(r"[-_.]+", "-", name).lower() for name in names]
    assert len(canonical) == len(set(canonical))


def test_constraints_pin_every_direct_dependency() -> None:
    pinned = {
        re.sub(r"[-_.]+", "-", n).lower()
        for n in re.findall(r"^([\w.-]+)==", page("constraints.txt"), re.MULTILINE)
    }
    assert explained_dependencies() <= pinned


def test_every_table_of_figures_names_its_json() -> None:
    figures = section(page("README.md"), "Figures")
    for block in re.split(r"^### ", figures, flags=re.MULTILINE):
        if not re.search(r"^\|", block, re.MULTILINE):
            continue
        named = re.findall(r"benchmarks/results/[\w./-]+\.json", block)
        assert named, f"a table without its JSON: {block[:60]!r}"
        assert [name for name in named if not (ROOT / name).exists()] == []


def test_readme_names_the_two_commands_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    assert {"help", "setup", "demo", "test", "check", "bench", "soak", "clean"} <= targets
    assert set(re.findall(r"^make (\w+)", page("README.md"), re.MULTILINE)) == {"demo", "test"}


def test_every_part_of_the_gpu_run_is_explained() -> None:
    declared = re.search(r"^PARTS=\((.*)\)$", page("benchmarks/gpu.sh"), re.MULTILINE)
    assert declared
    explained = re.findall(r"^\| `(\w+)` \|", page("benchmarks/GPU.md"), re.MULTILINE)
    assert declared[1].split() == explained
