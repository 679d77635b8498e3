"""`nvp ingest` and its kin when things go wrong: one clear line, the right status, nothing half visible."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from nvpstore.api import cli
from tests.conftest import Micro, open_micro
from tests.video.conftest import Clip, write_clip, write_tone

pytestmark = pytest.mark.slow  # processes and fits

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty archive."""
    open_micro(tmp_path / "archive", tmp_path / "cache", create=True)
    return tmp_path / "archive"


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`fails(status, *arguments)` runs `nvp`, and gives the one line that it says."""

    def run(status: int, *arguments: object) -> str:
        try:
            found = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            found = int(error.code or 0)
        out, err = capfd.readouterr()
        assert found == status, err
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.startswith("nvp: ")
        return err

    return run


def listed(root: Path, cache: Path) -> list[dict[str, Any]]:
    return open_micro(root, cache).videos()


# ---------------------------------------------------------------- files that are no videos


def no_file(folder: Path) -> Path:
    return folder / "missing.mp4"


def empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def words(folder: Path) -> Path:
    (folder / "words.mp4").write_text("This is a text about videos.\n" * 200)
    return folder / "words.mp4"


def truncated(folder: Path) -> Path:
    path = write_clip(folder, Clip(name="truncated.mkv"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def truncated_with_index_in_front(folder: Path) -> Path:
    path = write_clip(folder, Clip(name="truncated.mp4", container_options={"movflags": "faststart"}))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def truncated_before_its_index(folder: Path) -> Path:
    path = write_clip(folder, Clip(name="indexless.mp4"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def sound_only(folder: Path) -> Path:
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        assert isinstance(stream, av.AudioStream)
        write_tone(container, stream, seconds=0.5)
    return path


def no_frames(folder: Path) -> Path:
    path = folder / "frameless.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream("aac", rate=48_000)
        assert isinstance(sound, av.AudioStream)
        write_tone(container, sound, seconds=0.2)
        container.mux(video.encode(None))
    return path


BAD_FILES = (
    no_file, empty, words, truncated, truncated_with_index_in_front,
    truncated_before_its_index, sound_only, no_frames,
)  # fmt: skip


@pytest.mark.parametrize("make", BAD_FILES, ids=lambda make: make.__name__)
def test_a_file_that_is_no_whole_video_is_one_line(
    root: Path, tmp_path: Path, fails: Callable[..., str], make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    said = fails(1, "ingest", path, "--preset", "micro", "--archive", root)
    assert path.name in said
    assert listed(root, tmp_path / "cache") == []
    assert not list(root.rglob("videos/*"))


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--preset", "vast"), 2, "micro"),
        (("--task", "lables"), 1, "labels"),
        (("--device", "tpu"), 2, "cuda"),
        (("--tag", "camera"), 2, "KEY=VALUE"),
        (("--keep-source", "maybe"), 2, "reference"),
        (("--speed", "9"), 2, "--speed"),
    ],
)
def test_an_argument_that_is_not_offered_is_one_line(
    root: Path, tmp_path: Path, fails: Callable[..., str], arguments: tuple[str, ...], status: int, says: str
) -> None:
    path = write_clip(tmp_path, Clip(frames=4))
    assert says in fails(status, "ingest", path, "--preset", "micro", "--archive", root, *arguments)
    assert listed(root, tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT * FROM lables", "labels"),
        ("SELECT colour FROM labels", "colour"),
        ("SELECT lable FROM labels", "label"),
        ("SELECT * FROM labels(evry := 1)", "every"),
        ("SELECT * FROM labels(route := 'teleport')", "adapter"),
        ("SELECT * FROM labels(every := 0)", "every"),
        ("SELECT * FROM labels(min_fidelity := 7)", "min_fidelity"),
        ("SELECT FROM WHERE", "line 1"),
        ("DELETE FROM videos", "SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", "read_csv"),
        ("SELECT * FROM '/etc/passwd'", "/etc/passwd"),
    ],
)
def test_a_wrong_query_is_one_line(micro: Micro, fails: Callable[..., str], query: str, says: str) -> None:
    assert says.lower() in fails(1, "sql", query, "--archive", micro.root).lower()


def test_a_root_that_is_no_archive_is_one_line(tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "folder").mkdir()
    assert "folder" in fails(1, "ls", "--archive", tmp_path / "folder")
    assert "nowhere" in fails(1, "ls", "--archive", tmp_path / "nowhere")
    assert list((tmp_path / "folder").iterdir()) == []


def test_no_archive_at_all_is_one_line(fails: Callable[..., str]) -> None:
    assert "NVP_ARCHIVE" in fails(2, "ls")


# ---------------------------------------------------------------- places that take nothing


def test_an_export_into_a_place_that_is_not_there_is_one_line(
    micro: Micro, tmp_path: Path, fails: Callable[..., str]
) -> None:
    for out in (tmp_path / "no/out.mp4", Path("/proc/out.mp4")):
        assert "out.mp4" in fails(1, "export", micro.video_id, out, "--archive", micro.root)
    assert ".avi" in fails(2, "export", micro.video_id, tmp_path / "o.avi", "--archive", micro.root)
    assert "--start" in fails(
        2, "export", micro.video_id, tmp_path / "o.mp4", "--start", "2", "--end", "1", "--archive", micro.root
    )


def nvp(*arguments: object, cache: Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "NVP_CACHE": str(cache)}
    command = [sys.executable, "-m", "nvpstore.api.cli", *(str(a) for a in arguments)]
    return subprocess.Popen(
        command, text=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def small_files_only() -> None:
    """As on a full disk, a write fails half way: no file may grow beyond this."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))


def test_a_target_that_is_full_leaves_nothing_visible(root: Path, tmp_path: Path) -> None:
    path = write_clip(tmp_path, Clip(frames=8))
    # The index is a file of its own and larger; it is made before the disk fills.
    listed(root, tmp_path / "cache")
    process = nvp(
        "ingest", path, "--preset", "micro", "--archive", root,
        cache=tmp_path / "cache", preexec_fn=small_files_only,
    )  # fmt: skip
    out, err = process.communicate()
    assert process.returncode == 1, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("nvp: ")
    assert listed(root, tmp_path / "cache") == []
    assert open_micro(root, tmp_path / "other").verify(deep=True).damages == ()


def test_a_full_disk_while_fitting_is_one_line(micro: Micro, tmp_path: Path) -> None:
    path = write_clip(tmp_path, Clip(frames=8))
    before = len(micro.copy(tmp_path).videos())  # the task is registered, the index made
    process = nvp(
        "ingest", path, "--preset", "micro", "--archive", tmp_path / "archive",
        cache=tmp_path / "cache", preexec_fn=small_files_only,
    )  # fmt: skip
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("nvp: ")
    assert len(listed(tmp_path / "archive", tmp_path / "cache")) == before


def as_bound_by_permissions() -> None:
    """Root may write everywhere, unless CAP_DAC_OVERRIDE is taken from all that it starts."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def test_a_target_that_is_read_only_is_one_line(root: Path, tmp_path: Path) -> None:
    path = write_clip(tmp_path, Clip(frames=4))
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        folder.chmod(0o555)
    process = nvp(
        "ingest", path, "--preset", "micro", "--archive", root,
        cache=tmp_path / "cache", preexec_fn=as_bound_by_permissions,
    )  # fmt: skip
    out, err = process.communicate()
    assert process.returncode == 1, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("nvp: ")
    assert listed(root, tmp_path / "cache") == []


# ---------------------------------------------------------------- stopped half way


def wait_for(found: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing to wait for any longer"
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_ingest_shows_nothing_and_a_rerun_continues(
    root: Path, tmp_path: Path, real_clip: Path, how: signal.Signals
) -> None:
    cache = tmp_path / "cache"
    arguments = ("ingest", real_clip, "--preset", "micro", "--archive", root)
    process = nvp(*arguments, cache=cache)
    wait_for(lambda: list(cache.rglob("segment-0.pt")), process)
    process.send_signal(how)
    out, err = process.communicate()
    assert out == ""
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("nvp: interrupted")
        assert "Traceback" not in err
    assert listed(root, cache) == []
    assert open_micro(root, cache).verify(deep=True).damages == ()

    seen: list[Any] = []
    video = open_micro(root, cache).ingest(real_clip, preset="micro", progress=seen.append)
    first = next(p for p in seen if p.phase == "fit")
    assert first.done > first.total / 4  # the first of three segments was kept
    assert (video.already_stored, video.frames) == (False, 40)
    assert open_micro(root, cache).verify(deep=True).damages == ()


# ---------------------------------------------------------------- what works


def test_every_format_shows_every_view(micro: Micro, capfd: pytest.CaptureFixture[str]) -> None:
    for view in ("videos", "segments", "tasks", "routes"):
        query = f"SELECT * FROM {view}"
        count = len(micro.archive.sql(query).fetchall())
        shown = {}
        for name in ("table", "json", "csv"):
            assert cli.main(["sql", query, "--format", name, "--archive", str(micro.root)]) == 0
            shown[name] = capfd.readouterr().out
        rows = json.loads(shown["json"])
        assert len(rows) == count
        assert shown["csv"].splitlines()[0] == ",".join(rows[0])
        assert len(shown["csv"].splitlines()) == len(shown["table"].splitlines()) - 1 == count + 1


def test_help_needs_no_archive(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["ingest", "--help"])
    assert stopped.value.code == 0
    assert "--keep-source" in capfd.readouterr().out
