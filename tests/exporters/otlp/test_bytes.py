"""Our own writer of Protocol Buffers against Google's library, over all recordings and generated turns."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from app.exporters.otlp import protobuf
from app.transcript.model import Turn
from tests.support import recorded
from tests.support.generated_turns import turns
from tests.support.spans import records, request, transcript


def by_google(body: bytes) -> bytes:
    read = request(body)
    read.DiscardUnknownFields()
    written: bytes = read.SerializeToString(deterministic=True)
    return written


@pytest.mark.parametrize("name", recorded.names())
def test_a_recordings_bytes_are_googles(name: str) -> None:
    bodies = [record.body for turn in transcript(name).turns for record in records(turn)]
    assert bodies
    for body in bodies:
        assert by_google(body) == body


@given(turns(), st.booleans(), st.sampled_from(["", "someone"]))
def test_any_turns_bytes_are_googles(turn: Turn, interrupted: bool, user_id: str) -> None:  # noqa: FBT001
    (record,) = records(turn, interrupted=interrupted, user_id=user_id)
    assert by_google(record.body) == record.body


@given(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(min_codepoint=1)))
def test_values_are_read_as_they_were_written(number: int, real: float, text: str) -> None:
    assert AnyValue.FromString(protobuf.whole(3, number)).int_value == number
    assert AnyValue.FromString(protobuf.double(4, real)).double_value == real
    assert AnyValue.FromString(protobuf.text(1, text)).string_value == text.encode("utf-8", "replace").decode() or (
        "\ufffd" in AnyValue.FromString(protobuf.text(1, text)).string_value
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (protobuf.whole(3, 2**70), 2**63 - 1),
        (protobuf.whole(3, -(2**70)), -(2**63)),
        (protobuf.whole(3, 0), 0),
    ],
)
def test_a_number_that_does_not_fit_is_the_nearest(written: bytes, read: int) -> None:
    assert AnyValue.FromString(written).int_value == read


def test_a_time_that_does_not_fit_is_the_nearest() -> None:
    assert protobuf.fixed(7, 0) == protobuf.fixed(7, -1) == Span(start_time_unix_nano=0).SerializeToString() == b""
    assert Span.FromString(protobuf.fixed(7, 2**70)).start_time_unix_nano == 2**64 - 1


def test_what_has_no_utf8_or_no_place_in_postgresql_is_replaced() -> None:
    assert AnyValue.FromString(protobuf.text(1, "a\0b\ud800c😀")).string_value == "a\ufffdb\ufffdc😀"


def test_our_reader_reads_what_google_writes() -> None:
    pair = KeyValue(key="k", value=AnyValue(int_value=-5))
    found = dict(protobuf.fields(pair.SerializeToString()))
    assert found[1] == b"k"
    assert dict(protobuf.fields(bytes(found[2]))) == {3: 2**64 - 5}
    assert dict(protobuf.fields(Span(start_time_unix_nano=7).SerializeToString())) == {7: (7).to_bytes(8, "little")}


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(protobuf.WireError):
        assert all(field >= 0 for field, _ in protobuf.fields(data))


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x09abc", b"\x80" * 11, b"\x0b", b"\x08" + b"\x80" * 12])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(protobuf.WireError):
        list(protobuf.fields(data))
