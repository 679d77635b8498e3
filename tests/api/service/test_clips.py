"""Clips and originals over HTTP: the right pictures, in ranges, as browsers ask for them."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from nvpstore.api.service import clip_store
from nvpstore.api.service.app import create_app
from nvpstore.api.service.state import Service
from nvpstore.archive import Archive
from tests.api.service.served import again, service_over, serving
from tests.conftest import CLIP_FRAMES, Micro

pytestmark = pytest.mark.slow  # one fit

Fresh = Callable[..., TestClient]


def pictures(path: Path) -> NDArray[np.uint8]:
    """All frames of a file by PyAV, [t, h, w, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def saved(answer: Any, folder: Path) -> Path:
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "video/mp4"
    path = folder / "clip.mp4"
    path.write_bytes(answer.content)
    return path


def psnr(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    error = found.astype(np.float64) - expected
    return float(10 * np.log10(255**2 / (error**2).mean()))


class TestPictures:
    def test_the_whole_video_is_what_the_archive_decodes(
        self, client: TestClient, service: Service, fitted: str, tmp_path: Path
    ) -> None:
        path = saved(client.get(f"/v1/videos/{fitted}/clip.mp4"), tmp_path)
        expected = np.concatenate([batch.rgb_thwc for batch in service.archive.frames(fitted)])
        found = pictures(path)
        assert found.shape == expected.shape == (CLIP_FRAMES, *expected.shape[1:])
        assert psnr(found, expected) > 30

    def test_a_part_begins_and_ends_where_it_was_asked_to(
        self, client: TestClient, service: Service, fitted: str, tmp_path: Path
    ) -> None:
        path = saved(client.get(f"/v1/videos/{fitted}/clip.mp4?start=0.4&end=0.8"), tmp_path)
        expected = np.concatenate(
            [batch.rgb_thwc for batch in service.archive.frames(fitted, start=0.4, end=0.8)]
        )
        assert len(expected) == 10
        assert psnr(pictures(path), expected) > 30

    def test_an_added_video_shows_the_original(
        self, client: TestClient, service: Service, added: str, tmp_path: Path
    ) -> None:
        answer = client.get(f"/v1/videos/{added}/clip.mp4")
        assert answer.headers["X-Nvp-Reconstructed"] == "false"
        assert len(pictures(saved(answer, tmp_path))) == 12

    def test_it_says_that_it_is_reconstructed(
        self, client: TestClient, service: Service, fitted: str, tmp_path: Path
    ) -> None:
        answer = client.get(f"/v1/videos/{fitted}/clip.mp4?end=0.2")
        video = service.archive.catalog.snapshot().video(fitted)
        assert answer.headers["X-Nvp-Reconstructed"] == "true"
        assert answer.headers["X-Nvp-Source-Sha256"] == video.sha256
        assert float(answer.headers["X-Nvp-Psnr"]) == pytest.approx(video.psnr, abs=0.005)
        with av.open(str(saved(answer, tmp_path))) as container:
            assert container.metadata["comment"].startswith("Reconstructed")
            assert video.sha256 in container.metadata["comment"]

    def test_a_browser_can_play_before_all_of_it_is_there(self, client: TestClient, fitted: str) -> None:
        data = client.get(f"/v1/videos/{fitted}/clip.mp4?end=0.2").content
        assert 0 < data.index(b"moov") < data.index(b"mdat")

    @pytest.mark.parametrize(
        ("asked", "status"),
        [
            ("upscale=3", 422),
            ("upscale=x", 422),
            ("stabilize=true", 422),
            ("start=2&end=1", 422),
            ("start=1&end=1", 422),
            ("end=0", 422),
            ("start=-1", 422),
            ("start=nan", 422),
            ("start=inf", 422),
            ("end=1e400", 422),
            ("start=99", 400),
        ],
    )
    def test_other_clips_are_problems(self, client: TestClient, fitted: str, asked: str, status: int) -> None:
        answer = client.get(f"/v1/videos/{fitted}/clip.mp4?{asked}")
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"

    def test_what_is_not_asked_for_in_earnest_is_no_problem(self, client: TestClient, fitted: str) -> None:
        answer = client.get(f"/v1/videos/{fitted}/clip.mp4?end=0.2&upscale=1&stabilize=false")
        assert answer.status_code == 200

    def test_an_unknown_video_has_no_clip(self, client: TestClient) -> None:
        assert client.get("/v1/videos/nothing/clip.mp4").status_code == 404


class TestRanges:
    @pytest.fixture
    def url(self, server: str, fitted: str) -> str:
        return f"{server}/v1/videos/{fitted}/clip.mp4?end=0.6"

    @pytest.mark.parametrize(
        ("asked", "first", "last"),
        [("0-0", 0, 1), ("0-", 0, None), ("100-199", 100, 200), ("-50", -50, None)],
    )
    def test_a_range_is_those_bytes(self, url: str, asked: str, first: int, last: int | None) -> None:
        whole = httpx2.get(url).content
        answer = httpx2.get(url, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, whole[first:last])
        start = first % len(whole)
        end = start + len(answer.content) - 1
        assert answer.headers["Content-Range"] == f"bytes {start}-{end}/{len(whole)}"

    def test_a_range_past_the_end_is_a_problem(self, url: str) -> None:
        size = len(httpx2.get(url).content)
        answer = httpx2.get(url, headers={"Range": f"bytes={size}-"})
        assert answer.status_code == 416
        assert answer.headers["Content-Range"] == f"bytes */{size}"
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert httpx2.get(url, headers={"Range": "pages=1-2"}).status_code == 400

    def test_a_range_of_what_has_changed_is_all_of_it(self, url: str) -> None:
        first = httpx2.get(url)
        ranged = {"Range": "bytes=10-19"}
        same = httpx2.get(url, headers={**ranged, "If-Range": first.headers["ETag"]})
        other = httpx2.get(url, headers={**ranged, "If-Range": '"another"'})
        assert (same.status_code, same.content) == (206, first.content[10:20])
        assert (other.status_code, other.content) == (200, first.content)

    def test_what_the_caller_has_is_not_sent_again(self, url: str) -> None:
        first = httpx2.get(url)
        again = httpx2.get(url, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")

    def test_a_head_tells_the_size(self, url: str) -> None:
        head, whole = httpx2.head(url), httpx2.get(url)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(whole.content))
        assert head.headers["Accept-Ranges"] == "bytes"

    def test_nothing_is_held_when_all_is_sent(self, service: Service, tmp_path: Path, fitted: str) -> None:
        own = again(service, tmp_path / "state")
        client = TestClient(create_app(own))
        with client:
            for headers in ({}, {"Range": "bytes=0-9"}, {"Range": "bytes=999999999-"}):
                client.get(f"/v1/videos/{fitted}/clip.mp4?end=0.2", headers=headers)
            etag = client.get(f"/v1/videos/{fitted}/clip.mp4?end=0.2").headers["ETag"]
            client.get(f"/v1/videos/{fitted}/clip.mp4?end=0.2", headers={"If-None-Match": etag})
            client.head(f"/v1/videos/{fitted}/clip.mp4?end=0.2")
            assert not client.app.state.clips._held  # type: ignore[attr-defined]


class TestMaking:
    def test_many_who_ask_for_one_clip_wait_for_one_export(
        self, fresh: Fresh, fitted: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client, calls, export = fresh(), [], Archive.export

        def counted(archive: Archive, *args: Any, **options: Any) -> Any:
            calls.append(args)
            return export(archive, *args, **options)

        monkeypatch.setattr(Archive, "export", counted)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: client.get(f"/v1/videos/{fitted}/clip.mp4?end=0.6"), range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == len(calls) == 1

    def test_who_goes_away_stops_the_export(
        self, service: Service, fitted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clip_store, "LOOK_SECONDS", 0.02)
        begun, ended, export = threading.Event(), threading.Event(), Archive.export

        def slow(archive: Archive, *args: Any, progress: Callable[[int], None], **options: Any) -> Any:
            def slowly(done: int) -> None:
                begun.set()
                time.sleep(0.1)
                progress(done)

            try:
                for step in range(200):
                    slowly(step)
                return export(archive, *args, progress=progress, **options)
            finally:
                ended.set()

        monkeypatch.setattr(Archive, "export", slow)
        with serving(again(service, tmp_path / "state")) as url:
            address = urlsplit(url)
            with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
                path = f"/v1/videos/{fitted}/clip.mp4?end=0.6"
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
                assert begun.wait(20)
            assert ended.wait(15), "the export goes on though nobody waits"
        assert not list((tmp_path / "state" / "clips").glob("*/*"))


class TestOriginals:
    def test_it_is_the_source_s_own_bytes(self, client: TestClient, added: str, clip: Path) -> None:
        answer = client.get(f"/v1/videos/{added}/original")
        assert answer.content == clip.read_bytes()
        assert answer.headers["X-Nvp-Source-Sha256"] == hashlib.sha256(clip.read_bytes()).hexdigest()

    def test_no_browser_makes_anything_of_it(self, client: TestClient, added: str) -> None:
        headers = client.get(f"/v1/videos/{added}/original").headers
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["Content-Disposition"] == 'attachment; filename="square"'
        assert headers["X-Content-Type-Options"] == "nosniff"

    def test_it_comes_in_ranges_and_once(self, client: TestClient, added: str, clip: Path) -> None:
        path = f"/v1/videos/{added}/original"
        part = client.get(path, headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, clip.read_bytes()[5:10])
        etag = part.headers["ETag"]
        assert client.get(path, headers={"If-None-Match": etag}).status_code == 304

    def test_one_that_is_gone_is_not_found_and_no_place_is_named(self, micro: Micro, tmp_path: Path) -> None:
        copied = micro.copy(tmp_path)
        source = tmp_path / "secret-place" / "gate.mp4"
        source.parent.mkdir()
        source.write_bytes(micro.clip.read_bytes() + b" ")
        video = copied.add(source)
        source.unlink()
        client = TestClient(create_app(service_over(copied, tmp_path / "state")))
        with client:
            for what in ("original", "frames/0.png", "clip.mp4"):
                answer = client.get(f"/v1/videos/{video.video_id}/{what}")
                assert (answer.status_code, "secret-place" in answer.text) == (404, False)
