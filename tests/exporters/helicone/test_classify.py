"""What each answer means, row by row, without a server; `test_client` has them over the wire."""

from __future__ import annotations

import json

import pytest

from app.exporters.helicone.client import classify
from app.exporters.outcome import REASON_CHARS_MAX, Kind
from app.runtime.url import RouteKind

ID = "7bd55f5f-8a7e-5b2c-9d4e-0d5c1de20000"
NOW_MS = 1_790_000_000_000


def error(text: object) -> bytes:
    return json.dumps({"error": text}).encode()


def meaning(kind: RouteKind, status: int, body: bytes, **headers: str) -> tuple[Kind, str]:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    outcome = classify(kind, status, told, body, ID, NOW_MS)
    assert outcome.status == status
    return outcome.kind, outcome.reason


@pytest.mark.parametrize(
    ("body", "echoed", "expected"),
    [
        (b"ok", ID, ("accepted", "200: ok")),
        (b" ok\n", ID.upper(), ("accepted", "200: ok")),
        (
            b"ok",
            ID[:-1] + "1",
            ("permanent", "200: Helicone replaced our request id, so it is malformed; please report this"),
        ),
        (b"OK", ID, ("refused", "200: not an answer of Helicone's worker (text)")),
        (b"", ID, ("refused", "200: not an answer of Helicone's worker (empty body)")),
        (b"<html>", ID, ("refused", "200: not an answer of Helicone's worker (HTML)")),
        (b'{"error": 5}', ID, ("refused", "200: not an answer of Helicone's worker (JSON)")),
        (b'["error"]', ID, ("refused", "200: not an answer of Helicone's worker (JSON)")),
        (error("AUTH failed! API key is unknown"), ID, ("refused", "200: error AUTH failed! API key is unknown")),
        (error("Auth: connect ECONNREFUSED 10.0.0.1"), ID, ("wait", "200: error Auth: connect ECONNREFUSED 10.0.0.1")),
        (error("cannot read it"), ID, ("retry", "200: error cannot read it")),
    ],
    ids=repr,
)
def test_200_of_a_worker(body: bytes, echoed: str, expected: tuple[Kind, str]) -> None:
    assert meaning("worker", 200, body, helicone_id=echoed) == expected


def test_an_id_is_the_same_in_either_case() -> None:
    assert classify("worker", 200, {"helicone-id": ID}, b"ok", ID.upper(), NOW_MS).kind == "accepted"


def test_200_of_a_worker_that_names_no_id() -> None:
    expected = ("refused", "200: ok, but without helicone-id: this is not Helicone's worker")
    assert meaning("worker", 200, b"ok") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", ("accepted", "200: stored, unverified")),
        (b"ok", ("refused", "200: not an answer of Helicone's API server (text)")),
        (b" ", ("refused", "200: not an answer of Helicone's API server (empty body)")),
        (error("no"), ("refused", "200: not an answer of Helicone's API server (error no)")),
    ],
    ids=repr,
)
def test_200_of_jawn(body: bytes, expected: tuple[Kind, str]) -> None:
    assert meaning("jawn", 200, body) == expected


@pytest.mark.parametrize("kind", ["worker", "jawn"])
@pytest.mark.parametrize(
    ("expected", "statuses"),
    [
        ("wait", (408, 425, 429)),
        ("retry", (500, 501, 502, 503, 504, 520, 530, 599)),
        ("permanent", (400, 413, 414, 415, 422, 431)),
        ("refused", (201, 204, 301, 302, 401, 402, 403, 404, 405, 410, 499)),
    ],
    ids=["wait", "retry", "permanent", "refused"],
)
def test_by_status_alone(kind: RouteKind, expected: Kind, statuses: tuple[int, ...]) -> None:
    assert {status: meaning(kind, status, b"x")[0] for status in statuses} == dict.fromkeys(statuses, expected)


@pytest.mark.parametrize("kind", ["worker", "jawn"])
def test_503_with_a_time_is_of_the_server_and_no_records_fault(kind: RouteKind) -> None:
    assert meaning(kind, 503, b"", retry_after="5")[0] == "wait"
    assert meaning(kind, 503, b"", retry_after="soon")[0] == "retry"
    assert meaning(kind, 500, b"", retry_after="5")[0] == "retry"


@pytest.mark.parametrize(
    ("status", "body", "by_worker", "by_jawn"),
    [
        (400, b"Invalid token.", "permanent", "refused"),
        (400, b" Invalid token.\n", "permanent", "refused"),
        (400, b"Invalid token", "permanent", "permanent"),
        (400, error("connect ECONNREFUSED"), "permanent", "permanent"),
        (401, error("connect ECONNREFUSED 127.0.0.1:5432"), "wait", "wait"),
        (401, error({"code": "ECONNRESET"}), "wait", "wait"),
        (401, b"connect ECONNREFUSED", "refused", "refused"),
        (401, error("ECONNREFUSEDLY"), "refused", "refused"),
        (401, b'[{"error": "ECONNREFUSED"}]', "refused", "refused"),
        (500, error("request entity too large"), "retry", "permanent"),
        (500, b'{"message": "Unexpected end of JSON input"}', "retry", "permanent"),
        (500, b'{"message": ["request entity too large"]}', "retry", "retry"),
        (500, b"request entity too large", "retry", "retry"),
        (499, error("request entity too large"), "refused", "refused"),
    ],
    ids=repr,
)
def test_by_what_the_body_says(status: int, body: bytes, by_worker: Kind, by_jawn: Kind) -> None:
    assert (meaning("worker", status, body)[0], meaning("jawn", status, body)[0]) == (by_worker, by_jawn)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty body"), (b" \n", "empty body"), (b"  <!DOCTYPE html>", "HTML"), (b"Xml", "text"),
        (b"{}", "JSON"), (b"[1]", "JSON"), (b"{", "JSON"), (b'{"error": null}', "JSON"), (b'{"error": {}}', "JSON"),
        (error({"message": "inner"}), "error inner"), (error({"message": 5}), "JSON"), (error(""), "error "),
        (error("a\nb\u202ec\x1bd"), "error a b c d"), (error("x" * 121), "error " + "x" * 120),
        (b"[" * 5_000, "JSON"), (b"\xff", "text"),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_of_a_body_its_kind_is_told_and_what_a_json_error_says(body: bytes, said: str) -> None:
    assert meaning("worker", 404, body)[1] == f"404: {said}"


def test_a_reason_has_a_bound_and_the_wait_that_was_asked_for_is_told() -> None:
    outcome = classify("worker", 200, {"retry-after": "3"}, error("y" * 500), ID, NOW_MS)
    assert outcome.retry_after_ms == 3_000
    assert len(meaning("worker", 429, error("y" * 500))[1]) == len("429: error ") + 120 <= REASON_CHARS_MAX
    moment = classify("jawn", 503, {"retry-after": "Sat, 19 Sep 2026 00:00:00 GMT"}, b"", ID, 1_789_775_990_000)
    assert moment.retry_after_ms == 10_000
