"""Who may see the web view: who opened it by its address, once; nobody from another page, name or machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.runtime import clock
from app.web.access import cookie
from tests.support.long_use import LongUse
from tests.support.web import Running, showing, site_of

PAGES = ("/", "/sessions", "/session?id=ses_000000", "/jobs", "/job?key=0", "/stats", "/sent", "/doctor", "/stamp")
FOR_ALL = ("/metrics", "/healthz", "/page.css", "/page.js")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    use = LongUse(tmp_path_factory.mktemp("use"), clock.now_ms(), 2, 3).make()
    with showing(site_of(use)) as running:
        yield running


def test_the_address_opens_once_and_a_second_use_is_refused(tmp_path: Path) -> None:
    with showing(site_of(LongUse(tmp_path, clock.now_ms(), 1, 2).make())) as web:
        first, second = (httpx.Client(trust_env=False, follow_redirects=True) for _ in range(2))
        with first, second:
            assert first.get(f"{web.url}/?token=guessed").status_code == 403
            opened = first.get(web.opened_by)
            assert (opened.status_code, str(opened.url)) == (200, f"{web.url}/")
            stolen = second.get(web.opened_by)
            assert (stolen.status_code, "used already" in stolen.text) == (403, True)
            assert second.get(web.url).status_code == 403
            assert first.get(f"{web.url}/jobs").status_code == 200


def test_the_cookie_is_for_the_browser_alone(tmp_path: Path) -> None:
    with showing(site_of(LongUse(tmp_path, clock.now_ms(), 1, 2).make())) as web:
        answer = httpx.get(web.opened_by, trust_env=False)
        told = answer.headers["set-cookie"].lower()
        assert answer.status_code == 303
        assert "httponly" in told
        assert "samesite=strict" in told
        assert web.access.token not in told
        assert web.access.token not in answer.headers["location"]
        assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")


def test_the_token_opens_the_first_page_alone(tmp_path: Path) -> None:
    with showing(site_of(LongUse(tmp_path, clock.now_ms(), 1, 2).make())) as web:
        for page in (*PAGES[1:], *FOR_ALL):
            refused = httpx.get(httpx.URL(web.url).join(page), params={"token": web.access.token}, trust_env=False)
            assert (page, "set-cookie" in refused.headers) == (page, False)
        assert httpx.get(web.opened_by, trust_env=False).status_code == 303


def test_two_views_in_one_browser_keep_each_its_cookie(tmp_path: Path) -> None:
    site = site_of(LongUse(tmp_path, clock.now_ms(), 1, 2).make())
    with (
        showing(site) as first,
        showing(site) as second,
        httpx.Client(trust_env=False, follow_redirects=True) as browser,
    ):
        for one in (first, second):
            assert browser.get(one.opened_by).status_code == 200
        assert "".join(sorted(cookie.name for cookie in browser.cookies.jar)).count("opencode-helicone-web-") == 2
        assert [browser.get(one.url).status_code for one in (first, second)] == [200, 200]


@pytest.fixture(scope="module")
def client(web: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=web.url, trust_env=False) as made:
        yield made


@pytest.mark.parametrize("page", PAGES)
def test_without_the_cookie_nothing_is_shown(web: Running, client: httpx.Client, page: str) -> None:
    name = cookie(int(web.url.rpartition(":")[2]))
    for headers in ({}, {"cookie": f"{name}=guessed"}, {"cookie": f"{name}={web.access.token}"}):
        answer = client.get(page, headers=headers)
        assert (answer.status_code, "ses_" in answer.text) == (403, False)
    answer = client.get(page, headers=web.cookie)
    assert answer.status_code == 200
    assert (answer.headers["cache-control"], answer.headers["referrer-policy"]) == ("no-store", "no-referrer")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_somebody_else_gets_nothing_even_with_the_cookie(
    web: Running, client: httpx.Client, site: str
) -> None:
    headers = {**web.cookie, "sec-fetch-site": site}
    assert client.get("/jobs", headers=headers).status_code == 403


@pytest.mark.parametrize("page", [*PAGES, *FOR_ALL])
@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com", "localhost.example.com", "10.0.0.1", ""])
def test_another_name_of_this_machine_is_not_answered(web: Running, client: httpx.Client, page: str, host: str) -> None:
    answer = client.get(page, headers={**web.cookie, "host": host})
    assert answer.status_code in (400, 403)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"])
@pytest.mark.parametrize("page", ["/", "/jobs", "/metrics", "/nothing"])
def test_only_get_is_answered(web: Running, client: httpx.Client, method: str, page: str) -> None:
    answer = client.request(method, page, headers=web.cookie)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("page", FOR_ALL)
def test_numbers_style_and_script_are_for_everybody_here_and_tell_of_no_session(
    client: httpx.Client, page: str
) -> None:
    answer = client.get(page)
    assert answer.status_code == 200
    assert "ses_" not in answer.text
