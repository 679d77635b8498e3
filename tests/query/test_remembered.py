"""Answers of the index are asked for once, and forgotten with their snapshot."""

from __future__ import annotations

import gc
import weakref
from typing import Any, cast

from nvpstore.catalog import Snapshot
from nvpstore.query.remembered import ANSWERS, Remembered


class Asked:
    """A snapshot that notes what it is asked."""

    def __init__(self) -> None:
        self.questions: list[tuple[object, ...]] = []

    def __getattr__(self, kind: str) -> Any:
        def answer(*about: object) -> tuple[object, ...]:
            self.questions.append((kind, *about))
            return (kind, *about)

        return answer


def as_snapshot(asked: Asked) -> Snapshot:
    return cast(Snapshot, asked)


def test_each_question_is_asked_once_of_each_snapshot() -> None:
    remembered, snapshots = Remembered(), [Asked(), Asked()]
    for _ in range(3):
        for asked in snapshots:
            snapshot = as_snapshot(asked)
            answers: list[object] = [
                remembered.segment(snapshot, "a", 1),
                remembered.video(snapshot, "a"),
                remembered.footer(snapshot, "a"),
            ]
            assert answers == [("segment", "a", 1), ("video", "a"), ("footer", "a")]
    for asked in snapshots:
        assert asked.questions == [("segment", "a", 1), ("video", "a"), ("footer", "a")]


def test_only_the_last_answers_are_kept() -> None:
    remembered, asked = Remembered(), Asked()
    for segment in range(ANSWERS):
        remembered.segment(as_snapshot(asked), "a", segment)
        remembered.video(as_snapshot(asked), "a")  # in use all the time
    remembered.segment(as_snapshot(asked), "a", 0)
    assert asked.questions.count(("video", "a")) == 1
    assert asked.questions.count(("segment", "a", 0)) == 2


def test_a_snapshot_is_not_kept_alive() -> None:
    remembered, asked = Remembered(), Asked()
    remembered.video(as_snapshot(asked), "a")
    gone = weakref.ref(asked)
    del asked
    gc.collect()
    assert gone() is None
