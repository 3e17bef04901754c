"""The web view in a real Chromium: what it loads, keyboard, screen readers, narrow and wide, light and dark."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from app.database.open import open_ledger
from app.receiver import store
from app.runtime import clock
from tests.receiver.test_page import log
from tests.support.browser import AXE, CHROMIUM, needs_chromium
from tests.support.long_use import LongUse
from tests.support.servers import receiving
from tests.support.web import Running, showing, site_of

pytestmark = [pytest.mark.slow, needs_chromium]
WIDTHS = (360, 1280)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@pytest.fixture(scope="module")
def use(tmp_path_factory: pytest.TempPathFactory) -> LongUse:
    return LongUse(tmp_path_factory.mktemp("use"), clock.now_ms(), 14, 11).make()


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    with playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as running:
        yield running


@pytest.fixture
def web(use: LongUse) -> Iterator[Running]:
    with showing(site_of(use)) as running:
        yield running


@pytest.fixture
def page(browser: Browser, web: Running) -> Iterator[Page]:
    """A browser that has opened the address; whatever its console says is an error."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        opened = context.new_page()
        said: list[str] = []
        opened.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        opened.on("pageerror", lambda error: said.append(str(error)))
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(web.opened_by)
        yield opened
        assert said == []
        assert [url for url in asked if not url.startswith((f"{web.url}/", "data:"))] == []


def pages(use: LongUse) -> tuple[str, ...]:
    return (
        "/",
        "/sessions",
        f"/session?id={use.latest}",
        "/jobs",
        "/jobs?state=dead",
        "/stats",
        "/stats?by=session",
        "/sent",
        f"/sent?session={use.latest}",
        "/doctor",
    )


def serious(page: Page) -> list[tuple[str, ...]]:
    """What axe-core finds that keeps people from using a page."""
    page.evaluate(AXE.read_text("utf-8"))
    told = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"][:300])
        for one in told["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def test_every_page_is_free_of_serious_faults_and_nothing_is_cut_off(page: Page, web: Running, use: LongUse) -> None:
    found = {}
    for path in pages(use):
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                page.goto(web.url + path)
                assert page.locator("h1").count() == 1
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
                bad = serious(page)
                if bad:
                    found[path, scheme, width] = bad
    assert not found, json.dumps([[*map(str, key), value] for key, value in found.items()], indent=1)


def test_the_receivers_pages_are_as_free_of_faults(browser: Browser, tmp_path: Path) -> None:
    with store.opened(tmp_path / "store.db") as db:
        for number in range(3):
            told = log(f"/opencode/ses_1/msg-{number}", start_ms=1_000 + number, status=200 + 300 * (number == 2))
            store.put(db, "owner", replace(told, request_id=f"00000000-0000-4000-8000-00000000000{number}"))
    with receiving(tmp_path / "store.db") as receiver, browser.new_context() as context:
        page = context.new_page()
        for path in ("/", "/session?id=ses_1", "/session?id=none"):
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                for width in WIDTHS:
                    page.set_viewport_size({"width": width, "height": 900})
                    page.goto(receiver.url + path)
                    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
                    assert serious(page) == []


def test_the_keyboard_reaches_all_of_it(page: Page, web: Running) -> None:
    page.goto(web.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.getElementById('main').contains(document.activeElement)")
    for path in ("/", "/jobs?state=dead", "/sessions"):
        page.goto(web.url + path)
        wanted = page.evaluate(
            """[...document.querySelectorAll("a[href], button, input:not([type=hidden]), summary, [tabindex='0']")]
            .filter(one => one.checkVisibility()).length"""
        )
        reached = set()
        for _ in range(wanted):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
            assert page.evaluate(
                """(style => (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0)
                || document.activeElement.className === "skip")(getComputedStyle(document.activeElement))"""
            )
        assert len(reached) == wanted, path
    page.goto(web.url)
    page.get_by_role("link", name="Sessions", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/sessions")
    page.locator("tbody a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/session?id=*")


def test_it_shows_by_itself_what_has_changed(page: Page, web: Running, use: LongUse) -> None:
    page.goto(f"{web.url}/jobs?state=dead")
    error = "418: I'm a teapot"
    with closing(open_ledger(use.spool)) as db:
        db.execute("update job set error = ? where id = (select max(id) from job where state = 'dead')", (error,))
    page.get_by_text(error).first.wait_for(timeout=60_000)


def test_without_script_it_says_the_same(browser: Browser, web: Running) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(web.opened_by)
        page.get_by_role("link", name="Dead").first.click()
        assert page.locator("h1").inner_text() == "Dead jobs"
        assert "dead retry --error" in page.locator("main").inner_text()


def test_a_command_is_copied(page: Page, web: Running) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{web.url}/jobs?state=dead")
    page.locator(".command button").first.click()
    page.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("opencode-helicone dead retry --error ")


def test_a_title_that_is_a_script_is_a_title(page: Page, web: Running, use: LongUse) -> None:
    title = "<script>document.body.remove()</script>"
    with closing(sqlite3.connect(use.store)) as db, db:
        (before,) = db.execute("select title from session where id = ?", (use.latest,)).fetchone()
        db.execute("update session set title = ? where id = ?", (title, use.latest))
    try:
        for path in pages(use):
            page.goto(web.url + path)
            assert page.locator("main").count() == 1
        page.goto(f"{web.url}/session?id={use.latest}")
        assert page.locator("h1").inner_text() == title
    finally:
        with closing(sqlite3.connect(use.store)) as db, db:
            db.execute("update session set title = ? where id = ?", (before, use.latest))


def test_titles_are_not_left_on_the_disk_by_the_browser(
    playwright: Playwright, use: LongUse, web: Running, tmp_path: Path
) -> None:
    profile = tmp_path / "profile"
    with playwright.chromium.launch_persistent_context(
        profile, executable_path=CHROMIUM, args=["--no-sandbox"]
    ) as context:
        page = context.new_page()
        page.goto(web.opened_by)
        for path in pages(use):
            page.goto(web.url + path)
        page.goto(f"{web.url}/session?id={use.latest}")
        title = page.locator("h1").inner_text()
    assert len(title) > 10
    for file in profile.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert title.encode() not in data, file
        assert title.encode("utf-16-le") not in data, file


class _OfSomebodyElse(BaseHTTPRequestHandler):
    """A web site that tries what it can."""

    target = ""

    def do_GET(self) -> None:
        body = (
            f"<!doctype html><iframe src='{self.target}/jobs'></iframe><img src='{self.target}/page.css'>"
            f"<a id=link href='{self.target}/jobs'>x</a><script>"
            f"fetch('{self.target}/jobs', {{credentials: 'include'}}).then(r => r.text(), e => 'refused')"
            ".then(told => { document.title = 'told: ' + told; })</script>"
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere(web: Running) -> Iterator[int]:
    _OfSomebodyElse.target = web.url
    with HTTPServer(("127.0.0.1", 0), _OfSomebodyElse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["127.0.0.1", "evil.example.com"], ids=["another port", "another site"])
def test_another_page_in_the_same_browser_gets_nothing(
    playwright: Playwright, web: Running, elsewhere: int, name: str
) -> None:
    """Also one whose name was made to point here: then this machine is called by that name."""
    rules = "--host-resolver-rules=MAP evil.example.com 127.0.0.1"
    with (
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", rules]) as browser,
        browser.new_context() as context,
    ):
        ours = context.new_page()
        ours.goto(web.opened_by)
        assert ours.locator("h1").inner_text() == "Overview"
        _is_refused(context, web, f"http://{name}:{elsewhere}/")
        rebound = context.new_page()
        port = web.url.rpartition(":")[2]
        answer = rebound.goto(f"http://evil.example.com:{port}/jobs")
        assert answer is not None
        assert answer.status == 403
        assert "ses_" not in rebound.content()


def _is_refused(context: BrowserContext, web: Running, url: str) -> None:
    theirs = context.new_page()
    theirs.goto(url)
    theirs.wait_for_function("document.title.startsWith('told')")
    assert theirs.title() == "told: refused"
    for frame in theirs.frames[1:]:
        assert "ses_" not in frame.content()
    with theirs.expect_navigation():
        theirs.locator("#link").click()
    assert theirs.url == f"{web.url}/jobs"
    assert theirs.locator("body").inner_text() == "no other web page is answered"
