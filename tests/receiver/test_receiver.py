from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.pages.loopback import ListenError
from app.receiver import access, handler, server
from app.receiver import store as shelf
from app.receiver.access import ReceiverError
from app.receiver.faults import Fault, FaultError
from tests.support import servers
from tests.support.servers import Receiver, api_key
from tests.support.waiting import wait_until
from tests.system.demo import in_tree

WORKER = "/custom/v1/log"
JAWN = "/v1/trace/custom/log"
QUERY = "/v1/request/query-clickhouse"
START_MS = 1_790_000_000_123
UUID_4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def request_id(name: str = "a record") -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def moment(time_ms: int) -> dict[str, int]:
    return {"seconds": time_ms // 1000, "milliseconds": time_ms % 1000}


def envelope(
    *,
    meta: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
    response: Mapping[str, Any] | None = None,
    start_ms: int = START_MS,
    latency_ms: int = 4333,
    union: bool = True,
) -> dict[str, Any]:
    """A complete body, as the contract shows it, with some parts replaced."""
    request = request or {"model": "acme/one", "messages": [{"role": "user", "content": "hello"}]}
    ids = {"Helicone-Request-Id": request_id(), "Helicone-Session-Id": "ses_1", "Helicone-Session-Path": "/opencode/m"}
    return (dict(request) if union else {}) | {
        "providerRequest": {"url": "custom-model-nopath", "json": request, "meta": ids | dict(meta or {})},
        "providerResponse": {"status": 200, "headers": {}, "json": response or {"model": "acme/one"}},
        "timing": {
            "startTime": moment(start_ms),
            "endTime": moment(start_ms + latency_ms),
            "timeToFirstToken": 321,
        },
        "provider": "CUSTOM",
    }


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "receiver" / "store.db"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with servers.receiving(tmp_path_factory.mktemp("receiver") / "store.db") as one:
        yield one


@pytest.fixture
def running(shared: Receiver) -> Receiver:
    """One receiver for all tests, emptied before each: starting one takes longer than most tests."""
    shared.fault()
    with shelf.opened(shared.store) as db:
        db.execute("delete from log")
        db.execute("delete from send")
    return shared


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=20) as client:
        yield client


class Posting:
    """Posts to one receiver under one key."""

    def __init__(self, http: httpx.Client, url: str, key: str = "") -> None:
        self.http, self.url, self.key = http, url, key or api_key()

    def __call__(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(
            self.url + path, content=content, headers={name: value for name, value in sent.items() if value}
        )

    def rows(self, query: object = "all", **more: Any) -> list[dict[str, Any]]:
        answer = self(QUERY, {"filter": query, "limit": 1000, "offset": 0} | more)
        assert answer.status_code == 201, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found


@pytest.fixture
def post(http: httpx.Client, running: Receiver) -> Posting:
    return Posting(http, running.url)


# --- what is answered ------------------------------------------------------------------------------------------------


def test_the_worker_answers_ok_and_the_id(post: Posting) -> None:
    answer = post(WORKER, envelope())
    assert (answer.status_code, answer.text, answer.headers["helicone-id"]) == (200, "ok", request_id())


@pytest.mark.parametrize("path", [JAWN, "/v1/trace/custom/v1/log"])
def test_jawn_answers_nothing(post: Posting, path: str) -> None:
    answer = post(path, envelope())
    assert (answer.status_code, answer.content, "helicone-id" in answer.headers) == (200, b"", False)
    assert len(post.rows()) == 1


@pytest.mark.parametrize("path", ["/v1", "/v1/log", "/custom/v1/log/", "/v1/trace/log", "/jawn" + JAWN])
def test_any_other_path_is_404(post: Posting, path: str) -> None:
    answer = post(path, envelope())
    assert (answer.status_code, answer.text) == (404, "invalid path")


@pytest.mark.parametrize(
    "sent_id",
    [
        "0190163d-8694-739b-aea5-966c26f8ad91",  # version 7
        "01J1B3D1Q5ZJ8Q0Z0Z0Z0Z0Z0Z",
        "755ccba4-57b4-5ff6-78cd-e5c51c010463",  # another variant
        "not an id",
        "",
    ],
    ids=["uuid7", "ulid", "variant", "words", "empty"],
)
@pytest.mark.parametrize("path", [WORKER, JAWN])
def test_an_id_that_is_no_uuid_1_to_5_is_replaced_in_silence(post: Posting, path: str, sent_id: str) -> None:
    answers = [post(path, envelope(meta={"Helicone-Request-Id": sent_id})) for _ in range(2)]
    ids = {row["request_id"] for row in post.rows()}
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(ids) == 2, "sent twice, stored twice"
    assert all(UUID_4.fullmatch(one) for one in ids)
    if path == WORKER:
        assert {answer.headers["helicone-id"] for answer in answers} == ids


@pytest.mark.parametrize(
    ("key", "status", "text"),
    [
        ("", 401, "Unauthorized"),
        ("sk-nonsense", 401, '{"error":"API Key is not well formed"}'),
        (api_key("b"), 200, '{"error":"Auth failed! API key is unknown"}'),
    ],
    ids=["missing", "malformed", "unknown"],
)
def test_the_workers_auth_rules(http: httpx.Client, store: Path, key: str, status: int, text: str) -> None:
    with servers.receiving(store, keys=frozenset({api_key("a")})) as one:
        answer = Posting(http, one.url)(WORKER, envelope(), authorization=key and f"Bearer {key}")
        assert (answer.status_code, answer.text) == (status, text)
        assert one.rows() == []


def test_the_worker_wants_the_word_bearer(post: Posting) -> None:
    answer = post(WORKER, envelope(), authorization=api_key())
    assert (answer.status_code, answer.text) == (401, '{"error":"Must included Bearer in API Key"}')


@pytest.mark.parametrize(
    ("key", "text"),
    [("", "No authorization header"), ("sk-nonsense", "No API key found"), (api_key("b"), "No API key found")],
    ids=["missing", "malformed", "unknown"],
)
@pytest.mark.parametrize("path", [JAWN, QUERY])
def test_jawns_auth_rules(http: httpx.Client, store: Path, path: str, key: str, text: str) -> None:
    with servers.receiving(store, keys=frozenset({api_key("a")})) as one:
        answer = Posting(http, one.url)(path, envelope(), authorization=key and f"Bearer {key}")
        assert (answer.status_code, answer.json()) == (401, {"error": text, "trace": "isAuthenticated.error"})
        assert one.rows() == []


def broken(part: str, **changes: Any) -> dict[str, Any]:
    """An envelope with fields of one part replaced; `...` leaves a field out."""
    body = envelope()
    body[part] = {name: value for name, value in (body[part] | changes).items() if value is not ...}
    return body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"{", "One of the required", id="malformed"),
        pytest.param(b"[1]", "One of the required", id="a list"),
        pytest.param(b'{"a": NaN}', "One of the required", id="no number"),
        pytest.param(b"[" * 100_000, "One of the required", id="absurd depth"),
        pytest.param(gzip.compress(json.dumps(envelope()).encode()), "One of the required", id="gzip"),
        pytest.param({}, "One of the required", id="empty"),
        pytest.param(broken("providerRequest", url=1), "'url' should be a string", id="url"),
        pytest.param(broken("providerRequest", meta=...), "'meta' should be an object", id="meta"),
        pytest.param(broken("providerRequest", json=...), "'json' is undefined", id="request json"),
        pytest.param(broken("providerResponse", json=..., textBody="x"), "'json' is undefined", id="response json"),
        pytest.param(broken("providerResponse", status="200"), "'status' should be a number", id="status"),
        pytest.param(broken("providerResponse", headers=...), "'headers' should be an object", id="headers"),
        pytest.param(broken("timing", startTime={"seconds": "1"}), "timing", id="time of text"),
        pytest.param(broken("timing", startTime="2026-01-01"), "timing", id="ISO time"),
        pytest.param(broken("timing", endTime=moment(START_MS - 1)), "timing", id="ends before it starts"),
        pytest.param(broken("timing", startTime=moment(-1000)), "timing", id="before 1970"),
    ],
)
def test_the_worker_refuses_an_invalid_envelope(post: Posting, body: Any, message: str) -> None:
    answer = (
        post(WORKER, body, content_encoding="gzip" if body[:1] == b"\x1f" else "")
        if isinstance(body, bytes)
        else post(WORKER, body)
    )
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert post.rows() == []


def test_the_worker_checks_size_then_authorization_then_schema_then_key(post: Posting) -> None:
    large = b'{"a":"' + b"x" * handler.BODY_MAX + b'"}'
    statuses = [
        post(WORKER, large, authorization="").text,
        post(WORKER, {}, authorization="").text,
        post(WORKER, {}, authorization="Bearer x").json()["error"][:6],
        post(WORKER, envelope(), authorization="Bearer x").json()["error"],
    ]
    assert statuses == ["Payload too large", "Unauthorized", "One of", "API Key is not well formed"]


@pytest.mark.slow
def test_the_worker_counts_utf16_units_of_the_json_and_jawn_counts_bytes(post: Posting) -> None:
    def body(text: str) -> bytes:
        chat = {"model": "m", "messages": text}
        return json.dumps(envelope(request=chat, union=False), ensure_ascii=False).encode()

    euros = body("€" * 4_000_000)  # 3 bytes, 1 unit
    emoji = body("😀" * 5_300_000)  # 4 bytes, 2 units
    spaced = json.dumps(envelope()).encode() + b" " * handler.BODY_MAX
    assert [post(WORKER, one).status_code for one in (euros, emoji, spaced)] == [200, 400, 200]
    assert [post(JAWN, one).status_code for one in (euros, emoji, spaced)] == [500, 500, 500]
    assert post(JAWN, spaced).json() == {"details": "request entity too large"}


@pytest.mark.slow
def test_a_body_of_the_allowed_size_is_stored_whole(post: Posting) -> None:
    text = "x" * (handler.BODY_MAX - 10_000)
    body = envelope(request={"model": "m", "text": text}, union=False)
    assert [post(path, body).status_code for path in (WORKER, JAWN)] == [200, 200]
    assert post.rows()[0]["request_body"]["text"] == text


@pytest.mark.parametrize(
    ("body", "headers", "details"),
    [
        pytest.param(b"{", {}, "Unexpected end of JSON input", id="malformed"),
        pytest.param(b"no gzip", {"content_encoding": "gzip"}, "Unexpected end of JSON input", id="broken gzip"),
        pytest.param({}, {}, "", id="empty"),
        pytest.param(envelope(), {"content_type": "text/plain"}, "", id="content type"),
        pytest.param({"providerRequest": {"json": {}}}, {}, "", id="no response"),
        pytest.param(broken("providerRequest", json=...), {}, "", id="request json"),
        pytest.param(broken("providerResponse", json=...), {}, "", id="response json"),
        pytest.param(broken("timing", startTime=...), {}, "", id="no start"),
    ],
)
def test_jawn_answers_500_where_others_would_say_400(
    post: Posting, body: Any, headers: dict[str, str], details: str
) -> None:
    answer = post(JAWN, body, **headers)
    assert answer.status_code == 500
    assert answer.content == (json.dumps({"details": details}, separators=(",", ":")).encode() if details else b"")
    assert post.rows() == []


@pytest.mark.parametrize("path", [WORKER, JAWN])
@pytest.mark.parametrize("value", ["線", "a\nb", "a\x00b", "😀"], ids=["cjk", "newline", "nul", "emoji"])
def test_a_meta_value_that_is_no_header_is_500(post: Posting, path: str, value: str) -> None:
    assert post(path, envelope(meta={"Helicone-Property-x": value})).status_code == 500
    assert post.rows() == []


def test_a_meta_name_that_is_no_header_is_500(post: Posting) -> None:
    assert post(JAWN, envelope(meta={"Helicone Property x": "y"})).status_code == 500


# --- what is stored --------------------------------------------------------------------------------------------------

USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 60,
    "total_tokens": 1060,
    "prompt_tokens_details": {"cached_tokens": 800, "cache_write_tokens": 100},
    "cost": 0.01234,
}


@pytest.mark.parametrize("path", [WORKER, JAWN])
def test_the_contracts_example_is_recorded_as_measured(post: Posting, path: str) -> None:
    model = "anthropic/claude-sonnet-4-5-20250929"
    request = {"model": model, "messages": [{"role": "user", "content": "list the files"}], "tools": []}
    response = {"id": "msg_01", "object": "chat.completion", "model": model, "choices": [], "usage": USAGE}
    meta = {"Helicone-User-Id": "dev@example.com", "Helicone-Property-OpenCode_Message_Id": "msg_01"}
    assert post(path, envelope(meta=meta, request=request, response=response)).status_code == 200
    [row] = post.rows()
    expected = {
        "request_id": request_id(),
        "request_model": model,
        "request_user_id": "dev@example.com",
        "provider": "CUSTOM",
        "prompt_tokens": 200,
        "prompt_cache_read_tokens": 800,
        "prompt_cache_write_tokens": 100,
        "completion_tokens": 60,
        "cost": 0.01234,
        "delay_ms": 4333,
        "time_to_first_token": 321,
        "request_created_at": "2026-09-21T14:13:20.123+00:00",
        "response_created_at": "2026-09-21T14:13:24.456+00:00",
        "response_status": 200,
        "request_body": request,
        "response_body": response,
        "request_properties": {
            "opencode_message_id": "msg_01",
            "Helicone-Session-Id": "ses_1",
            "Helicone-Session-Path": "/opencode/m",
        },
    }
    assert {name: row[name] for name in expected} == expected


def test_without_the_union_the_worker_shows_the_envelope_as_the_request(post: Posting) -> None:
    body = envelope(union=False)
    post(WORKER, body)
    assert post.rows()[0]["request_body"] == body


@pytest.mark.parametrize(
    ("request_json", "response_json", "meta", "model"),
    [
        ({"_type": "tool", "toolName": "bash"}, {"_type": "tool"}, {}, "tool:bash"),
        ({"_type": "data", "name": "opencode.session"}, {"_type": "data"}, {}, "data:opencode.session"),
        ({"model": "asked"}, {"model": "answered"}, {}, "answered"),
        ({"model": "asked"}, {}, {}, "asked"),
        ({"model": "asked"}, {"model": "answered"}, {"Helicone-Model-Override": "forced"}, "forced"),
        ({"messages": []}, {}, {}, ""),
    ],
    ids=["tool", "data", "response", "request", "override", "none"],
)
@pytest.mark.parametrize("path", [WORKER, JAWN])
def test_the_model_that_is_shown(
    post: Posting,
    path: str,
    request_json: dict[str, Any],
    response_json: dict[str, Any],
    meta: dict[str, str],
    model: str,
) -> None:
    post(path, envelope(request=request_json, response=response_json or {"id": "x"}, meta=meta))
    assert post.rows()[0]["request_model"] == model


def test_without_the_union_the_worker_knows_only_the_responses_model(post: Posting) -> None:
    post(WORKER, envelope(request={"model": "asked"}, response={"id": "x"}, union=False))
    assert post.rows()[0]["request_model"] == ""


@pytest.mark.parametrize(
    ("path", "named", "provider"),
    [
        (WORKER, "ACME", "CUSTOM"),
        (JAWN, "ACME", "ACME"),
        (JAWN, None, "OPENAI"),
    ],
)
def test_the_provider_comes_from_the_workers_route_or_jawns_body(
    post: Posting, path: str, named: str | None, provider: str
) -> None:
    post(path, envelope() | {"provider": named})
    assert post.rows()[0]["provider"] == provider


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, (0, 0, 0, 0, 0)),
        ("rubbish", (0, 0, 0, 0, 0)),
        ({"prompt_tokens": 5, "completion_tokens": 7}, (5, 7, 0, 0, 0)),
        ({"completion_tokens": 7, "completion_tokens_details": {"reasoning_tokens": 3}}, (0, 4, 0, 0, 0)),
        ({"input_tokens": 5, "cache_read_input_tokens": 9}, (0, 0, 0, 0, 0)),
        ({"cost": "0.5"}, (0, 0, 0, 0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": 1e300}, (0, 0, 0, 0, 0)),
    ],
    ids=["none", "rubbish", "plain", "reasoning is lost", "anthropic shape", "cost as text", "absurd"],
)
def test_usage_is_counted_as_helicone_counts(post: Posting, usage: Any, expected: tuple[float, ...]) -> None:
    post(JAWN, envelope(response={"model": "m", "usage": usage}))
    [row] = post.rows()
    names = ("prompt_tokens", "completion_tokens", "prompt_cache_read_tokens", "prompt_cache_write_tokens", "cost")
    assert tuple(row[name] for name in names) == expected


def test_http_headers_win_over_meta(post: Posting) -> None:
    post(JAWN, envelope(meta={"helicone-user-id": "meta"}), Helicone_User_Id="http")
    assert post.rows()[0]["request_user_id"] == "http"


def test_latin_1_values_are_kept_and_trimmed(post: Posting) -> None:
    post(JAWN, envelope(meta={"Helicone-Property-Place": " caf\u00e9\n", "Helicone-Property-N": 7}))
    properties = post.rows()[0]["request_properties"]
    assert (properties["place"], properties["n"]) == ("caf\u00e9", "7")


def test_lone_surrogates_are_stored_as_replacement_characters(post: Posting) -> None:
    text = rb'{"model":"m","text":"\ud800"}'
    body = json.dumps(envelope(union=False)).encode()
    body = body.replace(json.dumps(envelope()["providerRequest"]["json"]).encode(), text)
    assert post(JAWN, body).status_code == 200
    assert post.rows()[0]["request_body"]["text"] == "\ufffd"


def test_a_text_body_wins_over_json(post: Posting) -> None:
    post(JAWN, broken("providerResponse", textBody="plain words"))
    assert post.rows()[0]["response_body"] == "plain words"


def test_jawn_takes_times_that_the_worker_refuses(post: Posting) -> None:
    timing = {"startTime": moment(START_MS), "endTime": moment(START_MS - 5)}
    assert post(JAWN, envelope() | {"timing": timing}).status_code == 200
    assert post.rows()[0]["delay_ms"] == -5
    assert post(WORKER, envelope() | {"timing": timing}).status_code == 400


@pytest.mark.parametrize(("path", "latency_ms"), [(WORKER, 1000), (JAWN, 0)])
def test_without_timing_it_happened_now(post: Posting, path: str, latency_ms: int) -> None:
    body = envelope()
    del body["timing"]
    assert post(path, body).status_code == 200
    assert post.rows()[0]["delay_ms"] == latency_ms


def test_garbage_times_are_accepted_by_jawn_and_never_stored(post: Posting) -> None:
    answer = post(JAWN, envelope() | {"timing": {"startTime": "yesterday", "endTime": {}}})
    assert (answer.status_code, answer.content) == (200, b"")
    assert post.rows() == []


def test_timing_without_a_start_breaks_the_worker(post: Posting) -> None:
    answer = post(WORKER, envelope() | {"timing": {"endTime": moment(START_MS)}})
    assert (answer.status_code, answer.headers["helicone-error"]) == (500, "true")
    assert "helicone-message" in answer.json()


# --- replace by key --------------------------------------------------------------------------------------------------


def test_an_equal_key_replaces_and_the_last_send_wins(post: Posting, running: Receiver) -> None:
    for n in range(3):
        post(JAWN, envelope(response={"model": "acme/one", "n": n}, meta={"Helicone-Property-N": str(n)}))
    [row] = running.rows()
    assert (row.sends, json.loads(row.log.response_body)["n"], row.log.properties["n"]) == (3, 2, "2")
    assert len(post.rows()) == 1


@pytest.mark.parametrize(
    "changed",
    [
        envelope(response={"model": "acme/two"}),
        envelope(start_ms=START_MS + 1),
        envelope(meta={"Helicone-User-Id": "someone"}),
        envelope(meta={"Helicone-Request-Id": request_id("another")}),
        envelope() | {"provider": "ACME"},
    ],
    ids=["model", "start", "user", "id", "provider"],
)
def test_a_differing_key_is_one_more_row_for_ever(post: Posting, running: Receiver, changed: dict[str, Any]) -> None:
    post(JAWN, envelope())
    post(JAWN, changed)
    assert [row.sends for row in running.rows()] == [1, 1]
    assert len(post.rows()) == 2


def test_both_routes_share_the_store(post: Posting, running: Receiver) -> None:
    post(JAWN, envelope())
    post(WORKER, envelope())
    assert [row.sends for row in running.rows()] == [2]


def test_organisations_see_only_their_own_and_keys_are_not_kept(http: httpx.Client, running: Receiver) -> None:
    one, two = (Posting(http, running.url, api_key(letter)) for letter in "ab")
    one(JAWN, envelope())
    two(WORKER, envelope())
    assert (len(one.rows()), len(two.rows())) == (1, 1)
    owners = [running.organisation(api_key(letter)) for letter in "ab"]
    assert [row.organisation for row in running.rows()] == sorted(str(owner) for owner in owners)
    assert [send.organisation for send in running.sends()] == owners
    kept = b"".join(path.read_bytes() for path in running.store.parent.iterdir())
    assert api_key("a").encode() not in kept


# --- reading back ----------------------------------------------------------------------------------------------------


def of_session(session: str) -> dict[str, Any]:
    return {"request_response_rmt": {"properties": {"Helicone-Session-Id": {"equals": session}}}}


def leaf(column: str, operator: str, value: Any) -> dict[str, Any]:
    return {"request_response_rmt": {column: {operator: value}}}


def joined(left: Any, operator: str, right: Any) -> dict[str, Any]:
    return {"left": left, "operator": operator, "right": right}


@pytest.fixture
def filled(post: Posting) -> Posting:
    for n in range(6):
        meta = {
            "Helicone-Request-Id": request_id(str(n)),
            "Helicone-Session-Id": f"ses_{n % 2}",
            "Helicone-Session-Name": "opencode: project",
            "Helicone-Session-Path": f"/opencode/ses_{n % 2}/msg-{n}",
        }
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "cost": 0.5}
        post(JAWN, envelope(meta=meta, start_ms=START_MS + n * 1000, response={"model": "m", "usage": usage}))
    return post


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("all", [5, 4, 3, 2, 1, 0]),
        (leaf("request_id", "equals", request_id("3")), [3]),
        (leaf("request_id", "equals", "unknown"), []),
        (of_session("ses_1"), [5, 3, 1]),
        (leaf("request_created_at", "gt", "2026-09-21T14:13:23.123Z"), [5, 4]),
        (leaf("request_created_at", "gte", "2026-09-21T14:13:23.123+00:00"), [5, 4, 3]),
        (leaf("properties", "Helicone-Session-Path", {"like": "/opencode/ses_0/%"}), [4, 2, 0]),
        (joined(of_session("ses_1"), "and", leaf("request_created_at", "lt", "2026-09-21T14:13:23Z")), [1]),
        (joined(leaf("request_id", "equals", request_id("0")), "or", of_session("ses_1")), [5, 3, 1, 0]),
    ],
    ids=["all", "id", "no id", "session", "later", "not earlier", "path", "and", "or"],
)
def test_rows_are_found_by_filter(filled: Posting, query: Any, expected: list[int]) -> None:
    assert [row["request_id"] for row in filled.rows(query)] == [request_id(str(n)) for n in expected]


def test_rows_come_in_pages_and_in_either_order(filled: Posting) -> None:
    pages = [filled.rows(limit=4, offset=offset, sort={"created_at": "asc"}) for offset in (0, 4, 8)]
    assert [[row["request_id"] for row in page] for page in pages] == [
        [request_id(str(n)) for n in numbers] for numbers in ([0, 1, 2, 3], [4, 5], [])
    ]


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"left": "all", "operator": "xor", "right": "all"},
        leaf("request_body", "equals", "x"),
        leaf("request_id", "equals; drop table log", "x"),
        leaf("request_created_at", "gt", "yesterday"),
        {"request_response_rmt": {"a": {}, "b": {}}},
    ],
    ids=["empty", "operator", "column", "injection", "time", "two columns"],
)
def test_a_filter_that_the_receiver_does_not_know_is_said_to_be_one(post: Posting, query: Any) -> None:
    answer = post(QUERY, {"filter": query})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_the_demo_orders_a_session_as_helicone_shows_it(post: Posting, running: Receiver) -> None:
    paths = ["/o", "/o/msg-1", "/o/msg-1/tool-task/child", "/o/msg-2", "/o/msg-1/tool-bash", "/o/msg-10", "/o/msg-2"]
    for n, path in enumerate(paths):
        meta = {"Helicone-Request-Id": request_id(str(n)), "Helicone-Session-Path": path}
        post(JAWN, envelope(meta=meta, start_ms=START_MS + n))
    assert [row.path for row in in_tree(running.rows())] == [
        "/o",
        "/o/msg-1",
        "/o/msg-1/tool-task/child",
        "/o/msg-1/tool-bash",
        "/o/msg-2",
        "/o/msg-2",
        "/o/msg-10",
    ]


# --- faults and what arrived -----------------------------------------------------------------------------------------


def test_scripted_answers_come_in_order_and_store_nothing(post: Posting, running: Receiver) -> None:
    running.fault(
        {"status": 503, "headers": {"Retry-After": "1"}, "times": 2},
        {"status": 200, "body": {"error": "Error logging"}},
    )
    answers = [post(WORKER, envelope()) for _ in range(4)]
    assert [(one.status_code, one.text) for one in answers] == [
        (503, ""),
        (503, ""),
        (200, '{"error": "Error logging"}'),
        (200, "ok"),
    ]
    assert answers[0].headers["retry-after"] == "1"
    assert [row.sends for row in running.rows()] == [1]


def test_a_fault_for_one_route_lets_the_other_pass(post: Posting, running: Receiver) -> None:
    running.fault({"status": 404, "route": "jawn", "times": 2})
    assert [post(path, envelope()).status_code for path in (JAWN, WORKER, JAWN, JAWN)] == [404, 200, 404, 200]


def test_a_blind_helicone_stores_and_shows_nothing(post: Posting, running: Receiver) -> None:
    running.fault({"route": "read", "blind": True, "times": 2})
    assert post(JAWN, envelope()).status_code == 200
    assert [len(post.rows()) for _ in range(3)] == [0, 0, 1]
    assert len(running.rows()) == 1


def test_faults_of_reading_back_let_posts_pass_and_others_let_queries_pass(post: Posting, running: Receiver) -> None:
    error = {"error": "connect ECONNREFUSED 127.0.0.1:5432"}
    running.fault({"route": "read", "status": 401, "body": error}, {"status": 503})
    assert [post(JAWN, envelope()).status_code for _ in range(2)] == [503, 200]
    query = {"filter": "all"}
    answers = [post(QUERY, query) for _ in range(2)]
    assert [(one.status_code, one.json().get("error")) for one in answers] == [(401, error["error"]), (201, None)]


@pytest.mark.parametrize(
    ("earlier_ms", "rows"),
    [(0, 0), (1, 0), (START_MS % 1000, 0), (START_MS % 1000 + 1, 1), (1_000, 1), (2_000, 1)],
)
def test_a_time_that_is_cut_to_seconds_misses_rows_of_that_second(
    post: Posting, running: Receiver, earlier_ms: int, rows: int
) -> None:
    # As on ClickHouse's engine 26.9.2: the row is later than the time, and is left out until the second is another.
    running.fault({"route": "read", "cut_since": True})
    post(JAWN, envelope())
    since = datetime.fromtimestamp((START_MS - earlier_ms) / 1000, UTC).isoformat()
    query = {"filter": {"request_response_rmt": {"request_created_at": {"gt": since}}}}
    found = [len(post(QUERY, query).json()["data"]) for _ in range(2)]
    assert found == [rows, int(earlier_ms > 0)]


@pytest.mark.parametrize(("fault", "stored"), [("reset", 0), ("drop_after_store", 1)])
def test_a_connection_breaks_off_before_or_after_storing(
    post: Posting, running: Receiver, fault: str, stored: int
) -> None:
    running.fault({fault: True})
    with pytest.raises(httpx.TransportError):
        post(WORKER, envelope())
    assert len(running.rows()) == stored
    assert [send.status for send in running.sends()] == [0]


def test_a_delayed_post_is_known_before_it_is_answered(http: httpx.Client, store: Path) -> None:
    with (
        servers.receiving(store, Fault(delay_ms=60_000)) as one,
        ThreadPoolExecutor(1) as pool,
        httpx.Client(trust_env=False, timeout=1) as hasty,
    ):
        slow = pool.submit(Posting(hasty, one.url), WORKER, envelope())
        wait_until(one.sends)
        assert [(send.status, send.request_id) for send in one.sends()] == [(0, request_id())]
        assert Posting(http, one.url)(WORKER, envelope()).status_code == 200, "others are not held up"
        assert isinstance(slow.exception(20), httpx.TimeoutException)


@pytest.mark.parametrize(
    "script",
    [{}, [1], [{"stat": 1}], [{"status": "1"}], [{"times": -1}], [{"headers": 1}], [{"route": "x"}], None],
    ids=["no list", "no object", "field", "type", "negative", "headers", "route", "nothing"],
)
def test_a_script_that_makes_no_sense_is_refused(post: Posting, script: Any) -> None:
    assert post("/_faults", script).status_code == 400


def test_a_web_page_cannot_script_faults(post: Posting) -> None:
    assert post("/_faults", b'[{"status": 500}]', content_type="text/plain").status_code == 415


def test_every_post_is_listed_with_the_sum_of_its_bytes(post: Posting, running: Receiver, http: httpx.Client) -> None:
    post(WORKER, envelope())
    post(JAWN, b"{")
    post(JAWN, envelope(), Helicone_Request_Id="from a header")
    sends = http.get(running.url + "/_sends").json()["sends"]
    assert [(send["route"], send["status"], send["request_id"]) for send in sends] == [
        (WORKER, 200, request_id()),
        (JAWN, 500, None),
        (JAWN, 200, "from a header"),
    ]
    assert sends[0]["sha256"] == sends[2]["sha256"] != sends[1]["sha256"]
    assert running.wire() == b"\n".join([json.dumps(envelope()).encode(), b"{", json.dumps(envelope()).encode()])


def test_a_text_that_quotes_an_id_is_not_taken_for_it(post: Posting, running: Receiver) -> None:
    quoted = '{"Helicone-Request-Id": "quoted"}'
    post(JAWN, envelope(request={"model": "m", "text": quoted}))
    assert running.sends()[0].request_id == request_id()


# --- the file and the server -----------------------------------------------------------------------------------------


def test_the_store_is_private_and_survives_a_restart(http: httpx.Client, store: Path) -> None:
    old = os.umask(0)
    try:
        with servers.receiving(store) as one:
            Posting(http, one.url)(JAWN, envelope())
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.parent.iterdir()}
    finally:
        os.umask(old)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(store.parent.stat().st_mode) == 0o700
    with servers.receiving(store) as one:
        assert len(Posting(http, one.url).rows()) == 1


def test_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with shelf.opened(tmp_path / "store.db"):
        pass
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table job (id integer primary key)")


@pytest.mark.parametrize(
    "make", [lambda path: path.write_bytes(b"no database" * 100), foreign_database], ids=["text", "another database"]
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "other.db"
    make(path)
    before = path.read_bytes(), path.stat().st_mode
    with pytest.raises(shelf.ReceiverStoreError, match=r"other\.db"), shelf.opened(path):
        pass
    assert (path.read_bytes(), path.stat().st_mode) == before


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(shelf.ReceiverStoreError, match=re.escape(str(tmp_path))), shelf.opened(tmp_path):
        pass


def test_twelve_connections_at_once_lose_nothing(http: httpx.Client, running: Receiver) -> None:
    text = "x" * 200_000

    def send(n: int) -> int:
        meta = {"Helicone-Request-Id": request_id(str(n))}
        body = envelope(meta=meta, request={"model": "m", "text": text}, start_ms=START_MS + n)
        return Posting(http, running.url)(WORKER if n % 2 else JAWN, body).status_code

    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(send, range(48)))
    assert statuses == [200] * 48
    assert [row.log.request_id for row in running.rows()] == [request_id(str(n)) for n in range(48)]


@pytest.mark.parametrize("host", ["192.168.1.1", "::", "example.com", ""])
def test_only_loopback_is_served(store: Path, host: str) -> None:
    with pytest.raises(ListenError, match="loopback"):
        server.serve(host=host, port=0, store_path=store)


def test_a_taken_port_is_said_to_be_taken(store: Path, running: Receiver) -> None:
    port = int(running.url.rsplit(":", 1)[1])
    with pytest.raises(ListenError, match=f"port {port}"):
        server.serve(host="127.0.0.1", port=port, store_path=store)


def test_a_script_of_faults_is_read_before_serving(tmp_path: Path, store: Path) -> None:
    script = tmp_path / "faults.json"
    for content in (None, "{", "{}"):
        if content is not None:
            script.write_text(content)
        with pytest.raises(FaultError, match=r"faults\.json"):
            server.serve(host="127.0.0.1", port=0, store_path=store, faults_path=script)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com",
        "evil.example.com:80",
        "127.0.0.1.evil.example.com",
        "10.0.0.1",
        "",
        "localhost@evil",
        "[::2]",
        "::2",
    ],
)
@pytest.mark.parametrize("path", ["/_sends", "/nowhere"])
def test_a_name_that_is_not_of_this_machine_is_refused(
    running: Receiver, http: httpx.Client, path: str, host: str
) -> None:
    """A web page whose own name was made to point here (DNS rebinding) says that name."""
    refused = http.get(running.url + path, headers={"host": host})
    assert refused.status_code == 403
    assert "loopback" in refused.text
    assert http.post(running.url + "/_faults", json=[{"status": 503}], headers={"host": host}).status_code == 403
    assert http.get(running.url + path).status_code != 403


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:8686", "127.1.2.3", "[::1]", "[::1]:8686"])
def test_every_name_of_this_machine_is_taken(running: Receiver, http: httpx.Client, host: str) -> None:
    assert http.get(running.url + "/_sends", headers={"host": host}).status_code == 200


def test_a_request_that_names_no_host_is_refused(running: Receiver) -> None:
    port = int(running.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /_sends HTTP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_its_own_key_is_random_private_and_the_same_after_a_restart(store: Path, tmp_path: Path) -> None:
    store.parent.mkdir()
    key = access.own_key(store)
    assert handler.is_well_formed(key)
    assert access.own_key(store) == key
    assert access.own_key(tmp_path / "another.db") != key
    assert stat.S_IMODE(store.with_name("store.db.key").stat().st_mode) == 0o600
    with servers.receiving(store):
        pass
    assert key.encode() not in store.read_bytes()


def test_receivers_that_keep_one_store_have_one_key(store: Path, tmp_path: Path) -> None:
    store.parent.mkdir()
    (tmp_path / "link.db").symlink_to(store)
    (tmp_path / "linked").symlink_to(store.parent)
    names = [store, tmp_path / "link.db", tmp_path / "linked" / store.name]
    for _ in range(50):
        store.with_name("store.db.key").unlink(missing_ok=True)
        at_once = threading.Barrier(len(names))

        def key(name: Path, at_once: threading.Barrier = at_once) -> str:
            at_once.wait()
            return access.own_key(name)

        with ThreadPoolExecutor(len(names)) as pool:
            assert len({*pool.map(key, names)}) == 1


def test_a_key_file_that_holds_no_key_is_named(store: Path) -> None:
    store.parent.mkdir()
    access.own_key(store)
    store.with_name("store.db.key").write_text("guessed\n")
    with pytest.raises(ReceiverError, match=r"store\.db\.key"):
        access.own_key(store)


SERVE = """
import sys
from pathlib import Path
from app.receiver.server import serve
serve(
    host="127.0.0.1", port=0, store_path=Path(sys.argv[1]), faults_path=Path(sys.argv[2]),
    on_listening=lambda url, key, _page: print(url, key, flush=True),
)
print("stopped")
"""


@pytest.mark.slow
def test_it_serves_as_a_process_until_interrupted(http: httpx.Client, tmp_path: Path, store: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text('[{"status": 503}]')
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, store, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url, key = process.stdout.readline().split()
        post = Posting(http, url, key)
        statuses = [post(WORKER, envelope()).status_code for _ in range(2)]
        # No other key is known, however well formed; the worker's way to say so is 200.
        assert "unknown" in Posting(http, url)(WORKER, envelope()).text
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert statuses == [503, 200]
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_no_thread_outlives_a_receiver(store: Path) -> None:
    before = threading.active_count()
    with servers.receiving(store):
        pass
    assert threading.active_count() == before
