"""The web view's pages over a month of use: what each says, and that a queue or store which cannot be read is said."""

from __future__ import annotations

import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from app.database.open import open_ledger
from app.operations import reading
from app.operations.reading import look_at_ledger
from app.pages.template import Templates
from app.runtime import clock
from app.sources.opencode.tables import USAGE
from app.web.server import AT_ONCE, VIEWS
from app.web.site import Look, Page, stamp
from tests.support.checkout import ROOT
from tests.support.long_use import LongUse
from tests.support.web import Running, showing, site_of

PAGES = (
    "/",
    "/sessions",
    "/session?id=ses_000011",
    "/jobs",
    "/jobs?state=dead",
    "/jobs?state=dropped",
    "/stats",
    "/stats?by=session",
    "/stats?by=model",
    "/sent",
    "/sent?session=ses_000011",
    "/doctor",
)
OF_QUEUE = tuple(page for page in PAGES if page != "/doctor")
SESSIONS, TURNS = 12, 11
EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"

HOSTILE = tuple(
    f"/{page}?{name}={told}"
    for page, name in (("jobs", "title"), ("jobs", "error"), ("session", "id"), ("job", "key"), ("stats", "project"))
    for told in ("%00", "%ff", "%ed%a0%80", "'%20or%201=1%20--", "..%2f..%2fetc%2fpasswd", "x" * 8_000)
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LongUse:
    return LongUse(tmp_path_factory.mktemp("use"), clock.now_ms(), SESSIONS, TURNS).make()


@pytest.fixture
def use(made: LongUse, tmp_path: Path) -> LongUse:
    """A copy, to be spoilt."""
    shutil.copytree(made.home, tmp_path / "home")
    return LongUse(tmp_path / "home", made.now_ms, SESSIONS, TURNS)


@pytest.fixture
def web(use: LongUse) -> Iterator[Running]:
    with showing(site_of(use)) as running:
        yield running


@pytest.fixture
def get(web: Running) -> Iterator[Callable[[str], httpx.Response]]:
    with httpx.Client(base_url=web.url, headers=web.cookie, trust_env=False) as client:
        yield client.get


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("page", PAGES)
def test_each_page_is_whole_and_has_nothing_inline(get: Callable[[str], httpx.Response], page: str) -> None:
    answer = get(page)
    found = Elements(answer.text)
    assert answer.status_code == 200
    assert "Nothing to be seen" not in answer.text
    assert (found.names.count("h1"), found.names.count("main"), found.names.count("script")) == (1, 1, 1)
    assert not {one for one in found.attributes if one.startswith("on") or one == "style"}
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'"} < {*policy}
    assert not [one for one in policy if "unsafe" in one or "*" in one]
    assert answer.headers["cache-control"] == "no-store"


def test_the_pages_say_what_the_commands_say(use: LongUse, get: Callable[[str], httpx.Response]) -> None:
    with closing(open_ledger(use.spool)) as db:
        counts = dict(db.execute("select state, sum(jobs) from tally group by 1").fetchall())
        (turn,) = db.execute("select count(*) from job where state = 'delivered' and session_id = 1").fetchone()
    overview, tabs = get("/").text, get("/jobs").text
    for state in ("pending", "delivered", "dead", "dropped"):
        assert f'href="jobs?state={state}">{counts[state]:,}' in overview
        assert re.search(rf'{state.capitalize()} <span class="count">{counts[state]:,}<', tabs)
    assert f"{turn} of {TURNS}" in get("/sessions").text
    assert "dead retry --error" in get("/jobs?state=dead").text
    assert f"delivers {counts['pending']} jobs now" in get("/jobs?state=pending").text


def test_a_session_is_opened_to_its_records(use: LongUse, get: Callable[[str], httpx.Response]) -> None:
    text = get(f"/session?id={use.latest}").text
    for word in ("msg-30", "tool-read", "tool-bash", "not yet", "3 attempts", "503: no healthy upstream", "redaction"):
        assert word in text
    assert re.findall(r'<rect x="\d+" width="\d+"', text)
    assert "Mend it, please." not in text


def test_no_title_of_a_session_is_the_title_of_a_page(use: LongUse, get: Callable[[str], httpx.Response]) -> None:
    title = "Rounding of invoice totals"
    with closing(sqlite3.connect(use.store)) as db, db:
        db.execute("update session set title = ? where id = ?", (title, use.latest))
    text = get(f"/session?id={use.latest}").text
    assert title in text
    assert title not in re.findall("<title>(.*?)</title>", text)[0]


@pytest.mark.parametrize("page", PAGES)
def test_what_others_wrote_is_text(use: LongUse, get: Callable[[str], httpx.Response], page: str) -> None:
    with closing(sqlite3.connect(use.store)) as db, db:
        db.execute("update session set title = ?, directory = ?", (EVIL, f"/home/dev/{EVIL}"))
        db.execute("update message set data = json_set(data, '$.modelID', ?)", (EVIL,))
        db.execute("update part set data = json_set(data, '$.tool', ?) where data like '%tool%'", (EVIL,))
    with closing(open_ledger(use.spool)) as db:
        db.execute("update job set error = ? where error is not null", (EVIL,))
        db.execute("update attempt set error = ?, answer = ?", (EVIL, EVIL))
    found = Elements(get(page).text)
    assert (found.names.count("script"), found.names.count("img")) == (1, 0)
    for asked in HOSTILE:
        assert get(asked).status_code == 200, asked
    for asked in (f"/sessions?text={EVIL}", f"/jobs?title={EVIL}&error={EVIL}&state={EVIL}", f"/session?id={EVIL}"):
        assert Elements(get(asked).text).names.count("img") == 0


@pytest.mark.parametrize("limit", ["0", "-1", "x", "9" * 99, "\u0661"])
def test_a_limit_that_is_none_is_the_usual_one(get: Callable[[str], httpx.Response], limit: str) -> None:
    assert get(f"/jobs?limit={limit}").text.count('href="job?key=') <= 1_000


def damage(spool: Path) -> None:
    data = bytearray((spool / "ledger.db").read_bytes())
    data[4096 : 4096 * 8] = b"\xff" * 4096 * 7
    (spool / "ledger.db").write_bytes(data)


def newer(spool: Path) -> None:
    with closing(open_ledger(spool)) as db:
        db.execute("pragma user_version = 99")


def empty(spool: Path) -> None:
    (spool / "ledger.db").write_bytes(b"")


def missing(spool: Path) -> None:
    shutil.rmtree(spool)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (damage, "cannot be read"),
        (newer, "install the newer version|schema 99"),
        (empty, "schema 0"),
        (missing, "no queue"),
    ],
)
def test_a_queue_that_cannot_be_read_is_said_on_each_page_and_left(
    use: LongUse, get: Callable[[str], httpx.Response], spoil: Callable[[Path], None], told: str
) -> None:
    spoil(use.spool)
    before = (
        sorted((path.name, path.read_bytes()) for path in use.spool.glob("ledger.db")) if use.spool.exists() else []
    )
    for page in OF_QUEUE:
        answer = get(page)
        assert (answer.status_code, bool(re.search(told, answer.text))) == (200, True), (page, answer.text)
    assert "ledger" in get("/doctor").text
    assert "opencode_helicone_ledger_readable 0.0" in get("/metrics").text
    assert get("/healthz").status_code == 503
    after = sorted((path.name, path.read_bytes()) for path in use.spool.glob("ledger.db")) if use.spool.exists() else []
    assert after == before
    assert use.spool.exists() == (spoil is not missing)


def test_a_store_that_is_gone_is_said_and_the_queue_shown(use: LongUse, get: Callable[[str], httpx.Response]) -> None:
    use.store.unlink()
    for page in ("/", "/sessions", f"/session?id={use.latest}", "/jobs", "/stats", "/sent"):
        answer = get(page)
        assert (answer.status_code, "is not there" in answer.text) == (200, True), page
    assert use.latest in get("/sessions").text
    assert "503: no healthy upstream" in get(f"/session?id={use.latest}").text
    assert "needs OpenCode" in get("/jobs?title=x").text


def test_times_that_no_calendar_has_are_said_to_be_unknown(use: LongUse, get: Callable[[str], httpx.Response]) -> None:
    with closing(sqlite3.connect(use.store)) as db, db:
        db.execute("update session set time_created = ?, time_updated = ?", (1 << 62, 1 << 62))
        db.execute(
            "update message set time_created = ?, data = json_set(data, '$.time.created', ?)", (1 << 62, 1 << 62)
        )
    with closing(open_ledger(use.spool)) as db:
        db.execute("update job set due_ms = ? where state = 'pending'", (1 << 62,))
    for page in PAGES:
        answer = get(page)
        assert (page, answer.status_code, "internal error" in answer.text) == (page, 200, False)


def test_a_template_that_fails_is_said_without_what_it_was_about(web: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Templates, name: str, values: Mapping[str, object]) -> str:
        if name != "unreadable.html":
            raise ValueError("a title of a session")
        return whole(self, name, values)

    whole = Templates.render
    monkeypatch.setattr(Templates, "render", fails)
    text = httpx.get(web.url, headers=web.cookie, trust_env=False).text
    assert "internal error, please report it: ValueError at " in text
    assert "a title" not in text


def test_a_locked_queue_is_said_soon_and_nobody_is_sent_to_recover_it(
    use: LongUse, get: Callable[[str], httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LOOK_MS", 1)
    with closing(sqlite3.connect(use.spool / "ledger.db")) as db:
        db.execute("pragma locking_mode = exclusive")
        db.execute("begin exclusive")
        for page in OF_QUEUE:
            text = get(page).text
            assert ("locked by another program" in text, "recovers it" in text) == (True, False), page


def test_few_pages_are_made_at_once_and_what_is_light_does_not_wait(
    use: LongUse, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, started = threading.Event(), threading.Semaphore(0)
    made: list[int] = []

    def slow(look: Look) -> Page:
        made.append(1)
        started.release()
        assert going.wait(60)
        return VIEWS["/jobs"](look)

    monkeypatch.setitem(VIEWS, "/stats", slow)
    with showing(site_of(use)) as web, ThreadPoolExecutor(8) as pool:
        get = partial(httpx.get, headers=web.cookie, trust_env=False, timeout=60)
        asked = [pool.submit(get, f"{web.url}/stats") for _ in range(8)]
        try:
            for _ in range(AT_ONCE):
                assert started.acquire(timeout=20)
            for light in ("/stamp", "/page.css", "/metrics", "/healthz"):
                assert get(web.url + light).status_code == 200
            assert len(made) == AT_ONCE
        finally:
            going.set()
        assert [one.result().status_code for one in asked] == [200] * 8


def test_ctrl_c_does_not_wait_for_a_page(use: LongUse) -> None:
    script = """
import time, sys
from pathlib import Path
from app.web import server
from tests.support.long_use import LongUse
from tests.support.web import site_of
server.VIEWS["/stats"] = lambda look: (print("in the making", flush=True), time.sleep(600))
use = LongUse(Path(sys.argv[1]), 0)
server.serve(site_of(use), "127.0.0.1", 0, lambda url: print(url, flush=True))
"""
    command = [sys.executable, "-c", script, str(use.home)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with httpx.Client(trust_env=False) as client, ThreadPoolExecutor(1) as pool:
            client.get(address)
            asked = pool.submit(client.get, str(httpx.URL(address).join("/stats")), timeout=60)
            assert process.stdout.readline() == "in the making\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert asked.exception(60) is not None or asked.result().status_code != 200
    finally:
        process.kill()
        assert "Traceback" not in process.communicate()[1]


def test_settings_that_cannot_be_used_are_said(use: LongUse, web: Running) -> None:
    (use.home / "own").mkdir()
    (use.home / "own" / "config.toml").write_text("nonsense = 1\n")
    answer = httpx.get(web.url, headers=web.cookie, trust_env=False)
    assert (answer.status_code, "nonsense" in answer.text) == (200, True)


def test_the_stamp_changes_with_the_queue_alone(use: LongUse) -> None:
    before = stamp(use.spool)
    assert stamp(use.spool) == before
    with closing(open_ledger(use.spool)) as db:
        db.execute("update job set due_ms = due_ms + 1 where state = 'pending'")
        assert stamp(use.spool) != before


@pytest.mark.parametrize("name", VIEWS)
def test_a_page_leaves_no_read_of_the_queue_open(use: LongUse, name: str) -> None:
    """Else the write-ahead log could not be cut while somebody looks."""
    settings = use.sources.load()

    def look(db: sqlite3.Connection) -> int:
        with closing(open_ledger(use.spool)) as other:
            other.execute("update job set due_ms = due_ms + 1 where state = 'pending'")
            VIEWS[name](Look(site_of(use), settings, db, use.now_ms, {"id": use.latest, "state": "dead"}))
            return int(other.execute("pragma wal_checkpoint(truncate)").fetchone()[0])

    assert look_at_ledger(use.spool, look) == 0


def test_stats_read_no_call_that_is_older(use: LongUse) -> None:
    with closing(sqlite3.connect(use.store)) as db:
        plan = [row[3] for row in db.execute(f"explain query plan {USAGE}", {"since": 1, "among": None})]
    assert not [step for step in plan if step.startswith("SCAN m")], plan
    assert [step for step in plan if "SEARCH m USING INDEX" in step and "time_created>?)" in step], plan
