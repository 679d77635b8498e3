"""pyproject.toml declares what is imported, and nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("nvpstore", "adapters", "catalog", "api")
# Backends that fsspec loads by the name of a URI's scheme.
LOADED_BY_NAME = {"s3fs"}


def imported() -> set[str]:
    """Distributions that the package's own modules import, anywhere in a file."""
    names: set[str] = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module.split(".")[0])
    known = packages_distributions()
    third_party = names - set(sys.stdlib_module_names) - {"nvpstore", "__future__"}
    return {canonical(known.get(name, [name])[0]) for name in third_party}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(x for e in extras for x in project["optional-dependencies"][e])]
    return {canonical(re.split(r"[<>=\[ ]", line)[0]) for line in lines}


def test_everything_imported_is_declared() -> None:
    assert imported() - declared("labels", "service") == set()


def test_everything_declared_is_used() -> None:
    assert declared() - imported() - LOADED_BY_NAME == set()
