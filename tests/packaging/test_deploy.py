"""The image, the compose file and the smoke test say the same, and what they name is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from nvpstore.api.service.settings import VARIABLES

ROOT = Path(__file__).parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", text("Dockerfile")).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word.isupper()]


def copied() -> set[str]:
    given = [rest for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    return {source for rest in given for source in rest.split()[:-1]}


def test_what_is_copied_exists_and_is_let_through() -> None:
    let_through = set(re.findall(r"^!(.*)$", text(".dockerignore"), re.MULTILINE))
    assert [name for name in copied() if not (ROOT / name).exists()] == []
    assert copied() == let_through


def test_the_smoke_test_installs_the_same_files_in_the_same_way() -> None:
    names = re.search(r"^for name in (.*); do$", text("deploy/smoke.sh"), re.MULTILINE)
    assert names
    assert set(names[1].split()) == copied()
    for name in ("Dockerfile", "deploy/smoke.sh"):
        assert "-m pip install" in text(name)
        assert "--no-cache-dir -c constraints.txt" in text(name)
    defaults = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")
    assert set(defaults) == {"TORCH_INDEX", "EXTRAS"}
    for variable, value in defaults.items():
        assert re.search(
            rf"^{variable}=\${{{variable}:?-{re.escape(value)}}}$", text("deploy/smoke.sh"), re.MULTILINE
        )


def test_the_server_runs_as_nobody_in_particular() -> None:
    last_user = [rest for word, rest in instructions() if word == "USER"][-1]
    assert last_user == "10001:10001"


def test_images_are_pinned_and_alike() -> None:
    bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
    assert len(bases) == 1
    images = [*bases, *re.findall(r"^ +image: (\S+)$", text("compose.yaml"), re.MULTILINE)]
    ours = {"nvpstore"}
    assert [image for image in images if not re.search(r":\d+\.\d+", image) and image not in ours] == []


def test_commands_are_lists_so_that_signals_arrive() -> None:
    assert all(rest.startswith("[") for word, rest in instructions() if word in ("ENTRYPOINT", "CMD"))


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "deploy/smoke.sh"])
def test_every_variable_of_ours_is_known(name: str) -> None:
    used = set(re.findall(r"\bNVP_(?!S3_)[A-Z_]+", text(name)))
    assert used <= {*VARIABLES.values(), "NVP_ARCHIVE", "NVP_CACHE"}


def test_the_smoke_test_is_a_script_that_bash_can_read() -> None:
    script = ROOT / "deploy" / "smoke.sh"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
