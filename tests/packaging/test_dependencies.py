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
EXTRAS = ("labels", "upscale", "service", "client", "otel")
# What FastAPI and uvicorn are made of, and name in their own signatures.
PARTS_OF_DECLARED = {"anyio", "h11", "pydantic", "starlette"}


def imported() -> dict[str, set[str]]:
    """Modules of others that the package's own import, anywhere in a file, and who brings each."""
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
    return {name: {canonical(brought) for brought in known.get(name, [name])} for name in third_party}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(x for e in extras for x in project["optional-dependencies"][e])]
    return {canonical(re.split(r"[<>=\[ ]", line)[0]) for line in lines}


def test_everything_imported_is_declared() -> None:
    allowed = declared(*EXTRAS) | PARTS_OF_DECLARED
    assert [name for name, brought in imported().items() if not brought & allowed] == []


def test_everything_declared_is_used() -> None:
    assert declared() - set().union(*imported().values()) - LOADED_BY_NAME == set()
