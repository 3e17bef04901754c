"""What an OTLP receiver's answer means: one row of the measured tables each."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from app.exporters.otlp.answers import classify
from app.exporters.otlp.traits import Preset
from app.exporters.outcome import Kind

PRESETS: tuple[Preset, ...] = ("phoenix", "mlflow", "none")
HTML = b"<!DOCTYPE html><html><body>Please accept the terms of this network</body></html>"


def rejected(count: int, message: str = "") -> bytes:
    partial = ExportTracePartialSuccess(rejected_spans=count, error_message=message)
    written: bytes = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    return written


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("status", "body", "kind", "is_doubtful"),
    [
        (200, b"", "accepted", False),
        (204, b"", "accepted", False),
        (200, rejected(3, "too old"), "accepted", False),
        (200, HTML, "refused", False),
        (200, b"ok", "refused", False),
        (200, b'{"error": "no"}', "refused", False),
        (200, b"[]", "refused", False),
        (302, b"", "refused", False),
        (400, b'{"detail": "Invalid OpenTelemetry format"}', "permanent", True),
        (401, b"Invalid token", "refused", False),
        (403, b"", "refused", False),
        (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}', "refused", False),
        (405, b"", "refused", False),
        (408, b"", "wait", False),
        (413, b"", "permanent", True),
        (415, b"Unsupported content type", "permanent", True),
        (422, b"{}", "retry", True),
        (425, b"", "wait", False),
        (429, b"", "wait", False),
        (500, b"", "retry", False),
        (501, b"", "retry", False),
        (502, HTML, "wait", False),
        (503, b'{"error_code": "TEMPORARILY_UNAVAILABLE"}', "wait", False),
        (504, b"", "wait", False),
        (507, b"", "retry", False),
    ],
)
def test_what_an_answer_means(preset: Preset, status: int, body: bytes, kind: Kind, is_doubtful: bool) -> None:  # noqa: FBT001
    outcome = classify(preset, status, {}, body, 0)
    assert (outcome.kind, outcome.status, outcome.is_doubtful) == (kind, status, is_doubtful)


@pytest.mark.parametrize("body", [b"{}", b'{"partialSuccess": {}}', b'{"id": "a queued job"}'])
def test_json_that_tells_of_no_error_is_an_answer_of_a_receiver_that_is_not_known(body: bytes) -> None:
    assert [classify(preset, 200, {}, body, 0).kind for preset in PRESETS] == ["refused", "refused", "accepted"]


@pytest.mark.parametrize(
    ("body", "remark"),
    [
        (rejected(3, "too old"), "3 spans rejected: too old"),
        (rejected(0, "be careful"), "0 spans rejected: be careful"),
        (rejected(2), "2 spans rejected"),
        (rejected(0), ""),
        (b"", ""),
        (
            json.dumps({"partialSuccess": {"rejectedSpans": "4", "errorMessage": "late"}}).encode(),
            "4 spans rejected: late",
        ),
        (
            json.dumps({"partialSuccess": {"rejectedSpans": {}, "errorMessage": "late"}}).encode(),
            "some spans rejected: late",
        ),
    ],
)
def test_what_was_not_taken_is_a_remark_and_is_not_sent_again(body: bytes, remark: str) -> None:
    outcome = classify("none", 200, {}, body, 0)
    assert (outcome.kind, outcome.remark) == ("accepted", remark)


def test_a_remark_is_redacted_before_it_is_cut() -> None:
    body = rejected(1, "x" * 115 + "a secret word" + "y" * 500)
    remark = classify("none", 200, {}, body, 0, lambda text: text.replace("a secret word", "[gone]")).remark
    assert "secret" not in remark
    assert len(remark) <= 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no\\u0000 room\\n"}}', "error no room "),
        (b'{"message": "late"}', "error late"),
        (b'{"detail": "bad"}', "error bad"),
        (b'{"detail": [1]}', "JSON"),
        (b"", "empty body"),
        (HTML, "HTML"),
        (b"Invalid token", "text"),
        (b"\x80\x00", "text"),
    ],
)
def test_of_an_error_only_what_json_says_is_told(body: bytes, said: str) -> None:
    assert classify("none", 500, {}, body, 0).reason == f"500: {said}"


def test_when_to_ask_again_and_what_time_it_is_there_are_heard() -> None:
    headers = {"retry-after": "7", "date": "Thu, 01 Jan 1970 00:00:10 GMT"}
    outcome = classify("phoenix", 503, headers, b"", 0)
    assert (outcome.retry_after_ms, outcome.server_ms) == (7_000, 10_000)


@given(st.sampled_from(PRESETS), st.integers(100, 999), st.binary(max_size=60))
def test_any_answer_means_something(preset: Preset, status: int, body: bytes) -> None:
    outcome = classify(preset, status, {}, body, 0)
    assert len(outcome.reason) <= 200
    assert outcome.kind != "accepted" or status // 100 == 2
