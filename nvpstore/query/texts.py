"""What a query's texts are in the space of a task's embeddings: asked of its model once a process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nvpstore.errors import NvpError, QueryError
from nvpstore.query.parse import Query
from nvpstore.query.text_calls import EMBED_TEXT, TextCall, put_vectors
from nvpstore.query.versions import text_task
from nvpstore.types import TaskRecord

Vector = NDArray[np.float32]
# Texts → [n, d]; None for a task whose model reads no text.
Embed = Callable[[TaskRecord, Sequence[str]], NDArray[np.float32] | None]
KEPT = 1024  # vectors; of 1024 numbers each they take 4 MB


class Vectors:
    """The vectors of texts by task version, the last ones asked for. Can be shared by threads."""

    def __init__(self, *, most: int = KEPT) -> None:
        self._known: OrderedDict[tuple[str, str], Vector] = OrderedDict()
        self._most = most
        self._lock = threading.Lock()

    def of(self, task: TaskRecord, texts: Sequence[str], embed: Embed) -> list[Vector] | None:
        """The vector [d] of each of `texts`; `embed` is asked for those that are not known, at once."""
        # One at a time: who waits finds what the other has asked for.
        with self._lock:
            found = {text: self._known.get((task.version, text)) for text in texts}
            unknown = [text for text, vector in found.items() if vector is None]
            if unknown:
                vectors = embed(task, unknown)
                if vectors is None:
                    return None
                found |= dict(zip(unknown, vectors, strict=True))
            asked = {text: vector for text, vector in found.items() if vector is not None}
            self._keep(task, asked)
            return [asked[text] for text in texts]

    def _keep(self, task: TaskRecord, vectors: dict[str, Vector]) -> None:
        for text, vector in vectors.items():
            self._known[(task.version, text)] = vector
            self._known.move_to_end((task.version, text))
        while len(self._known) > self._most:
            self._known.popitem(last=False)


VECTORS = Vectors()


def with_texts(query: Query, tasks: Sequence[TaskRecord], embed: Embed) -> Query:
    """`query` with the vectors of its texts in it. `tasks` newest first; `embed` is called once a task.

    Raises QueryError, with line and column: an unknown version, a task of another kind than embeddings, one
    whose model reads no text; and what `embed` raises.
    """
    if not query.texts:
        return query
    meant = [text_task(call, tasks) for call in query.texts]
    found: dict[tuple[str, str], Vector] = {}
    for task in {task.version: task for task in meant}.values():
        calls = [call for call, of in zip(query.texts, meant, strict=True) if of == task]
        found |= {(task.version, text): vector for text, vector in _asked(task, calls, embed)}
    values = [found[(task.version, call.text)] for call, task in zip(query.texts, meant, strict=True)]
    return replace(query, tree=put_vectors(query.tree, values))


def _asked(task: TaskRecord, calls: Sequence[TextCall], embed: Embed) -> list[tuple[str, Vector]]:
    texts = list(dict.fromkeys(call.text for call in calls))
    where = calls[0].where
    try:
        found = VECTORS.of(task, texts, embed)
    except NvpError as cause:
        raise type(cause)(f"{where}: {EMBED_TEXT}: {cause}") from cause
    if found is None:
        raise QueryError(
            f"{where}: {EMBED_TEXT}: the model of {calls[0].shown} reads no text; allowed are tasks whose"
            " model was trained on pictures with texts (CLIP)"
        )
    return list(zip(texts, found, strict=True))
