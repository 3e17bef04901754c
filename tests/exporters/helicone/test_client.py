from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.exporters.client import ClientError, ReadBackError
from app.exporters.helicone.client import ANSWER_BYTES_MAX, READ_BACK_PAGE, Client
from app.exporters.outcome import Kind, Outcome
from tests.support import servers
from tests.support.servers import answer, api_key, ok, scripted, self_signed, whole

NOW_MS = 1_790_000_000_000
ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "a record"))
WORKER = "/custom/v1/log"
JAWN = "/v1/trace/custom/log"
HTML = b"<!DOCTYPE html><html><body>Please accept the terms of this network</body></html>"


def record(request_id: str = ID, text: str = "hello", session: str = "ses_1", start_s: int = 1_790_000_000) -> bytes:
    """The smallest body that both servers take."""
    chat = {"model": "acme/one", "messages": [{"role": "user", "content": text}]}
    envelope = {
        "providerRequest": {
            "url": "custom-model-nopath",
            "json": chat,
            "meta": {"Helicone-Request-Id": request_id, "Helicone-Session-Id": session},
        },
        "providerResponse": {"status": 200, "headers": {}, "json": {"model": "acme/one"}},
        "timing": {
            "startTime": {"seconds": start_s, "milliseconds": 0},
            "endTime": {"seconds": start_s + 1, "milliseconds": 0},
        },
        "provider": "CUSTOM",
    }
    return json.dumps(chat | envelope).encode()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with closing(Client(api_key())) as made:
        yield made


@pytest.fixture(scope="module")
def hasty() -> Iterator[Client]:
    with closing(Client(api_key(), deadline_s=0.5)) as made:
        yield made


def post(client: Client, url: str, body: bytes | None = None, path: str = WORKER) -> Outcome:
    return client.post(url + path, record() if body is None else body, ID, NOW_MS)


# --- what the answers mean: one row of the contract's tables each ----------------------------------------------------


def error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()


SAME_ID = {"helicone-id": ID}


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        pytest.param(200, SAME_ID, b"ok", "accepted", id="ok"),
        pytest.param(200, {"Helicone-Id": ID.upper()}, b"ok", "accepted", id="ok in other letters"),
        pytest.param(200, {"helicone-id": str(uuid.uuid4())}, b"ok", "permanent", id="ok under another id"),
        pytest.param(200, {}, b"ok", "refused", id="ok without an id"),
        pytest.param(200, {}, error("Auth failed! Error: unknown key"), "refused", id="unknown key"),
        pytest.param(200, {}, error("Error logging"), "retry", id="error logging"),
        pytest.param(200, {}, error("Failed to insert into the queue"), "retry", id="exception behind the worker"),
        pytest.param(200, SAME_ID, b"", "refused", id="empty"),
        pytest.param(200, SAME_ID, b"okay", "refused", id="other text"),
        pytest.param(200, SAME_ID, HTML, "refused", id="captive portal"),
        pytest.param(200, SAME_ID, b'{"data":1}', "refused", id="other JSON"),
        pytest.param(200, SAME_ID, b'{"error":{"message":"x"}}', "refused", id="error of another shape"),
        pytest.param(200, SAME_ID, b"[" * 50_000, "refused", id="absurd JSON"),
        pytest.param(201, SAME_ID, b"ok", "refused", id="another 2xx"),
        pytest.param(204, SAME_ID, b"", "refused", id="no content"),
        pytest.param(400, {}, b"Payload too large", "permanent", id="too large"),
        pytest.param(400, {}, error("Invalid providerRequest: 'url' should be a string"), "permanent", id="invalid"),
        pytest.param(401, {}, b"Unauthorized", "refused", id="no authorization"),
        pytest.param(401, {}, error("API Key is not well formed"), "refused", id="malformed key"),
        pytest.param(402, {}, b"", "refused", id="payment required"),
        pytest.param(403, {}, HTML, "refused", id="forbidden"),
        pytest.param(404, {}, b"invalid path", "refused", id="wrong path"),
        pytest.param(405, {}, b"", "refused", id="wrong method"),
        pytest.param(407, {}, b"", "refused", id="proxy wants a password"),
        pytest.param(408, {}, b"", "wait", id="request timeout"),
        pytest.param(413, {}, HTML, "permanent", id="too large for a proxy"),
        pytest.param(425, {}, b"", "wait", id="too early"),
        pytest.param(429, {}, b"", "wait", id="rate limit"),
        pytest.param(431, {}, b"", "permanent", id="headers too large"),
        pytest.param(500, {"helicone-error": "true"}, b'{"helicone-message":"boom"}', "retry", id="exception"),
        pytest.param(502, {}, HTML, "retry", id="bad gateway"),
        pytest.param(503, {}, b"", "retry", id="unavailable"),
        pytest.param(522, {}, HTML, "retry", id="the edge cannot reach it"),
    ],
)
def test_the_workers_answers_mean_what_the_contract_says(
    client: Client, status: int, headers: dict[str, str], body: bytes, kind: Kind
) -> None:
    with scripted(answer(status, body, headers)) as server:
        outcome = post(client, server.url)
    assert (outcome.kind, outcome.status) == (kind, status)
    assert outcome.reason.startswith(f"{status}: ")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        pytest.param(200, b"", "accepted", id="empty"),
        pytest.param(200, b"ok", "refused", id="text"),
        pytest.param(200, b"null", "refused", id="JSON"),
        pytest.param(200, HTML, "refused", id="captive portal"),
        pytest.param(200, error("x"), "refused", id="error"),
        pytest.param(202, b"", "refused", id="another 2xx"),
        pytest.param(401, error("No API key found"), "refused", id="unknown key"),
        pytest.param(400, b"Invalid token.", "refused", id="exception in auth"),
        pytest.param(400, error("request aborted"), "permanent", id="bad request"),
        pytest.param(404, HTML, "refused", id="no such route"),
        pytest.param(413, b"", "permanent", id="too large for a proxy"),
        pytest.param(429, error("Too many requests, please try again later."), "wait", id="rate limit"),
        pytest.param(431, b"", "permanent", id="headers too large"),
        pytest.param(500, b"", "retry", id="empty 500"),
        pytest.param(500, b'{"details":"request entity too large"}', "permanent", id="too large"),
        pytest.param(500, b'{"message":"Unexpected end of JSON input"}', "permanent", id="malformed"),
        pytest.param(500, b'{"details":"Internal Server Error"}', "retry", id="production 500"),
        pytest.param(503, b"request entity too large", "retry", id="not jawn's words"),
    ],
)
def test_jawns_answers_mean_what_the_contract_says(client: Client, status: int, body: bytes, kind: Kind) -> None:
    with scripted(answer(status, body)) as server:
        outcome = post(client, server.url, path=JAWN)
    assert (outcome.kind, outcome.status) == (kind, status)


@pytest.mark.parametrize(
    "text",
    [
        "connect ECONNREFUSED 127.0.0.1:5432",
        "connect ECONNREFUSED ::1:5432",
        '{"errno":-111,"code":"ECONNREFUSED","syscall":"connect","address":"127.0.0.1","port":5432}',
        "getaddrinfo ENOTFOUND db",
        "getaddrinfo EAI_AGAIN db",
        "connect ETIMEDOUT 10.0.0.5:5432",
        "connect EHOSTUNREACH 10.0.0.5:5432",
        "read ECONNRESET",
        "write EPIPE",
        "Connection terminated unexpectedly",
        "Connection terminated due to connection timeout",
        "Client has encountered a connection error and is not queryable",
        "timeout exceeded when trying to connect",
        "terminating connection due to administrator command",
        "the database system is starting up",
        "sorry, too many clients already",
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "canceling statement due to statement timeout",
        "TypeError: fetch failed",
        "Auth failed! Error: connect ECONNREFUSED 127.0.0.1:54321",
    ],
)
@pytest.mark.parametrize(("path", "status"), [(JAWN, 401), (WORKER, 200)], ids=["jawn", "worker"])
def test_a_database_that_cannot_be_asked_is_no_refused_key(client: Client, path: str, status: int, text: str) -> None:
    with scripted(answer(status, error(text), SAME_ID)) as server:
        outcome = post(client, server.url, path=path)
    assert (outcome.kind, outcome.status) == ("wait", status)


@pytest.mark.parametrize("body", [error("No API key found"), b'{"error":null,"trace":"x"}', b"ECONNREFUSED", HTML])
def test_a_401_that_names_no_connection_error_is_a_refused_key(client: Client, body: bytes) -> None:
    with scripted(answer(401, body)) as server:
        assert post(client, server.url, path=JAWN).kind == "refused"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_key_stays_where_it_was_sent(client: Client, status: int) -> None:
    with scripted(ok()) as elsewhere:
        target = {"Location": elsewhere.url + WORKER}
        with scripted(answer(status, b"", target)) as server:
            outcome = post(client, server.url)
    assert (outcome.kind, outcome.status) == ("refused", status)
    assert elsewhere.requests == []
    assert elsewhere.url not in outcome.reason


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
@pytest.mark.parametrize(
    ("header", "expected_ms"),
    [("7", 7_000), ("Mon, 21 Sep 2026 14:13:25 GMT", 5_000), ("99999", 3_600_000), ("soon", None)],
    ids=["seconds", "date", "capped", "rubbish"],
)
def test_retry_after_is_passed_on(client: Client, status: int, header: str, expected_ms: int | None) -> None:
    with scripted(answer(status, b"", {"Retry-After": header})) as server:
        assert post(client, server.url).retry_after_ms == expected_ms


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_a_post_carries_the_exact_bytes_the_key_and_nothing_of_the_clients_own(client: Client) -> None:
    body = record(text="ünïcode " * 10_000)
    with scripted(ok()) as server:
        outcome = post(client, server.url, body)
        assert outcome == Outcome("accepted", "200: ok", 200)
        [heard] = server.requests
    assert heard.line == f"POST {WORKER} HTTP/1.1"
    assert heard.body == body
    assert heard.headers == {
        "host": server.url.removeprefix("http://"),
        "authorization": f"Bearer {api_key()}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "user-agent": "opencode-helicone",
    }


def test_posts_share_a_connection(client: Client) -> None:
    with scripted(ok()) as server:
        kinds = [post(client, server.url).kind for _ in range(5)]
        assert (kinds, server.connections) == (["accepted"] * 5, 1)


def test_a_failed_post_is_not_repeated_by_the_client(client: Client) -> None:
    with scripted(servers.reset(), ok()) as server:
        assert post(client, server.url).kind == "wait"
        assert len(server.requests) == 1


def test_cookies_are_not_kept(client: Client) -> None:
    with scripted(answer(200, b"ok", SAME_ID | {"Set-Cookie": "a=b"}), ok()) as server:
        post(client, server.url)
        post(client, server.url)
        assert "cookie" not in server.requests[1].headers


def test_a_netrc_does_not_replace_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1\nlogin me\npassword placeholder\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    with closing(Client(api_key())) as client, scripted(ok()) as server:
        post(client, server.url)
        assert server.requests[0].headers["authorization"] == f"Bearer {api_key()}"


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"], ids=["empty", "space", "newline", "umlaut"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_at_the_door(key: str) -> None:
    with pytest.raises(ClientError, match="API key") as caught:
        Client(key)
    assert key == "" or key not in str(caught.value)


# --- reasons ---------------------------------------------------------------------------------------------------------


def test_a_reason_quotes_the_start_of_a_json_error_on_one_line(client: Client) -> None:
    with scripted(answer(400, error("Invalid\nthing\x1b[31m " + "x" * 5_000))) as server:
        reason = post(client, server.url).reason
    assert reason.startswith("400: error Invalid thing [31m xxx")
    assert len(reason) < 200
    assert reason.isprintable()


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"", "empty body"), (HTML, "HTML"), (b"some text", "text"), (b'{"detail":"x"}', "JSON"), (b"\xff\xfe", "text")],
    ids=["empty", "html", "text", "json", "bytes"],
)
def test_a_reason_names_the_kind_of_any_other_body(client: Client, body: bytes, said: str) -> None:
    with scripted(answer(503, body)) as server:
        assert post(client, server.url).reason == f"503: {said}"


def test_a_reason_never_holds_the_key(client: Client) -> None:
    with scripted(answer(401, error(f"unknown key {api_key()} in Bearer {api_key()}"))) as server:
        outcome = post(client, server.url)
    assert outcome.reason == "401: error unknown key [key] in Bearer [key]"


def test_a_reason_withholds_an_error_that_repeats_the_record(client: Client) -> None:
    with scripted(answer(400, error("cannot parse 'the quick brown fox jumps'"))) as server:
        outcome = post(client, server.url, record(text="see the quick brown fox jumps over"))
    assert outcome.kind == "permanent"
    assert "fox" not in outcome.reason
    assert "withheld" in outcome.reason


# --- time and faults -------------------------------------------------------------------------------------------------

FULL = whole(200, b"ok", {"helicone-id": ID})
LONG_AGO = whole(200, b"ok", {"x-padding": "x" * 2_000, "helicone-id": ID})


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(servers.silent(), id="silence"),
        pytest.param(servers.drip(LONG_AGO, interval_s=0.02), id="dripping headers"),
        pytest.param(servers.drip(whole(200, b" " * 2_000 + b"ok", SAME_ID), interval_s=0.02), id="dripping body"),
        pytest.param(servers.drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, interval_s=0.02), id="interim answers"),
        pytest.param(servers.sip(FULL, bytes_each=2048, interval_s=0.02), id="slow upload"),
    ],
)
def test_no_slowness_outlives_the_total_deadline(hasty: Client, act: servers.Act) -> None:
    # Each of these would end well if it were given a minute; none lets a single read or write time out.
    with scripted(act) as server:
        outcome = post(hasty, server.url, record(text="x" * 16_000_000))
    assert (outcome.kind, outcome.status) == ("wait", None)


def test_an_upload_under_way_is_broken_off_at_the_deadline(hasty: Client) -> None:
    over = threading.Event()
    whole_bodies: list[int] = []

    def drink(exchange: servers.Exchange) -> None:
        # Fast enough that no single write times out, too slow for the whole.
        try:
            servers.sip(FULL, bytes_each=65536, interval_s=0.005)(exchange)
            whole_bodies.append(exchange.body_bytes_left)
        finally:
            over.set()

    with scripted(drink) as server:
        assert post(hasty, server.url, record(text="x" * 16_000_000)).kind == "wait"
        assert over.wait(300)
    assert whole_bodies == []


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(servers.reset(), id="reset"),
        pytest.param(servers.partial(b""), id="hangs up"),
        pytest.param(servers.partial(b"HTTP/1.1 200 O"), id="half a status line"),
        pytest.param(servers.partial(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no"), id="half a body"),
        pytest.param(servers.partial(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), id="another protocol"),
        pytest.param(servers.partial(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000), id="endless header"),
    ],
)
def test_a_broken_exchange_waits(client: Client, act: servers.Act) -> None:
    with scripted(act) as server:
        outcome = post(client, server.url)
    assert (outcome.kind, outcome.status) == ("wait", None)
    assert "y" * 20 not in outcome.reason


def test_the_client_goes_on_after_a_deadline(hasty: Client) -> None:
    with scripted(servers.silent(), ok()) as server:
        assert [post(hasty, server.url).kind for _ in range(2)] == ["wait", "accepted"]


def test_an_address_where_nobody_listens_waits(client: Client) -> None:
    with servers.nobody() as url:
        outcome = post(client, url)
    assert outcome == Outcome("wait", "ConnectError: Connection refused")


def test_of_a_huge_answer_only_the_start_is_read(client: Client) -> None:
    def flood(exchange: servers.Exchange) -> None:
        exchange.read_body()
        exchange.send(b"HTTP/1.1 500 No\r\ncontent-length: 99999999999\r\n\r\n")
        while True:  # until the client has enough and hangs up
            exchange.send(b"x" * ANSWER_BYTES_MAX)

    with scripted(flood) as server:
        assert post(client, server.url) == Outcome("retry", "500: text", 500)


# --- proxies and certificates ----------------------------------------------------------------------------------------

NAMED = "http://helicone.test:8585"  # a name that no resolver knows: only a proxy can help


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_used(client: Client, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    with scripted(ok()) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        assert post(client, NAMED).kind == "accepted"
        assert proxy.requests[0].line == f"POST {NAMED}{WORKER} HTTP/1.1"


def test_a_proxy_without_a_scheme_is_an_http_proxy(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(ok()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removeprefix("http://"))
        assert post(client, NAMED).kind == "accepted"


def test_https_goes_through_the_proxy_by_connect_and_its_refusal_pauses(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted(answer(407), answer(502)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//user" + ":placeholder@"))
        refused, waited = (post(client, "https://helicone.test") for _ in range(2))
        assert proxy.requests[0].line == "CONNECT helicone.test:443 HTTP/1.1"
        assert "authorization" not in proxy.requests[0].headers
    assert (refused.kind, waited.kind) == ("refused", "wait")
    assert "407" in refused.reason
    assert "placeholder" not in refused.reason


@pytest.mark.parametrize("bypass", ["helicone.test", ".test", "other.org, helicone.test:8585", "*"])
def test_no_proxy_is_honoured(client: Client, monkeypatch: pytest.MonkeyPatch, bypass: str) -> None:
    with scripted(ok()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", bypass)
        assert post(client, NAMED).kind == "wait"
        assert proxy.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_direct_whatever_proxies_are_set(
    client: Client, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with scripted(answer(502)) as proxy, scripted(ok()) as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert post(client, server.url.replace("127.0.0.1", host)).kind == "accepted"
        assert proxy.connections == 0


@pytest.mark.parametrize(
    "proxy",
    ["socks5://127.0.0.1:1080", "http://", "http://placeholder" + ":placeholder@[::1"],
    ids=["socks", "empty", "bad"],
)
def test_a_proxy_that_cannot_be_used_pauses_and_is_not_quoted(
    client: Client, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    outcome = post(client, NAMED)
    assert outcome.kind == "refused"
    assert "ALL_PROXY" in outcome.reason
    assert "placeholder" not in outcome.reason


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.mark.slow
def test_an_untrusted_certificate_pauses_before_anything_is_sent(client: Client, certificate: Path) -> None:
    with scripted(ok(), certificate=certificate) as server:
        outcome = post(client, server.url)
        assert server.requests == []
    assert (outcome.kind, outcome.status) == ("refused", None)
    assert "certificate is not trusted" in outcome.reason


@pytest.mark.slow
def test_a_certificate_named_by_ssl_cert_file_is_trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with closing(Client(api_key())) as client, scripted(ok(), certificate=certificate) as server:
        assert post(client, server.url).kind == "accepted"


@pytest.mark.slow
def test_a_certificate_of_ones_own_is_trusted_beside_the_systems(certificate: Path) -> None:
    with closing(Client(api_key(), ca_file=certificate)) as client, scripted(ok(), certificate=certificate) as server:
        assert post(client, server.url).kind == "accepted"


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "rubbish"])
def test_an_unusable_file_of_ones_own_is_named_at_the_door(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ClientError, match="caFile"):
        Client(api_key(), ca_file=path)


@pytest.mark.slow
def test_a_certificate_for_another_host_pauses(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with closing(Client(api_key())) as client, scripted(ok(), certificate=certificate) as server:
        assert post(client, server.url.replace("127.0.0.1", "localhost")).kind == "refused"


@pytest.mark.slow
def test_slowness_inside_tls_does_not_outlive_the_deadline(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    slow = servers.drip(LONG_AGO, interval_s=0.02)
    with closing(Client(api_key(), deadline_s=0.5)) as client, scripted(slow, certificate=certificate) as server:
        assert post(client, server.url).kind == "wait"


@pytest.mark.parametrize("content", [None, "no certificate"], ids=["missing", "rubbish"])
def test_an_unusable_ssl_cert_file_is_named_at_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(ClientError, match="SSL_CERT_FILE"):
        Client(api_key())


# --- read back -------------------------------------------------------------------------------------------------------

READ_BACK = "/v1/request/query-clickhouse"


def test_of_the_requests_that_are_asked_for_those_since_a_time_are_read_back(client: Client, tmp_path: Path) -> None:
    wanted = [uuid.uuid5(uuid.NAMESPACE_URL, str(n)) for n in range(READ_BACK_PAGE)]
    with servers.receiving(tmp_path / "store.db") as receiver:
        for n, request_id in enumerate(wanted):
            body = record(str(request_id), start_s=1_000 + n)
            assert client.post(receiver.url + JAWN, body, str(request_id), 0).status == 200
        client.post(receiver.url + JAWN, record(), ID, 0)
        found = client.stored(receiver.url + READ_BACK, start_ms=0, request_ids=wanted)
        later = client.stored(receiver.url + READ_BACK, start_ms=1_006_000, request_ids=wanted)
    assert found == dict.fromkeys(wanted, True)
    assert list(later) == wanted[5:]  # from two seconds earlier on, and later than that


@pytest.mark.parametrize(
    "act",
    [answer(401, error("No API key found")), answer(200, b'{"data":null}'), answer(200, HTML), servers.reset()],
    ids=["401", "no data", "html", "reset"],
)
def test_reading_back_says_why_it_failed(client: Client, act: servers.Act) -> None:
    with scripted(act) as server, pytest.raises(ReadBackError) as caught:
        client.stored(server.url + READ_BACK, start_ms=0, request_ids=[uuid.UUID(ID)])
    assert api_key() not in str(caught.value)


def test_a_redirect_to_an_address_that_nobody_can_read_is_still_a_redirect() -> None:
    with scripted(answer(302, headers={"Location": "http://[::bad"})) as server, closing(Client(api_key())) as client:
        outcome = client.post(f"{server.url}/custom/v1/log", b"{}", "id", 0)
    assert (outcome.kind, outcome.status) == ("refused", 302)
