"""Freed memory goes back to the system when the process has grown, and only then."""

from __future__ import annotations

import sys

import pytest

from nvpstore.query import resident
from nvpstore.query.resident import Resident, give_back, resident_bytes


def test_it_is_asked_once_for_each_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 105, 111, 101, 109, 112, 112, 113, 90, 101, 95])
    given: list[int] = []
    monkeypatch.setattr(resident, "resident_bytes", lambda: next(sizes))
    monkeypatch.setattr(resident, "give_back", lambda: given.append(1))
    kept = Resident(10)
    asked = []
    for _ in range(6):
        kept.keep_low()
        asked.append(len(given))
    # 105; 111 → 101; 109; 112 → 112, which is in use; 113; 90: from there 101 is growth again.
    assert asked == [0, 1, 1, 2, 2, 2]
    kept.keep_low()
    assert len(given) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process has")
def test_the_process_has_some() -> None:
    before = resident_bytes()
    block = bytearray(64 << 20)
    assert resident_bytes() - before > 32 << 20
    del block
    give_back()
    assert resident_bytes() - before < 32 << 20
