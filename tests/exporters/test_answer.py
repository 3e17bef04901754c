"""What another side answers is looked over before it is parsed."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.exporters.answer import DEPTH_MAX, VALUES_MAX, AnswerError, TooManyValuesError, parsed
from app.exporters.client import OverlongError, ReadBackError
from app.exporters.encoder import Shown
from app.exporters.helicone.client import READ_BACK_BYTES_MAX, Client
from app.operations.remote import Remote
from app.recall.compare import look
from app.recall.expected import ExpectedContent
from tests.support.servers import answer, api_key, scripted

IDS = [uuid.uuid5(uuid.NAMESPACE_URL, str(n)) for n in range(3)]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab\\"[]{},:\n\u2028\U0001f30d'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='a\\"[{,'), inner),
)


@pytest.mark.slow
@given(values, st.booleans())
def test_what_is_not_too_much_is_what_json_says(value: object, ascii_only: bool) -> None:  # noqa: FBT001 - drawn
    told = json.dumps(value, ensure_ascii=ascii_only)
    assert parsed(told) == parsed(told.encode()) == value


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.slow
@pytest.mark.parametrize("unit", [b"[]", b"{}", b"0", b'""', b'{"":0}'], ids=repr)
def test_too_many_values_are_refused_and_as_many_as_may_be_are_read(unit: bytes) -> None:
    with pytest.raises(TooManyValuesError):
        parsed(b"[" + b",".join([unit] * (VALUES_MAX + 1)) + b"]")
    assert len(parsed(b"[" + b",".join([unit] * (VALUES_MAX // 3)) + b"]")) == VALUES_MAX // 3


def test_signs_in_strings_are_no_values() -> None:
    text = json.dumps(["[{," * VALUES_MAX, '\\"[' * VALUES_MAX])
    assert len(parsed(text)) == 2


def test_what_is_nested_too_deep_is_refused_and_as_deep_as_may_be_is_read() -> None:
    assert parsed(nested(DEPTH_MAX))
    with pytest.raises(AnswerError, match="deeper"):
        parsed(nested(DEPTH_MAX + 1))
    with pytest.raises(AnswerError, match="deeper"):
        parsed(b'{"a":' * (DEPTH_MAX + 1) + b"0" + b"}" * (DEPTH_MAX + 1))
    assert len(parsed(json.dumps("[" * 10_000))) == 10_000


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_in_another_encoding_than_utf_8_is_refused(encoding: str) -> None:
    """Its bytes hide brackets in letters, and letters in brackets."""
    for text in ('{"data": []}', '["\\"", ' + "[" * 100_000, '["' + "\u5b22" * 9 + '"]'):
        with pytest.raises(AnswerError):
            parsed(text.encode(encoding))
    assert parsed('{"data": []}'.encode("utf-8-sig")) == {"data": []}


@pytest.mark.parametrize("text", [b"", b'"', b'"\\', b"\xff", b"]" * 9, b"9" * 5_000, b'["a', "\ud800"], ids=repr)
def test_what_is_no_json_is_said_to_be_none(text: bytes | str) -> None:
    with pytest.raises(AnswerError, match="no JSON"):
        parsed(text)


# --- read back -------------------------------------------------------------------------------------------------------

MEASURED = """
import resource, sys, uuid
from contextlib import closing
from app.exporters.helicone.client import Client, ReadBackError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with closing(Client(sys.argv[1])) as client:
    try:
        client.stored(sys.argv[2], start_ms=0, request_ids=[uuid.UUID(int=1)])
    except ReadBackError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [60_000_000, READ_BACK_BYTES_MAX - 1_000], ids=["cut off", "just not cut off"])
def test_an_answer_of_nothing_but_lists_takes_little_more_memory_than_its_bytes(size: int) -> None:
    with scripted(answer(201, b'{"data":[' + b"[]," * (size // 3) + b"[]]}")) as server:
        run = [sys.executable, "-c", MEASURED, api_key(), server.url]
        said, mib = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said.startswith("reading back was answered with ")
    assert int(mib) * 2**20 < 5 * READ_BACK_BYTES_MAX


def test_of_too_many_values_less_is_asked_for() -> None:
    body = b'{"data":[' + b"0," * VALUES_MAX + b"0]}"
    with (
        scripted(answer(201, body)) as server,
        closing(Client(api_key())) as client,
        pytest.raises(OverlongError, match="values"),
    ):
        client.stored(server.url, start_ms=0, request_ids=IDS)


def test_an_answer_that_is_nested_too_deep_is_a_failure_that_says_so() -> None:
    body = b'{"data":' + nested(DEPTH_MAX) + b"}"
    with (
        scripted(answer(201, body)) as server,
        closing(Client(api_key())) as client,
        pytest.raises(ReadBackError, match="deep"),
    ):
        client.stored(server.url, start_ms=0, request_ids=IDS)


def test_a_body_that_is_json_in_a_string_is_looked_over_as_well() -> None:
    """As Helicone shows bodies that it could not parse itself."""
    row = {"request_id": str(IDS[0]), "request_body": nested(100_000).decode(), "response_body": "[" * 100_000}
    expected = ExpectedContent("ses_1", IDS[0], "/opencode/ses_1", 0, frozenset(), b"")
    with scripted(answer(201, json.dumps({"data": [row]}).encode())) as server, closing(Client(api_key())) as client:
        shown = client.shown(server.url, start_ms=0, request_ids=IDS)[IDS[0]]
        assert shown == [Shown(row["request_body"], row["response_body"])]
        (seen,) = look(Remote(client, server.url, 60).shown, [expected], end_s=0)
    assert seen.outcome == "still old"
