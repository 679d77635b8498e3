"""What is asked: a query's text, and all that its answer may depend on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvpstore.config import Settings
from nvpstore.query.binding import Params
from nvpstore.query.children import Children
from nvpstore.query.chunks import BATCH_FRAMES
from nvpstore.query.contract import Operators
from nvpstore.query.keeping import AnswersAt
from nvpstore.query.parse import PlanFormat
from nvpstore.query.plan import Snapshot
from nvpstore.query.progress import OnProgress


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One read-only SELECT (or EXPLAIN [ANALYZE] of one) on `snapshot`.

    `operators_factory` is called only where frames must be decoded (not those that `answers` has) or texts
    embedded. `tables` are the caller's own, by name: Arrow, pandas or polars; `views` the texts of the
    caller's views by name, beside those saved in the archive. Set `cancel`, and the query ends; it also ends
    after `seconds` (None: `settings.query_seconds`). `batch_frames` ≥ 1 are decoded at once at most. With
    `explain`, the plan in that form is the answer, and nothing is computed. With `children`, what the caller
    wrote runs in one of those processes, and never in this one.
    """

    sql: str
    snapshot: Snapshot
    operators_factory: Callable[[], Operators]
    settings: Settings
    params: Params | None = None
    tables: Mapping[str, Any] | None = None
    views: Mapping[str, str] | None = None
    cancel: threading.Event | None = None
    on_progress: OnProgress | None = None
    batch_frames: int = BATCH_FRAMES
    answers: AnswersAt | None = None
    seconds: float | None = None
    explain: PlanFormat | None = None
    children: Children | None = None
