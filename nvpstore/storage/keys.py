"""The names of all objects of an archive: every key is built and parsed here, and nowhere else.

Every key that is ever deleted carries an attempt, so that no key is used twice: a deletion that comes late
can never hit what somebody else has written since.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from nvpstore.errors import UsageError

KeyKind = Literal[
    "log", "log_checkpoint", "manifest", "weights", "latents", "audio", "routes", "meta",
    "decoder", "archive_adapters", "stabilizer", "task", "task_weights", "view", "result", "source",
]  # fmt: skip

LOG_PREFIX = "log/"
CHECKPOINT_PREFIX = "log/checkpoint-"
SOURCES_PREFIX = "sources/"
TASKS_PREFIX = "tasks/"
RESULTS_PREFIX = "results/"
STABILIZERS_PREFIX = "stabilizers/"
PICTURES = "0" * 64  # the version of a stabilizer of pictures, which are no task's

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

# What may stand in each field of a key, and how a person would say it.
_FIELDS: dict[str, tuple[str, str]] = {
    "number": (r"\d{20}", "20 digits"),
    "video_id": (r"[0-9a-f]{32}", "32 lowercase hex digits"),
    "attempt": (r"[0-7][0-9A-HJKMNP-TV-Z]{25}", "a ULID of 26 characters"),
    "first_segment": (r"0|[1-9]\d*", "a number from 0"),
    "version": (r"[0-9a-f]{64}", "64 lowercase hex digits"),
    "sha256": (r"[0-9a-f]{64}", "64 lowercase hex digits"),
    "name": (r"[a-z][a-z0-9_]{0,62}", "a lowercase letter, then up to 62 of a-z 0-9 _"),
    "result": (r"[0-9a-f]{32}", "32 lowercase hex digits"),
    "footer": (r"[0-9a-f]{64}", "64 lowercase hex digits"),
}

_TEMPLATES: dict[KeyKind, str] = {
    "log": "log/{number}.json",
    "log_checkpoint": "log/checkpoint-{number}-{sha256}.parquet",
    "manifest": "videos/{video_id}/{attempt}/manifest.parquet",
    "weights": "videos/{video_id}/{attempt}/weights-{first_segment}.parquet",
    "latents": "videos/{video_id}/{attempt}/latents-{first_segment}.parquet",
    "audio": "videos/{video_id}/{attempt}/audio.mka",
    "routes": "videos/{video_id}/routes/{version}/{attempt}.parquet",
    "meta": "videos/{video_id}/meta/{attempt}.json",
    "decoder": "decoders/{sha256}.parquet",
    "archive_adapters": "adapters/{version}/{attempt}.parquet",
    "stabilizer": "stabilizers/{name}/{version}/{attempt}.safetensors",
    "task": "tasks/{name}/{version}.json",
    "task_weights": "tasks/{name}/{version}.safetensors",
    "view": "views/{name}/{attempt}.json",
    "result": "results/{video_id}/{version}/{result}/{attempt}-{footer}.parquet",
    "source": "sources/{video_id}/{attempt}",
}

_PATTERNS: dict[KeyKind, re.Pattern[str]] = {
    kind: re.compile(
        re.sub(r"\\?\{(\w+)\\?\}", lambda m: f"(?P<{m[1]}>{_FIELDS[m[1]][0]})", re.escape(template))
    )
    for kind, template in _TEMPLATES.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedKey:
    """What a key says about its object. Fields that a kind does not have are empty, or -1 for numbers."""

    kind: KeyKind
    number: int = -1
    video_id: str = ""
    attempt: str = ""
    first_segment: int = -1
    version: str = ""
    sha256: str = ""
    name: str = ""
    result: str = ""
    footer: str = ""


def new_attempt(*, later_than: str = "") -> str:
    """A fresh ULID: 48 bits of milliseconds and 80 random bits, in 26 characters that sort by time.

    It is greater than `later_than`, whatever this machine's clock says.
    """
    attempt = _ulid(time.time_ns() // 1_000_000, secrets.randbits(80))
    if attempt <= later_than:
        attempt = _ulid(_milliseconds(later_than) + 1, secrets.randbits(80))
    return attempt


def attempt_time(attempt: str) -> datetime:
    """When an attempt was begun, by its writer's clock. Raises UsageError if it is none."""
    return datetime.fromtimestamp(_milliseconds(check_attempt(attempt)) / 1000, UTC)


def first_attempt_at(when: datetime) -> str:
    """The smallest attempt of that millisecond: every attempt begun before `when` sorts below it."""
    return _ulid(int(when.timestamp() * 1000), 0)


def _ulid(milliseconds: int, random: int) -> str:
    value = milliseconds << 80 | random
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


def _milliseconds(attempt: str) -> int:
    value = 0
    for character in attempt:
        value = value << 5 | _CROCKFORD.index(character)
    return value >> 80


def check_video_id(video_id: str) -> str:
    """Return `video_id` unchanged. Raises UsageError if it is not 32 lowercase hex digits."""
    return _checked("video_id", video_id)


def is_video_id(text: str) -> bool:
    """Whether `text` is a whole id, of whatever video."""
    return re.fullmatch(_FIELDS["video_id"][0], text) is not None


def check_name(name: str) -> str:
    """Return a task's or view's `name` unchanged. Raises UsageError if it could not be a table's name."""
    return _checked("name", name)


def check_attempt(attempt: str) -> str:
    """Return `attempt` (or an archive's id, which is made alike) unchanged. Raises UsageError."""
    return _checked("attempt", attempt)


def log_key(number: int) -> str:
    return _key("log", number=f"{number:020d}")


def log_checkpoint_key(number: int, sha256: str) -> str:
    return _key("log_checkpoint", number=f"{number:020d}", sha256=sha256)


def video_prefixes(video_id: str) -> tuple[str, ...]:
    """The folders that hold everything of one video: what was stored, its original, and answers about it."""
    check_video_id(video_id)
    return f"videos/{video_id}/", f"{SOURCES_PREFIX}{video_id}/", f"{RESULTS_PREFIX}{video_id}/"


def meta_prefix(video_id: str) -> str:
    """The folder of what people said about a video, with its trailing slash."""
    return f"videos/{video_id}/meta/"


def manifest_key(video_id: str, attempt: str) -> str:
    return _key("manifest", video_id=video_id, attempt=attempt)


def weights_key(video_id: str, attempt: str, first_segment: int) -> str:
    return _key("weights", video_id=video_id, attempt=attempt, first_segment=str(first_segment))


def latents_key(video_id: str, attempt: str, first_segment: int) -> str:
    return _key("latents", video_id=video_id, attempt=attempt, first_segment=str(first_segment))


def audio_key(video_id: str, attempt: str) -> str:
    return _key("audio", video_id=video_id, attempt=attempt)


def routes_key(video_id: str, version: str, attempt: str) -> str:
    return _key("routes", video_id=video_id, version=version, attempt=attempt)


def meta_key(video_id: str, attempt: str) -> str:
    return _key("meta", video_id=video_id, attempt=attempt)


def decoder_key(sha256: str) -> str:
    return _key("decoder", sha256=sha256)


def archive_adapters_key(version: str, attempt: str) -> str:
    return _key("archive_adapters", version=version, attempt=attempt)


def stabilizer_key(name: str, version: str, attempt: str) -> str:
    """Of a task's version; of pictures, `name` is "frames" and `version` PICTURES."""
    return _key("stabilizer", name=name, version=version, attempt=attempt)


def task_key(name: str, version: str) -> str:
    return _key("task", name=name, version=version)


def task_weights_key(name: str, version: str) -> str:
    return _key("task_weights", name=name, version=version)


def view_key(name: str, attempt: str) -> str:
    return _key("view", name=name, attempt=attempt)


def result_key(video_id: str, version: str, result: str, attempt: str, footer: str) -> str:
    """`result` says which answers of the task version these are, `footer` is the file's footer's SHA-256."""
    fields = {"version": version, "result": result, "attempt": attempt, "footer": footer}
    return _key("result", video_id=video_id, **fields)


def source_key(video_id: str, attempt: str) -> str:
    return _key("source", video_id=video_id, attempt=attempt)


def parse_key(key: str) -> ParsedKey:
    """The fields of any key. Raises UsageError if no object of an archive is named so."""
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(key)
        if match:
            numbers = {n: int(v) for n, v in match.groupdict().items() if n in ("number", "first_segment")}
            return ParsedKey(kind=kind, **(match.groupdict() | numbers))  # type: ignore[arg-type]
    raise UsageError(f"{key!r} is not the key of an archive's object")


def _key(kind: KeyKind, **fields: str) -> str:
    return _TEMPLATES[kind].format(**{name: _checked(name, value) for name, value in fields.items()})


def _checked(field: str, value: str) -> str:
    pattern, allowed = _FIELDS[field]
    if not re.fullmatch(pattern, value):
        raise UsageError(f"{field} {value!r}: must be {allowed}")
    return value
