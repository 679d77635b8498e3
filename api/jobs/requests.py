"""What each kind of job is asked to do: frozen values, and the JSON that the queue keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, cast, get_args

from nvpstore.errors import UsageError
from nvpstore.upkeep.meta import in_utc

Kept = Literal["reference", "copy", "none"]
SteadyVariant = Literal["learned", "controlled", "spatial"]
AnswerFormat = Literal["json", "ndjson", "csv", "arrow", "parquet"]

# Those of Archive.ingest, train_task and stabilize; spelled out, since requests must not load the archive.
DEFAULT_PRESET = "demo"
DEFAULT_TASKS = ("labels",)
DEFAULT_SHARE = 0.05
DEFAULT_MEASURED = 256
DEFAULT_STEADY_SHARE = 0.25
DEFAULT_STEADY_STEPS = 200
DEFAULT_STABILITY = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestJob:
    """A video to fit (jobs of kind "ingest") or to register (kind "add").

    It is a finished upload, `file`, or is found at `uri`; `sha256` (64 hex digits) are those of an upload.
    `original_name` is what it was called where it comes from, and its name where `name` is None.
    `recorded_at` is ISO 8601 with a time zone. Of an upload there is nothing to refer to later, and what is
    registered is always kept.
    """

    file: str | None = None
    uri: str | None = None
    original_name: str
    sha256: str | None = None
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    recorded_at: str | None = None
    tasks: tuple[str, ...] = DEFAULT_TASKS
    preset: str = DEFAULT_PRESET
    keep_source: Kept = "none"
    refit: bool = False

    def __post_init__(self) -> None:
        if (self.file is None) == (self.uri is None):
            raise UsageError("a video is either an uploaded file or found at a uri: one of them is needed")
        if self.file is not None and self.keep_source == "reference":
            raise UsageError("keep_source 'reference': an upload is kept by 'copy' or not at all ('none')")
        _check_choice("keep_source", self.keep_source, get_args(Kept))
        if self.recorded_at is not None:
            instant(self.recorded_at)

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> IngestJob:
        """Raises UsageError naming the field that is malformed."""
        given = _Given(value)
        request = cls(
            file=given.maybe_text("file"),
            uri=given.maybe_text("uri"),
            original_name=given.text("original_name"),
            sha256=given.maybe_text("sha256"),
            name=given.maybe_text("name"),
            tags=given.pairs("tags"),
            recorded_at=given.maybe_text("recorded_at"),
            tasks=given.texts("tasks", DEFAULT_TASKS),
            preset=given.text("preset", DEFAULT_PRESET),
            keep_source=cast(Kept, given.text("keep_source", "none")),
            refit=given.flag("refit"),
        )
        given.end()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class FitJob:
    """A stored video, by id or name, to fit from its original; `keep_source` None leaves that as it is."""

    video: str
    tasks: tuple[str, ...] = DEFAULT_TASKS
    preset: str = DEFAULT_PRESET
    keep_source: Kept | None = None
    refit: bool = False

    def __post_init__(self) -> None:
        if self.keep_source is not None:
            _check_choice("keep_source", self.keep_source, get_args(Kept))

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FitJob:
        """Raises UsageError naming the field that is malformed."""
        given = _Given(value)
        request = cls(
            video=given.text("video"),
            tasks=given.texts("tasks", DEFAULT_TASKS),
            preset=given.text("preset", DEFAULT_PRESET),
            keep_source=cast(Kept | None, given.maybe_text("keep_source")),
            refit=given.flag("refit"),
        )
        given.end()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """A task to train on fitted videos; the rest as in `Archive.train_task`.

    `videos` is a predicate over the columns of the `videos` view; None: all of them.
    """

    task: str
    videos: str | None = None
    share: float = DEFAULT_SHARE
    measured: int = DEFAULT_MEASURED
    again: bool = False

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainJob:
        """Raises UsageError naming the field that is malformed."""
        given = _Given(value)
        request = cls(
            task=given.text("task"),
            videos=given.maybe_text("videos"),
            share=given.number("share", DEFAULT_SHARE),
            measured=given.whole("measured", DEFAULT_MEASURED),
            again=given.flag("again"),
        )
        given.end()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class StabilizeJob:
    """A task whose answers, or "frames", whose pictures, are to become steady; as `Archive.stabilize`."""

    task: str
    videos: str | None = None
    share: float = DEFAULT_STEADY_SHARE
    steps: int = DEFAULT_STEADY_STEPS
    stability: float = DEFAULT_STABILITY
    variant: SteadyVariant | None = None

    def __post_init__(self) -> None:
        if self.variant is not None:
            _check_choice("variant", self.variant, get_args(SteadyVariant))

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StabilizeJob:
        """Raises UsageError naming the field that is malformed."""
        given = _Given(value)
        request = cls(
            task=given.text("task"),
            videos=given.maybe_text("videos"),
            share=given.number("share", DEFAULT_STEADY_SHARE),
            steps=given.whole("steps", DEFAULT_STEADY_STEPS),
            stability=given.number("stability", DEFAULT_STABILITY),
            variant=cast(SteadyVariant | None, given.maybe_text("variant")),
        )
        given.end()
        return request


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryJob:
    """A SELECT whose answer is kept for its owner. `params` by position or by name, as JSON has them."""

    sql: str
    params: Sequence[Any] | Mapping[str, Any] | None = None
    format: AnswerFormat = "json"

    def __post_init__(self) -> None:
        if not isinstance(self.params, list | tuple | Mapping | None):
            raise _wrong("params", self.params, "a list or an object")
        _check_choice("format", self.format, get_args(AnswerFormat))

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> QueryJob:
        """Raises UsageError naming the field that is malformed."""
        given = _Given(value)
        request = cls(
            sql=given.text("sql"),
            params=given.anything("params"),
            format=cast(AnswerFormat, given.text("format", "json")),
        )
        given.end()
        return request


def instant(text: str) -> datetime:
    """A time in ISO 8601 with its zone. Raises UsageError."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        value = None
    if value is None or value.tzinfo is None:
        raise UsageError(
            f"recorded_at {text!r}: a time in ISO 8601 with its zone is needed, such as 2026-05-01T12:30:00Z"
        )
    in_utc(value)
    return value


# ---------------------------------------------------------------- to JSON and back


class _Given:
    """The fields of a JSON object, each taken once. Raises UsageError for one of another kind."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._left = dict(value)

    def text(self, name: str, default: str | None = None) -> str:
        return str(self._take(name, str, "a text", default))

    def maybe_text(self, name: str) -> str | None:
        if self._left.get(name) is None:
            self._left.pop(name, None)
            return None
        return self.text(name)

    def texts(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        found = self._take(name, list | tuple, "a list of texts", default)
        if not all(isinstance(part, str) for part in found):
            raise _wrong(name, found, "a list of texts")
        return tuple(found)

    def pairs(self, name: str) -> dict[str, str]:
        found = self._take(name, Mapping, "texts by name", {})
        if not all(isinstance(part, str) for pair in found.items() for part in pair):
            raise _wrong(name, found, "texts by name")
        return dict(found)

    def flag(self, name: str) -> bool:
        return bool(self._take(name, bool, "true or false", False))

    def whole(self, name: str, default: int) -> int:
        return int(self._take(name, int, "a whole number", default))

    def number(self, name: str, default: float) -> float:
        return float(self._take(name, int | float, "a number", default))

    def anything(self, name: str) -> Any:
        return self._left.pop(name, None)

    def end(self) -> None:
        """Raises UsageError for fields that nobody took."""
        if self._left:
            raise UsageError(f"a job of this kind has no {', '.join(sorted(self._left))}")

    def _take(self, name: str, kind: Any, described: str, default: Any) -> Any:
        value = self._left.pop(name, default)
        # To Python a bool is an int.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise _wrong(name, value, described)
        return value


def _wrong(name: str, value: object, described: str) -> UsageError:
    return UsageError(f"a job's {name} is {value!r}: {described} is needed")


def _to_json(request: Any) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(request).items()
    }


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} {value!r}: {', '.join(allowed)} are allowed")
