"""docs/handover.md: its Python runs as it stands; examples for schedulers call commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nvpstore.api.cli import build_parser
from tests.conftest import Micro

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/handover.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "docs/examples").iterdir())


@pytest.mark.slow  # trains a head
def test_the_blocks_run_one_after_another(
    micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = micro.copy(tmp_path)
    assert archive.store.root == str(tmp_path / "archive")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/handover.md block {number}", "exec"), names)
    assert (tmp_path / "for-fiftyone/labels.json").exists()


def test_blocks_that_need_more_than_this_machine_are_python() -> None:
    blocks = re.findall(r"^```python no-run\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.count("```python no-run")
    for block in blocks:
        compile(block, "docs/handover.md", "exec")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_call_commands_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        compile(text, path.name, "exec")
        commands = re.findall(r'"(nvp [^"]+)"', text)
    else:
        commands = re.findall(r"(nvp .+)$", re.sub(r"^#.*$", "", text, flags=re.MULTILINE), re.MULTILINE)
    assert commands
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])


def test_every_example_is_named() -> None:
    assert set(re.findall(r"\]\(examples/([\w.]+)\)", PAGE)) == {path.name for path in EXAMPLES}
