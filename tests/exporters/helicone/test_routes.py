from __future__ import annotations

import doctest

import pytest

from app.exporters.helicone.routes import kind_of, read_back_url, routes, session_url
from app.runtime import url
from app.runtime.url import EndpointError, is_loopback, normalise
from tests.support.servers import api_key


def test_the_examples_in_the_documentation_hold() -> None:
    result = doctest.testmod(url)
    assert (result.failed, result.attempted > 0) == (0, True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://api.worker.helicone.ai", "https://api.worker.helicone.ai"),
        ("  HTTPS://API.Worker.Helicone.AI.:443//  ", "https://api.worker.helicone.ai"),
        ("http://HOST:80/", "http://host"),
        ("http://host:443/", "http://host:443"),
        ("http://127.0.0.1:8585/Jawn/", "http://127.0.0.1:8585/Jawn"),
        ("http://[::1]:8585", "http://[::1]:8585"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("http://my_host:8788/custom/v1/log", "http://my_host:8788/custom/v1/log"),
    ],
)
def test_an_endpoint_has_one_spelling(given: str, expected: str) -> None:
    assert normalise(given) == expected
    assert normalise(expected) == expected


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        pytest.param("", "must start with https://", id="nothing"),
        pytest.param("api.worker.helicone.ai", "must start with https://", id="no scheme"),
        pytest.param("ftp://host", "must start with https://", id="other scheme"),
        pytest.param("https://", "no host", id="no host"),
        pytest.param("https:///custom/v1/log", "no host", id="only a path"),
        pytest.param("https://me" + ":{secret}@host", "user or password", id="password"),
        pytest.param("https://{secret}@host", "user or password", id="user"),
        pytest.param("https://host?key={secret}", "query or a fragment", id="query"),
        pytest.param("https://host/#{secret}", "query or a fragment", id="fragment"),
        pytest.param("https://host/?", "query or a fragment", id="empty query"),
        pytest.param("https://host:70000", "port cannot be read", id="port too large"),
        pytest.param("https://host:0", "port must be", id="port zero"),
        pytest.param("https://host:http", "port cannot be read", id="port by name"),
        pytest.param("https://ho st/{secret}", "a space", id="space"),
        pytest.param("https://host\\@evil", "a backslash", id="backslash"),
        pytest.param("https://host\x00", "control character", id="control character"),
        pytest.param("https://h{secret}ö", "xn--", id="international name"),
        pytest.param("https://" + "a" * 64, "no host name", id="label too long"),
        pytest.param("https://a..b", "no host name", id="empty label"),
        pytest.param("https://[::1", "cannot be read", id="open bracket"),
        pytest.param("{secret}", "must start with https://", id="the key in the wrong place"),
    ],
)
def test_an_unusable_endpoint_is_refused_by_what_is_wrong_and_never_quoted(given: str, wrong: str) -> None:
    with pytest.raises(EndpointError, match=wrong) as caught:
        normalise(given.replace("{secret}", api_key()))
    assert api_key() not in str(caught.value)


WORKER = "/custom/v1/log"
JAWN = "/v1/trace/custom/log"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://api.worker.helicone.ai", [("https://api.worker.helicone.ai" + WORKER, "worker")]),
        ("https://helicone.ai", [("https://helicone.ai" + WORKER, "worker")]),
        ("https://api.helicone.ai/", [("https://api.helicone.ai" + JAWN, "jawn")]),
        ("https://eu.api.helicone.ai", [("https://eu.api.helicone.ai" + JAWN, "jawn")]),
        ("http://host:8585", [("http://host:8585" + JAWN, "jawn"), ("http://host:8585" + WORKER, "worker")]),
        ("https://host/jawn/", [("https://host/jawn" + JAWN, "jawn"), ("https://host/jawn" + WORKER, "worker")]),
        ("http://ahelicone.ai", [("http://ahelicone.ai" + JAWN, "jawn"), ("http://ahelicone.ai" + WORKER, "worker")]),
        ("http://host:8788/custom/v1/log", [("http://host:8788/custom/v1/log", "worker")]),
        ("http://host/oai/v1/log", [("http://host/oai/v1/log", "worker")]),
        ("http://host/v1/trace/custom/log", [("http://host/v1/trace/custom/log", "jawn")]),
        ("http://host/v1/trace/custom/v1/log/", [("http://host/v1/trace/custom/v1/log", "jawn")]),
        ("https://api.helicone.ai/v1/trace/custom/log", [("https://api.helicone.ai/v1/trace/custom/log", "jawn")]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_routes_follow_from_the_endpoint(given: str, expected: list[tuple[str, url.RouteKind]]) -> None:
    assert tuple((url, kind_of(url)) for url in routes(given)) == tuple(expected)


def test_the_sdk_base_that_works_with_helicones_own_sdk_leads_to_jawn() -> None:
    last = routes("http://host:8585/v1/trace")[-1]
    assert (last, kind_of(last)) == ("http://host:8585/v1/trace/custom/v1/log", "jawn")


@pytest.mark.parametrize(
    ("given", "region", "expected"),
    [
        ("https://api.worker.helicone.ai", "", "https://api.helicone.ai/v1/request/query-clickhouse"),
        ("https://api.worker.helicone.ai", "eu", "https://eu.api.helicone.ai/v1/request/query-clickhouse"),
        ("https://eu.api.helicone.ai", "", "https://eu.api.helicone.ai/v1/request/query-clickhouse"),
        ("http://host:8585", "", "http://host:8585/v1/request/query-clickhouse"),
        ("http://host:8585", "eu", "http://host:8585/v1/request/query-clickhouse"),
        ("https://host/jawn", "", "https://host/jawn/v1/request/query-clickhouse"),
        ("https://host/jawn/v1/trace/custom/log", "", "https://host/jawn/v1/request/query-clickhouse"),
        ("http://host/v1/trace/custom/v1/log", "", "http://host/v1/request/query-clickhouse"),
        ("http://host:8788/custom/v1/log", "", None),
    ],
)
def test_reading_back_goes_to_jawn_in_the_region_of_the_key(given: str, region: str, expected: str | None) -> None:
    assert read_back_url(given, api_key(region=region)) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("192.168.0.1", False),
        ("10.0.0.1", False),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_told_by_the_address(host: str, expected: bool) -> None:  # noqa: FBT001
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("endpoint", "key", "dashboard", "expected"),
    [
        ("https://api.worker.helicone.ai", "", None, "https://us.helicone.ai/sessions/opencode%3A%20a%2Fb/ses_1"),
        ("https://eu.api.helicone.ai", "", None, "https://eu.helicone.ai/sessions/opencode%3A%20a%2Fb/ses_1"),
        ("http://127.0.0.1:8585", "", None, None),
        ("http://127.0.0.1:8585", "", "http://host:3000", "http://host:3000/sessions/opencode%3A%20a%2Fb/ses_1"),
    ],
)
def test_the_page_of_a_session(endpoint: str, key: str, dashboard: str | None, expected: str | None) -> None:
    assert session_url(endpoint, key, dashboard, "ses_1", "opencode: a/b") == expected
    assert session_url(endpoint, key, dashboard, "ses_1", "") is None
