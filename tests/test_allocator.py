"""Which allocator Arrow uses where nvpstore is imported first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = "import nvpstore, pyarrow; print(pyarrow.default_memory_pool().backend_name)"


@pytest.mark.parametrize(("asked", "used"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_arrow_uses_the_systems_unless_told_otherwise(asked: str | None, used: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"}
    if asked is not None:
        environment["ARROW_DEFAULT_MEMORY_POOL"] = asked
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, used), done.stderr
