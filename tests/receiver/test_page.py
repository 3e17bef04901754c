"""The receiver's page: what it shows, to whom, and that nothing of what it shows is more than text."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from app.receiver import background, page, store
from app.receiver.access import cookie, own_key, page_pass, page_url
from app.receiver.manual_log import Log
from app.receiver.store import Stored
from tests.support.servers import answer, api_key, forwarded, receiving, scripted

KEY = api_key("k")
EVIL = "</pre><script src=//x></script><img src=x onerror=1>\"'&"


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


def log(path: str, *, model: str = "fake/fake-large", start_ms: int = 1_000, **changed: object) -> Log:
    made = Log(
        request_id="00000000-0000-4000-8000-000000000001",
        provider="CUSTOM",
        model=model,
        user_id="",
        created_ms=start_ms,
        ended_ms=start_ms + 250,
        ttft_ms=None,
        status=200,
        prompt_tokens=900,
        completion_tokens=50,
        cache_read_tokens=100,
        cache_write_tokens=0,
        cost_usd=0.25,
        properties={
            "Helicone-Session-Id": "ses_1",
            "Helicone-Session-Name": "opencode: shop",
            "Helicone-Session-Path": path,
        },
        request_body=json.dumps({"messages": [{"role": "user", "content": "what is it?"}]}),
        response_body=json.dumps({"choices": [{"message": {"role": "assistant", "content": "a README"}}]}),
    )
    return replace(made, **changed)  # type: ignore[arg-type]  # each test names fields of its own


def titled(path: str, title: str, *, start_ms: int = 1_000) -> Log:
    said = json.dumps({"choices": [{"message": {"role": "user", "content": title}}]})
    return log(path, model="opencode/session", response_body=said, request_body="{}", cost_usd=0.0, start_ms=start_ms)


def rows(*logs: Log) -> list[Stored]:
    return [Stored("owner", one, 1) for one in logs]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with store.opened(path) as db:
        for number, one in enumerate(
            [
                titled("/opencode/ses_1", "Look at the README"),
                log("/opencode/ses_1/msg-1", start_ms=2_000),
                titled("/opencode/ses_1/msg-1/tool-task/ses_2", "A subagent", start_ms=3_000),
                log("/opencode/ses_1/msg-2", start_ms=4_000, status=500),
            ]
        ):
            store.put(db, "owner", replace(one, request_id=f"00000000-0000-4000-8000-00000000000{number}"))
    return path


def test_a_session_is_one_line_with_the_title_of_its_root(kept: Path) -> None:
    with store.opened(kept) as db:
        (found,) = store.sessions(db)
        assert (found.name, found.title, found.requests, found.errors) == ("opencode: shop", "Look at the README", 4, 1)
        assert (found.tokens, found.cost_usd, found.start_ms) == (4 * 1_050, 0.5, 1_000)
        text = page.overview([found])
    assert "<bdi>opencode: shop</bdi></a><br><bdi>Look at the README</bdi>" in text
    assert 'href="session?id=ses_1"' in text


def test_a_session_is_a_tree_in_the_order_of_its_first_requests(kept: Path) -> None:
    with store.opened(kept) as db:
        text = page.session(store.of_session(db, "ses_1"))
    assert re.findall("<b><bdi>([^<]+)</bdi></b>", text) == ["ses_1", "msg-1", "ses_2", "msg-2"]
    assert "what is it?" in text
    assert "a README" in text
    assert "failed 500" in text


def test_what_is_received_is_text_and_nothing_else() -> None:
    evil = log(
        f"/{EVIL}",
        model=EVIL,
        properties={"Helicone-Session-Id": EVIL, "Helicone-Session-Name": EVIL, "Helicone-Session-Path": f"/{EVIL}"},
        request_body=json.dumps({"messages": [{"role": EVIL, "content": EVIL}], "input": {EVIL: EVIL}}),
        response_body=json.dumps({"error": {"message": EVIL}, "message": EVIL}),
    )
    listed = page.overview([store.Session(EVIL, EVIL, EVIL, 0, 1, 1, 0.0, 1)])
    for text in (listed, page.session(rows(evil))):
        found = Elements()
        found.feed(text)
        assert not found.names & {"script", "img", "iframe", "form", "object"}
        assert not {one for one in found.attributes if one.startswith("on") or one in {"style", "src"}}
        assert {link.partition("?id=")[0] for link in found.links} <= {"session", "./", "page.css", "page.svg", "#main"}
        assert EVIL in found.text


@pytest.mark.parametrize(
    "body", ["", "[]", "nonsense", "{}", '{"choices": 3, "messages": [1], "error": []}', "[" * 9999]
)
def test_any_body_is_shown(body: str) -> None:
    assert "msg-1" in page.session(rows(log("/opencode/ses_1/msg-1", request_body=body, response_body=body)))


def test_each_page_says_in_a_browsers_tab_what_it_is(kept: Path) -> None:
    with store.opened(kept) as db:
        pages = [page.overview(store.sessions(db)), page.session(store.of_session(db, "ses_1")), page.closed()]
    titles = [re.findall("<title>(.*?)</title>", text) for text in pages]
    assert titles == [["Sessions"], ["Session"], ["Closed"]]


def test_nothing_yet_says_what_to_do() -> None:
    assert "opencode-helicone status" in page.overview([])
    assert "No such session" in page.session([])


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, follow_redirects=True) as client:
        yield client


def test_only_who_has_the_pass_sees_it(kept: Path, browser: httpx.Client) -> None:
    with receiving(kept, keys=frozenset({KEY})) as receiver:
        for path in ("/", "/session?id=ses_1", "/?pass=", "/?pass=guessed"):
            refused = browser.get(receiver.url + path)
            assert (refused.status_code, "README" in refused.text) == (403, False)
        shown = browser.get(page_url(receiver.url, KEY))
        assert (shown.status_code, str(shown.url)) == (200, f"{receiver.url}/")
        assert "Look at the README" in shown.text
        assert shown.headers["content-security-policy"].startswith("default-src 'none'")
        assert "what is it?" in browser.get(f"{receiver.url}/session?id=ses_1").text
        assert KEY not in shown.text
        assert page_pass(KEY) not in shown.text


def test_another_name_of_this_machine_gets_no_page(kept: Path, browser: httpx.Client) -> None:
    with receiving(kept, keys=frozenset({KEY})) as receiver:
        headers = {"host": "example.com", "cookie": f"{cookie(80)}={page_pass(KEY)}"}
        assert browser.get(receiver.url, headers=headers).status_code == 403


def test_two_receivers_of_one_machine_keep_apart_what_a_browser_may_see(
    kept: Path, tmp_path: Path, browser: httpx.Client
) -> None:
    other = api_key("b")
    with (
        receiving(kept, keys=frozenset({KEY})) as first,
        receiving(tmp_path / "other.db", keys=frozenset({other})) as second,
    ):
        for receiver, key in ((first, KEY), (second, other)):
            assert browser.get(page_url(receiver.url, key)).status_code == 200
        assert [browser.get(one.url).status_code for one in (first, second)] == [200, 200]


def test_the_exchange_for_the_cookie_is_kept_by_nobody(kept: Path) -> None:
    with receiving(kept, keys=frozenset({KEY})) as receiver:
        answered = httpx.get(page_url(receiver.url, KEY), trust_env=False)
    assert answered.status_code == 303
    assert (answered.headers["cache-control"], answered.headers["referrer-policy"]) == ("no-store", "no-referrer")


def test_who_has_no_key_of_it_is_told_nothing_keeps_nothing_and_scripts_nothing(kept: Path) -> None:
    with (
        receiving(kept, keys=frozenset({KEY})) as receiver,
        httpx.Client(base_url=receiver.url, trust_env=False) as web,
    ):
        for headers in ({}, {"authorization": f"Bearer {api_key('b')}"}):
            for path in ("/custom/v1/log", "/v1/trace/custom/log", "/v1/request/query-clickhouse"):
                assert web.post(path, json={"providerRequest": "kept?"}, headers=headers).status_code in (200, 401)
            assert web.get("/_sends", headers=headers).status_code == 401
            assert web.post("/_faults", json=[{"status": 503}], headers=headers).status_code == 401
        assert receiver.sends() == []
        own = {"authorization": f"Bearer {KEY}"}
        assert web.get("/_sends", headers=own).json() == {"sends": []}
        assert web.post("/custom/v1/log", content=b"{", headers=own).status_code == 400
        assert len(receiver.sends()) == 1


def test_neither_key_nor_pass_is_told_to_who_cannot_prove_that_it_has_the_key(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = own_key(kept)
    policy = {"content-security-policy": "default-src 'none'"}
    with receiving(kept, keys=frozenset({key})) as receiver:
        acts = {"another": answer(200, b"ours", policy), "another receiver": answer(200, b"0" * 64, policy)}
        # One that passes everything on to the real one, and back.
        for act in (*acts.values(), forwarded(receiver.url)):
            with scripted(act) as stranger:
                monkeypatch.setattr(background, "PORT", int(stranger.url.rpartition(":")[2]))
                monkeypatch.setattr(background, "PORTS", 1)
                assert background.find(kept) is None
                assert not background.stop(kept)
                told = background.who_has(background.PORT, kept)
            assert "has it" in told
            heard = "".join(f"{one.line}{one.headers}{one.body!r}" for one in stranger.requests)
            assert "/_who" in heard
            assert key not in heard
            assert page_pass(key) not in heard
        monkeypatch.setattr(background, "PORT", int(receiver.url.rpartition(":")[2]))
        found = background.find(kept)
        assert found is not None
        assert found.url == receiver.url


def test_looking_for_a_receiver_makes_no_key(tmp_path: Path) -> None:
    other = tmp_path / "notes.db"
    other.write_text("mine")
    assert background.find(other) is None
    assert not background.stop(other)
    assert [one.name for one in tmp_path.iterdir()] == ["notes.db"]


@pytest.mark.slow
def test_the_page_is_found_again_and_who_has_a_port_is_told(tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "store.db"
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def receiver(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app", "receiver", *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    none = receiver("--url", "--store", str(kept))
    assert (none.returncode, "no receiver that keeps" in none.stderr) == (1, True)
    assert not kept.parent.exists()
    running = background.ensure(kept, environ)
    try:
        again = receiver("--url", "--store", str(kept))
        assert (again.returncode, again.stdout) == (0, f"{running.page}\n")
        same = receiver("--port", str(running.port), "--store", str(kept))
        assert same.returncode == 1
        assert f"it runs already, on port {running.port}; its page: {running.page}" in same.stderr
        other = receiver("--port", str(running.port), "--store", str(tmp_path / "other.db"))
        assert "a receiver with another store, or of another user, has it" in other.stderr
    finally:
        assert background.stop(kept)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        def hang_up() -> None:
            taken.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        stranger = receiver("--port", port, "--store", str(kept))
    assert f"port {port} is taken: another program has it" in stranger.stderr


@pytest.mark.slow
def test_it_is_started_once_found_again_and_stopped(tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "store.db"
    environ = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert not background.stop(kept)
    first = background.ensure(kept, environ)
    try:
        again = background.ensure(kept, environ)
        assert (first.is_new, again.is_new, again.url, again.key) == (True, False, first.url, own_key(kept))
        other = background.ensure(tmp_path / "other" / "store.db", environ)
        try:
            assert other.url != first.url
            refused = httpx.post(f"{first.url}/_stop", headers={"authorization": f"Bearer {other.key}"})
            assert refused.status_code == 401
        finally:
            assert background.stop(tmp_path / "other" / "store.db")
    finally:
        assert background.stop(kept)
    # Its port may be another receiver's by now.
    assert background.find(kept) is None
