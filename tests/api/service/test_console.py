"""The console in a real browser, over a real server with a worker."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

import nvpstore
from nvpstore.api.service import console
from nvpstore.api.service.middleware import CONTENT_POLICY
from tests.api.conftest import Nvp, write_clip
from tests.serving import Serving

pytestmark = [pytest.mark.slow, pytest.mark.browser]

GOLDEN = Path(__file__).parents[2] / "golden/format-1/archive"
FITTED = "golden.mp4"
HOSTILE = '\u202e<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>\'--${1}.mp4'
SHOWN = HOSTILE.replace("\u202e", "\ufffd")  # as it reads, whatever it wants to look like
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)
PATIENCE = 90_000  # milliseconds; the machine may be busy
FIT_PATIENCE = 240_000
# What Chromium says of every answer that is no success, wanted or not.
_ANSWERED = re.compile(r"Failed to load resource: the server responded with a status of (4\d\d|503)")


# Remembers every line of progress that is shown, however shortly.
_HEAR = """() => {
    window.heard = new Set();
    const list = document.querySelector('.task-list');
    const look = () => list.querySelectorAll('.hint').forEach((line) => window.heard.add(line.textContent));
    new MutationObserver(look).observe(list, {subtree: true, childList: true, characterData: true});
}"""
_NAMELESS = """() => {
    const named = (node) => node.labels?.length || node.getAttribute('aria-label') || node.textContent.trim();
    return [...document.querySelectorAll('input, select, textarea, button, a')]
        .filter((node) => !named(node)).map((node) => node.outerHTML);
}"""


@dataclass
class Seen:
    """What must not happen on any page: errors, and requests to others."""

    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """The golden archive with its fitted video, and a clip that is only added, whose name attacks."""
    folder = tmp_path_factory.mktemp("console")
    shutil.copytree(GOLDEN, folder / "archive")
    clip = folder / "hostile.mp4"
    write_clip(clip, frames=7)
    with Serving(folder / "archive", folder, workers=1) as server:
        with nvpstore.connect(server.url) as archive:
            archive.add(clip, name=HOSTILE, tags={HOSTILE: HOSTILE})
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A golden archive of a test's own."""
    shutil.copytree(GOLDEN, tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = os.environ.get("NVP_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium (NVP_CHROMIUM names one)")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def _watched(browser: Browser, url: str, **options: Any) -> Iterator[tuple[Page, Seen]]:
    """A page of its own context; fails where something happened that must not."""
    context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900}, **options)
    context.set_default_timeout(PATIENCE)
    page, seen = context.new_page(), Seen()

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not _ANSWERED.match(message.text):
            seen.errors.append(message.text)

    def asked(request: Request) -> None:
        seen.requests.append(request)
        if not request.url.startswith((f"{url}/", f"blob:{url}/")):
            seen.strangers.append(request.url)

    page.on("console", said)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", asked)
    yield page, seen
    assert page.evaluate("window.hacked") is None
    context.close()
    assert (seen.errors, seen.strangers) == ([], [])


@pytest.fixture
def page(browser: Browser, server: Serving) -> Iterator[Page]:
    with _watched(browser, server.url) as (page, _):
        yield page


def _open(page: Page, hash_: str = "#/") -> None:
    page.goto(f"/{hash_}")


def _until(page: Page, condition: str) -> None:
    """Wait until an expression holds. Playwright's own way would need what our policy forbids."""
    for _ in range(PATIENCE // 50):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}")


def _card(page: Page, name: str) -> Any:
    return page.locator(".card").filter(has_text=name)


class TestFiles:
    def test_every_file_is_served_with_its_type_and_the_policy(self, page: Page) -> None:
        for name, file in console.FILES.items():
            answer = page.request.get(f"/console/{name}")
            assert answer.status == 200
            assert answer.headers["content-type"] == file.media_type
            assert answer.headers["content-security-policy"] == CONTENT_POLICY
            assert answer.body() == file.content

    def test_they_are_sent_again_only_when_they_change(self, page: Page) -> None:
        etag = page.request.get("/").headers["etag"]
        again = page.request.get("/", headers={"If-None-Match": etag})
        assert (again.status, again.body()) == (304, b"")

    @pytest.mark.parametrize("path", ["/console/../console.py", "/console/%2e%2e%2fconsole.py", "/console/x"])
    def test_nothing_else_is(self, page: Page, path: str) -> None:
        assert page.request.get(path).status == 404

    def test_nothing_is_inline_or_from_elsewhere(self) -> None:
        index = console.FILES[console.PAGE].content.decode()
        assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", index) == []
        for name, file in console.FILES.items():
            elsewhere = re.findall(rb"https?://[\w./-]+", file.content)
            assert set(elsewhere) <= {b"http://www.w3.org/2000/svg"}, name
            assert b"innerHTML" not in file.content


class TestVideos:
    def test_are_listed_with_pictures_and_quality(self, page: Page) -> None:
        _open(page)
        card = _card(page, FITTED)
        expect(card).to_contain_text(re.compile(r"\d\d\.\d\d dB"))
        expect(card).to_contain_text("bpp")
        expect(card).to_contain_text(re.compile(r"(ready|below target)"))
        _until(page, "[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        assert page.locator(".card img").count() == page.locator(".card").count() >= 2

    def test_are_found_by_name_state_and_tag(self, page: Page) -> None:
        _open(page)
        page.get_by_label("Name").fill("gold")
        expect(page.locator(".card")).to_have_count(1)
        page.get_by_label("Name").fill("")
        page.get_by_label("State").select_option("added")
        expect(_card(page, FITTED)).to_have_count(0)
        page.get_by_label("State").select_option("")
        page.get_by_label("Tag").fill("camera:gate")
        expect(page.locator(".card")).to_have_count(1)
        page.get_by_label("Tag").fill("camera:none")
        expect(page.get_by_text("No video fits.")).to_be_visible()

    def test_come_a_page_at_a_time(self, browser: Browser, server: Serving) -> None:
        with _watched(browser, server.url) as (page, seen):
            # The script as it is, but with small pages.
            script = console.FILES["videos.js"].content.decode().replace("const PAGE = 24", "const PAGE = 1")
            page.route("**/console/videos.js", lambda route: route.fulfill(
                body=script, content_type="text/javascript"
            ))  # fmt: skip
            _open(page)
            expect(page.locator(".card")).to_have_count(1)
            while page.get_by_role("button", name="Show more").count():
                before = page.locator(".card").count()
                page.get_by_role("button", name="Show more").click()
                expect(page.locator(".card")).not_to_have_count(before)
            expect(_card(page, FITTED)).to_have_count(1)
            listed = [request for request in seen.requests if "/v1/videos?" in request.url]
            assert len(listed) >= 2

    def test_an_empty_archive_says_what_to_do(self, browser: Browser, tmp_path: Path) -> None:
        empty = Nvp(tmp_path / "empty", tmp_path / "cache")
        assert empty.run("init").returncode == 0
        with (
            Serving(tmp_path / "empty", tmp_path) as server,
            _watched(browser, server.url) as (page, _),
        ):
            _open(page)
            expect(page.get_by_text("No videos yet.")).to_be_visible()
            page.get_by_role("link", name="upload a video").click()
            expect(page.get_by_role("heading", name="Upload")).to_be_visible()
            _open(page, "#/jobs")
            expect(page.get_by_text("No jobs.")).to_be_visible()

    def test_a_server_that_cannot_answer_is_said_and_tried_again(self, page: Page) -> None:
        _open(page, "#/jobs")
        page.route("**/v1/videos?*", lambda route: route.fulfill(
            status=503, content_type="application/problem+json", body='{"detail": "the store is away"}'
        ))  # fmt: skip
        _open(page)
        expect(page.get_by_role("alert")).to_contain_text("the store is away")
        page.unroute("**/v1/videos?*")
        page.get_by_role("button", name="Try again").click()
        expect(_card(page, FITTED)).to_be_visible()


class TestVideo:
    def test_plays_and_says_that_it_is_a_reconstruction(self, page: Page) -> None:
        _open(page)
        _card(page, FITTED).click()
        expect(page.get_by_role("heading", name=FITTED)).to_be_visible()
        expect(page.locator(".screen .mark")).to_have_text(re.compile(r"Reconstruction · \d+\.\d\d dB"))
        expect(page.locator("figcaption")).to_contain_text(re.compile(r"SHA-256 [0-9a-f]{64}"))
        page.get_by_role("button", name="Play").click()
        _until(page, "document.querySelector('video')?.readyState >= 2")
        _until(page, "document.querySelector('video').currentTime > 0")
        expect(page.locator(".screen .mark")).to_be_visible()
        size = page.evaluate("(({videoWidth: w, videoHeight: h}) => [w, h])(document.querySelector('video'))")
        assert size == [176, 144]

    def test_shows_a_part(self, browser: Browser, server: Serving) -> None:
        with _watched(browser, server.url) as (page, seen):
            _open(page)
            _card(page, FITTED).click()
            page.get_by_label("From, s").fill("0.2")
            page.get_by_label("To, s").fill("0.4")
            page.get_by_role("button", name="Show this part").click()
            _until(page, "document.querySelector('video')?.readyState >= 2")
            assert 0.1 <= page.evaluate("document.querySelector('video').duration") <= 0.3
            clips = [request for request in seen.requests if "clip.mp4?start=0.2&end=0.4" in request.url]
            assert "range" in clips[0].all_headers()

    def test_that_cannot_be_shown_says_why(self, page: Page) -> None:
        _open(page)
        _card(page, FITTED).click()
        page.get_by_label("From, s").fill("100")
        page.get_by_label("To, s").fill("200")
        page.get_by_role("button", name="Show this part").click()
        expect(page.get_by_role("alert")).to_contain_text("no frames")

    def test_has_figures_segments_and_routes(self, page: Page) -> None:
        _open(page)
        _card(page, FITTED).click()
        expect(page.locator("dl.facts")).to_contain_text("176 × 144, 16 frames")
        expect(page.locator("dl.facts")).to_contain_text("camera=gate")
        expect(page.get_by_role("region", name="Segments of the video")).to_be_visible()
        expect(page.get_by_role("region", name="How tasks are answered")).to_contain_text("labels")

    def test_that_is_only_added_says_whose_pictures_it_shows(self, page: Page) -> None:
        _open(page)
        _card(page, "onerror").click()
        expect(page.locator(".screen .mark")).to_have_text("Original, encoded again")
        expect(page.get_by_role("button", name="Fit it now")).to_be_visible()

    def test_a_hostile_name_is_only_text(self, page: Page) -> None:
        _open(page)
        expect(_card(page, "onerror").locator("bdi").first).to_have_text(SHOWN)
        _card(page, "onerror").click()
        expect(page.locator("h1 bdi")).to_have_text(SHOWN)
        expect(page.locator("dl.facts")).to_contain_text(f"{SHOWN}={SHOWN}")
        assert page.locator("main script, main img[src='x']").count() == 0
        assert SHOWN in page.title()

    def test_an_unknown_one_is_said_to_be(self, page: Page) -> None:
        _open(page, "#/videos/nothing")
        expect(page.get_by_role("alert")).to_contain_text("nothing")


def _ask(page: Page, sql: str) -> None:
    page.get_by_label("SQL").fill(sql)
    page.get_by_role("button", name="Run", exact=True).click()


class TestQuery:
    def test_shows_rows(self, page: Page) -> None:
        _open(page, "#/query")
        _ask(page, "SELECT frame, label, score FROM labels WHERE rank = 1 ORDER BY frame")
        rows = page.get_by_role("region", name="Rows of the query")
        expect(rows.locator("tbody tr")).to_have_count(16 + 7)
        expect(rows.locator("thead")).to_contain_text("score")
        expect(page.locator("main .hint").last).to_contain_text("23 rows, ")

    def test_shows_pictures(self, page: Page) -> None:
        _open(page, "#/query")
        _ask(page, "SELECT frame, route, image FROM frames(stride := 8) JOIN videos v USING (video_id) "
                   "WHERE v.name = 'golden.mp4'")  # fmt: skip
        pictures = page.locator("td img")
        expect(pictures).to_have_count(2)
        expect(pictures.first).to_have_attribute("alt", "reconstruction")
        _until(page, "[...document.querySelectorAll('td img')].every((i) => i.naturalWidth === 176)")

    def test_shows_hostile_values_as_text(self, page: Page) -> None:
        _open(page, "#/query")
        _ask(page, "SELECT name, tags AS \"<img src=x onerror=hacked=1>\" FROM videos WHERE state = 'added'")
        rows = page.get_by_role("region", name="Rows of the query")
        expect(rows).to_contain_text("onerror")
        expect(rows.locator("th").last).to_have_text("<img src=x onerror=hacked=1>")
        assert rows.locator("img").count() == 0

    def test_shows_the_plan_on_its_tab(self, page: Page) -> None:
        _open(page, "#/query")
        page.get_by_label("SQL").fill("SELECT label FROM labels")
        page.get_by_role("tab", name="Rows").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="Plan")).to_be_focused()
        expect(page.locator("pre.plan")).to_contain_text("Scan labels")

    def test_shows_what_is_wrong(self, page: Page) -> None:
        _open(page, "#/query")
        _ask(page, "SELECT nothing_like_it FROM videos")
        expect(page.get_by_role("alert")).to_contain_text("nothing_like_it")

    def test_runs_by_keyboard_and_keeps_the_text(self, page: Page) -> None:
        _open(page, "#/query")
        page.get_by_label("SQL").fill("SELECT 6 * 7 AS answer")
        page.get_by_label("SQL").press("Control+Enter")
        expect(page.get_by_role("region", name="Rows of the query")).to_contain_text("42")
        page.get_by_role("link", name="Jobs").click()
        page.get_by_role("link", name="Query").click()
        expect(page.get_by_label("SQL")).to_have_value("SELECT 6 * 7 AS answer")

    def test_reads_no_more_than_it_shows(self, page: Page) -> None:
        _open(page, "#/query")
        _ask(page, "SELECT n FROM range(3000000) t(n)")
        expect(page.get_by_text("The first 500 rows; a download has all")).to_be_visible()
        expect(page.get_by_role("region", name="Rows of the query").locator("tbody tr")).to_have_count(500)

    def test_without_rows_says_so(self, page: Page) -> None:
        _open(page, "#/query")
        _ask(page, "SELECT * FROM videos WHERE false")
        expect(page.get_by_text("No rows.")).to_be_visible()

    def test_says_what_was_left_out(self, page: Page) -> None:
        _open(page, "#/query")
        _ask(page, "SELECT * FROM labels(min_fidelity := 1.0, on_error := 'skip', route := 'adapter')")
        expect(page.locator(".note")).to_contain_text("left out")

    @pytest.mark.parametrize(("kind", "head"), [("CSV", b"n\n0\n1\n"), ("Parquet", b"PAR1")])
    def test_downloads_files(self, page: Page, kind: str, head: bytes) -> None:
        _open(page, "#/query")
        page.get_by_label("SQL").fill("SELECT n FROM range(1000) t(n)")
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download {kind}").click()
        assert Path(download.value.path()).read_bytes().startswith(head)
        assert download.value.suggested_filename == f"answer.{kind.lower()}"


@pytest.fixture
def new_clip(tmp_path: Path) -> Callable[[int], Path]:
    def make(frames: int) -> Path:
        path = tmp_path / f"clip-{frames}.mp4"
        write_clip(path, frames=frames)
        return path

    return make


class TestUpload:
    def test_goes_to_its_end_with_progress(self, page: Page, new_clip: Callable[[int], Path]) -> None:
        _open(page, "#/upload")
        page.get_by_label("Video files").set_input_files(new_clip(20))
        page.get_by_label("Name").fill("uploaded")
        page.get_by_label("Tags").fill("camera=roof, site=north")
        page.get_by_label("Preset").fill("micro")
        page.evaluate(_HEAR)
        page.get_by_role("button", name="Upload").click()
        item = page.get_by_role("list", name="Uploads").locator("li")
        expect(item).to_contain_text(re.compile(r"Done: \d+\.\d\d dB"), timeout=FIT_PATIENCE)
        heard = page.evaluate("[...window.heard]")
        assert any(line.startswith("upload · 100 %") for line in heard)
        assert any(re.match(r"fit · \d+ % .* dB", line) for line in heard), heard
        item.get_by_role("link", name="Show the video").click()
        expect(page.get_by_role("heading", name="uploaded")).to_be_visible()
        expect(page.locator("dl.facts")).to_contain_text("camera=roof")
        expect(page.locator("dl.facts")).to_contain_text("site=north")

    def test_may_only_add(self, page: Page, new_clip: Callable[[int], Path]) -> None:
        _open(page, "#/upload")
        page.get_by_label("Video files").set_input_files([new_clip(21), new_clip(22)])
        page.get_by_label("only add it").check()
        page.get_by_role("button", name="Upload").click()
        items = page.get_by_role("list", name="Uploads").locator("li")
        expect(items.filter(has_text="Done: added")).to_have_count(2, timeout=FIT_PATIENCE)

    def test_of_what_is_no_video_says_why(self, page: Page, tmp_path: Path) -> None:
        path = tmp_path / "notes.mp4"
        path.write_bytes(b"no video at all" * 1000)
        _open(page, "#/upload")
        page.get_by_label("Video files").set_input_files(path)
        page.get_by_role("button", name="Upload").click()
        item = page.get_by_role("list", name="Uploads").locator("li")
        expect(item.get_by_role("alert")).to_be_visible(timeout=FIT_PATIENCE)
        expect(item).to_contain_text("failed")

    def test_that_the_server_refuses_says_why(self, page: Page, new_clip: Callable[[int], Path]) -> None:
        _open(page, "#/upload")
        page.get_by_label("Video files").set_input_files(new_clip(23))
        page.get_by_label("Preset").fill("no-such-preset")
        page.get_by_role("button", name="Upload").click()
        expect(page.get_by_role("alert")).to_contain_text("no-such-preset")

    def test_needs_well_formed_tags(self, page: Page, new_clip: Callable[[int], Path]) -> None:
        _open(page, "#/upload")
        page.get_by_label("Video files").set_input_files(new_clip(24))
        page.get_by_label("Tags").fill("camera")
        page.get_by_role("button", name="Upload").click()
        expect(page.get_by_role("alert")).to_contain_text("key=value is needed")

    def test_a_waiting_job_is_cancelled(
        self, browser: Browser, root: Path, tmp_path: Path, new_clip: Callable[[int], Path]
    ) -> None:
        with (
            Serving(root, tmp_path) as idle,  # without workers
            _watched(browser, idle.url) as (page, _),
        ):
            _open(page, "#/upload")
            page.get_by_label("Video files").set_input_files(new_clip(25))
            page.get_by_role("button", name="Upload").click()
            item = page.get_by_role("list", name="Uploads").locator("li")
            expect(item).to_contain_text("queued")
            page.get_by_role("link", name="Jobs").click()
            expect(page.locator("tbody tr")).to_contain_text("clip-25.mp4")
            page.get_by_role("button", name="Cancel").click()
            expect(page.locator("tbody tr")).to_contain_text("cancelled")


class TestKeys:
    @pytest.fixture
    def keyed(self, root: Path, tmp_path: Path) -> Iterator[tuple[Serving, str]]:
        with Serving(root, tmp_path) as server:
            yield server, server.nvp("keys", "add", "me", "--scope", "admin").strip()

    def test_are_asked_for_and_kept_in_the_tab(self, browser: Browser, keyed: tuple[Serving, str]) -> None:
        server, key = keyed
        with _watched(browser, server.url) as (page, seen):
            _open(page)
            dialog = page.get_by_role("dialog")
            expect(dialog).to_be_visible()
            expect(page.get_by_label("Key for this server")).to_be_focused()
            page.get_by_label("Key for this server").fill("nvp_00000000_wrong")
            page.keyboard.press("Enter")
            expect(dialog).to_contain_text("The key was refused")
            page.get_by_label("Key for this server").fill(key)
            page.keyboard.press("Enter")
            expect(_card(page, FITTED)).to_be_visible()
            _until(page, "[...document.querySelectorAll('.card img')].every((i) => i.naturalWidth)")
            assert page.evaluate("localStorage.length + document.cookie.length") == 0
            assert all(key not in request.url for request in seen.requests)
            page.reload()
            expect(_card(page, FITTED)).to_be_visible()
            _card(page, FITTED).click()
            page.get_by_role("button", name="Play").click()
            _until(page, "document.querySelector('video')?.readyState >= 2")
            assert page.evaluate("document.querySelector('video').src").startswith("blob:")

    def test_uploads_and_their_events_carry_it(
        self, browser: Browser, keyed: tuple[Serving, str], new_clip: Callable[[int], Path]
    ) -> None:
        server, key = keyed
        with _watched(browser, server.url) as (page, seen):
            _open(page, "#/upload")
            page.get_by_label("Key for this server").fill(key)
            page.get_by_role("button", name="Use this key").click()
            page.get_by_label("Video files").set_input_files(new_clip(26))
            page.get_by_role("button", name="Upload").click()
            item = page.get_by_role("list", name="Uploads").locator("li")
            expect(item).to_contain_text("queued")
            events = next(request for request in seen.requests if request.url.endswith("/events"))
            assert events.all_headers()["authorization"] == f"Bearer {key}"

    def test_can_be_refused_and_given_later(self, browser: Browser, keyed: tuple[Serving, str]) -> None:
        server, key = keyed
        with _watched(browser, server.url) as (page, _):
            _open(page)
            page.get_by_role("button", name="Cancel").click()
            expect(page.get_by_role("alert")).to_contain_text("wants a key")
            page.get_by_role("button", name="Key").click()
            page.get_by_label("Key for this server").fill(key)
            page.keyboard.press("Enter")
            expect(_card(page, FITTED)).to_be_visible()
            page.get_by_role("button", name="Key: set").click()
            page.get_by_role("button", name="Forget it").click()
            expect(page.get_by_role("dialog")).to_contain_text("a key is needed")


class TestEverywhere:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize("width", [400, 1600])
    def test_pages_fit_the_window(self, browser: Browser, server: Serving, width: int, scheme: Any) -> None:
        with _watched(browser, server.url, color_scheme=scheme) as (page, _):
            page.set_viewport_size({"width": width, "height": 900})
            for name in ("#/", "#/query", "#/upload", "#/jobs", "#/videos/golden.mp4"):
                _open(page, name)
                expect(page.locator("h1")).to_be_visible()
                expect(page.locator(".loading")).to_have_count(0)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name

    @pytest.mark.parametrize("name", ["#/", "#/query", "#/upload", "#/jobs", "#/videos/golden.mp4"])
    def test_all_controls_have_names(self, page: Page, name: str) -> None:
        _open(page, name)
        expect(page.locator("h1")).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        assert page.evaluate(_NAMELESS) == []
        assert page.locator("img:not([alt])").count() == 0
        assert page.locator("nav a[aria-current=page]").count() == 1

    def test_the_keyboard_reaches_the_page_first(self, page: Page) -> None:
        _open(page)
        expect(_card(page, FITTED)).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
        page.get_by_role("link", name="Query").click()
        expect(page.locator("main")).to_be_focused()

    def test_changes_are_announced(self, page: Page) -> None:
        _open(page)
        expect(page.get_by_role("status")).to_have_text(re.compile(r"\d+ videos are shown"))

    def test_unknown_pages_are_said_to_be(self, page: Page) -> None:
        _open(page, "#/nowhere")
        expect(page.get_by_role("alert")).to_contain_text("no such page")
