"""S3 from several processes: one winner a key, and forks that harm nobody."""

from __future__ import annotations

import gc
import multiprocessing
import subprocess
import sys
import time

import pytest

from nvpstore.storage.objects import open_store
from nvpstore.storage.s3 import READ_SECONDS

pytestmark = pytest.mark.s3

_RACER = """
import sys
from nvpstore.errors import ObjectExists
from nvpstore.storage.objects import open_store
store = open_store(sys.argv[1])
store.exists("warm")
sys.stdin.readline()
for n in range(20):
    try:
        store.put(f"log/{n}", f"{n} by {sys.argv[2]}".encode())
    except ObjectExists:
        continue
    print(n, flush=True)
"""


def test_one_of_several_processes_wins_each_key(s3_root: str) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, s3_root, str(n)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    time.sleep(1.5)
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = [[int(line) for line in racer.communicate()[0].split()] for racer in racers]
    assert sorted(n for each in won for n in each) == list(range(20))
    store = open_store(s3_root)
    for n, keys in enumerate(won):
        assert all(store.get(f"log/{key}") == f"{key} by {n}".encode() for key in keys)


def test_a_fork_harms_neither_parent_nor_child(s3_root: str) -> None:
    stores = [open_store(s3_root) for _ in range(3)]
    for store in stores:
        store.put("a", b"parent")

    def child() -> None:
        stores[0].put("b", stores[0].get("a") + b" and child")
        stores.clear()
        gc.collect()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    begun = time.monotonic()
    assert {store.get("b") for store in stores} == {b"parent and child"}
    # The child has not closed the connections that the parent still waits on.
    assert time.monotonic() - begun < READ_SECONDS / 2
