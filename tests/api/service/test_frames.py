"""Single pictures against the archive's own frames."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from nvpstore.api.service.frames import AT_ONCE, IMAGE_DESCRIPTION
from nvpstore.api.service.state import Service
from nvpstore.archive import Archive
from nvpstore.exports import Picture

pytestmark = pytest.mark.slow  # one fit


def picture(answer: Any) -> Image.Image:
    assert answer.status_code == 200, answer.text
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    return image


def stored(service: Service, video_id: str) -> NDArray[np.uint8]:
    """All frames as the archive decodes them, [t, h, w, 3]."""
    return np.concatenate([batch.rgb_thwc for batch in service.archive.frames(video_id)])


@pytest.mark.parametrize("which", ["fitted", "added"])
def test_a_png_is_the_archive_s_own_frame(
    client: TestClient, service: Service, request: pytest.FixtureRequest, which: str
) -> None:
    video_id = request.getfixturevalue(which)
    frames = stored(service, video_id)
    for number in (0, len(frames) // 2, len(frames) - 1):
        image = np.asarray(picture(client.get(f"/v1/videos/{video_id}/frames/{number}.png")))
        np.testing.assert_array_equal(image, service.archive.frame(video_id, number).rgb_hwc)
        # Decoded in a batch, a value may be rounded the other way.
        np.testing.assert_allclose(image.astype(int), frames[number].astype(int), atol=1)


@pytest.mark.parametrize(("kind", "media_type"), [("jpg", "image/jpeg"), ("webp", "image/webp")])
def test_other_kinds_are_close_to_it(
    client: TestClient, service: Service, fitted: str, kind: str, media_type: str
) -> None:
    answer = client.get(f"/v1/videos/{fitted}/frames/7.{kind}")
    assert answer.headers["Content-Type"] == media_type
    error = np.asarray(picture(answer)).astype(float) - stored(service, fitted)[7]
    assert 10 * np.log10(255**2 / (error**2).mean()) > 30


def test_a_width_scales_down_and_never_up(client: TestClient, fitted: str) -> None:
    whole = picture(client.get(f"/v1/videos/{fitted}/frames/3.png"))
    thumbnail = picture(client.get(f"/v1/videos/{fitted}/frames/3.png", params={"width": 64}))
    assert thumbnail.size == (64, round(whole.height * 64 / whole.width))
    assert picture(client.get(f"/v1/videos/{fitted}/frames/3.png", params={"width": 4096})).size == whole.size


def test_headers_say_where_it_comes_from(
    client: TestClient, service: Service, fitted: str, added: str
) -> None:
    answer = client.get(f"/v1/videos/{fitted}/frames/5.png")
    found = service.archive.frame(fitted, 5)
    assert found.psnr is not None
    assert answer.headers["X-Nvp-Reconstructed"] == "true"
    assert answer.headers["X-Nvp-Source-Sha256"] == found.video.sha256
    assert float(answer.headers["X-Nvp-Psnr"]) == pytest.approx(found.psnr, abs=0.005)
    assert float(answer.headers["X-Nvp-Ts"]) == found.ts == pytest.approx(5 / 25)
    plain = client.get(f"/v1/videos/{added}/frames/5.png").headers
    assert (plain["X-Nvp-Reconstructed"], "X-Nvp-Psnr" in plain) == ("false", False)


def test_the_file_says_so_too(client: TestClient, service: Service, fitted: str) -> None:
    sha256 = service.archive.catalog.snapshot().video(fitted).sha256
    notes = {
        "png": lambda image: image.text["comment"],
        "jpg": lambda image: image.info["comment"].decode(),
        "webp": lambda image: image.getexif()[IMAGE_DESCRIPTION],
    }
    for kind, note in notes.items():
        said = note(picture(client.get(f"/v1/videos/{fitted}/frames/5.{kind}")))
        assert said.startswith("Reconstructed")
        assert sha256 in said


def test_what_the_caller_has_is_not_decoded_again(
    client: TestClient, fitted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/videos/{fitted}/frames/5.png"
    first = client.get(path)
    assert first.headers["Cache-Control"] == "private, max-age=3600, immutable"

    def never(*_: object) -> Picture:
        raise AssertionError("decoded")

    monkeypatch.setattr(Archive, "frame", never)
    again = client.get(path, headers={"If-None-Match": f'"other", {first.headers["ETag"]}'})
    assert (again.status_code, again.content) == (304, b"")


def test_each_picture_has_an_etag_of_its_own(client: TestClient, fitted: str) -> None:
    base = f"/v1/videos/{fitted}/frames"
    paths = [f"{base}/5.png", f"{base}/6.png", f"{base}/5.jpg", f"{base}/5.png?width=64"]
    assert len({client.get(path).headers["ETag"] for path in paths}) == len(paths)


def test_a_head_has_the_headers_alone(client: TestClient, fitted: str) -> None:
    path = f"/v1/videos/{fitted}/frames/5.png"
    head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("ETag", "Content-Type", "X-Nvp-Psnr"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("place", "status"),
    [
        ("40.png", 404),
        (f"{2**61}.png", 404),
        ("-1.png", 422),
        ("x.png", 422),
        ("5.gif", 422),
        ("5", 404),
        ("5.png?width=15", 422),
        ("5.png?width=4097", 422),
        ("5.png?width=x", 422),
    ],
)
def test_other_pictures_are_problems(client: TestClient, fitted: str, place: str, status: int) -> None:
    answer = client.get(f"/v1/videos/{fitted}/frames/{place}")
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_only_so_many_are_decoded_at_once(
    fresh: Callable[..., TestClient], fitted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = fresh()
    running, most, lock, decode = 0, 0, threading.Lock(), Archive.frame
    enough = threading.Event()

    def counted(archive: Archive, ref: str, number: int) -> Picture:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == AT_ONCE:
                enough.set()
        assert enough.wait(20), "several are decoded at the same time"
        found = decode(archive, ref, number)
        with lock:
            running -= 1
        return found

    monkeypatch.setattr(Archive, "frame", counted)
    with ThreadPoolExecutor(16) as pool:
        paths = [f"/v1/videos/{fitted}/frames/{number}.png" for number in range(16)]
        assert [answer.status_code for answer in pool.map(client.get, paths)] == [200] * 16
    assert most == AT_ONCE
