"""The encoder: what is a record, when a turn takes several, and what of a body was written by somebody."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from hypothesis import given

from app.exporters.encoder import Encoder
from app.exporters.otlp import encoder
from app.exporters.otlp.ids import span_id, trace_id
from app.exporters.otlp.messages import BYTES_MAX
from app.exporters.otlp.protobuf import WireError
from app.transcript.model import Tool, Turn
from tests.support import recorded
from tests.support.generated_turns import turns
from tests.support.spans import attributes, frame, records, request, seen, transcript

ENCODER: Encoder = encoder
"""It has what the rest of the program asks of one."""


def with_outputs(turn: Turn, output: str) -> Turn:
    return replace(
        turn,
        messages=tuple(
            replace(one, parts=tuple(replace(p, output=output) if isinstance(p, Tool) else p for p in one.parts))
            for one in turn.messages
        ),
    )


@pytest.fixture
def tools() -> Turn:
    return transcript("b_tools").turns[0]


def test_a_turn_is_one_record_and_a_session_alone_is_none(tools: Turn) -> None:
    (record,) = records(tools)
    assert ENCODER.count(tools) == 1
    assert uuid.UUID(record.request_id).hex == seen(record.body)[0].trace
    assert (record.kind, record.start_ms) == ("turn", tools.messages[0].created_ms)
    assert ENCODER.count(tools.session) == 0
    assert list(ENCODER.encode(tools.session, frame(tools))) == []


def test_ids_never_change() -> None:
    trace = trace_id("ses_a", "msg_b")
    assert trace.hex() == "43d8b4a39125cbb62c035abd41423f9f"
    assert span_id(trace, "ses_a", "msg_b", "agent").hex() == "69bf5beffbd5f7e6"


@given(turns())
def test_equal_turns_make_equal_bytes(turn: Turn) -> None:
    assert records(turn) == records(replace(turn))


def test_a_record_that_would_be_too_large_is_several(tools: Turn) -> None:
    call = next(one for one in tools.messages if any(isinstance(part, Tool) for part in one.parts))
    tool = next(part for part in call.parts if isinstance(part, Tool))
    many = tuple(replace(tool, id=f"prt_{number}", output="x" * 1_000_000) for number in range(40))
    turn = replace(tools, messages=(tools.messages[0], replace(call, parts=many)))
    found = records(turn)
    assert len(found) > 4
    assert all(len(record.body) <= encoder.BODY_BYTES_MAX for record in found)
    spans = seen(*(record.body for record in found))
    assert len({span.id for span in spans}) == len(spans) == 42
    assert [span.id for span in spans if not span.parent] == [seen(found[-1].body)[-1].id]
    assert uuid.UUID(found[-1].request_id).hex == spans[0].trace, "read back by the record that was accepted last"
    assert spans[-1].attributes["opencode.span.count"] == 42
    assert len({record.request_id for record in found}) == len(found)
    assert [record.request_id for record in found] == [record.request_id for record in records(turn)]


def test_a_text_over_a_mebibyte_is_cut_and_says_so(tools: Turn) -> None:
    (record,) = records(with_outputs(tools, "ü" * BYTES_MAX))
    results = [s.attributes["gen_ai.tool.call.result"] for s in seen(record.body) if "execute_tool" in s.name]
    assert results
    for result in results:
        assert BYTES_MAX - 4 < len(result.encode()) <= BYTES_MAX
        assert result.endswith("characters cut by opencode-helicone]")


def test_the_resource_names_nobody(tools: Turn) -> None:
    (record,) = records(tools, user_id="someone")
    (resource,) = request(record.body).resource_spans
    assert attributes(resource.resource.attributes) == {"service.name": "opencode", "service.version": "1.18.33"}
    assert str(tools.session.directory) not in str(resource.resource)


def test_what_was_written_is_found_in_a_body(tools: Turn) -> None:
    (record,) = records(with_outputs(tools, "a planted word"))
    found = repr(ENCODER.texts_of(record.body))
    assert "a planted word" in found
    assert tools.session.title is not None
    assert tools.session.title in found
    assert tools.session.id not in found


@pytest.mark.parametrize("name", recorded.names())
def test_every_text_of_a_recording_is_found(name: str) -> None:
    for turn in transcript(name).turns:
        for record in records(turn):
            found = repr(ENCODER.texts_of(record.body))
            for span in seen(record.body):
                for said in ("input.value", "output.value", "gen_ai.tool.call.result"):
                    assert repr(span.attributes.get(said, ""))[1:-1] in found


def test_no_body_has_no_texts() -> None:
    with pytest.raises(WireError):
        ENCODER.texts_of(b'{"providerRequest": {}}')


def test_a_trial_is_one_span_that_is_its_whole_trace() -> None:
    request_id = uuid.uuid4()
    (span,) = seen(ENCODER.trial(request_id, 1_764_000_000_000))
    assert (span.trace, span.start_ns) == (request_id.hex, 1_764_000_000_000 * 10**6)
    assert span.attributes == {"opencode.span.count": 1}
