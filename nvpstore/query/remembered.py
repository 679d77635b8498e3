"""What a run asks its snapshot more than once: a query of the index takes milliseconds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from nvpstore.types import SegmentRecord

if TYPE_CHECKING:
    from nvpstore.catalog import IndexedVideo, Snapshot

ANSWERS = 64  # of one snapshot; more than the steps that are read ahead ask for

T = TypeVar("T")


class Remembered:
    """The last answers of each snapshot, for as long as that lives: they never change."""

    def __init__(self) -> None:
        self._answers: WeakKeyDictionary[Snapshot, OrderedDict[tuple[object, ...], Any]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def segment(self, snapshot: Snapshot, video_id: str, segment: int) -> SegmentRecord:
        return self._ask(
            snapshot, ("segment", video_id, segment), lambda: snapshot.segment(video_id, segment)
        )

    def video(self, snapshot: Snapshot, video_id: str) -> IndexedVideo:
        return self._ask(snapshot, ("video", video_id), lambda: snapshot.video(video_id))

    def footer(self, snapshot: Snapshot, key: str) -> bytes:
        return self._ask(snapshot, ("footer", key), lambda: snapshot.footer(key))

    def _ask(self, snapshot: Snapshot, question: tuple[object, ...], ask: Callable[[], T]) -> T:
        with self._lock:
            answers = self._answers.setdefault(snapshot, OrderedDict())
            if question in answers:
                answers.move_to_end(question)
                known: T = answers[question]
                return known
        answer = ask()
        with self._lock:
            answers[question] = answer
            if len(answers) > ANSWERS:
                answers.popitem(last=False)
        return answer
