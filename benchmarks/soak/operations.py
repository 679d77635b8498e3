"""What is killed: each operation on an archive, what it may have changed when killed, and after its rerun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nvpstore
from benchmarks.soak.look import QUESTION, Seen, SeenVideo
from nvpstore.archive import Archive
from nvpstore.errors import StoreError

PRESET = "micro"
Videos = Mapping[str, SeenVideo]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One operation as it is to be run: on which video (`clip` is its file), with which word for a tag."""

    name: str
    video_id: str = ""
    clip: Path = Path()
    word: str = ""
    target: str = ""

    def run(self, archive: Archive) -> None:
        _RUN[self.name](archive, self)

    def wrong(self, before: Videos, after: Videos, *, done: bool) -> list[str]:
        """What must not be, where the archive showed `before`, and `after` this was killed, or is `done`."""
        lines = [f"video {v} is lost" for v in before if v not in after and v != self.video_id]
        lines += [f"video {v} came from nowhere" for v in after if v not in before and v != self.video_id]
        lines += [
            f"video {v} has changed"
            for v in after
            if v in before and v != self.video_id and not after[v].same(before[v])
        ]
        old, new = before.get(self.video_id), after.get(self.video_id)
        if not any(allowed(old, new, self) for allowed in _ALLOWED[self.name][done:]):
            state = "done" if done else "killed"
            lines.append(f"{self.name} {state}: video {self.video_id} was {_said(old)}, is {_said(new)}")
        return lines


def _ingest(archive: Archive, work: Work) -> None:
    archive.ingest(work.clip, preset=PRESET, tags={"word": work.word}, device="cpu")


def _refit(archive: Archive, work: Work) -> None:
    archive.ingest(work.clip, preset=PRESET, device="cpu", refit=True)


def _tag(archive: Archive, work: Work) -> None:
    archive.tag(work.video_id, tags={"word": work.word})


def _gc(archive: Archive, work: Work) -> None:
    archive.gc()


def _rm(archive: Archive, work: Work) -> None:
    archive.erase(work.video_id)


def _query(archive: Archive, work: Work) -> None:
    # What it computes it keeps in the archive.
    keeping = nvpstore.open(archive.store.root, settings=replace(archive.settings, answers="on"))
    keeping.sql(QUESTION).fetchall()


def _copy(archive: Archive, work: Work) -> None:
    # The killed attempt may not have come as far as to make it.
    target = nvpstore.open(work.target, create=True, settings=archive.settings)
    report = archive.copy_to(target)
    if report.failures:
        raise StoreError(f"{work.target}: {report.failures[0].error}")


_RUN: Mapping[str, Callable[[Archive, Work], None]] = {
    "ingest": _ingest,
    "refit": _refit,
    "tag": _tag,
    "gc": _gc,
    "rm": _rm,
    "copy": _copy,
    "query": _query,
}

# ---------------------------------------------------------------- what may be

_Allowed = Callable[[SeenVideo | None, SeenVideo | None, Work], bool]


def _unchanged(old: SeenVideo | None, new: SeenVideo | None, _: Work) -> bool:
    return old is new is None or (old is not None and new is not None and new.same(old))


def _stored(old: SeenVideo | None, new: SeenVideo | None, work: Work) -> bool:
    return new is not None and dict(new.tags) == {"word": work.word} and (old is None or new.same(old))


def _fitted(old: SeenVideo | None, new: SeenVideo | None, _: Work) -> bool:
    return old is not None and new is not None and dict(new.tags) == dict(old.tags)


def _tagged(old: SeenVideo | None, new: SeenVideo | None, work: Work) -> bool:
    return old is not None and new is not None and new.same(replace(old, tags={"word": work.word}))


def _gone(old: SeenVideo | None, new: SeenVideo | None, _: Work) -> bool:
    return new is None


# While it was killed any of these; once it is done, any but the first.
_ALLOWED: Mapping[str, tuple[_Allowed, ...]] = {
    "ingest": (_unchanged, _stored),
    "refit": (_unchanged, _fitted),
    "tag": (_unchanged, _tagged),
    "gc": (_unchanged, _unchanged),
    "rm": (_unchanged, _gone),
    "copy": (_unchanged, _unchanged),
    "query": (_unchanged, _unchanged),
}


def copied(source: Seen, target: Seen, *, done: bool) -> list[str]:
    """What must not be in a copy: anything that is not in the source, or not all of it, once it is done."""
    lines = [
        f"the copy has another video {video_id}"
        for video_id, video in target.videos.items()
        if video_id not in source.videos or not video.same(source.videos[video_id])
    ]
    if done:
        lines += [f"video {v} is not in the copy" for v in source.videos if v not in target.videos]
    return lines


def _said(video: SeenVideo | None) -> str:
    return "absent" if video is None else f"{video.frames} frames, tags {dict(video.tags)}"
