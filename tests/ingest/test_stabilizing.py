"""A stabilizer in an archive: taught, stored, asked for, kept apart from plain answers, copied, verified."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nvpstore
from nvpstore.archive import Archive
from nvpstore.config import load_settings
from nvpstore.errors import QueryError, UsageError
from nvpstore.ingest.stabilizing import StabilizeRequest, StabilizerSummary
from nvpstore.query.request import Request
from nvpstore.query.run import execute
from tests.conftest import Micro

pytestmark = pytest.mark.slow  # one fit

STEADY = "SELECT frame, ts, rank, label, score FROM labels(stabilize := true{more}) c{where} ORDER BY ALL"


def opened(root: Path, cache: Path, **environment: str) -> Archive:
    return nvpstore.open(root, settings=load_settings({"NVP_CACHE": str(cache), **environment}))


def rows(archive: Archive, *, more: str = "", where: str = "") -> list[tuple[Any, ...]]:
    return archive.sql(STEADY.format(more=more, where=where)).fetchall()


def close(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> bool:
    """The same frames and labels, scores but for rounding."""
    same = [row[:-1] for row in found] == [row[:-1] for row in expected]
    return same and np.allclose([row[-1] for row in found], [row[-1] for row in expected], atol=1e-5)


@pytest.fixture(scope="module")
def made(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StabilizerSummary]:
    """An archive with a stabilizer of its task."""
    folder = tmp_path_factory.mktemp("steady")
    root = Path(shutil.copytree(micro.root, folder / "archive"))
    archive = opened(root, folder / "cache", NVP_ANSWERS="off")
    with pytest.raises(QueryError, match="nvp tasks stabilize labels"):
        rows(archive)
    return root, archive.stabilize("labels", steps=4, share=1.0)


@pytest.fixture
def archive(made: tuple[Path, StabilizerSummary], tmp_path: Path) -> Archive:
    return opened(made[0], tmp_path / "cache", NVP_ANSWERS="off")


@pytest.fixture
def own(made: tuple[Path, StabilizerSummary], tmp_path: Path) -> Path:
    """The root of a copy that may be changed."""
    return Path(shutil.copytree(made[0], tmp_path / "archive"))


def test_it_says_what_it_is(made: tuple[Path, StabilizerSummary]) -> None:
    found = made[1]
    assert (found.name, found.state, found.variant) == ("labels", "trained", "controlled")
    assert found.frames >= 8
    assert found.parameters < 0.05 * 4.65e6
    assert found.bytes < 10**6


def test_rows_under_a_condition_are_those_without(archive: Archive) -> None:
    everything = rows(archive)
    assert len({row[0] for row in everything}) == 40
    plain = archive.sql(STEADY.replace("stabilize := true{more}", "").format(where="")).fetchall()
    assert not np.allclose([row[-1] for row in everything], [row[-1] for row in plain], atol=1e-5)
    for where, keep in ((" WHERE c.ts >= 0.5 AND c.ts < 0.8", lambda r: 0.5 <= r[1] < 0.8),
                        (" WHERE c.frame = 33", lambda r: r[0] == 33)):  # fmt: skip
        assert close(rows(archive, where=where), [row for row in everything if keep(row)])
    sampled = rows(archive, more=", stride := 3")
    some = rows(archive, more=", stride := 3", where=" WHERE c.frame > 20")
    assert close(some, [row for row in sampled if row[0] > 20])


def test_any_batching_gives_the_same_answers(archive: Archive) -> None:
    everything = rows(archive)
    snapshot = archive.catalog.snapshot()
    request = Request(
        sql=STEADY.format(more="", where=""),
        snapshot=snapshot,
        operators_factory=archive._torch_operators,
        settings=archive.settings,
        batch_frames=7,
    )
    assert close(list(execute(request).fetchall()), everything)


@pytest.mark.parametrize("route", ["pixel", "source"])
def test_other_routes_have_it_too(archive: Archive, route: str) -> None:
    more = f", route := '{route}', top := 1, stride := 4"
    first = rows(archive, more=more)
    assert len(first) == 10
    assert close(
        rows(archive, more=more, where=" WHERE c.frame >= 30"), [row for row in first if row[0] >= 30]
    )


def test_kept_answers_go_with_the_weights_and_the_sampling(own: Path, tmp_path: Path) -> None:
    archive = opened(own, tmp_path / "one")
    first = rows(archive)
    again = archive.sql(STEADY.format(more="", where=""))
    assert again.measured is not None
    assert (again.measured.frames, list(again.fetchall())) == (0, first)
    part = archive.sql(STEADY.format(more="", where=" WHERE c.frame = 20"))
    assert part.measured is not None
    assert part.measured.frames == 0
    sampled = archive.sql(STEADY.format(more=", stride := 4", where=""))
    assert sampled.measured is not None
    assert sampled.measured.frames == 10
    archive.stabilize("labels", steps=2, share=0.5, variant="learned")
    other = archive.sql(STEADY.format(more="", where=""))
    assert other.measured is not None
    assert other.measured.frames == 40
    assert not close(list(other.fetchall()), first)


def test_a_part_that_is_kept_is_no_beginning_of_the_rest(own: Path, tmp_path: Path) -> None:
    archive = opened(own, tmp_path / "one")
    assert len(rows(archive, where=" WHERE c.frame < 10 AND rank = 1")) == 10
    everything = rows(archive)
    assert close(everything, rows(opened(own, tmp_path / "two", NVP_ANSWERS="off")))


def test_an_estimate_writes_nothing(archive: Archive) -> None:
    before = len(archive.store.list("log/"))
    found = archive.stabilize("labels", dry_run=True, steps=50, share=0.2)
    assert (found.state, found.steps) == ("estimated", 50)
    assert len(archive.store.list("log/")) == before
    assert found.seconds > 0


def test_it_is_verified_copied_and_collected(own: Path, tmp_path: Path) -> None:
    archive = opened(own, tmp_path / "one", NVP_ANSWERS="off")
    assert archive.verify().damages == ()
    settings = load_settings({"NVP_CACHE": str(tmp_path / "two"), "NVP_ANSWERS": "off"})
    target = nvpstore.open(tmp_path / "copy", create=True, settings=settings)
    archive.copy_to(target)
    assert close(rows(target), rows(archive))
    (key,) = archive.store.list("stabilizers/")
    damaged = own / key
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    assert [damage.object for damage in archive.verify().damages] == [str(damaged.relative_to(own))]


def test_what_is_asked_wrongly_is_refused(archive: Archive) -> None:
    with pytest.raises(UsageError, match="share 2"):
        StabilizeRequest(share=2)
    with pytest.raises(UsageError, match="repeat the first one"):
        archive.stabilize("labels", stability=9.0)
    with pytest.raises(UsageError, match="of 0 segments"):
        archive.stabilize("labels", videos="name = 'none'")


class TestPictures:
    def test_frames_are_made_steady_by_those_before(self, own: Path, tmp_path: Path) -> None:
        archive = opened(own, tmp_path / "one", NVP_ANSWERS="off")
        (video,) = archive.videos()
        with pytest.raises(UsageError, match="nvp tasks stabilize frames"):
            list(archive.frames(video["video_id"], stabilize=True))
        made = archive.stabilize("frames", steps=2)
        assert (made.name, made.variant, made.cut) == ("frames", "spatial", "")
        every = np.concatenate([b.rgb_thwc for b in archive.frames(video["video_id"], stabilize=True)])
        plain = np.concatenate([b.rgb_thwc for b in archive.frames(video["video_id"])])
        assert every.shape == plain.shape
        assert not np.array_equal(every, plain)
        some = list(archive.frames(video["video_id"], start=0.8, end=1.1, stabilize=True))
        first = some[0].first_frame
        found = np.concatenate([b.rgb_thwc for b in some])
        expected = every[first : first + len(found)].astype(int)
        assert np.abs(found.astype(int) - expected).max() <= 1
        out = archive.export(video["video_id"], tmp_path / "out.mp4", end=0.4, stabilize=True)
        assert out.frames == len([t for t in range(40) if t / 25 < 0.4])
        sql = "SELECT image FROM frames(stabilize := true) WHERE frame IN (3, 7)"
        assert len(archive.sql(sql).fetchall()) == 2


def test_steadiness_is_told_of_both(archive: Archive) -> None:
    plain, steady = archive.steadiness("labels")
    assert (plain.answers, plain.agreement, plain.frames) == ("plain", 1.0, 40)
    assert (steady.answers, steady.frames) == ("stabilized", 40)
    assert 0 <= steady.agreement <= 1
